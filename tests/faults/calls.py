"""Simulated calls for faults of the media path: real client, real server, and every datagram on the wire."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from voicegw.media.opus import OpusEncoder
from voicegw.media.sources import ToneSource
from voicegw.server.session import Record
from voicegw.testing.network import Address, Host, Network
from voicegw.testing.simulation import SERVER_ADDRESS, SimulatedClient, Simulation
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import RtpView, kind_of, parse_rtp

CHANNEL = 9


class Sent(NamedTuple):
    """One datagram that left a host."""

    at: float
    host: str
    data: bytes


class Wire:
    """All that was sent over UDP in one simulation, and that no nonce was used twice under a key and a direction."""

    def __init__(self, sim: Simulation) -> None:
        self.sent: list[Sent] = []
        network, loop = sim.network, sim.loop
        send = network.send

        def noted(sender: Host, source: Address, target: Address, data: bytes) -> None:
            self.sent.append(Sent(loop.now, sender.address, data))
            send(sender, source, target, data)

        network.send = noted  # type: ignore[method-assign]

    def of(self, client: SimulatedClient, length: int | None = None) -> list[Sent]:
        """What one client's host sent, of one length or of all."""
        address = client.system.address
        return [one for one in self.sent if one.host == address and length in (None, len(one.data))]

    def media(self, client: SimulatedClient) -> list[tuple[float, RtpView, int]]:
        """Time, header and nonce of one client's RTP packets."""
        return [
            (one.at, parse_rtp(one.data), int.from_bytes(one.data[-4:], "little"))
            for one in self.of(client)
            if kind_of(one.data) == "rtp"
        ]


def simulate(story: Callable[[Simulation], Awaitable[Any]], seed: int = 0, **options: Any) -> Simulation:
    """Run a story; everything that a simulation checks is checked."""
    sim = Simulation(seed, **options)
    sim.run(story)
    return sim


async def pair(sim: Simulation) -> tuple[SimulatedClient, SimulatedClient]:
    """Two clients in one encrypted call."""
    alice, bob = sim.client(1), sim.client(2)
    await alice.connect(CHANNEL)
    await bob.connect(CHANNEL)
    await bob.wait_for(lambda: bob.privacy_code != "" and bob.privacy_code == alice.privacy_code)
    return alice, bob


def media_address(network: Network) -> Address:
    """Where the server's datagrams come from."""
    return next(address for address in network.bound if address[0] == SERVER_ADDRESS)


def public_address(client: SimulatedClient) -> Address:
    """Where the server's datagrams for a client go."""
    udp = client._path._udp
    assert udp is not None
    return client.system.address, udp.local_port + client.system.port_shift


class Hum:
    """A source without end whose 20 ms cost nothing: one second of a tone, encoded once."""

    is_opus = True

    def __init__(self) -> None:
        self._frames = itertools.cycle(_hum())

    def read(self) -> bytes:
        """The next 20 ms."""
        return next(self._frames)

    def close(self) -> None:
        """Nothing is open."""


@functools.cache
def _hum() -> list[bytes]:
    encoder = OpusEncoder(64_000)
    return [encoder.encode(frame) for frame in iter(ToneSource(440, 1.0).read, b"")]


def change_network(sim: Simulation, client: SimulatedClient, address: str) -> None:
    """The client's host is in another network: its old address is gone, what is sent to it arrives nowhere."""
    host = client.system
    del sim.network.hosts[host.address]
    host.address = address
    sim.network.hosts[address] = host


def selected(sim: Simulation, user_id: int = 1) -> list[object]:
    """The addresses of every Select Protocol that the server has heard."""
    records: list[Record] = sim.server.records(user_id, Opcode.SELECT_PROTOCOL, "in")
    return [record.data["data"]["address"] for record in records]  # type: ignore[index]


def without_kernels_check(self: Any, source: Address, data: bytes) -> None:
    """What a datagram socket does that is not connected: it takes what anybody sends."""
    self._inbox.append((data, source))
    self.wake()
