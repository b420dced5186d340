"""An in-memory network for a `VirtualLoop`: hosts, names, links that lose and delay, streams and datagrams.

    loop = VirtualLoop(seed=1)
    network = Network(loop, seed=1)
    here, there = network.host("10.0.0.2"), network.host("66.22.196.1")
    network.names["c-ams01.discord.media"] = ["66.22.196.1"]
    here.udp_out.loss = 0.1
    here.fail("socket", errno.EMFILE, times=1)

A `Host` is the `System` that clients and servers take. Each host has four links (`udp_out`, `udp_in`, `tcp_out`,
`tcp_in`), a table of refused calls (`fail`) and three clocks. What loses a datagram delays a stream: TCP sends again.
TLS is left out unless `tls` is set; `certificates` says what is wrong with a host's certificate then.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import itertools
import os
import random
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from voicegw.adapters.calls import Calls
from voicegw.adapters.dials import DialBudget
from voicegw.adapters.system import System
from voicegw.testing.datagrams import DatagramSocket
from voicegw.testing.loop import PROCESS, Process, VirtualLoop
from voicegw.testing.streams import Connection, Listener, StreamSocket

Address = tuple[str, int]

FIRST_PORT = 49152
PORT_SHIFT, PORT_SHIFTS = 1000, 15_000
CONNECT_TIMEOUT_S = 127.0
WALL_BEGIN_MS = 1_760_000_000_000


@dataclass
class Link:
    """One direction of a host's access, for one kind of traffic. Shares are 0 to 1 of the packets.

    `burst` is the share that begins a loss of `burst_packets` in a row; `reorder` packets come `reorder_s` later than
    they should; `corrupt` have one bit turned; while `down` nothing passes.
    """

    delay_s: float = 0.01
    jitter_s: float = 0.0
    loss: float = 0.0
    burst: float = 0.0
    burst_packets: int = 10
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.05
    corrupt: float = 0.0
    down: bool = False
    counters: Counter[str] = field(default_factory=Counter)
    _losing: int = 0

    def passes(self, chance: random.Random) -> bool:
        """Does the next packet get through?"""
        if self.down:
            self.counters["down"] += 1
            return False
        if self._losing:
            self._losing -= 1
            self.counters["lost in a burst"] += 1
            return False
        if self.burst and chance.random() < self.burst:
            self._losing = self.burst_packets - 1
            self.counters["lost in a burst"] += 1
            return False
        if self.loss and chance.random() < self.loss:
            self.counters["lost"] += 1
            return False
        return True

    def delays(self, chance: random.Random) -> Iterator[float]:
        """When the copies of one packet that got through come out."""
        delay_s = self.delay_s + (chance.random() * self.jitter_s if self.jitter_s else 0.0)
        if self.reorder and chance.random() < self.reorder:
            self.counters["reordered"] += 1
            delay_s += self.reorder_s
        yield delay_s
        if self.duplicate and chance.random() < self.duplicate:
            self.counters["duplicated"] += 1
            yield delay_s + self.delay_s

    def heal(self) -> None:
        """No fault any more; the delay stays."""
        self.jitter_s = self.loss = self.burst = self.duplicate = self.reorder = self.corrupt = 0.0
        self.down = False
        self._losing = 0


class Host(System, Process):
    """One simulated host: the `system` of a client or a server on it."""

    def __init__(self, network: Network, address: str) -> None:
        Process.__init__(self)
        self.network = network
        self.address = address
        self.random = random.Random(f"host {address} {network.seed}")  # noqa: S311 - a simulation must be repeatable
        self.dials = DialBudget(self.random)
        self.calls = Calls()
        self.udp_out, self.udp_in, self.tcp_out, self.tcp_in = Link(), Link(), Link(), Link()
        self.wall_offset_s = 0.0
        self.port_shift = 0
        self._failing: dict[str, list[tuple[int, int, int]]] = {}
        self._ports = itertools.count(FIRST_PORT)

    # -- System

    def udp_socket(self, family: socket.AddressFamily) -> socket.socket:
        """A virtual socket."""
        self.check("socket")
        return DatagramSocket(self, family)  # type: ignore[return-value]

    def tcp_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A virtual socket."""
        self.check("socket")
        return StreamSocket(self, info[0])  # type: ignore[return-value]

    def wall_ms(self) -> int:
        """The wall clock, with its jumps."""
        return WALL_BEGIN_MS + int((self.network.loop.now + self.wall_offset_s) * 1000)

    def boot_s(self) -> float:
        """The boot clock runs on while the host sleeps."""
        return self.network.loop.now

    # -- what a test does to it

    def fail(self, call: str, code: int, *, times: int = 1 << 30, after: int = 0) -> None:
        """Let `call` (socket, connect, send, recv, resolve) fail with `code`: `times` times, after so many good."""
        self._failing.setdefault(call, []).append((code, times, after))

    def recover(self) -> None:
        """No call fails and no link loses any more."""
        self.stop_failing()
        for link in self.links:
            link.heal()

    def stop_failing(self) -> None:
        """No call fails any more."""
        self._failing.clear()

    def stall(self, seconds: float) -> None:
        """The process does not run for a while; the world goes on."""
        self.network.loop.freeze(self, seconds)

    def suspend(self, seconds: float) -> None:
        """The whole host sleeps: its monotonic clock stands, boot and wall clock go on."""
        self.network.loop.suspend(self, seconds)

    def rebind(self) -> None:
        """The NAT in front of it forgets its mappings: from now on our datagrams come from other ports."""
        self.port_shift = (self.port_shift + PORT_SHIFT) % PORT_SHIFTS

    @property
    def frozen(self) -> bool:
        """Does its process not run now?"""
        return self.frozen_until > self.network.loop.now

    @property
    def links(self) -> tuple[Link, ...]:
        """All four."""
        return (self.udp_out, self.udp_in, self.tcp_out, self.tcp_in)

    def set_delay(self, seconds: float) -> None:
        """One way, for all four links."""
        for link in self.links:
            link.delay_s = seconds

    # -- for sockets

    def check(self, call: str) -> None:
        """Fail as `fail` says.

        Raises:
            OSError: it does.
        """
        planned = self._failing.get(call)
        if not planned:
            return
        code, times, after = planned[0]
        if after:
            planned[0] = (code, times, after - 1)
            return
        if times <= 1:
            planned.pop(0)
        else:
            planned[0] = (code, times - 1, 0)
        raise OSError(code, os.strerror(code))

    def free_port(self) -> int:
        """A port that nobody has."""
        return next(self._ports)


class Network:
    """All hosts of one loop, and what lies between them.

    `names` is the DNS; `certificates` maps an address to what is wrong with its certificate while `tls` is off, `tls`
    switches real TLS on. `on_datagram(host, target, data)` and `on_dial(host, what)` see what a host sends and
    whom it asks for; `black_holes` are addresses from which no answer to a dial ever comes.
    """

    def __init__(self, loop: VirtualLoop, seed: int = 0, *, tls: bool = False) -> None:
        self.loop = loop
        self.seed = seed
        self.tls = tls
        self.random = random.Random(f"network {seed}")  # noqa: S311 - a simulation must be repeatable
        self.names: dict[str, list[str]] = {}
        self.name_delay_s = 0.01
        self.hosts: dict[str, Host] = {}
        self.certificates: dict[str, str] = {}
        self.black_holes: set[str] = set()
        self.listeners: dict[Address, Listener] = {}
        self.bound: dict[Address, DatagramSocket] = {}
        self.descriptors: dict[int, DatagramSocket] = {}
        self.connections: dict[Connection, None] = {}
        self.counters: Counter[str] = Counter()
        self.on_datagram: Callable[[Host, Address, bytes], None] | None = None
        self.on_dial: Callable[[Host, str], None] | None = None
        self._descriptors = itertools.count(1 << 20)
        loop.network = self

    def host(self, address: str) -> Host:
        """The host at `address`; made when it is asked for first."""
        if address not in self.hosts:
            self.hosts[address] = Host(self, address)
        return self.hosts[address]

    @property
    def open_sockets(self) -> list[str]:
        """Everything that somebody has open, for leak checks."""
        streams = [repr(end) for connection in self.connections for end in connection.ends if not end.closed]
        return sorted(
            [repr(one) for one in self.descriptors.values()] + streams + [repr(one) for one in self.listeners]
        )

    # -- names

    async def look_up(self, name: str, port: int) -> list[Any]:
        """What getaddrinfo gives.

        Raises:
            socket.gaierror: no such name, or the resolver fails.
        """
        await asyncio.sleep(self.name_delay_s)
        process = PROCESS.get()
        if isinstance(process, Host):
            if self.on_dial is not None:
                self.on_dial(process, name)
            try:
                process.check("resolve")
            except OSError as error:
                raise socket.gaierror(error.errno, "name resolution failed") from None
        addresses = self.names.get(name) or ([name] if _is_address(name) else [])
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(_family(address), socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    # -- streams

    async def dial(self, sock: StreamSocket, address: Address) -> None:
        """Connect `sock`.

        Raises:
            OSError: refused, unreachable, nobody answered.
        """
        host = sock.host
        if self.on_dial is not None:
            self.on_dial(host, address[0])
        host.check("connect")
        target = self.hosts.get(address[0])
        if target is None or address[0] in self.black_holes:
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        connection = Connection(self, sock, target, address)
        if not await connection.shake_hands():
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        listener = self.listeners.get((address[0], address[1]))
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if sock.fileno() >= 0:
            self.connections[connection] = None
            connection.open(listener)

    def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, context: ssl.SSLContext | None
    ) -> Listener:
        """Accept streams at an address, in the process that asks."""
        port = port or self.host(host).free_port()
        if (host, port) in self.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener = Listener(self, factory, (host, port), context)
        self.listeners[host, port] = listener
        return listener

    # -- datagrams

    def descriptor(self, owner: DatagramSocket) -> int:
        """A number for a new socket."""
        number = next(self._descriptors)
        self.descriptors[number] = owner
        return number

    def send(self, sender: Host, source: Address, target: Address, data: bytes) -> None:
        """One datagram on its way; `source` is the sender's own address."""
        public = (source[0], source[1] + sender.port_shift)
        if not sender.udp_out.passes(self.random):
            return
        for out_s in sender.udp_out.delays(self.random):
            self._travel(sender.udp_out, public, target, data, out_s)

    def forge(self, source: Address, target: Address, data: bytes) -> None:
        """A datagram that claims to come from `source`."""
        self._travel(None, source, target, data, 0.0)

    def _travel(self, out: Link | None, source: Address, target: Address, data: bytes, out_s: float) -> None:
        receiver = self.hosts.get(target[0])
        if receiver is None:
            self.counters["datagrams to nowhere"] += 1
            return
        if not receiver.udp_in.passes(self.random):
            return
        for in_s in receiver.udp_in.delays(self.random):
            arriving = data
            for link in (out, receiver.udp_in):
                if link is not None and link.corrupt and data and self.random.random() < link.corrupt:
                    link.counters["corrupted"] += 1
                    arriving = self._corrupt(arriving)
            due = self.loop.now + out_s + in_s
            self.loop.arrive_at(due, functools.partial(self._arrive, receiver, source, target, arriving))

    def _corrupt(self, data: bytes) -> bytes:
        at = int(self.random.random() * len(data))
        return data[:at] + bytes((data[at] ^ (1 << self.random.randrange(8)),)) + data[at + 1 :]

    def _arrive(self, receiver: Host, source: Address, target: Address, data: bytes) -> None:
        bound = self.bound.get((target[0], target[1] - receiver.port_shift))
        if bound is None:
            self.counters["datagrams to closed ports"] += 1
            return
        bound.arrive(source, data)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
