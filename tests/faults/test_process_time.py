"""Stalls, clocks that jump, and sleep: whole clients on simulated hosts."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.cells import covers
from tests.faults.phases import ALICE, Call, in_call, until
from voicegw.testing.bots import Frames
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import kind_of

YEAR_S = 31_556_952.0


@covers("F135")
def test_a_stalled_process_sends_no_burst_and_keeps_its_session(phase: str, seed: int) -> None:
    stall_s = (0.1, 8.0, 20.0)[seed]

    async def story(call: Call) -> None:
        arrivals: list[float] = []
        server = call.sim.server
        if phase == "R":
            call.alice.play(Frames(3000))
            server.relay.tap = lambda user_id, data: arrivals.append(call.sim.loop.now)
            await asyncio.sleep(1)
        identified = len(server.records(ALICE, Opcode.IDENTIFY))
        call.host.stall(stall_s)
        await asyncio.sleep(stall_s)
        beats = len(server.records(ALICE, Opcode.HEARTBEAT, "in"))
        await asyncio.sleep(1)
        if phase == "R":
            bursts = [late - early for early, late in zip(arrivals, arrivals[3:], strict=False)]
            assert min(bursts) >= 0.01
            assert len(arrivals) > 60
            assert stall_s < 5 or len(server.records(ALICE, Opcode.HEARTBEAT, "in")) > beats
            await asyncio.sleep(20)
            assert call.alice.way("gateway")[-1] == "ready"
            assert not any(state.startswith("resuming") for state in call.alice.way("gateway"))
            assert len(server.records(ALICE, Opcode.IDENTIFY)) == identified
        call.let_go()
        await call.settle()
        assert call.phase == "R" or (call.phase == "X" and (phase == "C" or call.alice.error is not None))

    in_call(phase, story, seed)


@covers("F136")
def test_a_wall_clock_that_jumps_changes_nothing(phase: str, seed: int) -> None:
    def traced(jump_s: float) -> list[str]:
        async def story(call: Call) -> None:
            if phase in "HR":  # while a beat is out
                await until(lambda: call.alice.states["heartbeat"] == "beating.awaiting_ack")
            call.host.wall_offset_s += jump_s
            await asyncio.sleep(0.1)
            if phase in "HR":
                assert call.alice.latency == pytest.approx(0.04, abs=0.01)
            await asyncio.sleep(12)
            call.let_go()
            await call.settle()
            await asyncio.sleep(6)
            if call.phase == "R":
                assert call.alice.latency == pytest.approx(0.04, abs=0.01)

        return in_call(phase, story, seed).trace

    assert traced(0.0) == traced((-10 * YEAR_S, 10 * YEAR_S, 3600.0)[seed])


@covers("F137")
def test_a_host_that_wakes_looks_at_once_whether_anybody_is_there(phase: str, seed: int) -> None:
    sleep_s = (60.0, 3600.0, 8 * 3600.0)[seed]

    async def story(call: Call) -> None:
        probes: list[float] = []
        watched = call.sim.network.on_datagram

        def note(host: object, target: object, data: bytes) -> None:
            if host is call.host and kind_of(data) == "control":
                probes.append(call.sim.loop.now)

        call.sim.network.on_datagram = note
        for connection in call.sim.network.connections:
            if call.host in connection.hosts:
                connection.silence()
        call.host.suspend(sleep_s)
        await asyncio.sleep(sleep_s)
        woken = call.sim.loop.now
        probes.clear()
        await asyncio.sleep(1)
        assert call.alice.states["heartbeat"] == "beating.probing"
        assert probes
        assert probes[0] - woken <= 1
        await asyncio.sleep(4)
        assert "resuming.dialling" in call.alice.way("gateway")
        await asyncio.sleep(15)
        assert call.phase == "R"
        call.sim.network.on_datagram = watched

    in_call(phase, story, seed)


def test_a_short_pause_is_no_sleep() -> None:
    async def story(call: Call) -> None:
        call.host.stall(9)
        await asyncio.sleep(15)
        assert not [line for line in call.sim.trace if "host_woke" in line]

    in_call("R", story)
