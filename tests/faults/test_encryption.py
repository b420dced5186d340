"""Faults of transport keys and their nonces: what repeats one, wears one out, or lets somebody else in."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.calls import CHANNEL, Hum, Wire, media_address, pair, public_address, simulate
from tests.faults.cells import covers
from tests.faults.worlds import in_phase
from voicegw.effects import Closed, Notice, SendSelectProtocol, SpeakingChanged, UseKey
from voicegw.errors import KeyExhausted, NoCommonMode
from voicegw.events import SocketClosed
from voicegw.media import sender as sender_module
from voicegw.media.opener import OLD_KEY_S, PacketOpener
from voicegw.media.sender import READY_FRAMES, StreamSender
from voicegw.secret import Secret
from voicegw.server.session import ServerSession
from voicegw.testing.simulation import Simulation
from voicegw.testing.world import MEDIA, World
from voicegw.wire.encryption import (
    AES_256_GCM,
    PREFERRED_MODES,
    XCHACHA20_POLY1305,
    KeyTable,
    NonceCounter,
    TransportCipher,
    choose_mode,
)
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import ReadyReceived
from voicegw.wire.rtp import pack_header

_keys = itertools.count(700_000)
FIRST, LIMIT, RENEW = 2**31, 2**32 - 1, 2**31


def a_key() -> Secret[bytes]:
    """One that no other test uses."""
    return Secret(next(_keys).to_bytes(32, "big"))


def nonce(datagram: bytes) -> int:
    """The counter at the end of a datagram."""
    return int.from_bytes(datagram[-4:], "little")


@covers("F78")
def test_a_million_packets_have_a_million_nonces() -> None:
    counter = KeyTable().counter(a_key())
    assert [counter.spend() for _ in range(1_000_000)] == [*range(FIRST, FIRST + 1_000_000)]
    sent: list[bytes] = []

    def send(data: bytes) -> bool:
        sent.append(data)
        return True

    sender = StreamSender(lambda: None)
    sender.configure(TransportCipher(AES_256_GCM, a_key()), 1, send)
    sender.release(None)
    for _ in range(20_000):
        sender.send(b"frame")
    assert [nonce(data) for data in sent] == [*range(FIRST, FIRST + 20_000)]


@covers("F79")
def test_the_same_key_again_goes_on_counting(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = a_key().reveal()

    def describe(session: ServerSession, mode: str, keep_key: bool = False) -> None:
        session.secret_key, session.mode, session.described = Secret(key), mode, True
        session.cipher = TransportCipher(mode, session.secret_key, "server")

    monkeypatch.setattr(ServerSession, "describe", describe)

    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, bob = await pair(sim)  # every voice session, theirs and ours, has the same key
        for client in (alice, bob):
            client.play(Hum())
        for turn in range(3):
            session = sim.server.session(1)
            if phase == "H":
                await sim.server.close_socket(1, 4006)  # a new session; its description comes twice
                await alice.wait_for(lambda: alice.states["gateway"] == "identifying.awaiting_session_description", 9)
            elif phase == "U":
                sim.server.drop_socket(1)
            await alice.wait_for(lambda: alice.states["gateway"] == "ready", 9)
            session = sim.server.session(1)
            for _ in range(2):
                session.send(Opcode.SESSION_DESCRIPTION, description(session.mode, key))
            await asyncio.sleep(2 + turn)
        spent = [number for client in (alice, bob) for _, _, number in wire.media(client)]
        assert len(spent) == len(set(spent)) > 600
        forgotten = max(spent) - min(spent) + 1 - len(spent)  # what was ready when a session ended is sealed anew
        assert forgotten <= 2 * 3 * 3 * READY_FRAMES

    simulate(story)


def description(mode: str, key: bytes) -> dict[str, object]:
    """Op 4."""
    return {"mode": mode, "secret_key": list(key), "dave_protocol_version": 1}


@covers("F80")
def test_no_packet_leaves_at_the_limit() -> None:
    for uses, allowed in ((LIMIT - 2, 2), (LIMIT - 1, 1), (LIMIT, 0)):
        cipher = TransportCipher(AES_256_GCM, a_key())
        cipher.counter.uses = uses
        sent: list[bytes] = []
        worn = itertools.count()
        sender = StreamSender(lambda worn=worn: next(worn))  # type: ignore[misc]
        sender.configure(cipher, 1, lambda data, sent=sent: not sent.append(data))  # type: ignore[misc]
        sender.release(None)
        assert [sender.send(b"frame") for _ in range(4)] == [True] * allowed + [False] * (4 - allowed)
        assert [nonce(data) for data in sent] == [(FIRST + uses + number) % 2**32 for number in range(allowed)]
        assert next(worn) == 4 - allowed  # it is said each time
        with pytest.raises(KeyExhausted):
            cipher.seal(b"header", b"frame")


@covers("F80")
@pytest.mark.parametrize(("uses", "worn"), [(RENEW - 1, False), (RENEW, True), (RENEW + 1, True)])
def test_a_key_is_worn_at_half_its_uses(uses: int, worn: bool) -> None:
    cipher = TransportCipher(AES_256_GCM, a_key())
    cipher.counter.uses = uses
    assert cipher.worn is worn


@covers("F80")
def test_a_worn_key_is_replaced_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "CHECK_WEAR_EVERY", 64)

    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, bob = await pair(sim)
        alice.play(Hum())
        await asyncio.sleep(1)
        cipher = alice.sender._cipher
        assert cipher is not None
        cipher.counter.uses = RENEW - 10
        await asyncio.sleep(4)
        assert alice.sender._cipher is not cipher
        assert alice.way("gateway")[-1] == "ready"
        assert alice.way("gateway").count("ready") == 1
        gaps = [after[0] - before[0] for before, after in itertools.pairwise(wire.media(alice))]
        assert max(gaps) < 0.021
        stats = bob.stats.users[1]
        assert stats.lost == 0
        assert alice.stats.packets - stats.packets - stats.lost <= 5

    simulate(story)


SERVERS_BEGIN = (
    *(0, 1, 2**20, FIRST - 2**21, FIRST - 2**20 - 10, FIRST - 10),
    *(FIRST + ahead for ahead in (2, 60, 1000, 2**20 - 1, 2**20, 2**24)),
    *(random.Random(81).sample(range(2**32), 20)),
)


@covers("F81")
@pytest.mark.parametrize("begin", SERVERS_BEGIN)
def test_both_directions_never_use_one_nonce_before_it_is_said(begin: int) -> None:
    key = a_key()
    server = TransportCipher(AES_256_GCM, key, "server")
    server._spend = NonceCounter(begin).spend
    ours = TransportCipher(AES_256_GCM, key)
    alarms: list[int] = []
    opener = PacketOpener(lambda: 0.0, lambda: alarms.append(1))
    opener.use_key(ours)
    sent: set[int] = set()
    received: set[int] = set()
    for turn in range(60):  # 25 speakers come for each packet of ours
        sent.add(nonce(ours.seal(b"h" * 12, b"frame")))
        for speaker in range(25):
            data = server.seal(pack_header(turn, turn * 960, speaker), b"frame")
            opener.open(data)
            received.add(nonce(data))
        assert alarms or not sent & received, turn
    assert opener.authentic == 60 * 25
    assert len(alarms) <= 1
    assert len(sent) == 60
    if begin in (0, 1, 2**20, FIRST + 2**24):
        assert not alarms


@covers("F82")
def test_three_senders_of_one_key_never_share_a_nonce() -> None:
    cipher = TransportCipher(AES_256_GCM, a_key())
    sealed: list[list[int]] = [[], [], []]

    def work(mine: list[int], count: int) -> None:
        mine += [nonce(cipher.seal(b"h" * 12, b"")) for _ in range(count)]

    async def task(mine: list[int]) -> None:
        for _ in range(100):
            work(mine, 300)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(task(sealed[0]), task(sealed[1]))

    thread = threading.Thread(target=work, args=(sealed[2], 40_000))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # between any two steps
    try:
        thread.start()
        asyncio.run(both())
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    together = [number for mine in sealed for number in mine]
    assert len(together) == 100_000
    assert set(together) == set(range(FIRST, FIRST + 100_000))


class Interrupted(NonceCounter):
    """A counter during whose every look at the count another thread runs."""

    count = 0

    @property
    def uses(self) -> int:
        seen = self.count
        time.sleep(0)
        return seen

    @uses.setter
    def uses(self, value: int) -> None:
        self.count = value


@covers("F82")
def test_a_thread_that_comes_between_takes_the_next_nonce() -> None:
    counter = Interrupted(FIRST)
    spent: list[int] = []
    threads = [threading.Thread(target=lambda: spent.extend(counter.spend() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(spent) == [*range(FIRST, FIRST + 2000)]


@covers("F83")
def test_a_nonce_is_spent_whatever_becomes_of_its_packet(seed: int) -> None:
    chance = random.Random(seed)
    cipher = TransportCipher(AES_256_GCM, a_key())
    tried: list[int] = []

    def send(data: bytes) -> bool:
        tried.append(nonce(data))
        draw = chance.random()
        if draw < 0.1:
            raise asyncio.CancelledError
        return draw > 0.5

    sender = StreamSender(lambda: None)
    sender.configure(cipher, 1, send)
    sender.release(None)
    left = 0
    for _ in range(2000):
        try:
            left += sender.send(b"frame")
        except asyncio.CancelledError:
            continue
    assert tried == [*range(FIRST, FIRST + 2000)]
    assert 700 < left < 1300


@covers("F84")
@pytest.mark.parametrize("a_second", [1, 100, 5000])
def test_forged_packets_touch_neither_streams_nor_flags(a_second: int) -> None:
    spoken: list[list[SpeakingChanged]] = []
    taken: list[int] = []

    def note(notice: Notice) -> None:
        if isinstance(notice, SpeakingChanged):
            spoken[-1].append(notice)

    def story_with(forged: bool) -> None:
        async def story(sim: Simulation) -> None:
            alice, bob = await pair(sim)
            spoken.append([])
            alice.add_listener(note)
            bob.play(Hum())
            await asyncio.sleep(0.5)
            ssrcs = (bob.session.shared.ssrc, 0xDEAD, alice.session.shared.ssrc)
            for number in range(a_second if forged else 0):
                data = pack_header(number, number, ssrcs[number % 3]) + random.Random(number).randbytes(80)
                sim.network.forge(media_address(sim.network), public_address(alice), data)
                if number % 50 == 49:
                    await asyncio.sleep(50 / a_second)
            await asyncio.sleep(1 if forged else 2)
            assert alice.receiver.counters["rejected"] == (a_second if forged else 0)
            assert alice.receiver.counters["before its user was known"] == 0
            stats = alice.stats.users[2]
            assert (stats.lost, stats.errors, stats.late) == (0, 0, 0)
            taken.append(bob.stats.packets - stats.packets)

        simulate(story)

    story_with(False)
    story_with(True)
    assert spoken[0] == spoken[1]
    assert taken[1] <= taken[0] + 1


@covers("F89")
def test_the_old_key_opens_for_ten_seconds_and_is_gone_then() -> None:
    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, bob = await pair(sim)
        bob.play(Hum())
        await asyncio.sleep(1)
        old = alice.sender._cipher
        assert old is not None
        counter, late = old.counter, server_datagrams(sim, wire)[-1]
        del old
        sim.server.session(1).describe(AES_256_GCM)
        session = sim.server.session(1)
        session.send(Opcode.SESSION_DESCRIPTION, description(AES_256_GCM, session.secret_key.reveal()))
        await asyncio.sleep(OLD_KEY_S - 0.1)
        before = alice.receiver.opener.authentic, alice.receiver.counters["rejected"]
        sim.network.forge(media_address(sim.network), public_address(alice), late)
        await asyncio.sleep(0.05)
        assert alice.receiver.counters["replayed"] == 1  # it opened, and was known
        assert alice.receiver.counters["rejected"] == before[1]
        await asyncio.sleep(0.2)
        assert ciphers_of(counter) == []
        sim.network.forge(media_address(sim.network), public_address(alice), late)
        await asyncio.sleep(0.05)
        assert alice.receiver.counters["replayed"] == 1
        assert alice.receiver.counters["rejected"] == before[1] + 1

    simulate(story)


@covers("F89")
@pytest.mark.parametrize("after_s", [0.0, 5.0, 9.99, 10.0, 10.01])
def test_a_late_packet_is_heard_inside_the_overlap(after_s: float) -> None:
    now = 100.0
    key = a_key()
    opener = PacketOpener(lambda: now)
    opener.use_key(TransportCipher(AES_256_GCM, key))
    late = TransportCipher(AES_256_GCM, key, "server").seal(pack_header(1, 960, 7), b"frame")
    opener.use_key(TransportCipher(AES_256_GCM, a_key()))
    now += after_s
    assert (opener.open(late) is not None) == (after_s < OLD_KEY_S)


def server_datagrams(sim: Simulation, wire: Wire) -> list[bytes]:
    """The media that the server has sent so far."""
    server = media_address(sim.network)[0]
    return [one.data for one in wire.sent if one.host == server and one.data[1] == 120]


@covers("F90")
def test_every_packet_is_heard_once_however_often_and_late_it_comes() -> None:
    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, bob = await pair(sim)
        playback = bob.play(Hum())
        replayed = 0
        for later_s in (1, 30, 60, 540):
            await asyncio.sleep(later_s)
            past = server_datagrams(sim, wire)
            stats = alice.stats.users[2]
            if later_s == 30:  # more packets than any window is long
                playback.stop()
                await asyncio.sleep(1)
            before = bob.stats.packets - stats.packets
            for data in past:
                sim.network.forge(media_address(sim.network), public_address(alice), data)
            await asyncio.sleep(0.5)
            replayed += len(past)
            assert abs(bob.stats.packets - stats.packets - before) <= 2
        counters = alice.receiver.counters
        assert counters["replayed"] + counters["rejected"] >= replayed - 10
        assert alice.stats.users[2].late == 0

    simulate(story)


DEPRECATED = (
    "xsalsa20_poly1305_lite_rtpsize",
    "aead_aes256_gcm",
    "xsalsa20_poly1305",
    "xsalsa20_poly1305_suffix",
    "xsalsa20_poly1305_lite",
    "none_of_ours",
)


def every_offer() -> Iterator[tuple[str, ...]]:
    """Every subset, in every order of the two live modes and what stands around them."""
    for size in range(len(DEPRECATED) + 1):
        for others in itertools.combinations(DEPRECATED, size):
            for live in ((), (AES_256_GCM,), (XCHACHA20_POLY1305,), PREFERRED_MODES, PREFERRED_MODES[::-1]):
                for place in range(size + 1):
                    yield (*others[:place], *live, *others[place:])


@covers("F91")
def test_the_best_common_mode_is_chosen_from_every_offer() -> None:
    for offered in every_offer():
        for refused in ((), (AES_256_GCM,), (XCHACHA20_POLY1305,), PREFERRED_MODES):
            usable = [mode for mode in PREFERRED_MODES if mode in offered and mode not in refused]
            if usable:
                assert choose_mode(offered, refused) == usable[0]
            else:
                with pytest.raises(NoCommonMode):
                    choose_mode(offered, refused)


@covers("F91")
@pytest.mark.parametrize("offered", [(), DEPRECATED, PREFERRED_MODES[1:], PREFERRED_MODES[::-1], PREFERRED_MODES])
def test_a_call_takes_the_best_mode_or_ends_with_a_word(offered: tuple[str, ...]) -> None:
    world = in_phase("H")
    world.unanswered.clear()
    world.server(ReadyReceived(7, MEDIA, 50004, offered))
    world.until(lambda: world.states["call"] in ("connected", "closed"), 10)
    usable = [mode for mode in PREFERRED_MODES if mode in offered]
    if usable:
        assert [effect.mode for effect in world.sent(UseKey) if isinstance(effect, UseKey)] == usable[:1]
    else:
        assert isinstance(closed_with(world), NoCommonMode)


@covers("F91")
def test_a_refused_mode_is_replaced_once() -> None:
    world = in_phase("H")
    world.unanswered = {"SendSelectProtocol"}
    world.server(ReadyReceived(7, MEDIA, 50004, PREFERRED_MODES))
    world.settle()
    world.server(SocketClosed(4016), numbered=False)
    world.until(lambda: len(world.sent(SendSelectProtocol)) == 2, 60)
    world.server(SocketClosed(4016), numbered=False)
    world.until(lambda: world.states["call"] == "closed", 60)
    modes = [one.mode for one in world.sent(SendSelectProtocol) if isinstance(one, SendSelectProtocol)]
    assert modes == [AES_256_GCM, XCHACHA20_POLY1305]


def closed_with(world: World) -> object:
    """Why a call ended."""
    return next(notice.error for notice in world.notices if isinstance(notice, Closed))


def test_a_call_that_ends_forgets_its_keys() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(1)
        await alice.connect(CHANNEL)
        cipher = alice.sender._cipher
        assert cipher is not None
        counter = cipher.counter
        del cipher
        await alice.close()
        assert ciphers_of(counter) == []

    simulate(story)


def ciphers_of(counter: NonceCounter) -> list[TransportCipher]:
    """What in this process still holds the key of a counter."""
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, TransportCipher) and one.counter is counter]
