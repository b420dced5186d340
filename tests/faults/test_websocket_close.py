"""Faults of the end of a websocket: writes after it, close codes, ends without one (faults F39 to F41)."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.faults.cells import covers
from tests.faults.raw_server import CHANNEL, CLOSE, HELLO, TEXT, dialled, home_again, scripted
from tests.faults.worlds import in_phase, phase_of
from voicegw.effects import (
    OpenSocket,
    SendIdentify,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
    SendVoiceState,
)
from voicegw.errors import ConnectionClosed, E2EERequired
from voicegw.events import SocketClosed, SocketOpened, SpeechEnded, SpeechStarted
from voicegw.session import Options
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.streams import FIN
from voicegw.testing.world import World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.opcodes import Opcode

SOON_S = 120.0

# -- F39: writes when the end has begun


def write_everything(client: SimulatedClient) -> None:
    """What heart, speech and group would send."""
    gateway = client.gateway
    gateway._beat()
    gateway._set_speaking(True)
    for number in range(50):
        gateway.send(SendTransitionReady(number))
    gateway._select_protocol("203.0.113.7", 50004)
    gateway._set_speaking(False)


@covers("F39")
def test_writes_after_the_end_has_begun_are_dropped_and_never_raise(phase: str) -> None:
    """The simulation fails where an exception escapes or a task is left."""

    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            if phase == "U":
                client, _ = await dialled(sim, "U")  # its websocket is lost, and nobody answers its dial
                await server.accept()
            else:
                client = sim.client(1)
                await client.connect(CHANNEL)
            ending: asyncio.Task[None] | None = None
            if phase == "C":
                ending = asyncio.create_task(client.close())
                await client.wait_for(lambda: client.states["gateway"] == "closed.closing")
            elif phase == "R":
                for connection in [*sim.network.connections]:
                    connection.reset()  # the transport is dead before anybody has heard of it
            write_everything(client)
            await client.gateway.send_as_json({"op": 5})
            if ending is not None:
                await ending
            elif phase == "R":
                await client.wait_for(lambda: client.states["gateway"] == "resuming.dialling")
                await client.wait_for(lambda: client.states["gateway"] == "ready")
            await client.close()
            write_everything(client)
            said = [record.op for record in sim.server.records(1, None, "in")]
            assert said.count(Opcode.DAVE_TRANSITION_READY) == 0 or phase == "R"
            assert len(client.gateway._outbox) == 0

    Simulation(seed=1).run(story)


@covers("F39", "U")
def test_what_is_said_while_the_websocket_is_away_follows_the_resume() -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, "U")
            write_everything(client)
            peer = await server.accept()
            await peer.upgrade()
            ops = []
            for _ in range(5):
                opcode, data = await peer.next()
                assert opcode == TEXT
                ops.append(json.loads(data)["op"])
            assert ops[0] == Opcode.RESUME  # anything else first would be answered with 4003
            assert Opcode.DAVE_TRANSITION_READY in ops
            home_again(sim)

    Simulation(seed=1).run(story)


# -- F40: section 4 of the fault catalogue, written down once more

RESUME = "resume once; then a new pair"
RESUME_LATER = "backoff, resume once; then a new pair"
PAIR = "new pair"
PAIR_LATER = "new pair with backoff"
TWO_IN_A_ROW = "new pair; the end after two in a row"
ONCE = "new pair once; then the end"
OTHER_MODE = "the other mode once; then the end"
WAIT = "wait 5 s for a null channel or a new pair; never resume"
WAIT_SERVER = "wait 5 s for a new endpoint, else a new pair"
RATE_LIMITED = "the end, or by policy a join after the cool-down"
END = "the end"

LISTED: dict[int | None, str] = {
    None: RESUME,
    1000: RESUME,
    1001: RESUME,
    1002: TWO_IN_A_ROW,
    1003: TWO_IN_A_ROW,
    1005: RESUME,
    1006: RESUME,
    1007: TWO_IN_A_ROW,
    1008: RATE_LIMITED,
    1009: TWO_IN_A_ROW,
    1010: TWO_IN_A_ROW,
    1011: RESUME_LATER,
    1012: RESUME_LATER,
    1013: RESUME_LATER,
    1014: RESUME_LATER,
    4001: ONCE,
    4002: ONCE,
    4003: PAIR,
    4004: ONCE,
    4005: ONCE,
    4006: PAIR,
    4008: RATE_LIMITED,
    4009: PAIR,
    4011: WAIT_SERVER,
    4012: END,
    4013: RESUME,
    4014: WAIT,
    4015: RESUME,
    4016: OTHER_MODE,
    4017: END,
    4020: ONCE,
    4021: RATE_LIMITED,
    4022: WAIT,
}
CODES: tuple[int | None, ...] = (None, *range(1000, 1016), *range(4000, 4101))


def decided(code: int | None) -> str:
    """What the catalogue says of a code."""
    return LISTED.get(code, PAIR_LATER if code is not None and code >= 4000 else RESUME)


def settles(world: World, phases: str, within_s: float = 120.0) -> None:
    """Let time pass until the call is in one of these phases."""
    world.until(lambda: phase_of(world) in phases, within_s)


def next_state(decision: str, phase: str) -> tuple[str, str]:
    """Gateway and call right after a close that was decided so."""
    down = "closed.down"
    if decision in (END, RATE_LIMITED):
        return down, "closed"
    if decision == WAIT:
        return down, "waiting.verdict"
    if decision == WAIT_SERVER:
        return down, "waiting.server"
    if phase == "R" and decision == RESUME:
        return "resuming.dialling", "connected"
    if phase == "R" and decision == RESUME_LATER:
        return "resuming.backing_off", "connected"
    if phase in "DH" or decision in (TWO_IN_A_ROW, ONCE, OTHER_MODE, PAIR_LATER):
        return down, "waiting.backoff"
    return down, "joining.asking"  # a session that was there: its successor is asked for at once


@covers("F40")
def test_every_code_in_every_phase_is_decided_as_the_catalogue_says(phase: str) -> None:
    for code in CODES:
        world = in_phase(phase)
        before = world.states
        world.unanswered |= {"OpenSocket", "SendVoiceState", "SendIdentify"}
        sockets, joins = len(world.sent(OpenSocket)), len(world.sent(SendVoiceState))
        world.server(SocketClosed(code), numbered=False)
        if phase == "B":  # there is no websocket: nothing can be told about it
            assert world.states == before, code
        elif phase == "C":  # our own close is never answered by a retry
            world.advance(60.0)
            assert (world.states["gateway"], world.states["call"]) == ("closed.down", "closed"), code
            assert (len(world.sent(OpenSocket)), len(world.sent(SendVoiceState))) == (sockets, joins), code
            assert world.session.call.error is None, code
        else:
            assert (world.states["gateway"], world.states["call"]) == next_state(decided(code), phase), code
            assert world.session.gateway.last_close_code == code


@covers("F40", "RU")
def test_resumes_are_sent_only_where_a_session_may_live_on_and_once(phase: str) -> None:
    for code in CODES:
        world = in_phase(phase)
        world.unanswered |= {"SendResume", "SendVoiceState"}
        world.unanswered.discard("OpenSocket")
        if phase == "U":
            world.server(SocketOpened(), numbered=False)
        world.server(SocketClosed(code), numbered=False)
        world.advance(2.0)
        resumes = 1 if phase == "U" or decided(code) in (RESUME, RESUME_LATER) else 0
        assert len(world.sent(SendResume)) == resumes, code
        if phase == "R" and resumes:
            assert world.states["gateway"] == "resuming.awaiting_resumed", code
        world.server(SocketClosed(code), numbered=False)
        world.advance(60.0)
        assert len(world.sent(SendResume)) == resumes, code
        assert not world.states["gateway"].startswith("resuming"), code


@covers("F40", "R")
def test_server_trouble_is_resumed_after_a_short_wait() -> None:
    for code in (1011, 1012, 1013, 1014):
        world = in_phase("R")
        world.server(SocketClosed(code), numbered=False)
        world.advance(0.999)  # up to 1 s: jitter is the adapters'
        assert world.states["gateway"] == "resuming.backing_off"
        world.advance(0.001)
        assert world.states["gateway"] == "ready"
        assert len(world.sent(SendResume)) == 1


@covers("F40", "DH")
def test_the_same_code_again_and_again_is_bounded(phase: str) -> None:
    most = {ONCE: 2, TWO_IN_A_ROW: 2, END: 1, RATE_LIMITED: 1, WAIT: 1}
    for code in CODES:
        world = in_phase(phase)
        while world.states["call"] != "closed":
            if phase_of(world) == phase:
                world.server(SocketClosed(code), numbered=False)
            else:
                settles(world, phase + "X")
        dials = len(world.sent(OpenSocket))
        assert dials <= most.get(decided(code), 12), code
        if decided(code) in (RESUME, PAIR, PAIR_LATER):
            assert dials == 12, code
        assert len(world.sent(SendIdentify)) == (dials if phase == "H" else 0), code


@covers("F40", "R")
def test_what_is_forgiven_ends_the_second_time_and_says_why() -> None:
    for code in CODES:
        decision = decided(code)
        if decision not in (ONCE, OTHER_MODE):
            continue
        world = in_phase("R")
        for _ in range(2):
            world.server(SocketClosed(code), numbered=False)
            settles(world, "RX")
        assert world.states["call"] == "closed", code
        error = world.session.call.error
        assert isinstance(error, ConnectionClosed), code
        assert error.code == code
        if decision == OTHER_MODE:
            selected = world.sent(SendSelectProtocol)
            modes = [effect.mode for effect in selected if isinstance(effect, SendSelectProtocol)]
            assert modes == list(PREFERRED_MODES)


@covers("F40", "R")
def test_two_complaints_in_a_row_end_it_and_ready_between_forgives() -> None:
    for code in (1002, 1003, 1007, 1009, 1010):
        world = in_phase("R")
        world.server(SocketClosed(code), numbered=False)
        world.unanswered.add("SendIdentify")
        settles(world, "H")
        world.server(SocketClosed(code), numbered=False)
        settles(world, "X")
        assert isinstance(world.session.call.error, ConnectionClosed)


@covers("F40", "R")
@pytest.mark.parametrize("policy", ["require", "off"])
def test_4017_says_what_is_missing(policy: str) -> None:
    world = World(Options(policy=policy))  # type: ignore[arg-type]
    world.dave_protocol_version = 0 if policy == "off" else 1
    world.join()
    world.server(SocketClosed(4017), numbered=False)
    world.until(lambda: world.states["call"] == "closed", 5.0)
    assert isinstance(world.session.call.error, E2EERequired)
    assert ("policy 'off'" if policy == "off" else "davey") in str(world.session.call.error)


@covers("F40", "DHRU")
def test_a_reason_that_is_no_text_does_not_stop_the_decision(phase: str) -> None:
    """A close frame with a broken reason is a broken frame (RFC 6455 8.1): the end is ours, 1007, whatever its code."""

    async def story(sim: Simulation) -> None:
        broken = b"\x88\x06\x0f\xa6\xff\xfe\xc3\x28"  # close, 4006, no UTF-8
        if phase in "DU":
            async with scripted(sim) as server:
                client, _ = await dialled(sim, phase)
                peer = await server.accept()
                await peer.upgrade()
                peer.writer.write(broken)
                assert await peer.close_code() == 1007
                await client.wait_for(lambda: client.states["gateway"] == "closed.down")
                assert client.session.gateway.last_close_code == 1007
                home_again(sim)
                await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
            return
        if phase == "H":
            sim.server.faults.withhold.add(Opcode.READY)
        client = sim.client(1)
        connecting = asyncio.create_task(client.connect(CHANNEL))
        await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.READY, "out")))
        if phase == "R":
            await connecting
        transport = sim.server._connection(1)._transport
        assert transport is not None
        transport.write(broken)
        await client.wait_for(lambda: client.states["gateway"] == "closed.down")
        assert client.session.gateway.last_close_code == 1007
        assert client.states["call"] == "waiting.backoff"
        sim.server.faults.withhold.clear()
        await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
        await connecting

    Simulation(seed=1).run(story)


# -- F41: an end without a close frame


def cut(sim: Simulation, client: SimulatedClient, how: str) -> None:
    """The client's TCP connection breaks."""
    for connection in [*sim.network.connections]:
        ours = next((end for end in connection.ends if end.host is client.system), None)
        if ours is not None and how == "half-close":
            ours.arrive(FIN)
        elif ours is not None:
            {"RST": connection.reset, "FIN": connection.finish, "black hole": connection.silence}[how]()


@covers("F41")
@pytest.mark.parametrize("how", ["RST", "FIN", "half-close", "black hole"])
def test_an_end_without_a_word_is_resumed_or_begun_afresh(phase: str, how: str) -> None:
    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            if phase in "DU":
                client, _ = await dialled(sim, phase)
                peer = await server.accept()
                await peer.upgrade()
                if phase == "U":
                    await peer.heard(Opcode.RESUME)
                    peer.say(HELLO)
                else:
                    await client.wait_for(lambda: client.states["gateway"] == "connecting.awaiting_hello")
            else:
                if phase == "H":
                    sim.server.faults.withhold.add(Opcode.READY)
                client = sim.client(1)
                connecting = asyncio.create_task(client.connect(CHANNEL, timeout_s=SOON_S))
                await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.READY, "out")))
                if phase == "R":
                    await connecting
            pair = client.credentials
            seq = client.session.shared.sequence.last
            resumes = len(sim.server.records(None, Opcode.RESUME, "in"))
            cut(sim, client, how)
            await client.wait_for(lambda: client.states["gateway"] in ("closed.down", "resuming.dialling"), 60.0)
            home_again(sim)
            sim.server.faults.withhold.clear()
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
            new = sim.server.records(None, Opcode.RESUME, "in")[resumes:]
            if phase == "R":
                assert [record.data["seq_ack"] for record in new] == [seq]  # type: ignore[index]
                assert client.credentials == pair
            else:
                assert new == []
                assert client.credentials.session_id != pair.session_id
                assert client.credentials.token != pair.token
            last = [step.event for step in client.history if step.machine == "gateway" and step.before != step.after]
            silent = {"D": "hello_timeout", "H": "ready_timeout", "R": "heart_died", "U": "resumed_timeout"}
            assert (silent[phase] if how == "black hole" else "closed_resumable") in last
            if phase == "R" and how != "black hole":
                assert client.session.gateway.last_close_code is None

    Simulation(seed=1).run(story)


@covers("F41", "R")
def test_a_close_frame_without_a_code_is_no_code() -> None:
    async def story(sim: Simulation) -> None:
        client = sim.client(1)
        await client.connect(CHANNEL)
        transport = sim.server._connection(1)._transport
        assert transport is not None
        transport.write(bytes((0x80 | CLOSE, 0)))
        await client.wait_for(lambda: client.session.gateway.last_close_code == 1005)
        await client.wait_for(lambda: client.states["gateway"] == "ready")
        assert len(sim.server.records(None, Opcode.RESUME, "in")) == 1

    Simulation(seed=1).run(story)


@covers("F39", "U")
def test_speaking_that_begins_while_the_websocket_is_away_is_announced_after_the_resume() -> None:
    world = in_phase("U")
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    world.feed(SpeechStarted())
    world.unanswered.clear()
    world.server(SocketOpened(), numbered=False)
    world.settle()
    order = [type(effect) for _, effect in world.effects if isinstance(effect, SendResume | SendSpeaking)]
    assert order[-1] is SendSpeaking
    assert SendResume in order
