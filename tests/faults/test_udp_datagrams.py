"""Faults of single datagrams: whose they are, how long they are, and too many of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import resource
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import MakeClient
from tests.faults.calls import CHANNEL, Hum, media_address, pair, public_address, simulate, without_kernels_check
from tests.faults.cells import covers
from voicegw.adapters.system import System
from voicegw.adapters.udp import DRAIN_LIMIT, RECEIVE_BUFFER_BYTES, VoiceUdp
from voicegw.media.receiver import StreamReceiver
from voicegw.secret import Secret
from voicegw.server import VoiceServer
from voicegw.testing.simulation import SERVER_ADDRESS, SimulatedClient, Simulation
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import MAX_DATAGRAM, pack_header

STRANGERS = 100_000
HEADER = pack_header(7, 960, 0x1234)


async def in_phase_of_call(sim: Simulation, phase: str) -> tuple[SimulatedClient, asyncio.Future[None] | None]:
    """A client in H (its address is being asked for), R or U, and the join that is under way."""
    if phase == "H":
        alice = sim.client(1)
        sim.server.faults.ignore_discovery = 3
        joining = asyncio.ensure_future(alice.connect(CHANNEL))
        await alice.wait_for(lambda: alice.states["transport"].startswith("discovering"))
        return alice, joining
    alice, _ = await pair(sim)
    if phase == "U":
        sim.network.black_holes.add(SERVER_ADDRESS)
        sim.server.drop_socket(1)
        await alice.wait_for(lambda: alice.states["gateway"].startswith("resuming"))
    return alice, None


def path_and_gateway(client: SimulatedClient) -> tuple[str, str]:
    """The states of the two machines that datagrams could move; "discovering" is one, whichever request is out."""
    return client.states["transport"].partition(".")[0], client.states["gateway"]


async def back(sim: Simulation, client: SimulatedClient, joining: asyncio.Future[None] | None) -> None:
    """The call comes to what it came to without the fault."""
    sim.network.black_holes.clear()
    if joining is not None:
        await joining
    await client.wait_for(lambda: client.states["gateway"] == "ready", 30)


class Crowd:
    """A UDP socket whose kernel lets everybody in; `datagrams` are there at once."""

    def __init__(self, datagrams: Iterator[tuple[bytes, tuple[str, int]]]) -> None:
        self._datagrams = datagrams
        self._pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def fileno(self) -> int:
        return self._pair[0].fileno()

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *_: object) -> None:
        """It has none."""

    def connect(self, address: object) -> None:
        """Everybody may write all the same."""

    def getpeername(self) -> tuple[str, int]:
        return ("203.0.113.1", 50004)

    def send(self, data: bytes) -> int:
        return len(data)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        try:
            return next(self._datagrams)
        except StopIteration:
            raise BlockingIOError(errno.EAGAIN, "nothing left") from None

    def close(self) -> None:
        for end in self._pair:
            end.close()


@covers("F73", "R")
async def test_no_stranger_reaches_the_parser() -> None:
    others = [("203.0.113.2", 50004), ("203.0.113.1", 50005), ("::1", 50004)]
    forged = (HEADER + bytes(60), others[0])
    crowd = (forged if number % 1000 else (HEADER, others[number // 1000 % 3]) for number in range(STRANGERS))

    class Host(System):
        def udp_socket(self, family: socket.AddressFamily) -> socket.socket:
            return Crowd(crowd)  # type: ignore[return-value]

    got: list[bytes] = []
    path = VoiceUdp(asyncio.get_running_loop(), ("203.0.113.1", 50004), got.append, system=Host())
    for _ in range(STRANGERS // DRAIN_LIMIT + 1):
        path._drain()
    assert (got, path.strangers, path.received) == ([], STRANGERS, 0)
    path.close()


@covers("F73")
def test_strangers_change_nothing_in_a_call(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.testing.datagrams.DatagramSocket.arrive", without_kernels_check)

    async def story(sim: Simulation) -> None:
        alice, joining = await in_phase_of_call(sim, phase)
        udp, states = alice._path._udp, path_and_gateway(alice)
        before = dict(alice.receiver.counters)
        for number in range(2000):
            sim.network.forge(("203.0.113.66", 1000 + number), public_address(alice), HEADER + bytes(60))
        await alice.wait_for(lambda: udp is not None and udp.strangers == 2000)
        assert dict(alice.receiver.counters) == before
        assert path_and_gateway(alice) == states
        await back(sim, alice, joining)
        await alice.close()
        assert alice._path.counters["of strangers"] == 2000

    simulate(story)


LENGTHS = (*range(2049), 65_507)


@covers("F76")
@pytest.mark.parametrize("first", [b"\x00\x02", b"\x80\x78", b"\x90\xf8", b"\xbf\x78", b"\x81\xc9"], ids=bytes.hex)
def test_every_length_is_taken_without_a_word(phase: str, first: bytes) -> None:
    async def story(sim: Simulation) -> None:
        alice, joining = await in_phase_of_call(sim, phase)
        chance = random.Random(phase)
        states, before = path_and_gateway(alice), sum(alice.receiver.counters.values())
        for length in LENGTHS:
            data = (first + chance.randbytes(length))[:length]
            sim.network.forge(media_address(sim.network), public_address(alice), data)
        udp = alice._path._udp
        assert udp is not None
        received = udp.received
        await alice.wait_for(lambda: udp.received >= received + len(LENGTHS))
        assert sum(alice.receiver.counters.values()) == before + len(LENGTHS)
        assert alice.receiver.counters["too long"] == sum(length > MAX_DATAGRAM for length in LENGTHS)
        assert alice.receiver.opener.authentic == 0
        assert path_and_gateway(alice) == states
        await back(sim, alice, joining)

    simulate(story)


def test_the_longest_datagram_is_taken_and_one_byte_more_is_not() -> None:
    key = Secret(bytes([77]) * 32)
    server = TransportCipher(PREFERRED_MODES[0], key, "server")
    receiver = StreamReceiver(lambda: 0.0)
    receiver.use_key(TransportCipher(PREFERRED_MODES[0], key))
    for sequence, over in enumerate((-1, 0, 1)):
        data = server.seal(pack_header(sequence, 0, 1), bytes(MAX_DATAGRAM + over - 12 - 20))
        assert len(data) == MAX_DATAGRAM + over
        receiver.datagram(data)
    assert receiver.opener.authentic == 2
    assert receiver.counters["too long"] == 1


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """So many files are open that select() could not be used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip("this host does not allow so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    held = []
    try:
        held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        yield
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@covers("F74")
@pytest.mark.loopback
async def test_a_call_works_above_the_thousandth_descriptor(
    phase: str, server: VoiceServer, make_client: MakeClient
) -> None:
    with many_descriptors(2000):
        client = make_client(server, 1)
        await client.connect(CHANNEL)
        udp = client._path._udp
        assert udp is not None
        assert udp._socket.fileno() > 1023
        if phase == "R":
            wakeups = 0
            drain = udp._drain

            def counted() -> None:
                nonlocal wakeups
                wakeups += 1
                drain()

            loop = asyncio.get_running_loop()
            loop.add_reader(udp._socket.fileno(), counted)
            session = server.session(1)
            assert server._relay is not None
            for number in range(10):
                server._relay.send(session, HEADER + bytes([number]))
            await client.wait_for(lambda: client.receiver.counters["control"] >= 10)
            assert 1 <= wakeups <= 10  # woken by datagrams, not spinning
        await client.close()


@covers("F75")
@pytest.mark.parametrize("weather", ["reorder", "duplicate", "corrupt"])
def test_bad_weather_is_sorted_out(weather: str, seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        setattr(alice.system.udp_in, weather, (0.05, 0.15, 0.3)[seed])
        alice.system.udp_in.reorder_s = 0.03
        playback = bob.play(Hum())
        await asyncio.sleep(10)
        playback.stop()
        await asyncio.sleep(1)
        alice.system.recover()
        link, counters, stats = alice.system.udp_in.counters, alice.receiver.counters, alice.stats.users[2]
        sent = bob.stats.packets
        refused = counters["rejected"] + counters["control"] + counters["other payload types"]
        assert refused == pytest.approx(link["corrupted"], abs=5)
        assert counters["replayed"] <= link["duplicated"] <= counters["replayed"] + 5
        assert stats.packets == pytest.approx(sent - link["corrupted"], abs=2)
        assert stats.errors == 0
        assert weather == "corrupt" or stats.lost == 0
        assert link[{"reorder": "reordered", "duplicate": "duplicated", "corrupt": "corrupted"}[weather]] > 10

    simulate(story, seed)


SPEAKERS = 25


@covers("F77")
@pytest.mark.loopback
async def test_a_late_loop_takes_what_waits_in_turns_and_reports_the_rest_as_lost() -> None:
    loop = asyncio.get_running_loop()
    packets = 100  # 2 s of each speaker come while the loop is away
    key = Secret(bytes([78]) * 32)
    cipher = TransportCipher(PREFERRED_MODES[0], key, "server")
    receiver = StreamReceiver(loop.time)
    receiver.use_key(TransportCipher(PREFERRED_MODES[0], key))
    for ssrc in range(SPEAKERS):
        receiver.map_ssrc(ssrc, 100 + ssrc)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        turns: list[int] = []
        everything = asyncio.Event()

        def take(data: bytes) -> None:
            receiver.datagram(data)
            if data[2:4] == packets.to_bytes(2, "big") and data[11] == SPEAKERS - 1:
                everything.set()

        path = VoiceUdp(loop, peer.getsockname(), take)
        there = ("127.0.0.1", path.local_port)
        for sequence in range(packets):
            for ssrc in range(SPEAKERS):
                peer.sendto(cipher.seal(pack_header(sequence, sequence * 960, ssrc), bytes(120)), there)
        before = -1
        while path.received > before:
            before = path.received
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            turns.append(path.received - before)
        assert max(turns) <= 2 * DRAIN_LIMIT  # others get their turns between
        assert len(turns) <= 2 * (packets * SPEAKERS // DRAIN_LIMIT + 2)
        for ssrc in range(SPEAKERS):  # the next packets come in time: what is missing before them is lost
            peer.sendto(cipher.seal(pack_header(packets, packets * 960, ssrc), bytes(120)), there)
        async with asyncio.timeout(5):
            await everything.wait()
        buffer = path._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        path.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        assert buffer > plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) or buffer >= RECEIVE_BUFFER_BYTES


@covers("F77")
def test_after_a_stall_the_call_is_on_time_again_within_a_second() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        bob.play(Hum())
        await asyncio.sleep(2)
        alice.system.stall(2.0)
        await asyncio.sleep(3.0)  # a second after it is awake
        stats = alice.stats.users[2]
        assert bob.stats.packets - stats.packets - stats.lost <= 5
        taken = stats.packets
        await asyncio.sleep(1.0)
        assert 48 <= stats.packets - taken <= 52

    simulate(story)
