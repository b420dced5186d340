"""F120, F121, F124, F125, F129, F130, F134: speech around changes of the group, with nobody to hear it, and forged."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable

import pytest

from tests.faults.cells import covers
from tests.faults.groups import (
    ALICE,
    BOB,
    CAROL,
    FRAME,
    ROOM,
    Ears,
    Gate,
    back,
    decrypts,
    hears,
    in_one_group,
    in_the_gap,
    reports,
    roster,
    server_says,
    together,
    until,
)
from voicegw.errors import GroupError
from voicegw.events import Stamped
from voicegw.media.sources import ToneSource
from voicegw.server.channel import Channel
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    CommitAnnounced,
    EpochPrepared,
    SessionDescriptionReceived,
    TransitionExecuted,
    WelcomeReceived,
)
from voicegw.wire.rtp import SILENCE_FRAME, pack_header

WINDOWS_S = (0.1, 1.0, 10.0)


def opens(client: SimulatedClient, user_id: int, frame: bytes) -> bool:
    try:
        return client._group.decrypt(user_id, frame) == FRAME
    except GroupError:
        return False


# -- F120


@covers("F120")
@pytest.mark.parametrize("delay_s", [0.0, 5.0, 9.9, 10.1, 12.0])
def test_frames_of_the_group_before_are_heard_for_ten_seconds(delay_s: float) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        under_way = [bob._group.encrypt(FRAME) for _ in range(2)]
        sim.server.channel(ROOM).upgrade()
        await until(sim, lambda: alice._group.epoch == 0)  # the old group is gone, the new one not there
        switched = sim.loop.time()
        assert opens(alice, BOB, under_way[0])
        await until(sim, lambda: in_one_group(alice, bob))
        await asyncio.sleep(max(0.0, switched + delay_s - sim.loop.time()))
        assert opens(alice, BOB, under_way[1]) == (delay_s < 10)
        assert opens(alice, BOB, bob._group.encrypt(FRAME))
        assert reports(sim.server, ALICE) == 0

    Simulation(1).run(story)


@covers("F120")
def test_frames_that_are_ahead_of_their_epoch_cause_no_recovery(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        bob.play(ToneSource(440))
        await until(sim, lambda: BOB in alice.stats.users and alice.stats.users[BOB].packets > 10)
        stats = alice.stats.users[BOB]
        old = bob._group.encrypt(FRAME)
        gate = Gate(alice, CommitAnnounced)
        await carol.connect(ROOM)
        await until(sim, lambda: len(roster(bob)) == 3)
        await asyncio.sleep(1.5)  # he speaks in an epoch that she has not heard of
        assert stats.undecryptable > 40
        gate.let_in()
        await until(sim, lambda: in_one_group(alice, bob, carol))
        failed = stats.undecryptable
        await asyncio.sleep(2)
        assert stats.undecryptable - failed <= 2
        assert opens(alice, BOB, old)
        assert reports(sim.server, ALICE) == 0
        assert alice.way("dave").count("recovering") == 0

    Simulation(seed).run(story)


# -- F121


async def upgrade_at_once(sim: Simulation, alice: SimulatedClient, channel: Channel) -> None:
    """By op 24, then a group with transition id 0."""
    channel.upgrade()


async def upgrade_later(sim: Simulation, alice: SimulatedClient, channel: Channel) -> None:
    """By op 24, then a group whose transition waits for op 22."""
    gate = Gate(alice)

    def deferred(event: Stamped) -> Iterable[Stamped]:
        inner = event.event
        if isinstance(inner, CommitAnnounced):
            inner = CommitAnnounced(7, inner.commit)
        elif isinstance(inner, WelcomeReceived):
            inner = WelcomeReceived(7, inner.welcome)
        return (Stamped(event.source, event.generation, inner, event.seq),)

    gate.change = deferred
    channel.upgrade()
    await until(sim, lambda: alice.states["dave"] == "clear.switching")
    assert opens(alice, BOB, FRAME)  # until op 22 others speak in the clear
    gate.change = None
    server_says(alice, TransitionExecuted(7))


async def upgrade_by_description(sim: Simulation, alice: SimulatedClient, channel: Channel) -> None:
    """By another Session Description."""
    gate = Gate(alice)

    def described(event: Stamped) -> Iterable[Stamped]:
        if not isinstance(event.event, EpochPrepared):
            return (event,)
        session = sim.server.session(ALICE)
        again = SessionDescriptionReceived(session.mode, session.secret_key, 1)
        return (Stamped(event.source, event.generation, again, event.seq),)

    gate.change = described
    channel.upgrade()


@covers("F121")
@pytest.mark.parametrize("upgrade", [upgrade_at_once, upgrade_later, upgrade_by_description])
def test_frames_in_the_clear_are_taken_for_ten_seconds_after_an_upgrade(
    upgrade: Callable[[Simulation, SimulatedClient, Channel], object],
) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = (sim.client(user, policy="allow") for user in (ALICE, BOB))
        channel = sim.server.channel(ROOM)
        channel.downgrade()
        for client in (alice, bob):
            await client.connect(ROOM)
        assert opens(alice, BOB, FRAME)
        await upgrade(sim, alice, channel)  # type: ignore[misc]
        await until(sim, lambda: alice.states["dave"] == "active")
        begin = sim.loop.time()
        assert opens(alice, BOB, FRAME)
        await asyncio.sleep(9.9)
        assert opens(alice, BOB, FRAME)
        await asyncio.sleep(begin + 10.1 - sim.loop.time())
        assert not opens(alice, BOB, FRAME)
        carol = sim.client(CAROL)
        await together(sim, alice, bob, carol)  # another epoch does not open it again
        for user_id in (BOB, CAROL):
            assert not opens(alice, user_id, FRAME)
        assert decrypts(alice, bob)

    Simulation(1).run(story)


@covers("F121")
def test_a_call_that_was_always_encrypted_takes_nothing_in_the_clear() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        assert not opens(alice, BOB, FRAME)
        await together(sim, alice, bob, carol)
        assert not opens(alice, BOB, FRAME)
        bob.play(ToneSource(440))
        await until(sim, lambda: BOB in alice.stats.users and alice.stats.users[BOB].packets > 5)
        heard = alice.stats.users[BOB]
        bob.sender.release(None)  # a member that breaks the rules
        await asyncio.sleep(1)
        assert heard.undecryptable > 40

    Simulation(1).run(story)


# -- F124


@covers("F124")
def test_alone_the_clock_runs_and_the_first_listener_hears_at_once(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await alice.connect(ROOM)
        await until(sim, lambda: alice.states["dave"] == "waiting.alone")
        playback = alice.play(ToneSource(440))
        begin = sim.loop.time()

        def off_by() -> float:
            return abs(playback.position_s - (sim.loop.time() - begin))

        await asyncio.sleep(60)
        assert off_by() < 0.1
        assert ears.frames == []
        for _ in range(2):
            await bob.connect(ROOM)
            joined = sim.loop.time()
            await until(sim, lambda: BOB in alice.users and alice.states["speech"] == "speaking", seconds=2)
            count = len(ears.times(ALICE))
            await until(sim, lambda: len(ears.times(ALICE)) > count, seconds=2)  # noqa: B023
            assert sim.loop.time() - joined < 2
            await asyncio.sleep(1)
            await bob.close()
            await until(sim, lambda: alice.states["speech"] == "held.alone")
            count = len(ears.times(ALICE))
            await asyncio.sleep(10)
            assert len(ears.times(ALICE)) - count <= 2
            bob = sim.client(BOB)
        assert off_by() < 1.0  # it waited while the groups were made
        assert ears.clear == []

    Simulation(seed).run(story)


@covers("F124")
def test_a_bot_may_choose_to_wait_while_it_is_alone() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE, real_time_while=()), sim.client(BOB)
        await alice.connect(ROOM)
        playback = alice.play(ToneSource(440, 1.0))
        await asyncio.sleep(60)
        assert playback.position_s == 0.0
        await bob.connect(ROOM)
        await playback.wait()
        await until(sim, lambda: bob.stats.users[ALICE].silence == 5)
        assert bob.stats.users[ALICE].packets == 55

    Simulation(1).run(story)


# -- F125


@covers("F125")
@pytest.mark.parametrize("what", ["join", "leave", "both"])
@pytest.mark.parametrize("lost", ["nothing", "all of it", "the commit"])
def test_who_came_and_went_during_the_gap_is_known_after_it(what: str, lost: str) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol, dora = (sim.client(user) for user in (ALICE, BOB, CAROL, 4))
        await together(sim, alice, bob, carol)
        await in_the_gap(sim, alice)
        session = sim.server.session(ALICE)
        known = session.seq
        everybody = [alice, bob, carol]
        if what != "join":
            await carol.close()
            everybody.remove(carol)
        if what != "leave":
            await dora.connect(ROOM)
            everybody.append(dora)
        others = [client for client in everybody if client is not alice]
        await until(sim, lambda: all(len(roster(one)) == len(everybody) for one in others), seconds=0.9)
        if lost != "nothing":
            about = {Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION, Opcode.DAVE_EXECUTE_TRANSITION}
            if lost == "all of it":
                about |= {Opcode.MLS_PROPOSALS}
            kept = [frame for frame in session.buffer if (frame.seq or 0) <= known or frame.op not in about]
            session.buffer.clear()
            session.buffer.extend(kept)
        await back(sim, alice)
        if lost != "nothing":
            sim.server.session(BOB).send(Opcode.CLIENT_FLAGS, {"user_id": "2", "flags": 1})
            session.send(Opcode.CLIENT_FLAGS, {"user_id": "2", "flags": 1})
        took = await until(sim, lambda: in_one_group(*everybody), seconds=5)
        assert took <= 2
        model = {client.user_id for client in everybody}
        assert all(roster(client) == model for client in everybody)
        assert reports(sim.server, ALICE) <= 1
        await hears(sim, alice, bob)
        await hears(sim, bob, alice)

    Simulation(1).run(story)


@covers("F125")
@pytest.mark.parametrize("op", [Opcode.MLS_KEY_PACKAGE, Opcode.MLS_COMMIT_WELCOME, Opcode.MLS_INVALID_COMMIT_WELCOME])
def test_what_we_said_last_is_said_again(op: Opcode) -> None:
    """The websocket breaks with our message on its way: a resume does not bring it."""

    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await alice.connect(ROOM)
        broken = False
        put = alice.gateway._put

        def lose(frame: str | bytes) -> None:
            nonlocal broken
            ours = frame[0] == op if isinstance(frame, bytes) else f'"op":{int(op)}' in frame
            if ours and not broken:
                broken = True
                sim.server.drop_socket(ALICE)
            else:
                put(frame)

        alice.gateway._put = lose  # type: ignore[method-assign]
        if op == Opcode.MLS_KEY_PACKAGE:
            server_says(alice, EpochPrepared(1, 1))
        await bob.connect(ROOM)
        if op == Opcode.MLS_INVALID_COMMIT_WELCOME:
            await until(sim, lambda: in_one_group(alice, bob))
            server_says(alice, WelcomeReceived(9, b"no welcome"))
        await until(sim, lambda: broken)
        await until(sim, lambda: in_one_group(alice, bob), seconds=5)
        await hears(sim, alice, bob)

    Simulation(1).run(story)


# -- F129


@covers("F129")
def test_no_trailer_is_believed() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        good = bob._group.encrypt(FRAME)
        trailer = range(len(good) - good[-3], len(good))
        forged = [good[:at] + bytes((value,)) + good[at + 1 :] for at in trailer for value in range(256)]
        long = b"\xff" * 9
        lies = itertools.product((b"", b"\x01", long + b"\x01", long), (b"", b"\x00\x7f", long * 2), range(0, 256, 5))
        forged += [FRAME + bytes(8) + nonce + ranges + bytes((size,)) + b"\xfa\xfa" for nonce, ranges, size in lies]
        forged += [good[:end] for end in range(len(good))]
        for frame in forged:
            is_dave_frame(frame)
            if frame != good:
                assert not opens(alice, BOB, frame)
        assert opens(alice, BOB, good)

        await hears(sim, bob, alice)
        heard = alice.stats.users[BOB]
        packets, wrong = heard.packets, heard.undecryptable
        inject_all = [frame for frame in forged[::9] if frame not in (good, b"")]
        await inject(sim, bob, inject_all)
        await asyncio.sleep(1)
        assert heard.undecryptable - wrong == len(inject_all)
        assert heard.packets - packets >= len(inject_all)
        assert alice.states["gateway"] == "ready"

    Simulation(1).run(story)


async def inject(sim: Simulation, speaker: SimulatedClient, frames: Iterable[bytes]) -> None:
    """The relay sends these frames of `speaker` to everybody else, as fresh packets, 20 ms apart."""
    session = sim.server.session(speaker.user_id)
    for frame in frames:
        await asyncio.sleep(0.02)
        sender = speaker.sender
        header = pack_header(sender._sequence, sender._timestamp, session.ssrc)
        sender._sequence = (sender._sequence + 1) & 0xFFFF
        sim.server.relay._forward(session, header, frame)


# -- F130


@covers("F130")
def test_a_frame_that_the_relay_repeats_is_heard_once(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        opened: list[bytes] = []

        def decrypt(user_id: int, frame: bytes) -> bytes:
            opened.append(alice._group.decrypt(user_id, frame))
            return opened[-1]

        alice.receiver.use_decrypt(decrypt)
        await hears(sim, bob, alice)
        await asyncio.sleep(0.5)
        heard = alice.stats.users[BOB]
        speech = [frame for _, user, frame in ears.frames if user == BOB and frame != SILENCE_FRAME]
        assert len(opened) == len(speech) + 5
        assert heard.undecryptable == 0
        await inject(sim, bob, speech[:: 1 if seed else -1])
        await asyncio.sleep(1)
        assert heard.undecryptable == len(speech)
        assert len(opened) == len(speech) + 5

    Simulation(seed).run(story)


# -- F134


@covers("F134")
@pytest.mark.parametrize("policy", ["hold", "real time"])
@pytest.mark.parametrize("window_s", WINDOWS_S)
def test_what_is_lost_while_e2ee_is_not_ready_is_what_the_policy_says(
    policy: str, window_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        reasons = ("not ready",) if policy == "real time" else ()
        alice, bob = sim.client(ALICE, real_time_while=reasons), sim.client(BOB)
        await together(sim, alice, bob)
        playback = alice.play(ToneSource(440, 20.0))
        await until(sim, lambda: len(ears.times(ALICE)) > 50)
        caplog.clear()
        gate = Gate(alice, WelcomeReceived, CommitAnnounced)
        sim.server.channel(ROOM).upgrade()
        await until(sim, lambda: alice.states["speech"] == "held.not_ready")
        position = playback.position_s
        began = sim.loop.time()
        await asyncio.sleep(window_s)
        gate.let_in()
        await until(sim, lambda: alice.states["speech"] == "speaking", seconds=3)
        lasted = sim.loop.time() - began
        moved = playback.position_s - position
        about_speech = [record for record in caplog.records if "held" in record.getMessage()]
        assert len(about_speech) == 2
        await playback.wait()
        await asyncio.sleep(0.5)
        speech = [frame for _, user, frame in ears.frames if user == ALICE and len(frame) > 3]
        if policy == "hold":
            assert moved <= 0.06
            assert len(speech) == 1000
        else:
            assert moved == pytest.approx(lasted, abs=0.06)
            assert len(speech) == pytest.approx(1000 - lasted / 0.02, abs=4)
        assert ears.clear == []
        assert caplog.text.count("frame") == 0

    with caplog.at_level(logging.DEBUG, logger="voicegw"):
        Simulation(1).run(story)
