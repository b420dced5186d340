"""Old generations, leaks, the end of the loop, other threads and processes, herds, exhausted hosts: whole clients."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.faults.phases import ALICE, CHANNEL, Call, in_call, until
from tests.faults.worlds import in_phase
from voicegw.effects import Reconnecting, SendVoiceState
from voicegw.errors import ConnectionFailed, UsedElsewhere, VoiceError
from voicegw.events import (
    DialPostponed,
    Event,
    FrameRejected,
    IpDiscovered,
    PathUnheard,
    ReaderFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    Stamped,
    UdpFailed,
)
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.testing.simulation import Simulation
from voicegw.testing.watch import Watch
from voicegw.wire.payloads import (
    HeartbeatAcked,
    HelloReceived,
    ReadyReceived,
    ResumedReceived,
    SessionDescriptionReceived,
    TransitionPrepared,
)

LATE: tuple[Event, ...] = (
    SocketOpened(),
    SocketClosed(4006),
    SocketClosed(None),
    SocketFailed(ConnectionFailed("late")),
    ReaderFailed("KeyError"),
    FrameRejected(4),
    HelloReceived(1.0, 8),
    ReadyReceived(7, "66.22.196.9", 5000, ("aead_aes256_gcm_rtpsize",)),
    SessionDescriptionReceived("aead_aes256_gcm_rtpsize", Secret(bytes(32)), 1),
    ResumedReceived(),
    HeartbeatAcked(1),
    TransitionPrepared(0, 3),
)


@covers("F147")
def test_events_of_a_replaced_socket_do_nothing(phase: str, seed: int) -> None:
    async def story(call: Call) -> None:
        session = call.alice.session
        steps, timers = len(call.alice.history), dict(session.shared.timers)
        dropped = session.shared.counters["events of an older generation"]
        late: list[Event] = list(LATE)
        random.Random(seed).shuffle(late)
        for event in late:
            call.alice.feed(Stamped("websocket", session.shared.socket_generation - 1, event, 7))
        old = session.shared.udp_generation - 1
        for event in (IpDiscovered("203.0.113.9", 9), PathUnheard(), UdpFailed(ConnectionFailed("late"))):
            call.alice.feed(Stamped("udp", old, event))
        assert len(call.alice.history) == steps
        assert session.shared.timers == timers
        assert session.shared.counters["events of an older generation"] == dropped + len(LATE) + 3
        call.let_go()
        await call.settle()
        assert call.phase == ("X" if phase == "C" else "R")

    in_call(phase, story, seed)


def test_what_a_replaced_websocket_still_delivers_is_dropped() -> None:
    async def story(call: Call) -> None:
        call.host.tcp_in.delay_s = 3.0  # what the old server says is under way for long
        call.sim.server.send_raw(ALICE, '{"op": 9, "d": null}')
        call.alice.signalling.hand_over()
        await asyncio.sleep(0.4)
        call.host.tcp_in.delay_s = 0.02
        await asyncio.sleep(30)
        assert call.phase == "R"

    in_call("R", story)


@covers("F148")
def test_cycles_of_connect_and_close_leave_nothing(phase: str, seed: int) -> None:
    chance = random.Random(seed)
    alive: list[weakref.ref[Any]] = []

    async def cycle(sim: Simulation) -> None:
        alice = sim.client(ALICE)
        host = alice.system
        alive.append(weakref.ref(alice))
        trouble = chance.randrange(6)
        if trouble == 0:
            host.fail("connect", errno.ECONNREFUSED, times=2)
        elif trouble == 1:
            host.udp_out.down = True
        joining = asyncio.ensure_future(alice.connect(CHANNEL, chance.choice((0.05, 1.0, 8.0))))
        await asyncio.sleep(chance.choice((0.0, 0.05, 0.15, 0.3)))
        if trouble == 2:
            joining.cancel()
        elif trouble == 3:
            for connection in list(sim.network.connections):
                connection.reset()
        if trouble != 4:
            await asyncio.wait([joining])
        await alice.close()
        await asyncio.wait([joining])
        if not joining.cancelled():
            assert isinstance(joining.exception(), VoiceError | None)
        sim._check_freed(alice)
        sim.clients.remove(alice)

    async def story(sim: Simulation) -> None:
        for _ in range(60):
            await cycle(sim)
        await asyncio.sleep(120)
        assert sim.network.connections == {}

    sim = Simulation(seed)
    sim.run(story)
    gc.collect()
    assert len(alive) == 60
    assert [ref for ref in alive if ref() is not None] == []


@covers("F149")
def test_a_program_that_ends_in_the_middle_ends(phase: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def leave(call: Call) -> None:
        raise SystemExit(7)

    with pytest.raises(SystemExit):
        in_call(phase, leave)
    gc.collect()
    captured = capfd.readouterr()
    assert captured.err == ""


SCRIPT = """
import asyncio, sys
from voicegw import ToneSource, VoiceClient
from voicegw.server import LocalSignalling, VoiceServer

async def main():
    server = VoiceServer()
    await server.start()
    options = [{"user_id": n, "signalling": LocalSignalling(server, n), **server.trust} for n in (1, 2)]
    clients = [VoiceClient(guild_id=7, **option) for option in options]
    for client in clients:
        await client.connect(9)
    await clients[0].wait_for(lambda: clients[0].privacy_code != "")
    clients[0].play(ToneSource(440, 60))
    await asyncio.sleep(0)
    print("connected", flush=True)
    sys.exit(0)

asyncio.run(main())
"""


@pytest.mark.loopback
async def test_a_real_process_exits_in_the_middle_of_a_song() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", SCRIPT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert out == b"connected\n"
    assert err == b""
    assert process.returncode == 0


def _elsewhere(work: Callable[[], object]) -> BaseException | None:
    """What `work` raises in another thread."""
    caught: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            caught.append(None)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0]


def _run(work: Callable[[], Awaitable[object]]) -> Callable[[], object]:
    async def whole() -> None:
        await work()

    return lambda: asyncio.run(whole())


@covers("F150")
def test_use_from_another_thread_is_refused_at_once(phase: str) -> None:
    async def story(call: Call) -> None:
        alice = call.alice
        if phase == "I":
            alice._begin()
        before, steps = alice.states, len(alice.history)
        wishes: tuple[Callable[[], object], ...] = (
            _run(lambda: alice.connect(CHANNEL)),
            _run(lambda: alice.move_to(CHANNEL + 1)),
            _run(alice.close),
            _run(lambda: alice.wait_for(lambda: True)),
            lambda: alice.play(ToneSource(440, 1)),
            lambda: alice.feed(SocketClosed(None)),
        )
        for wish in wishes:
            assert isinstance(_elsewhere(wish), UsedElsewhere)
        assert alice.states == before
        assert len(alice.history) == steps

    in_call(phase, story)


def test_what_the_main_gateway_says_may_come_from_any_thread() -> None:
    async def story(call: Call) -> None:
        alice = call.alice
        told = {"guild_id": str(alice.session.shared.guild_id), "user_id": str(ALICE), "channel_id": None}
        for harmless in (alice.main_session_resumed, lambda: alice.voice_server_update({"guild_id": "1"})):
            assert _elsewhere(harmless) is None
        await asyncio.sleep(1)
        assert call.phase == "R"
        assert alice.session.shared.counters["foreign voice servers"] == 1
        for end in (alice.main_session_lost, alice.main_session_started):
            assert _elsewhere(end) is None
        await asyncio.sleep(5)
        assert [step.event for step in alice.history].count("main_session_lost") == 1
        assert call.phase == "R"
        assert _elsewhere(lambda: alice.voice_state_update(told)) is None
        assert call.phase == "R"
        await asyncio.sleep(1)
        assert call.phase == "X"

    in_call("R", story)


def test_another_loop_is_refused() -> None:
    kept: list[Call] = []

    async def story(call: Call) -> None:
        kept.append(call)

    in_call("R", story)
    with pytest.raises(UsedElsewhere, match="another event loop"):
        asyncio.run(kept[0].alice.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@covers("F150")
def test_a_forked_child_has_no_call(phase: str) -> None:
    async def story(call: Call) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                call.alice.feed(SocketClosed(None))
            except UsedElsewhere:
                code = 0 if not call.alice.sender.open else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - the child ends at once
        assert os.waitstatus_to_exitcode(status) == 0

    in_call(phase, story)


@covers("F151")
def test_a_herd_comes_back_in_turn(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        with Watch(sim) as watch:
            clients = [sim.client(number, number, address="10.0.0.1") for number in range(1, 61)]
            host = clients[0].system
            if phase == "B":
                host.fail("connect", errno.ECONNREFUSED, times=60)
            await asyncio.gather(*(client.connect(CHANNEL + client.user_id, 60) for client in clients))
            for client in clients if phase == "R" else ():
                sim.server.drop_socket(client.user_id)
            lost = sim.loop.now
            await until(lambda: all(client.states["gateway"] == "ready" for client in clients))
            if phase == "R":
                await asyncio.sleep(1)
                await until(lambda: all(client.states["gateway"] == "ready" for client in clients))
                assert 3 < sim.loop.now - lost < 60
            assert any("queued" in line for line in sim.trace)
            watch.check()

    Simulation(seed=1).run(story)


@covers("F151", "R")
def test_a_turn_that_is_far_away_is_waited_for_without_a_pair() -> None:
    world = in_phase("R")
    world.instead["OpenSocket"] = lambda effect: [Stamped("websocket", effect.generation, DialPostponed(600.0))]
    world.feed(Stamped("websocket", world.session.shared.socket_generation, SocketClosed(None)))
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("waiting.turn", "closed.down")
    reconnecting = world.notices[-1]
    assert isinstance(reconnecting, Reconnecting)
    assert "its turn to dial comes in 600 s" in reconnecting.reason
    asked = len(world.sent(SendVoiceState))
    world.instead.clear()
    world.advance(599.0)
    assert (world.states["call"], len(world.sent(SendVoiceState))) == ("waiting.turn", asked)
    world.advance(2.0)
    assert world.states["gateway"] == "ready"
    assert world.session.call.attempts == 0


@covers("F152")
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_a_host_without_sockets_is_a_dial_that_failed(phase: str, seed: int, code: int) -> None:
    async def story(call: Call) -> None:
        call.host.fail("socket", code, times=1 + seed, after=seed % 2)  # TCP and UDP sockets in turn
        if phase == "R":
            call.alice.signalling.hand_over()
        elif phase == "U":
            await asyncio.sleep(11)  # the dial that is under way times out; the next socket cannot be had
        else:
            for connection in list(call.sim.network.connections):
                connection.reset()
        call.hold_no_more()
        await call.settle()
        await asyncio.sleep(5)
        await call.settle()
        assert call.phase == "R"
        assert not call.host._failing.get("socket")

    in_call(phase, story, seed)
