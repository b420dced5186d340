"""Faults of the heart: zombies real and false, two hearts, asked beats, wrong answers, wrong beats (F33 to F38)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from tests.faults import schema
from tests.faults.cells import covers
from tests.faults.hands import says
from tests.faults.raw_server import CHANNEL
from tests.faults.worlds import in_phase
from voicegw.client import VoiceClient
from voicegw.effects import (
    AbortSocket,
    CloseSocket,
    Effect,
    OpenSocket,
    SendCommitWelcome,
    SendHeartbeat,
    SendIdentify,
    SendInvalidCommit,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
)
from voicegw.events import DeadlinePassed, LeaveRequested, SocketClosed
from voicegw.gateway import DiscordGatewayVoice
from voicegw.kokoro import Kokoro
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.testing.chaos import Chaos
from voicegw.testing.simulation import Simulation
from voicegw.wire.opcodes import Opcode

INTERVAL_S = 5.0
LAST_LOOK_S = 0.5

# -- F33: a zombie


@covers("F33")
def test_a_zombie_is_dropped_without_a_word_and_resumed(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        await client.connect(CHANNEL)
        await asyncio.sleep(7.0 + seed)
        sim.server.faults.ack_heartbeats = False
        beats = len(sim.server.records(1, Opcode.HEARTBEAT, "in"))
        await sim.server.wait_for(lambda: len(sim.server.records(1, Opcode.HEARTBEAT, "in")) > beats)
        unanswered_since = sim.loop.now - 0.02  # when it left; the way takes 20 ms
        await client.wait_for(lambda: client.states["gateway"] == "resuming.dialling", 60)
        sim.server.faults.ack_heartbeats = True
        assert sim.loop.now - unanswered_since <= 2 * INTERVAL_S + 1.0
        await client.wait_for(lambda: client.states["gateway"] == "ready")
        assert len(sim.server.records(None, Opcode.RESUME, "in")) == 1
        assert client.session.gateway.last_close_code is None

    Simulation(seed).run(story)


@covers("F33", "R")
@pytest.mark.parametrize("early_s", [0.1, 0.0, -0.1])
def test_death_comes_after_two_unanswered_beats_and_a_last_look_not_sooner(early_s: float) -> None:
    world = in_phase("R")
    world.unanswered.add("SendHeartbeat")
    world.advance(INTERVAL_S)  # this beat is the first that nobody answers
    world.advance(2 * INTERVAL_S + LAST_LOOK_S - early_s)
    dead = early_s <= 0.0
    assert len(world.sent(AbortSocket)) == len(world.sent(SendResume)) == dead
    assert world.sent(CloseSocket) == []
    beats = [at for at in world.times(SendHeartbeat) if at > 0.0]
    assert beats[:2] == pytest.approx([5.0, 10.0])


# -- F34: a stalled process with the answer in its buffer


@covers("F34")
@pytest.mark.parametrize("stall_s", [1.0, 6.0, 12.0, 30.0])
@pytest.mark.parametrize("begin_s", [0.01, 4.99, 9.99])
def test_an_answer_in_the_buffer_is_read_before_death_is_declared(stall_s: float, begin_s: float) -> None:
    """The process stands still just after a beat has left, or just before the next is due; the answers wait."""

    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        await client.connect(CHANNEL)
        await sim.server.wait_for(lambda: len(sim.server.records(1, Opcode.HEARTBEAT, "in")) == 2)
        await asyncio.sleep(begin_s)
        for _ in range(3):  # one stall after the other: overdue beats are in the game as well
            client.system.stall(stall_s)
            await asyncio.sleep(stall_s + 0.001)
        await asyncio.sleep(30.0)
        assert client.states["gateway"] == "ready"
        assert sim.server.records(None, Opcode.RESUME, "in") == []
        assert not [step for step in client.history if step.event == "heart_died"]

    # the server must not be the one that gives up first
    sim = Simulation(seed=1, policy="fifo")
    sim.server.heartbeat_interval_s = 60.0
    sim.run(story)


@covers("F34", "R")
def test_the_last_look_finds_an_answer_and_the_heart_beats_on() -> None:
    world = in_phase("R")
    world.unanswered.add("SendHeartbeat")
    world.advance(3 * INTERVAL_S)
    assert world.states["heartbeat"] == "beating.last_look"
    world.unanswered.clear()
    says(world, {"op": 6, "d": {"t": 1}})
    world.advance(60.0)
    assert world.states["gateway"] == "ready"
    assert world.sent(SendResume) == []
    beats = world.times(SendHeartbeat)
    assert beats[-12:] == pytest.approx([15.0 + 5.0 * number for number in range(1, 13)])  # 15.0 is made up for


@covers("F34", "R")
def test_a_late_timer_lets_the_reader_go_first() -> None:
    """All other deadlines do the same: here the answer to Resume lies in the buffer when its deadline is long over."""

    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        await client.connect(CHANNEL)
        sim.server.drop_socket(1)
        await sim.server.wait_for(lambda: bool(sim.server.records(None, Opcode.RESUME, "in")))
        client.system.stall(12.0)  # Resumed is on its way; 5 s are its deadline
        await asyncio.sleep(13.0)
        assert client.states["gateway"] == "ready"
        assert len(sim.server.records(None, Opcode.RESUME, "in")) == 1
        assert not [step for step in client.history if step.event == "resumed_timeout"]

    sim = Simulation(seed=1, policy="fifo")
    sim.server.heartbeat_interval_s = 60.0
    sim.run(story)


# -- F35: one heart


@covers("F35")
def test_a_hundred_reconnects_leave_one_heart(phase: str) -> None:
    world = in_phase(phase)
    world.unanswered.clear()
    for number in range(100):
        world.until(lambda: world.states["gateway"] == "ready", 120)
        if phase in "DH":  # a fresh session each time
            world.unanswered.add({"D": "OpenSocket", "H": "SendIdentify"}[phase])
            world.server(SocketClosed(4006), numbered=False)
            world.advance(1.0)
            world.unanswered.clear()
            world.server(SocketClosed(None), numbered=False)
        else:
            if phase == "U":
                world.unanswered.add("OpenSocket")
            world.server(SocketClosed(1001), numbered=False)
            world.unanswered.clear()
            if phase == "U":
                world.server(SocketClosed(1006), numbered=False)
        assert list(world.timers).count("beat_due") <= 1, number
    world.until(lambda: world.states["gateway"] == "ready", 120)
    world.settle()
    before = len(world.sent(SendHeartbeat))
    world.advance(10 * INTERVAL_S)
    assert len(world.sent(SendHeartbeat)) - before == 10
    world.feed(LeaveRequested())
    world.settle()
    assert world.timers == {}


@covers("F35", "R")
def test_the_real_client_beats_once_an_interval_after_reconnects() -> None:
    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        await client.connect(CHANNEL)
        for _ in range(20):
            sim.server.drop_socket(1)
            await client.wait_for(lambda: client.states["gateway"] != "ready")
            await client.wait_for(lambda: client.states["gateway"] == "ready")
        await asyncio.sleep(1.0)
        before = len(sim.server.records(1, Opcode.HEARTBEAT, "in"))
        await asyncio.sleep(50.0)
        assert len(sim.server.records(1, Opcode.HEARTBEAT, "in")) - before == 10
        await client.close()
        assert client._timers is not None
        assert len(client._timers) == 0

    Simulation(seed=1).run(story)


# -- F36: the server asks for a beat


@covers("F36")
@pytest.mark.parametrize("after_s", [0.1, 2.0, 4.9])
def test_an_asked_beat_comes_at_once_and_the_next_one_on_time(phase: str, after_s: float) -> None:
    world = in_phase(phase)
    world.advance(after_s)
    before = len(world.sent(SendHeartbeat))
    says(world, {"op": 3, "d": None})
    assert len(world.sent(SendHeartbeat)) == before + 1
    if phase == "H":
        world.unanswered.clear()
        says(world, {"op": 2, "d": {"ssrc": 7, "ip": "8.8.8.8", "port": 1, "modes": ["aead_aes256_gcm_rtpsize"]}})
    world.advance(11.0 - after_s)
    assert world.times(SendHeartbeat) == pytest.approx([0.0, after_s, 5.0, 10.0])


# -- F37: answers that do not fit


class Clock:
    """A loop, as far as a heart looks at it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        """The present."""
        return self.now


def heart() -> tuple[Kokoro, Clock]:
    """A heart on a clock."""
    clock = Clock()
    system = SimpleNamespace(wall_ms=lambda: 1_760_000_000_000 + int(clock.now * 1000))
    return Kokoro(cast(DiscordGatewayVoice, SimpleNamespace(loop=clock, client=SimpleNamespace(system=system)))), clock


def nonce_of(beat: str) -> int:
    """The `t` of a heartbeat."""
    nonce: int = json.loads(beat)["d"]["t"]
    return nonce


@covers("F37", "R")
def test_only_an_outstanding_answer_tells_a_latency() -> None:
    kokoro, clock = heart()
    first = nonce_of(kokoro.beat(0))
    clock.now += 0.25
    for odd in (None, 0, -1, first - 1, first + 1, 1 << 63):
        kokoro.answered(odd)
        assert kokoro.latency == Kokoro.DEFAULT_LATENCY
    kokoro.answered(first)
    assert kokoro.latency == pytest.approx(0.25)
    clock.now += 1000.0
    kokoro.answered(first)  # the same answer again tells nothing any more
    assert kokoro.latency == pytest.approx(0.25)
    old = nonce_of(kokoro.beat(0))
    clock.now += 5.0
    new = nonce_of(kokoro.beat(0))
    clock.now += 0.1
    kokoro.answered(new)
    assert kokoro.latency == pytest.approx(0.1)
    kokoro.answered(old)  # late, but true
    assert kokoro.latency == pytest.approx(5.1)
    asked = nonce_of(kokoro.beat(0))
    kokoro.begin()  # another websocket: its server can not know what was asked on the one before
    clock.now += 500.0
    kokoro.answered(asked)
    assert kokoro.latency == pytest.approx(5.1)


@covers("F37", "R")
@pytest.mark.parametrize(
    "d", [None, 7, -7, "7", {"t": None}, {"t": "7"}, {"t": 1.5}, {"t": True}, {"t": -(1 << 62)}, {}, []], ids=repr
)
def test_any_answer_counts_as_alive(d: Any) -> None:
    world = in_phase("R")
    world.unanswered.add("SendHeartbeat")
    world.advance(12.0)
    assert world.states["heartbeat"] == "beating.overdue"
    says(world, {"op": 6, "d": d})
    assert world.states["heartbeat"] == "beating.resting"


@covers("F37", "R")
def test_a_server_that_answers_wrongly_is_no_zombie_and_has_no_latency() -> None:
    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        sim.server.faults.ack_heartbeats = False
        await client.connect(CHANNEL)
        for nonce in (1, -1, 1 << 62, 1, 1):
            sim.server.send_raw(1, json.dumps({"op": 6, "d": {"t": nonce}}))
            await asyncio.sleep(INTERVAL_S)
        assert client.latency == Kokoro.DEFAULT_LATENCY
        assert client.states["gateway"] == "ready"
        assert not [step for step in client.history if step.event == "heart_died"]

    Simulation(seed=1).run(story)


# -- F38: one serializer, and a strict server

SENDS = (
    SendIdentify,
    SendResume,
    SendSelectProtocol,
    SendHeartbeat,
    SendSpeaking,
    SendTransitionReady,
    SendInvalidCommit,
    SendKeyPackage,
    SendCommitWelcome,
)
IN_THE_HANDSHAKE = (SendIdentify, SendSelectProtocol, SendHeartbeat)


class Encoder(DiscordGatewayVoice):
    """The real gateway class; what would leave is kept."""

    def __init__(self, chaos: Chaos) -> None:
        self._world = chaos.world
        self.kept: list[str | bytes] = []
        wall_ms: Callable[[], int] = lambda: int(chaos.world.now * 1000)  # noqa: E731
        client = SimpleNamespace(
            session=chaos.world.session, names_channel=False, system=SimpleNamespace(wall_ms=wall_ms)
        )
        super().__init__(cast(VoiceClient, client))
        self.loop = cast(asyncio.AbstractEventLoop, SimpleNamespace(time=lambda: chaos.world.now))
        self.kokoro = Kokoro(self)
        outbox = self._outbox
        for way in ("identify", "resume", "heartbeat", "speaking", "put"):
            setattr(outbox, way, self._keep)

    @property
    def _alive(self) -> bool:
        return True

    def _keep(self, frame: str | bytes | Secret[str]) -> bool:
        self.kept.append(frame.reveal() if isinstance(frame, Secret) else frame)
        return True

    def carry_out(self, effect: Effect) -> None:
        """Encode it with the session and the credentials of the moment."""
        session = self._world.session  # another one where the call has changed processes
        self.client.session, self.client.credentials = session, session.shared.credentials  # type: ignore[misc, assignment]
        self.send(effect)  # type: ignore[arg-type]


@covers("F38")
def test_no_frame_of_any_simulation_breaks_the_schema(phase: str) -> None:
    seen: set[type] = set()
    for seed in range(40):
        chaos = Chaos(seed)
        encoder = Encoder(chaos)
        carry_out = chaos.world._carry_out

        def both(effect: Effect, encoder: Encoder = encoder, carry_out: Callable[[Effect], None] = carry_out) -> None:
            if isinstance(effect, SENDS):
                states = encoder._world.session.states
                early = states["gateway"].startswith(("connecting", "identifying"))
                if early == (phase == "H"):
                    encoder.carry_out(effect)
                    seen.add(type(effect))
            carry_out(effect)

        chaos.world._carry_out = both  # type: ignore[method-assign]
        assert chaos.go().violation is None
        for frame in encoder.kept:
            assert schema.wrong(frame) is None
    # nobody commits in a world without a group of its own; the next test sees op 28 on the wire
    assert seen >= set(IN_THE_HANDSHAKE if phase == "H" else SENDS) - {SendCommitWelcome, *IN_THE_HANDSHAKE[:2]}


@covers("F38", "HR")
@pytest.mark.parametrize(
    "frame",
    [
        '{"op":3,"d":1760000000000}',
        '{"op":3,"d":{"t":1}}',
        '{"op":3,"d":{"t":"1","seq_ack":0}}',
        '{"op":3,"d":{"t":1,"seq_ack":-2}}',
        '{"op":3,"d":{"t":1.0,"seq_ack":0}}',
        '{"op":3,"d":{"t":1,"seq_ack":0,"s":1}}',
        '{"op":3,"seq":1,"d":{"t":1,"seq_ack":0}}',
        '{"op":8,"d":{}}',
        b"\x1b\x00",
        b"",
    ],
)
def test_the_schema_is_strict(frame: str | bytes) -> None:
    assert schema.wrong(frame) is not None


@covers("F38", "HR")
def test_every_frame_on_the_wire_of_a_call_fits_the_schema(phase: str) -> None:
    frames: list[str | bytes] = []

    async def story(sim: Simulation) -> None:
        receive = web.WebSocketResponse.receive

        async def taped(self: web.WebSocketResponse, timeout: float | None = None) -> Any:
            message = await receive(self, timeout)
            if message.data is not None and isinstance(message.data, str | bytes):
                frames.append(message.data)
            return message

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(web.WebSocketResponse, "receive", taped)
            alice, bob = sim.client(1), sim.client(2)
            await alice.connect(CHANNEL)
            await bob.connect(CHANNEL)
            if phase == "R":
                await bob.wait_for(lambda: bob.privacy_code != "" and bob.privacy_code == alice.privacy_code)
                await sim.client(3).connect(CHANNEL)
                await alice.play(ToneSource(440, 1)).wait()
                sim.server.drop_socket(1)
                await asyncio.sleep(12.0)
        assert all(schema.wrong(frame) is None for frame in frames), [schema.wrong(frame) for frame in frames]

    Simulation(seed=1).run(story)
    ops = {json.loads(frame)["op"] if isinstance(frame, str) else frame[0] for frame in frames}
    assert ops >= ({0, 1, 3} if phase == "H" else {0, 1, 3, 5, 7, 23, 26, 28})


def test_a_stale_beat_of_a_dead_websocket_does_nothing() -> None:
    """What a timer of an older heart brings late has no effect (it is stamped with the time it was armed for)."""
    world = in_phase("R")
    at = world.timers["beat_due"]
    world.server(SocketClosed(1001), numbered=False)
    world.settle()
    beats, sockets = len(world.sent(SendHeartbeat)), len(world.sent(OpenSocket))
    world.feed(DeadlinePassed("beat_due", at - 1.0))
    assert (len(world.sent(SendHeartbeat)), len(world.sent(OpenSocket))) == (beats, sockets)
