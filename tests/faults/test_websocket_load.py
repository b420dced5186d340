"""Faults of too much: handlers that fail, bursts, back-pressure, rate limits, storms of retries (F56 to F60)."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.faults.raw_server import CHANNEL, CLOSE, HELLO, TEXT, Peer, dialled, home_again, scripted
from tests.faults.rekey import pair
from tests.faults.worlds import in_phase
from voicegw.adapters.outbox import FRAMES_A_WINDOW, MOST_WAITING
from voicegw.core.gateway import GatewaySession
from voicegw.effects import OpenSocket, SendSpeaking
from voicegw.errors import ConnectionClosed, ConnectionFailed, InvalidHandshake
from voicegw.events import (
    MainSessionLost,
    MainSessionStarted,
    ReaderFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRateLimited,
    SpeechEnded,
    SpeechStarted,
    VoiceServerUpdated,
)
from voicegw.media.receiver import StreamReceiver
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.testing.machine_campaigns import DAY, Outage, Stage
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.world import ENDPOINT
from voicegw.wire import frames
from voicegw.wire.opcodes import Opcode

SOON_S = 120.0


async def begun(sim: Simulation, phase: str) -> tuple[SimulatedClient, asyncio.Task[None]]:
    """A client in its handshake, whose Ready does not come, or one that is ready; and its `connect`."""
    client = sim.client(1)
    if phase == "H":
        sim.server.faults.withhold.add(Opcode.READY)
        connecting = asyncio.create_task(client.connect(CHANNEL, timeout_s=SOON_S))
        await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.READY, "out")))
    else:
        connecting = asyncio.create_task(client.connect(CHANNEL))
        await connecting
    return client, connecting


# -- F56: a handler raises

CANARY = "the canary in the exception"
SPEAKING = '{"op":5,"d":{"user_id":"77","ssrc":78,"speaking":1}}'


def fails_once(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """The next call of this method raises; how often that happened is told."""
    real: Callable[..., Any] = getattr(owner, name)
    raised: list[int] = []

    def failing(*arguments: Any, **named: Any) -> Any:
        if not raised:
            raised.append(1)
            raise RuntimeError(CANARY)
        return real(*arguments, **named)

    patch.setattr(owner, name, failing)
    return raised


HANDLERS: list[tuple[str, Any, str, str]] = [
    ("decoding", frames, "decode_text", '{"op":250,"d":null}'),
    ("a row's effect", GatewaySession, "map_ssrc", SPEAKING),
    ("carrying out an effect", StreamReceiver, "map_ssrc", SPEAKING),
    ("a row's guard", GatewaySession, "too_many_rejected", "{"),
]


@covers("F56")
@pytest.mark.parametrize(("owner", "name", "said"), [case[1:] for case in HANDLERS], ids=[case[0] for case in HANDLERS])
def test_a_handler_that_raises_ends_the_websocket_at_once_and_not_the_call(
    phase: str, owner: Any, name: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(sim: Simulation) -> None:
        client, connecting = await begun(sim, phase)
        if phase == "U":
            sim.server.faults.withhold.add(Opcode.RESUMED)
            sim.server.drop_socket(1)
            await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.RESUMED, "out")))
            await client.wait_for(lambda: client.states["gateway"] == "resuming.awaiting_resumed")
        token = client.credentials.token.reveal()
        await asyncio.sleep(0.1)
        steps = len(client.history)
        with monkeypatch.context() as patch:
            raised = fails_once(patch, owner, name)
            sim.server.send_raw(1, said)
            await client.wait_for(lambda: bool(raised))
            await client.wait_for(lambda: any(step.event == "reader_failed" for step in client.history))
        first = [
            step for step in list(client.history)[steps:] if step.machine == "gateway" and step.before != step.after
        ]
        assert first[0].event == "reader_failed"  # nothing came between: one event, and it does not look alive
        assert first[0].after == ("resuming.dialling" if phase == "R" else "closed.down")
        sim.server.faults.withhold.clear()
        await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
        await connecting
        await asyncio.sleep(6.0)
        assert client.states["heartbeat"].startswith("beating")
        assert token not in caplog.text
        assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1

    with caplog.at_level(logging.ERROR, "voicegw"):
        Simulation(seed=1).run(story)


@covers("F56", "HRU")
def test_an_exception_in_the_core_ends_every_phase(phase: str) -> None:
    world = in_phase(phase)
    if phase == "U":
        world.unanswered.add("SendResume")
        world.server(SocketOpened(), numbered=False)
    steps = len(world.trace)
    world.server(ReaderFailed("KeyError"), numbered=False)
    assert world.trace[steps].event == "reader_failed"
    assert world.trace[steps].after == ("resuming.dialling" if phase == "R" else "closed.down")
    world.unanswered.clear()
    world.until(lambda: world.states["gateway"] == "ready", SOON_S)


# -- F57: ten thousand messages at once


@covers("F57")
def test_ten_thousand_messages_are_taken_in_order_while_the_heart_beats(phase: str) -> None:
    """Each costs 1.5 ms of the process's time: fifteen seconds of work arrive in one moment."""
    count, cost_s = 10_000, 0.0015

    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        await client.connect(CHANNEL)
        if phase == "U":
            sim.server.faults.withhold.add(Opcode.RESUMED)
            sim.server.drop_socket(1)
            await sim.server.wait_for(lambda: bool(sim.server.records(None, Opcode.RESUME, "in")))
            sim.server.send_raw(1, '{"op":9,"d":null}')
        taken: list[int] = []
        most_waiting = 0
        received, kokoro, websocket = client.gateway._received_message, client.gateway.kokoro, client.gateway.websocket
        assert kokoro is not None
        assert websocket is not None
        beat_at: list[float] = []
        beat = kokoro.beat

        def slow(message: str | Secret[str] | bytes, generation: int | None = None) -> bool:
            nonlocal most_waiting
            sim.loop.now += cost_s
            text = message.reveal() if isinstance(message, Secret) else str(message)
            if text.startswith('{"op":250'):
                taken.append(int(text[16:-1]))
            queue: Any = websocket._socket._reader
            most_waiting = max(most_waiting, len(queue._buffer))
            return received(message, generation)

        def noted(seq_ack: int) -> str:
            beat_at.append(sim.loop.now)
            return beat(seq_ack)

        client.gateway._received_message = slow  # type: ignore[method-assign]
        kokoro.beat = noted  # type: ignore[method-assign]
        for number in range(count):
            sim.server.send_raw(1, f'{{"op":250,"seq":{number}}}')
        begin, due = sim.loop.now, client.session.heartbeat.next_beat_at
        await client.wait_for(lambda: len(taken) == count, 60.0)
        assert taken == list(range(count))
        assert sim.loop.now - begin >= count * cost_s
        assert len(beat_at) >= 2
        assert beat_at[0] <= due + 1.0
        assert max(later - earlier for earlier, later in itertools.pairwise(beat_at)) <= 5.0 + 1.0
        assert most_waiting < count / 2  # the rest waits at the server: the socket is not read meanwhile
        assert client.states["gateway"] == "ready"

    sim = Simulation(seed=1, policy="fifo")
    sim.server.heartbeat_interval_s = 60.0
    sim.run(story)


# -- F58: the peer does not read


async def unread(sim: Simulation, phase: str) -> tuple[SimulatedClient, asyncio.Task[None]]:
    """A client in its handshake or ready, whose server does not read what it says any more."""
    client, connecting = await begun(sim, phase)
    transport = sim.server._connection(1)._transport
    assert transport is not None
    transport.pause_reading()
    return client, connecting


@covers("F58")
def test_what_the_peer_does_not_read_is_bounded_and_then_the_connection_is_lost(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        client, connecting = await unread(sim, phase)
        most = 0
        for number in range(2 * MOST_WAITING):
            await client.gateway.send_as_json({"op": 14, "d": {"number": number, "padding": "x" * 2000}})
            most = max(most, len(client.gateway._outbox))
            if not client.states["gateway"].startswith(("ready", "identifying")):
                break
        assert most <= MOST_WAITING + 3
        assert client.states["gateway"] == ("resuming.dialling" if phase == "R" else "closed.down")
        sim.server.faults.withhold.clear()
        await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
        await connecting
        assert len(sim.server.records(None, Opcode.RESUME, "in")) == (phase == "R")

    Simulation(seed=1).run(story)


@covers("F58", "HR")
def test_a_minute_without_reading_is_found_by_the_heart(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        client, connecting = await unread(sim, phase)
        lost = {"H": "ready_timeout", "R": "heart_died"}[phase]
        await client.wait_for(lambda: any(step.event == lost for step in client.history), 60.0)
        assert len(client.gateway._outbox) <= 10
        sim.server.faults.withhold.clear()
        await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
        await connecting

    Simulation(seed=1).run(story)


# -- F59: not faster than the server bears


def most_in_a_window(times: list[float]) -> int:
    """The most frames in any ten seconds."""
    window: deque[float] = deque()
    most = 0
    for at in times:
        window.append(at)
        while window[0] <= at - 10.0:
            window.popleft()
        most = max(most, len(window))
    return most


@covers("F59")
@pytest.mark.parametrize("what", ["speaking", "asked heartbeats", "messages"])
def test_no_more_than_sixty_frames_leave_in_ten_seconds(phase: str, what: str) -> None:
    """The server takes everything, says nothing, and in H its Ready does not come (no deadline runs here)."""

    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, {"H": "D", "R": "U"}[phase])
            peer = await server.accept()
            await peer.upgrade()
            peer.say(HELLO)
            await peer.heard({"H": Opcode.IDENTIFY, "R": Opcode.RESUME}[phase])
            if phase == "R":
                peer.say('{"op":9,"d":null}')
                await client.wait_for(lambda: client.states["gateway"] == "ready")
            assert client._timers is not None
            for name in ("ready_timeout", "connect_timeout"):
                client._timers.cancel(name)
            heard: list[tuple[float, dict[str, Any]]] = []
            listening = asyncio.create_task(answer(sim, peer, heard))
            flags = 0
            for _ in range(2500):
                if what == "speaking":
                    flags ^= 1
                    client.gateway.send(SendSpeaking(flags, 7))
                elif what == "asked heartbeats":
                    peer.say('{"op":3,"d":null}')
                elif len(client.gateway._outbox) < MOST_WAITING // 2:
                    client.gateway._select_protocol("203.0.113.7", 50004)
                await asyncio.sleep(0.01)
            await asyncio.sleep(11.0)
            assert client.states["gateway"] == {"H": "identifying.awaiting_ready", "R": "ready"}[phase]
            listening.cancel()
            home_again(sim)
        assert most_in_a_window([at for at, _ in heard]) <= FRAMES_A_WINDOW
        beats_at = [at for at, message in heard if message["op"] == Opcode.HEARTBEAT]
        longest = max(later - earlier for earlier, later in itertools.pairwise(beats_at))
        assert longest <= (10.6 if what == "asked heartbeats" else 5.1)  # room is kept free for the heart
        if what == "speaking":
            spoken = [message["d"]["speaking"] for _, message in heard if message["op"] == Opcode.SPEAKING]
            assert len(spoken) <= 200
            assert spoken[-1] == flags  # what was wanted last is what is said last

    Simulation(seed=1).run(story)


async def answer(sim: Simulation, peer: Peer, heard: list[tuple[float, dict[str, Any]]]) -> None:
    """Note what a client says, and acknowledge its heartbeats."""
    while True:
        opcode, data = await peer.next()
        if opcode == CLOSE:
            return
        message: dict[str, Any] = json.loads(data) if opcode == TEXT else {"op": data[0]}
        heard.append((sim.loop.now, message))
        if message["op"] == Opcode.HEARTBEAT:
            peer.say({"op": 6, "d": {"t": message["d"]["t"]}})


RATE_LIMITS = [
    ("1008", SocketClosed(1008)),
    ("4008", SocketClosed(4008)),
    ("4021", SocketClosed(4021)),
]


@covers("F59")
@pytest.mark.parametrize("close", [event for _, event in RATE_LIMITS], ids=[name for name, _ in RATE_LIMITS])
@pytest.mark.parametrize("rejoin", [False, True])
def test_nothing_is_dialled_in_the_cool_down(phase: str, close: SocketClosed, rejoin: bool) -> None:
    world = in_phase(phase, Options(rejoin_after_rate_limit=rejoin))
    dials = len(world.sent(OpenSocket))
    world.server(close, numbered=False)
    world.unanswered.clear()
    if not rejoin:
        world.advance(3600.0)
        assert len(world.sent(OpenSocket)) == dials
        error = world.session.call.error
        assert isinstance(error, ConnectionClosed)
        assert error.code == close.code
        return
    assert world.states["call"] == "waiting.cool_down"
    for event in (
        VoiceServerUpdated(Secret("another"), ENDPOINT),
        VoiceServerUpdated(Secret("null"), None),
        MainSessionLost(),
        MainSessionStarted(),
    ):
        world.advance(10.0)
        world.feed(event)
    world.advance(19.9)
    assert len(world.sent(OpenSocket)) == dials
    world.advance(0.1)
    assert len(world.sent(OpenSocket)) == dials + 1
    assert world.states["gateway"] == "ready"


@covers("F59", "RH")
def test_http_429_is_a_rate_limit_too(phase: str) -> None:
    """It comes in answer to a dial: that of a resume in phase R, that of the next attempt in phase H."""
    world = in_phase(phase, Options(rejoin_after_rate_limit=True))
    world.unanswered |= {"OpenSocket"}
    world.server(SocketClosed(None), numbered=False)
    world.until(lambda: world.states["gateway"].endswith(".dialling"), 10.0)
    dials = len(world.sent(OpenSocket))
    world.server(SocketRateLimited(InvalidHandshake("HTTP 429", 429)), numbered=False)
    world.advance(59.9)
    assert len(world.sent(OpenSocket)) == dials
    world.advance(0.1)
    assert len(world.sent(OpenSocket)) == dials + 1


@covers("F59", "R")
def test_speech_that_flickers_is_announced_as_it_ends() -> None:
    async def story(sim: Simulation) -> None:
        alice, _ = await pair(sim)
        for _ in range(1000):
            alice.feed(SpeechStarted())
            alice.feed(SpeechEnded())
            await asyncio.sleep(0.01)
        await asyncio.sleep(12.0)
        said = [record.data for record in sim.server.records(1, Opcode.SPEAKING, "in")]
        assert len(said) <= 130
        assert said[-1]["speaking"] == 0  # type: ignore[index]

    Simulation(seed=1).run(story)


# -- F60: storms of retries


def refused_until_the_end(limit: int = 12) -> list[float]:
    """When a call whose dials are all refused at once dials, each wait as long as it can be."""
    world = in_phase("B", Options(max_attempts=limit))
    while world.states["call"] != "closed":
        if world.states["gateway"] == "connecting.dialling":
            world.server(SocketFailed(ConnectionFailed("refused")), numbered=False)
        else:
            world.until(
                lambda: world.states["gateway"] == "connecting.dialling" or world.states["call"] == "closed", 60
            )
    return world.times(OpenSocket)


@covers("F60")
def test_a_call_whose_dials_are_all_refused_waits_longer_and_longer_and_ends() -> None:
    times = refused_until_the_end()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([min(30.0, 0.5 * 2**attempt) for attempt in range(1, 12)])
    assert len(times) == 12


@covers("F60")
def test_a_thousand_calls_that_are_refused_for_a_day_keep_the_budget_of_their_process_and_end() -> None:
    stages = [Stage(number) for number in range(1000)]
    Outage(stages, down_s=DAY).run()  # holds 10 dials a second and 300 in ten minutes
    dials = sorted(at for stage in stages for at in stage.dials)
    assert all(stage.over for stage in stages)
    assert max(len(stage.dials) for stage in stages) <= 13  # one to resume, and 12 attempts
    assert len(dials) > 1000
    assert dials[-1] - dials[0] > (len(dials) // 300 - 1) * 600  # spread over time
