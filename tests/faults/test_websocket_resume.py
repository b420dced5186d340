"""Faults of resumes: refused, unanswered, replayed, renumbered, and media meanwhile (faults F42 to F50)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.faults.hands import says
from tests.faults.raw_server import CHANNEL, HELLO, dialled, home_again, scripted
from tests.faults.rekey import a_key, describe_again, pair
from tests.faults.worlds import in_phase
from voicegw.effects import (
    ApplyCommit,
    HoldStream,
    MediaLost,
    MediaRestored,
    Notice,
    Resumed,
    SendHeartbeat,
    SendIdentify,
    SendResume,
    SendVoiceState,
    UsersChanged,
)
from voicegw.errors import Kicked
from voicegw.events import SocketClosed, SocketOpened, VoiceServerUpdated, VoiceStateUpdated
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.world import CHANNEL as WORLD_CHANNEL
from voicegw.testing.world import ENDPOINT, OTHER, World
from voicegw.wire.opcodes import Opcode

SOON_S = 120.0


def resuming() -> World:
    """A world whose Resume is out, and not answered."""
    world = in_phase("U")
    world.unanswered.add("SendResume")
    world.server(SocketOpened(), numbered=False)
    assert world.states["gateway"] == "resuming.awaiting_resumed"
    return world


# -- F42, F43, F49: no way back into the session


async def refused(sim: Simulation, code: int | None) -> SimulatedClient:
    """A client whose Resume was answered with a close."""
    async with scripted(sim) as server:
        client, _ = await dialled(sim, "U")
        peer = await server.accept()
        await peer.upgrade()
        seen = await peer.heard(Opcode.RESUME)
        assert seen["token"] == client.credentials.token.reveal()
        peer.say(HELLO)
        if code is None:
            peer.writer.transport.abort()
        else:
            peer.close(code)
        await client.wait_for(lambda: client.states["gateway"] == "closed.down")
        assert len(server.dials) == 1
        home_again(sim)
    return client


async def comes_back_afresh(sim: Simulation, client: SimulatedClient, old: Any) -> None:
    """One new pair, one Identify with it, and never another Resume."""
    await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
    assert client.credentials.session_id != old.session_id
    assert client.credentials.token != old.token
    assert sim.server.records(None, Opcode.RESUME, "in") == []  # the one went to the server that refused it
    assert len(sim.server.records(None, Opcode.IDENTIFY, "in")) == 2


@covers("F42")
@pytest.mark.parametrize("code", [4006, 4009])
def test_a_refused_resume_is_followed_by_a_fresh_join_at_once(code: int) -> None:
    async def story(sim: Simulation) -> None:
        client = await refused(sim, code)
        old = client.session.shared.credentials
        assert client.states["call"] == "joining.asking"
        await comes_back_afresh(sim, client, old)

    Simulation(seed=1).run(story)


@covers("F42", "U")
@pytest.mark.parametrize("moved", [True, False])
def test_4014_in_answer_to_a_resume_waits_for_the_main_gateway(moved: bool) -> None:
    world = resuming()
    resumed = len(world.sent(SendResume))
    joins = len(world.sent(SendVoiceState))
    world.server(SocketClosed(4014), numbered=False)
    assert world.states["call"] == "waiting.verdict"
    world.unanswered.clear()
    if moved:
        world.feed(VoiceStateUpdated(WORLD_CHANNEL + 1, Secret("moved")))
        world.feed(VoiceServerUpdated(Secret("moved"), ENDPOINT))
        world.until(lambda: world.states["gateway"] == "ready", 10.0)
        assert len(world.sent(SendIdentify)) == 2
        assert len(world.sent(SendVoiceState)) == joins
    else:
        assert world.until(lambda: world.states["call"] == "closed", 10.0) == pytest.approx(5.0)
        assert isinstance(world.session.call.error, Kicked)
    assert len(world.sent(SendResume)) == resumed == 1


@covers("F43")
def test_an_unanswered_resume_becomes_a_fresh_join_at_the_deadline() -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, "U")
            old = client.credentials
            peer = await server.accept()
            await peer.upgrade()
            await peer.heard(Opcode.RESUME)
            begin = sim.loop.now
            peer.say(HELLO)  # and heartbeats are answered: it is only the resume that nobody cares for
            answering = asyncio.create_task(_answer_beats(peer))
            await client.wait_for(lambda: client.states["gateway"] == "closed.down", 60.0)
            assert sim.loop.now - begin == pytest.approx(5.0, abs=0.05)
            home_again(sim)
            await comes_back_afresh(sim, client, old)
            answering.cancel()

    Simulation(seed=1).run(story)


async def _answer_beats(peer: Any) -> None:
    while True:
        beat = await peer.heard(Opcode.HEARTBEAT)
        peer.say({"op": 6, "d": {"t": beat["t"]}})


@covers("F49")
@pytest.mark.parametrize("code", [4006, 4009, 4000, 1000, 1001, 1011, 4015, None])
def test_a_close_after_resume_is_a_fresh_join(code: int | None) -> None:
    async def story(sim: Simulation) -> None:
        client = await refused(sim, code)
        await comes_back_afresh(sim, client, client.session.shared.credentials)

    Simulation(seed=1).run(story)


# -- F44: media go on


@covers("F44")
@pytest.mark.parametrize("away_s", [0.2, 2.0, 9.5])
def test_no_packet_is_missing_while_the_websocket_is_away(away_s: float) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        sent: list[float] = []
        sim.server.relay.tap = lambda user_id, datagram: sent.append(sim.loop.now)
        alice.play(ToneSource(440, 60))
        bob.play(ToneSource(330, 60))
        await asyncio.sleep(1.0)
        sim.network.name_delay_s = away_s
        sim.server.drop_socket(1)
        await alice.wait_for(lambda: alice.states["gateway"] == "resuming.dialling")
        begin = sim.loop.now
        heard = alice.stats.users[2].packets
        await alice.wait_for(lambda: alice.states["gateway"] == "ready", 20.0)
        away = sim.loop.now - begin
        assert away >= away_s
        assert alice.stats.users[2].packets - heard >= away / 0.02 - 3
        await asyncio.sleep(1.0)
        window = [at for at in sent if begin - 0.1 <= at <= begin + away + 0.1]
        gaps = [later - earlier for earlier, later in zip(window[:-2], window[2:], strict=True)]
        assert max(gaps) < 0.045  # two streams of 20 ms share this tap
        assert not [
            step for step in alice.history if step.machine == "speech" and step.before == "speaking" != step.after
        ]

    Simulation(seed=1).run(story)


@covers("F44", "U")
def test_the_stream_is_not_held_during_a_resume() -> None:
    world = in_phase("U", speaking=True)
    assert world.states["speech"] == "speaking"
    held = len(world.sent(HoldStream))
    world.unanswered.clear()
    world.advance(3.0)
    world.server(SocketOpened(), numbered=False)
    world.settle()
    assert world.states["gateway"] == "ready"
    assert len(world.sent(HoldStream)) == held


# -- F45: control is back, the path is not


@covers("F45")
@pytest.mark.parametrize("healed_after_s", [3.0, 60.0])
def test_a_path_that_is_dead_after_a_resume_is_noticed_told_and_replaced(phase: str, healed_after_s: float) -> None:
    """In U the path dies with the websocket, in R just after the resume. A new socket helps, or a new session."""

    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        notices: list[Notice] = []
        alice.add_listener(notices.append)
        alice.play(ToneSource(440, 600))
        await bob.wait_for(lambda: 1 in bob.stats.users and bob.stats.users[1].packets > 5)
        if phase == "U":
            alice.system.udp_in.down = alice.system.udp_out.down = True
        sim.server.drop_socket(1)
        await alice.wait_for(lambda: any(isinstance(notice, Resumed) for notice in notices))
        resumed_at = sim.loop.now
        alice.system.udp_in.down = alice.system.udp_out.down = True
        await alice.wait_for(lambda: any(isinstance(notice, MediaLost) for notice in notices), 10.0)
        assert sim.loop.now - resumed_at <= 2.0
        await asyncio.sleep(max(0.0, resumed_at + healed_after_s - sim.loop.now))
        sessions = len(sim.server.records(None, Opcode.IDENTIFY, "in"))
        assert (sessions == 2) == (healed_after_s < 5.0)  # a new socket first, then a fresh session
        alice.system.udp_in.down = alice.system.udp_out.down = False
        healed_at, heard = sim.loop.now, bob.stats.users[1].packets
        await bob.wait_for(lambda: bob.stats.users[1].packets > heard + 20, 60.0)
        assert sim.loop.now - healed_at <= 45.0  # the longest wait between two attempts is 30 s
        if healed_after_s < 5.0:
            assert any(isinstance(notice, MediaRestored) for notice in notices)
            assert sim.loop.now - healed_at <= 2.0

    Simulation(seed=1 if phase == "U" else 2).run(story)


@covers("F45", "RU")
def test_a_path_that_answers_after_a_resume_is_left_alone(phase: str) -> None:
    """Whether the first probe is lost or not: nothing is opened, selected or said."""

    async def story(sim: Simulation) -> None:
        alice, _ = await pair(sim)
        notices: list[Notice] = []
        alice.add_listener(notices.append)
        opened = len(sim.server.records(1, Opcode.SELECT_PROTOCOL, "in"))
        if phase == "R":
            sim.server.faults.ignore_discovery = 1
        sim.server.drop_socket(1)
        await alice.wait_for(lambda: any(isinstance(notice, Resumed) for notice in notices))
        await asyncio.sleep(10.0)
        assert alice.states["transport"] == "open"
        assert not [notice for notice in notices if isinstance(notice, MediaLost)]
        assert len(sim.server.records(1, Opcode.SELECT_PROTOCOL, "in")) == opened

    Simulation(seed=1).run(story)


# -- F46: another key around the resume


@covers("F46")
@pytest.mark.parametrize("place", ["before op 9", "with op 9", "after op 9"])
def test_a_new_key_around_a_resume_is_used_from_then_on(
    phase: str, place: str, sealed: list[tuple[bytes, bytes]]
) -> None:
    """In U the Session Description comes before Resumed or in the same read, in R right after."""

    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        alice.play(ToneSource(440, 60))
        await bob.wait_for(lambda: 1 in bob.stats.users and bob.stats.users[1].packets > 5)
        session = sim.server.session(1)
        seq = session.seq
        sim.server.faults.withhold.add(Opcode.RESUMED)
        sim.server.drop_socket(1)
        await sim.server.wait_for(lambda: bool(sim.server.records(None, Opcode.RESUME, "in")))
        key = a_key(40 + ("before op 9", "with op 9", "after op 9").index(place))
        if place == "before op 9":
            describe_again(sim, 1, key)
            await asyncio.sleep(0.5)
            assert alice.states["gateway"] == "resuming.awaiting_resumed"
        sim.server.send_raw(1, '{"op":9,"d":null}')
        if place == "after op 9":
            await alice.wait_for(lambda: alice.states["gateway"] == "ready")
        if place != "before op 9":
            describe_again(sim, 1, key)
        await asyncio.sleep(0.5)
        assert alice.states["gateway"] == "ready"
        assert session.seq == seq + 1
        sealed.clear()
        rejected, heard = session.counters["rejected"], bob.stats.users[1].packets
        await asyncio.sleep(1.0)
        assert {used for used, _ in sealed if used == key}  # and nothing of Alice's goes out under the old one
        assert session.counters["rejected"] == rejected
        assert bob.stats.users[1].packets - heard >= 45

    Simulation(seed=1 if phase == "U" else 2).run(story)


# -- F47: replayed messages


def said(number: int, kind: int, serial: int) -> str | bytes | dict[str, Any]:
    """One of three numbered messages: a user comes, a commit won (binary), a transition is in force."""
    if kind == 0:
        return {"op": 11, "seq": number, "d": {"user_ids": [str(1000 + serial)]}}
    if kind == 1:
        return number.to_bytes(2, "big") + b"\x1d" + (serial + 1).to_bytes(2, "big") + b"commit %d" % serial
    return {"op": 22, "seq": number, "d": {"transition_id": serial + 1}}


@covers("F47")
@pytest.mark.parametrize("count", [0, 1, 7, 200])
@pytest.mark.parametrize("twice", [False, True])
def test_every_missed_message_is_applied_once_in_order(count: int, twice: bool, seed: int) -> None:
    """Resumed comes somewhere among them; with `twice` the server begins its replay too early."""
    world = resuming()
    world.unanswered.add("SendTransitionReady")
    chance = random.Random(f"replay {count} {seed}")
    commits, users = len(world.sent(ApplyCommit)), set(world.session.shared.users)
    before = len([notice for notice in world.notices if isinstance(notice, UsersChanged)])
    first = world.session.shared.sequence.last + 1
    messages = [said((first + place) & 0xFFFF, place % 3, place // 3) for place in range(count)]
    resumed_at = chance.randrange(count + 1)
    epoch = world.session.dave.epoch
    for place, message in enumerate(messages):
        if place == resumed_at:
            says(world, {"op": 9, "d": None})
            assert world.states["gateway"] == "ready"
        says(world, message)
        world.settle()
        if twice and place and chance.random() < 0.5:
            for again in messages[max(0, place - 5) : place + 1]:
                says(world, again)
                world.settle()
    if resumed_at == count:
        says(world, {"op": 9, "d": None})
    assert world.states["gateway"] == "ready"
    applied = [effect.commit for effect in world.sent(ApplyCommit)[commits:] if isinstance(effect, ApplyCommit)]
    expected = [b"commit %d" % serial for serial in range((count + 1) // 3)]
    assert applied == expected
    joined = [notice for notice in world.notices if isinstance(notice, UsersChanged)][before:]
    assert [notice.joined for notice in joined] == [(1000 + serial,) for serial in range((count + 2) // 3)]
    assert world.session.shared.users == users | {1000 + serial for serial in range((count + 2) // 3)}
    assert world.session.dave.epoch == epoch + len(expected)
    assert world.session.shared.sequence.last == (first + count - 1) & 0xFFFF


@covers("F47", "U")
def test_a_group_that_changed_meanwhile_is_caught_up_with(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        carol = sim.client(3)
        sim.network.name_delay_s = 3.0
        sim.server.drop_socket(1)
        sim.network.name_delay_s = 0.01 if seed == 0 else 3.0
        await carol.connect(CHANNEL)
        await alice.wait_for(lambda: alice.states["gateway"] == "ready", 20.0)

        def agreed() -> bool:
            codes = {client.privacy_code for client in (alice, bob, carol)}
            return len(codes) == 1 and "" not in codes

        await carol.wait_for(agreed, 20.0)
        assert len({client.epoch for client in (alice, bob, carol)}) == 1
        assert len(sim.server.records(None, Opcode.IDENTIFY, "in")) == 3

    Simulation(seed).run(story)


# -- F48: the number that is acknowledged

NUMBERS = [
    ([0], 0),
    ([0, 1], 1),
    ([32767], 32767),
    ([32767, 32768], 32768),
    ([65534, 65535], 65535),
    ([65535, 0], 0),
    ([65534, 65535, 0, 1], 1),
    ([40000, 3], 3),
]


@covers("F48")
@pytest.mark.parametrize(("numbers", "last"), NUMBERS, ids=[str(numbers) for numbers, _ in NUMBERS])
@pytest.mark.parametrize("kind", ["json", "binary", "mixed"])
def test_the_last_number_seen_is_acknowledged(phase: str, numbers: list[int], last: int, kind: str) -> None:
    world = in_phase("R") if phase == "R" else resuming()
    world.others = ()
    for place, number in enumerate(numbers):
        binary = kind == "binary" or (kind == "mixed" and place % 2 == 1)
        says(world, number.to_bytes(2, "big") + b"\xfe" if binary else {"op": 250, "seq": number, "d": None})
    says(world, {"op": 6, "d": {"t": 1}})  # without a number: it changes nothing
    assert world.session.shared.sequence.last == last
    if phase == "R":
        world.advance(5.0)
    else:
        says(world, HELLO)
    assert world.sent(SendHeartbeat)[-1] == SendHeartbeat(last)
    if phase == "U":
        says(world, {"op": 9, "d": None})
    world.unanswered.add("SendResume")
    world.server(SocketClosed(None), numbered=False)
    world.server(SocketOpened(), numbered=False)
    assert world.sent(SendResume)[-1] == SendResume(last)
    # a new session counts from nothing
    world.unanswered = {"SendIdentify"}
    world.server(SocketClosed(4006), numbered=False)
    world.until(lambda: world.states["gateway"] == "identifying.awaiting_ready", SOON_S)
    assert world.sent(SendHeartbeat)[-1] == SendHeartbeat(-1)


# -- F50: gaps, repeats, steps back


@covers("F50")
def test_odd_numbers_are_counted_and_corrupt_nothing(phase: str) -> None:
    world = in_phase("R") if phase == "R" else resuming()
    counters = world.session.shared.counters
    last = world.session.shared.sequence.last
    gateway = world.states["gateway"]

    def comes(number: int, user: int) -> bool:
        before = len(world.notices)
        says(world, {"op": 11, "seq": number & 0xFFFF, "d": {"user_ids": [str(user)]}})
        assert world.states["gateway"] == gateway
        assert world.session.shared.sequence.last == number & 0xFFFF
        return any(isinstance(notice, UsersChanged) for notice in world.notices[before:])

    assert comes(last + 1, 11)
    assert comes(last + 5, 12)  # a gap
    assert counters["sequence numbers skipped"] == (phase == "R")
    assert counters["sequence numbers lost"] == (phase == "U")  # the resume should have brought them
    assert not comes(last + 5, 12)  # the same once more
    assert counters["sequence numbers repeated"] == counters["messages replayed"] == 1
    assert comes(last + 5, 13)  # the same number, another message: it is not dropped
    assert counters["messages replayed"] == 1
    assert comes(last + 3, 14)  # a step back
    assert counters["sequence numbers stepped back"] == 1
    assert not comes(last + 1, 11)  # far back, and known
    assert counters["messages replayed"] == 2
    assert world.session.shared.users == {OTHER, 11, 12, 13, 14}
