"""Faults of the UDP path while media flows: one-way lines, NAT, a host that does not send, another network."""

from __future__ import annotations

import asyncio
import errno
import itertools

import pytest

from tests.faults.calls import CHANNEL, Hum, Wire, change_network, pair, selected, simulate
from tests.faults.cells import covers
from tests.faults.worlds import in_phase
from voicegw.effects import MediaLost, MediaRestored, Notice, Reconnecting, SendKeepalive, Warned
from voicegw.errors import UdpBlocked
from voicegw.testing.simulation import SimulatedClient, Simulation

KEEPALIVE_BYTES = 8


def notices(client: SimulatedClient) -> list[Notice]:
    """What the client says from now on."""
    heard: list[Notice] = []
    client.add_listener(heard.append)
    return heard


def packets(client: SimulatedClient, user_id: int) -> int:
    """How many packets of a user it has taken."""
    stats = client.stats.users.get(user_id)
    return stats.packets if stats is not None else 0


async def hears(client: SimulatedClient, user_id: int, within_s: float, count: int = 25) -> float:
    """Until half a second more of the user was heard; how long that took."""
    loop = asyncio.get_running_loop()
    begin, before = loop.time(), packets(client, user_id)
    await client.wait_for(lambda: packets(client, user_id) >= before + count, within_s)
    return loop.time() - begin


def kinds(heard: list[Notice]) -> set[type[Notice]]:
    """Which kinds of notices there are."""
    return {type(notice) for notice in heard}


@covers("F65")
@pytest.mark.parametrize("direction", ["udp_in", "udp_out"])
def test_a_one_way_line_is_said_and_kills_nothing(direction: str) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        heard = notices(alice)
        getattr(alice.system, direction).down = True
        await asyncio.sleep(120)
        assert [type(notice) for notice in heard] == [Warned]
        heard.clear()
        assert (alice.states["gateway"], alice.states["transport"]) == ("ready", "silent")
        getattr(alice.system, direction).down = False
        bob.play(Hum())
        await hears(alice, 2, 6)
        await asyncio.sleep(5)
        assert [notice.text for notice in heard if isinstance(notice, Warned)] == ["datagrams arrive again"]
        assert alice.states["transport"] == "open"

    simulate(story)


@covers("F65")
def test_a_one_way_line_is_given_up_where_control_fails_too() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        heard = notices(alice)
        alice.system.udp_in.down = True
        await asyncio.sleep(30)
        sim.server.drop_socket(1)
        await alice.wait_for(lambda: MediaLost in kinds(heard), 5)
        alice.system.udp_in.down = False
        await alice.wait_for(lambda: MediaRestored in kinds(heard), 5)
        bob.play(Hum())
        await hears(alice, 2, 2)

    simulate(story)


@covers("F66")
@pytest.mark.parametrize("every_s", [5.0, 30.0, 300.0])
def test_another_public_port_is_found_out_and_selected(every_s: float) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        heard = notices(alice)
        for _ in range(3 if every_s < 300 else 1):
            await asyncio.sleep(every_s - 3)
            bob.play(Hum())
            await asyncio.sleep(3)
            alice.system.rebind()
            if every_s > 5:  # sooner than that nobody can follow
                assert await hears(alice, 2, 12) < 11
        assert await hears(alice, 2, 12) < 11
        session = sim.server.session(1)
        assert session.address is not None
        assert session.address[1] == alice._path._udp.local_port + alice.system.port_shift  # type: ignore[union-attr]
        assert len(selected(sim)) >= 2
        assert Reconnecting not in kinds(heard)

    simulate(story)


@covers("F67")
@pytest.mark.parametrize("silent", [{"SendKeepalive"}, {"SendKeepalive", "SendDiscovery"}])
def test_a_server_that_never_answers_keeps_its_session_for_a_day(silent: set[str]) -> None:
    world = in_phase("R")
    world.unanswered |= silent
    world.advance(24 * 3600)
    assert world.states["gateway"] == "ready"
    assert world.way("gateway")[-1] == "ready"
    assert len(world.sent(SendKeepalive)) == 24 * 720
    assert len([notice for notice in world.notices if isinstance(notice, Warned)]) == ("SendDiscovery" in silent)


@covers("F68")
def test_an_idle_hour_has_720_keepalives() -> None:
    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, _ = await pair(sim)
        begin = sim.loop.time()
        await asyncio.sleep(3600)
        sent = [one for one in wire.of(alice, KEEPALIVE_BYTES) if one.at >= begin]
        assert 719 <= len(sent) <= 721
        gaps = [after.at - before.at for before, after in itertools.pairwise(sent)]
        assert gaps == pytest.approx([5.0] * len(gaps), abs=0.001)
        counts = [int.from_bytes(one.data[:4], "little") for one in sent]
        assert counts == list(range(counts[0], counts[0] + len(counts)))
        assert {one.data[4:] for one in sent} == {bytes(4)}

    simulate(story)


REFUSALS = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EPERM,
    errno.EADDRNOTAVAIL,
    errno.ECONNREFUSED,
    errno.EAGAIN,
    errno.ENOBUFS,
    errno.EMSGSIZE,
)


def assert_clock_kept(wire: Wire, client: SimulatedClient) -> None:
    """Timestamps follow the time in which packets left, to within a frame, and nothing of the past is sent later."""
    sent = wire.media(client)
    first_at, first, _ = sent[0]
    for at, view, _ in sent:
        drift = (view.timestamp_ticks - first.timestamp_ticks - round((at - first_at) * 48_000)) & 0xFFFFFFFF
        assert min(drift, (1 << 32) - drift) <= 960


@covers("F69")
@pytest.mark.parametrize("code", REFUSALS, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("lasting_s", [0.0, 1.0, 60.0])
def test_what_the_host_refuses_to_send_is_counted(code: int, lasting_s: float) -> None:
    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, _bob = await pair(sim)
        heard = notices(alice)
        playback = alice.play(Hum())
        await asyncio.sleep(1)
        alice.system.fail("send", code, times=1 if lasting_s == 0 else 1 << 30)
        await asyncio.sleep(lasting_s or 1)
        alice.system.recover()
        if lasting_s > 2:
            assert MediaLost in kinds(heard)
            lost = next(notice for notice in heard if isinstance(notice, MediaLost))
            assert errno.errorcode[code] in lost.reason
            await alice.wait_for(lambda: alice.states["gateway"] == "ready" and alice.sender.open, 60)
        else:
            assert heard == []
            assert alice.stats.errors == 1 if lasting_s == 0 else 45 <= alice.stats.errors <= 51
        sent = alice.stats.packets
        await asyncio.sleep(1)
        assert alice.stats.packets >= sent + 49
        assert not playback.done
        assert_clock_kept(wire, alice)

    simulate(story)


@covers("F69")
def test_a_path_that_is_refused_for_two_seconds_is_lost_and_not_a_moment_sooner() -> None:
    def outage(seconds: float) -> bool:
        told: list[Notice] = []

        async def story(sim: Simulation) -> None:
            alice, _bob = await pair(sim)
            alice.add_listener(told.append)
            alice.play(Hum())
            await asyncio.sleep(1)
            alice.system.fail("send", errno.ENETUNREACH)
            await asyncio.sleep(seconds)
            alice.system.recover()
            await asyncio.sleep(5)
            assert alice.states["gateway"] == "ready"

        simulate(story)
        return MediaLost in kinds(told)

    assert [outage(seconds) for seconds in (1.96, 2.06)] == [False, True]


@covers("F69")
def test_a_path_that_lets_some_through_is_not_lost() -> None:
    async def story(sim: Simulation) -> None:
        alice, _bob = await pair(sim)
        heard = notices(alice)
        alice.play(Hum())
        for _ in range(50):
            await asyncio.sleep(0.1)
            alice.system.fail("send", errno.ENOBUFS, times=3)
        await asyncio.sleep(1)
        assert alice.stats.errors == 150
        assert heard == []

    simulate(story)


@covers("F70")
def test_what_the_kernel_refuses_is_never_sent_later() -> None:
    async def story(sim: Simulation) -> None:
        wire = Wire(sim)
        alice, bob = await pair(sim)
        alice.play(Hum())
        await asyncio.sleep(1)
        alice.system.fail("send", errno.EAGAIN)
        await asyncio.sleep(10)
        assert [one for one in wire.of(alice) if one.at > sim.loop.time() - 9] == []
        alice.system.recover()
        await hears(bob, 1, 30)
        assert_clock_kept(wire, alice)
        gaps = [after[0] - before[0] for before, after in itertools.pairwise(wire.media(alice))]
        assert min(gaps) > 0.019  # no burst of what was held

    simulate(story)


@covers("F71")
def test_another_network_brings_another_socket(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        heard = notices(alice)
        playback = alice.play(Hum())
        bob.play(Hum())
        await hears(alice, 2, 2)
        if phase == "U":
            alice.system.tcp_out.delay_s = 1.0
            sim.server.drop_socket(1)
            await alice.wait_for(lambda: alice.states["gateway"].startswith("resuming"), 5)
        change_network(sim, alice, "192.0.2.77")
        if phase == "R":
            sim.server.drop_socket(1)
        await alice.wait_for(lambda: selected(sim)[-1] == "192.0.2.77", 20)
        assert alice.states["gateway"] == "ready"
        assert "awaiting_resumed" in " ".join(alice.way("gateway"))
        assert await hears(alice, 2, 2) < 1
        assert await hears(bob, 1, 2) < 1
        ours = [one for one in sim.network.open_sockets if one.startswith("<udp ('192.0.2.77'") or "10.0.0.1'" in one]
        assert len([one for one in ours if one.startswith("<udp")]) == 1
        assert not playback.done
        assert phase == "U" or Reconnecting in kinds(heard)

    simulate(story)


@covers("F71")
def test_another_network_is_noticed_where_the_websocket_does_not(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        bob.play(Hum())
        await hears(alice, 2, 2)
        change_network(sim, alice, "192.0.2.77")
        assert await hears(alice, 2, 12) < 7  # at the next keepalive
        assert selected(sim)[-1] == "192.0.2.77"

    simulate(story, seed)


def test_a_path_that_is_lost_for_good_ends_the_call_with_its_reason() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(1, max_attempts=3)
        await alice.connect(CHANNEL)
        alice.play(Hum())
        await asyncio.sleep(1)
        alice.system.fail("send", errno.EPERM)
        await asyncio.wait_for(alice.wait_closed(), 300)
        assert isinstance(alice.error, UdpBlocked)
        assert alice.error.stage == "sending"

    simulate(story)
