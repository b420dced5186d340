"""Faults of the UDP path before media flows: IP discovery that is lost, odd, forged, or has no way to go."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Callable

import pytest

from tests.faults.calls import (
    CHANNEL,
    Wire,
    media_address,
    pair,
    public_address,
    selected,
    simulate,
    without_kernels_check,
)
from tests.faults.cells import covers
from tests.faults.worlds import in_phase
from voicegw.adapters.udp import VoiceUdp
from voicegw.effects import Closed, SendDiscovery, SendSelectProtocol
from voicegw.errors import UdpBlocked
from voicegw.events import IpDiscovered
from voicegw.testing.simulation import SERVER_ADDRESS, Simulation
from voicegw.testing.world import MEDIA, World
from voicegw.wire.discovery import DISCOVERY_BYTES, discovery_response
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.payloads import ReadyReceived

REQUESTS_AT = [0, 0.2, 0.4, 0.8, 1.6, 2.1, 2.6, 3.1, 3.6, 4.1, 4.6]
OTHER_ADDRESS = "198.51.100.66"


def discovering() -> World:
    """A call that asks for its address and is not answered."""
    world = in_phase("H")
    world.unanswered = {"SendDiscovery"}
    world.server(ReadyReceived(7, MEDIA, 50004, PREFERRED_MODES))
    assert world.states["transport"].startswith("discovering")
    return world


@covers("F61")
def test_discovery_is_asked_for_until_it_is_answered(seed: int) -> None:
    # 30 % of the requests and 30 % of the answers are lost: eleven requests fail together with 0.51 ** 11 < 0.1 %.
    assert 1 - (1 - 0.7**2) ** len(REQUESTS_AT) > 0.999
    chance = random.Random(seed)
    for loss in (0.0, 0.3, 0.6, 0.9, 1.0):
        lose(loss, chance)


def lose(loss: float, chance: random.Random) -> None:
    """One discovery in which each datagram is lost with this probability."""
    world = discovering()
    begin = world.now
    while chance.random() < loss or chance.random() < loss:  # the request, or its answer
        world.advance(world.session.shared.timers[waiting_with(world)] - world.now)
        if world.states["transport"] == "closed":
            break
    first, *_ = times = world.times(SendDiscovery)
    assert [at - first for at in times] == pytest.approx(REQUESTS_AT[: len(times)])
    if world.states["transport"] == "closed":
        assert len(times) == len(REQUESTS_AT)
        assert world.now - begin == pytest.approx(4.95)
        world.until(lambda: world.states["call"] == "closed", 10)
        assert isinstance(closed_with(world), UdpBlocked)
    else:
        assert loss < 1
        world.unanswered.clear()
        world.udp(IpDiscovered("203.0.113.7", 1))
        world.until(lambda: world.states["call"] == "connected", 10)


@covers("F61")
def test_a_join_over_a_bad_line_succeeds(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        wire, alice = Wire(sim), sim.client(1)
        alice.system.udp_out.loss = alice.system.udp_in.loss = 0.3
        await alice.connect(CHANNEL)
        assert 1 <= len(wire.of(alice, DISCOVERY_BYTES)) <= len(REQUESTS_AT)

    simulate(story, seed)


def waiting_with(world: World) -> str:
    """The deadline that the UDP path waits with."""
    transport = world.session.transport
    deadline = transport.table.states[transport.state].deadline
    assert deadline is not None
    return deadline


def closed_with(world: World) -> object:
    """Why a call ended."""
    return next(notice.error for notice in world.notices if isinstance(notice, Closed))


def damaged(change: Callable[[bytearray], None]) -> Callable[[int], bytes]:
    """A discovery reply of another address, spoiled."""

    def make(ssrc: int) -> bytes:
        data = bytearray(discovery_response(ssrc, OTHER_ADDRESS, 4242))
        change(data)
        return bytes(data)

    return make


def put(at: int, value: bytes) -> Callable[[int], bytes]:
    """With other bytes in one place."""

    def change(data: bytearray) -> None:
        data[at : at + len(value)] = value

    return damaged(change)


ODD: dict[str, Callable[[int], bytes]] = {
    "a byte short": damaged(lambda data: data.__delitem__(73)),
    "a byte long": damaged(lambda data: data.append(0)),
    "70 bytes, as of old": damaged(lambda data: data.__delitem__(slice(0, 4))),
    "our own request": put(0, b"\0\1"),
    "type 3": put(0, b"\0\3"),
    "length 74": put(2, b"\0\x4a"),
    "another SSRC": put(4, b"\xff\xff\xff\xff"),
    "no terminator": put(8, b"1" * 64),
    "no address": put(8, b"example.com\0"),
    "an address with a zone": put(8, b"fe80::1%eth0\0"),
    "no text": put(8, b"\xff\xfe\0"),
    "an empty address": put(8, b"\0"),
    "nobody's address": put(8, b"0.0.0.0\0"),
    "everybody's address": put(8, b"224.0.0.1\0"),
    "port 0": put(72, b"\0\0"),
}


@covers("F62", "H")
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_reply_is_no_reply(odd: str) -> None:
    async def story(sim: Simulation) -> None:
        wire, alice = Wire(sim), sim.client(1)
        joining = asyncio.ensure_future(alice.connect(CHANNEL))
        await alice.wait_for(lambda: alice.states["transport"].startswith("discovering"))
        ssrc = alice.session.shared.ssrc
        for _ in range(3):
            sim.network.forge(media_address(sim.network), public_address(alice), ODD[odd](ssrc))
        await joining
        assert selected(sim) == [alice.system.address]
        request = wire.of(alice, DISCOVERY_BYTES)[0].data
        assert request[8:] == bytes(66)  # what is not used is zero

    simulate(story)


@covers("F62", "R")
def test_replies_after_the_first_are_counted() -> None:
    async def story(sim: Simulation) -> None:
        alice, _ = await pair(sim)
        late = discovery_response(alice.session.shared.ssrc, OTHER_ADDRESS, 4242)
        for _ in range(5):
            sim.network.forge(media_address(sim.network), public_address(alice), late)
        await alice.wait_for(lambda: alice._path.counters["late discovery replies"] == 5)
        assert selected(sim) == [alice.system.address]
        assert alice.states["transport"] == "open"

    simulate(story)


@covers("F63")
def test_a_reply_of_somebody_else_redirects_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    server_port: list[int] = []

    async def story(sim: Simulation) -> None:
        alice = sim.client(1)
        joining = asyncio.ensure_future(alice.connect(CHANNEL))
        await alice.wait_for(lambda: alice.states["transport"].startswith("discovering"))
        server_port.append(media_address(sim.network)[1])
        forged = discovery_response(alice.session.shared.ssrc, OTHER_ADDRESS, 4242)
        sources = [("203.0.113.9", 50004), ("203.0.113.9", server_port[0]), (SERVER_ADDRESS, server_port[0] + 1)]
        for source in sources * 10:  # before the true one, and after it
            sim.network.forge(source, public_address(alice), forged)
        await joining
        for source in sources * 10:
            sim.network.forge(source, public_address(alice), forged)
        await asyncio.sleep(1)
        assert selected(sim) == [alice.system.address]
        udp = alice._path._udp
        assert udp is not None
        assert udp.strangers == (60 if seed else 0)

    if seed:  # a kernel that lets everybody in: our own look at the source must do
        monkeypatch.setattr("voicegw.testing.datagrams.DatagramSocket.arrive", without_kernels_check)
    simulate(story, seed)


@covers("F64")
def test_blocked_udp_is_said_at_once_with_its_stage() -> None:
    async def blocked(sim: Simulation, stage: str, after_s: float) -> None:
        alice = sim.clients[0]
        begin = sim.loop.time()
        with pytest.raises(UdpBlocked) as caught:
            await alice.connect(CHANNEL)
        assert caught.value.stage == stage
        assert sim.loop.time() - begin == pytest.approx(after_s, abs=0.5)

    async def nothing_passes(sim: Simulation) -> None:
        sim.client(1).system.udp_out.down = True
        await blocked(sim, "discovery", 5)

    async def nothing_comes_back(sim: Simulation) -> None:
        sim.client(1).system.udp_in.down = True
        await blocked(sim, "discovery", 5)

    async def a_firewall_on_the_host(sim: Simulation) -> None:
        sim.client(1).system.fail("send", errno.EPERM)
        await blocked(sim, "sending", 5)

    async def no_way_there(sim: Simulation) -> None:
        sim.client(1).system.fail("connect", errno.ENETUNREACH, after=1)  # the first connect is the websocket's
        await blocked(sim, "route", 0)

    for story in (nothing_passes, nothing_comes_back, a_firewall_on_the_host, no_way_there):
        simulate(story)


@covers("F72")
def test_a_host_without_ipv4_gets_a_clear_error() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(1)
        alice.system.fail("connect", errno.ENETUNREACH, after=1)
        with pytest.raises(UdpBlocked, match="IPv6 alone, it needs NAT64") as caught:
            await alice.connect(CHANNEL)
        assert caught.value.stage == "route"

    simulate(story)


@covers("F72")
@pytest.mark.loopback
@pytest.mark.parametrize(("address", "family"), [("::1", socket.AF_INET6), ("127.0.0.1", socket.AF_INET)])
async def test_the_family_is_the_addresses_own(address: str, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("this host has no IPv6")
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip(f"this host has no {address}")
        server.settimeout(5)
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        path = VoiceUdp(asyncio.get_running_loop(), (address, server.getsockname()[1]), got.set_result)
        assert path.send(b"ask")
        data, source = server.recvfrom(100)
        server.sendto(b"answer", source)
        assert (data, await asyncio.wait_for(got, 5)) == (b"ask", b"answer")
        path.close()


def test_select_protocol_is_said_once_a_session() -> None:
    world = discovering()
    world.unanswered = {"SendSelectProtocol"}
    for _ in range(3):
        world.udp(IpDiscovered("203.0.113.7", 1))
    assert len(world.sent(SendSelectProtocol)) == 1
