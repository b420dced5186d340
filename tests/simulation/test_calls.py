"""Whole calls in virtual time: the real client, the real server, and everything between them simulated."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from voicegw import ToneSource
from voicegw.errors import CertificateRefused, UdpBlocked, VoiceTimeout
from voicegw.media.sinks import MeasuringSink
from voicegw.testing.invariants import Violation
from voicegw.testing.simulation import SimulatedClient, Simulation

CHANNEL = 9


async def pair(sim: Simulation) -> tuple[SimulatedClient, SimulatedClient]:
    """Two clients in one encrypted call."""
    alice, bob = sim.client(1), sim.client(2)
    await alice.connect(CHANNEL)
    await bob.connect(CHANNEL)
    await bob.wait_for(lambda: bob.privacy_code != "" and bob.privacy_code == alice.privacy_code)
    return alice, bob


async def a_tone(sim: Simulation) -> None:
    alice, bob = await pair(sim)
    sink = MeasuringSink()
    bob.listen(sink)
    await alice.play(ToneSource(440, 1)).wait()
    await alice.wait_for(lambda: alice.states["speech"] == "silent")
    await asyncio.sleep(0.2)
    await bob.flush()
    assert sink.frequency(1) == pytest.approx(440, abs=1)
    assert bob.stats.users[1].packets == 55
    assert bob.stats.users[1].lost == bob.stats.users[1].errors == 0
    assert sim.server.session(1).counters["media in the clear"] == 0


@pytest.mark.parametrize("policy", ["fifo", "shuffle", "priorities"])
def test_a_tone_is_heard_in_virtual_time(policy: str) -> None:
    Simulation(seed=1, policy=policy).run(a_tone)


def test_a_tone_is_heard_over_real_tls() -> None:
    Simulation(seed=1, tls=True).run(a_tone)


def test_the_same_seed_brings_the_same_trace() -> None:
    async def weather(sim: Simulation) -> None:
        alice, _ = await pair(sim)
        alice.system.udp_out.loss = alice.system.tcp_in.loss = 0.2
        alice.system.udp_in.jitter_s = 0.1
        sim.server.drop_socket(1)
        await alice.play(ToneSource(440, 5)).wait()

    def trace_hash(seed: int) -> str:
        sim = Simulation(seed)
        sim.run(weather)
        assert "1 gateway resuming" in "\n".join(sim.trace)
        return sim.trace_hash

    assert [trace_hash(seed) for seed in range(5)] == [trace_hash(seed) for seed in range(5)]
    assert len({trace_hash(seed) for seed in range(5)}) > 1


REPEATED = """
from tests.simulation.test_calls import a_tone
from voicegw.testing.simulation import Simulation
sim = Simulation(seed=5)
sim.run(a_tone)
print(sim.trace_hash)
"""


def test_the_trace_does_not_depend_on_the_process() -> None:
    hashes = {
        subprocess.run(
            [sys.executable, "-c", REPEATED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_a_server_without_a_valid_certificate_is_refused() -> None:
    async def story(sim: Simulation) -> None:
        sim.network.certificates[sim.server.host] = "certificate has expired"
        with pytest.raises(CertificateRefused, match="has expired"):
            await sim.client(1).connect(CHANNEL)

    Simulation(seed=1).run(story)


def test_blocked_udp_ends_a_join_in_bounded_time() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(1)
        alice.system.udp_out.down = True
        with pytest.raises(UdpBlocked, match="IP discovery was not answered"):
            await alice.connect(CHANNEL)

    Simulation(seed=1).run(story)


def test_what_a_story_leaves_behind_fails_the_run() -> None:
    async def careless(sim: Simulation) -> None:
        sim.loop.call_later(3600, print)

    with pytest.raises(Violation, match="has left timer"):
        Simulation(seed=1).run(careless)

    async def failing(sim: Simulation) -> None:
        async def fail() -> None:
            raise RuntimeError("nobody looks")

        sim.loop.create_task(fail())
        await asyncio.sleep(1)

    with pytest.raises(Violation, match="nobody looks"):
        Simulation(seed=1).run(failing)


def test_connects_at_once_share_one_attempt() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(1)
        patient = [asyncio.ensure_future(alice.connect(CHANNEL)) for _ in range(3)]
        hasty = asyncio.ensure_future(alice.connect(CHANNEL, timeout_s=0.05))
        cancelled = asyncio.ensure_future(alice.connect(CHANNEL))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(VoiceTimeout):
            await hasty
        await asyncio.gather(*patient)
        assert alice.signalling.requests == [CHANNEL]

    Simulation(seed=1).run(story)


def test_the_newest_of_several_wishes_wins() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(1)
        first = asyncio.ensure_future(alice.connect(CHANNEL))
        await asyncio.sleep(0.07)
        await asyncio.gather(first, alice.connect(CHANNEL + 1))
        assert alice.channel_id == CHANNEL + 1
        assert sim.server.session(1).credentials.channel_id == CHANNEL + 1

    for seed in range(5):
        Simulation(seed).run(story)
