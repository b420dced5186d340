"""Virtual TCP: streams with flow control, retransmission, FIN and RST.

What happens in here outside of callbacks (arrivals, retransmissions, windows) is the kernel's work: it goes on while a
process is frozen. What a process does with it is a callback of that process.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
import os
import socket
import ssl
from asyncio import protocols
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voicegw.testing.network import Address, Host, Network

WINDOW_BYTES = 262_144
READ_BYTES = 262_144
RETRANSMIT_S, RETRANSMIT_CAP_S, GIVE_UP_S = 0.2, 30.0, 924.0
SYN_AGAIN_S, SYN_TRIES = 1.0, 7


class End(bytes):
    """What comes after the last byte of a stream: FIN or RST."""


FIN, RST = End(b"FIN"), End(b"RST")


class Pipe:
    """One direction of a stream: in order, and what a link loses is sent again later, with all that follows it."""

    def __init__(self, network: Network, sender: StreamSocket, receiver: StreamSocket) -> None:
        self._network = network
        self._loop = network.loop
        self._sender = sender
        self._receiver = receiver
        self._links = (sender.host.tcp_out, receiver.host.tcp_in)
        self._queue: deque[bytes] = deque()
        self._stalled = False
        self._again_s = RETRANSMIT_S
        self._stalled_s = 0.0
        self.not_before = 0.0
        self.outstanding = 0
        self.silent = False

    @property
    def delay_s(self) -> float:
        """One way, now."""
        chance = self._network.random
        return sum(link.delay_s + (chance.random() * link.jitter_s if link.jitter_s else 0.0) for link in self._links)

    def push(self, item: bytes) -> None:
        """Bytes, `FIN` or `RST` set out."""
        if not isinstance(item, End):
            self.outstanding += len(item)
        self._queue.append(item)
        if not self._stalled:
            self._transmit()

    def consumed(self, count: int) -> None:
        """The receiver has read; the window opens."""
        self.outstanding -= count
        self._loop.arrive_at(self._loop.now + self.delay_s, self._sender.window_opened)

    def _transmit(self) -> None:
        while self._queue:
            if self.silent or not self._passes():
                self._stalled = True
                self._stalled_s += self._again_s
                self._loop.arrive_at(self._loop.now + self._again_s, self._retransmit)
                self._again_s = min(2 * self._again_s, RETRANSMIT_CAP_S)
                return
            self._again_s, self._stalled_s = RETRANSMIT_S, 0.0
            item = self._queue.popleft()
            self.not_before = max(self.not_before, self._loop.now + self.delay_s)
            self._loop.arrive_at(self.not_before, functools.partial(self._receiver.arrive, item))

    def _passes(self) -> bool:
        chance = self._network.random
        return all(link.passes(chance) for link in self._links)

    def _retransmit(self) -> None:
        self._stalled = False
        if self._stalled_s > GIVE_UP_S:
            self._queue.clear()
            self._sender.broken(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
        else:
            self._transmit()


class StreamSocket:
    """One end of a TCP connection, as asyncio and aiohttp see it."""

    type = socket.SOCK_STREAM
    proto = 6

    def __init__(self, host: Host, family: int) -> None:
        self.host = host
        self.family = family
        self.closed = False
        self.connection: Connection | None = None
        self.out: Pipe | None = None
        self.name: Address = (host.address, 0)
        self.peer: Address | None = None
        self.inbox: deque[bytes] = deque()
        self._transport: StreamTransport | None = None

    def fileno(self) -> int:
        """-1 when closed; there is no other number."""
        return -1 if self.closed else 1 << 30

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """No option means anything here."""

    def getsockopt(self, level: int, option: int) -> int:
        """No option means anything here."""
        return 0

    def getsockname(self) -> Address:
        """Our address."""
        return self.name

    def getpeername(self) -> Address:
        """The other's."""
        if self.peer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self.peer

    def transport(
        self, protocol: asyncio.BaseProtocol, waiter: Any, extra: dict[str, Any] | None, *, secured: bool = False
    ) -> StreamTransport:
        """asyncio's view of it. `secured` stands for TLS: its time passes and its certificate is judged."""
        self._transport = StreamTransport(self, protocol, extra or {})
        self._transport.begin(waiter, secured)
        return self._transport

    def close(self) -> None:
        """Close: FIN, or RST where something is unread; harmless when closed."""
        if self.closed:
            return
        self.closed = True
        if self.out is not None and self.connection is not None:
            self.out.push(RST if any(not isinstance(item, End) for item in self.inbox) else FIN)
            self.connection.end_closed()

    # -- the kernel

    def arrive(self, item: bytes) -> None:
        """Something came in."""
        if self.closed:
            if not isinstance(item, End) and self.out is not None:
                self.out.push(RST)
            return
        if item is RST:
            self.broken(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            return
        self.inbox.append(item)
        if self._transport is not None:
            self._transport.wake()

    def broken(self, error: OSError) -> None:
        """The connection is gone."""
        self.inbox.clear()
        if self._transport is not None:
            self._transport.break_with(error)

    def window_opened(self) -> None:
        """More may be sent."""
        if self._transport is not None:
            self._transport.wake_writer()

    def __repr__(self) -> str:
        return f"<tcp {self.name} to {self.peer}>"


class StreamTransport(asyncio.Transport):
    """asyncio's transport on a virtual socket."""

    def __init__(self, sock: StreamSocket, protocol: asyncio.BaseProtocol, extra: dict[str, Any]) -> None:
        super().__init__({"socket": sock, "sockname": sock.name, "peername": sock.peer, **extra})
        assert sock.out is not None
        self._socket = sock
        self._pipe = sock.out
        self._protocol = protocol
        self._loop = sock.host.network.loop
        self._context = contextvars.copy_context()
        self._buffer: deque[bytes] = deque()
        self._buffered = 0
        self._limits = (16_384, 65_536)
        self._writing_paused = False
        self._reading = False
        self._awake = False
        self._closing = False
        self._over = False
        self._eof = False
        self._error: OSError | None = None

    def begin(self, waiter: asyncio.Future[None] | None, secured: bool) -> None:
        """Tell the protocol; with `secured` after the time that TLS takes."""
        if not secured or self._socket.connection is None or self._socket is not self._socket.connection.ends[0]:
            self._loop.call_soon(self._made, waiter)
            return
        wrong = self._socket.connection.wrong_certificate
        round_trip_s = 2 * self._pipe.delay_s
        if wrong is None:
            self._loop.call_later(round_trip_s, self._made, waiter)
        else:
            self._loop.call_later(round_trip_s, self._refuse, waiter, wrong)

    def _made(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and waiter.cancelled():
            return
        self._protocol.connection_made(self)
        self._reading = True
        self._loop.call_soon(self.wake)
        if waiter is not None:
            self._loop.call_soon(_settle, waiter)

    def _refuse(self, waiter: asyncio.Future[None] | None, wrong: str) -> None:
        error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {wrong}")
        error.verify_message = wrong
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self.abort()

    # -- reading

    def is_reading(self) -> bool:
        """Is what arrives given to the protocol?"""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Leave what arrives in the socket; the peer's window closes."""
        self._reading = False

    def resume_reading(self) -> None:
        """Go on."""
        if not self._closing:
            self._reading = True
            self.wake()

    def wake(self) -> None:
        """Let the process read, if it wants to and there is something."""
        if self._awake or not self.is_reading() or not (self._socket.inbox or self._error):
            return
        self._awake = True
        self._loop.ready(asyncio.Handle(self._read, (), self._loop, self._context))

    def _read(self) -> None:
        self._awake = False
        if not self.is_reading():
            return
        inbox = self._socket.inbox
        if self._error is not None:
            self._force_close(self._error)
        elif inbox and inbox[0] is FIN:
            inbox.popleft()
            if self._protocol.eof_received():  # type: ignore[attr-defined]
                self._reading = False
            else:
                self.close()
        elif inbox:
            data = bytearray()
            while inbox and inbox[0] is not FIN and len(data) < READ_BYTES:
                data += inbox.popleft()
            assert self._socket.connection is not None
            self._socket.connection.other(self._socket).out.consumed(len(data))  # type: ignore[union-attr]
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                protocols._feed_data_to_buffered_proto(self._protocol, bytes(data))  # type: ignore[attr-defined]
            else:
                self._protocol.data_received(bytes(data))  # type: ignore[attr-defined]
            self.wake()

    def break_with(self, error: OSError) -> None:
        """The kernel says that the connection is gone; who does not read learns it when it writes."""
        self._error = error
        if self._closing and not self._over:
            self._loop.ready(asyncio.Handle(self._force_close, (error,), self._loop, self._context))
        self.wake()

    # -- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As asyncio's."""
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing:
            return
        if self._error is not None:
            self._loop.call_soon(self._force_close, self._error)
            return
        self._buffer.append(bytes(data))
        self._buffered += len(data)
        self._pump()

    def wake_writer(self) -> None:
        """The window has opened."""
        if self._buffer:
            self._loop.ready(asyncio.Handle(self._pump, (), self._loop, self._context))

    def _pump(self) -> None:
        while self._buffer and self._pipe.outstanding < WINDOW_BYTES:
            piece = self._buffer.popleft()
            self._buffered -= len(piece)
            self._pipe.push(piece)
        low, high = self._limits
        if self._buffered > high and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()
        elif self._buffered <= low and self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()
        if not self._buffer and self._closing and not self._over:
            self._finish(None)

    def write_eof(self) -> None:
        """As asyncio's."""
        if not self._eof and not self._closing:
            self._eof = True
            self._pipe.push(FIN)

    def can_write_eof(self) -> bool:
        """A stream without TLS can."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's."""
        high = high if high is not None else (4 * low if low is not None else 65_536)
        self._limits = (low if low is not None else high // 4, high)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As asyncio's."""
        return self._limits

    def get_write_buffer_size(self) -> int:
        """What the window does not take yet."""
        return self._buffered

    # -- the end

    def is_closing(self) -> bool:
        """As asyncio's."""
        return self._closing

    def close(self) -> None:
        """As asyncio's: what was written still leaves."""
        if self._closing:
            return
        self._closing = True
        if not self._buffer:
            self._finish(None)

    def abort(self) -> None:
        """As asyncio's: at once."""
        self._force_close(None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As asyncio's."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio's."""
        self._protocol = protocol

    def _force_close(self, error: BaseException | None) -> None:
        if self._over:
            return
        self._buffer.clear()
        self._buffered = 0
        self._closing = True
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        self._over = True
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)  # type: ignore[arg-type]
        finally:
            self._socket.close()


class Connection:
    """One TCP connection: the dialler's end and the listener's."""

    def __init__(self, network: Network, sock: StreamSocket, target: Host, address: Address) -> None:
        self._network = network
        self._address = address
        there = StreamSocket(target, sock.family)
        self.ends = (sock, there)
        sock.connection = there.connection = self
        sock.name = there.peer = (sock.host.address, sock.host.free_port())
        sock.peer = there.name = (address[0], address[1])
        self._pipes = (Pipe(network, sock, there), Pipe(network, there, sock))

    @property
    def hosts(self) -> tuple[Host, Host]:
        """Who is at its ends."""
        return self.ends[0].host, self.ends[1].host

    @property
    def wrong_certificate(self) -> str | None:
        """What is wrong with the listener's certificate, while TLS is simulated."""
        return self._network.certificates.get(self._address[0])

    def other(self, end: StreamSocket) -> StreamSocket:
        """The other end."""
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    async def shake_hands(self) -> bool:
        """SYN and its answer; False where they are lost too often."""
        sock, there = self.ends
        links = (sock.host.tcp_out, there.host.tcp_in, there.host.tcp_out, sock.host.tcp_in)
        again_s = SYN_AGAIN_S
        for _ in range(SYN_TRIES):
            if all(link.passes(self._network.random) for link in links):
                await asyncio.sleep(sum(pipe.delay_s for pipe in self._pipes))
                return True
            await asyncio.sleep(again_s)
            again_s *= 2
        return False

    def open(self, listener: Listener) -> None:
        """Both ends exist now; the listener hears of it when the last packet of the handshake arrives."""
        sock, there = self.ends
        sock.out, there.out = self._pipes
        arrival = self._network.loop.now + sock.out.delay_s
        sock.out.not_before = arrival
        self._network.loop.arrive_at(arrival, lambda: listener.accept(there))

    def end_closed(self) -> None:
        """One end is closed."""
        if all(end.closed for end in self.ends):
            self._network.connections.pop(self, None)

    # -- faults

    def reset(self) -> None:
        """Somebody between the ends sends an RST to both."""
        for end, pipe in zip(self.ends, reversed(self._pipes), strict=True):
            self._network.loop.arrive_at(self._network.loop.now + pipe.delay_s, functools.partial(end.arrive, RST))

    def finish(self) -> None:
        """Somebody between the ends sends a FIN to both, without a word before."""
        for end, pipe in zip(self.ends, reversed(self._pipes), strict=True):
            self._network.loop.arrive_at(self._network.loop.now + pipe.delay_s, functools.partial(end.arrive, FIN))

    def silence(self) -> None:
        """Half open: both ends believe in it, and nothing gets through any more."""
        for pipe in self._pipes:
            pipe.silent = True


class Listener(asyncio.AbstractServer):
    """A listening address."""

    def __init__(
        self,
        network: Network,
        factory: Callable[[], asyncio.Protocol],
        address: Address,
        context: ssl.SSLContext | None,
    ) -> None:
        self._network = network
        self._factory = factory
        self._address = address
        self._tls = context
        self._context = contextvars.copy_context()
        self.accepting = True

    @property
    def sockets(self) -> tuple[Listener, ...]:
        """Itself: it knows its name."""
        return (self,)

    def getsockname(self) -> Address:
        """Where it listens."""
        return self._address

    def accept(self, end: StreamSocket) -> None:
        """A dialler has come."""
        self._network.loop.ready(asyncio.Handle(self._accept, (end,), self._network.loop, self._context))

    def _accept(self, end: StreamSocket) -> None:
        if not self.accepting:
            end.close()
            return
        loop = self._network.loop
        if self._tls is not None:
            loop._make_ssl_transport(end, self._factory(), self._tls, server_side=True)
        else:
            loop._make_socket_transport(end, self._factory())

    def close(self) -> None:
        """Listen no more."""
        if self.accepting:
            self.accepting = False
            self._network.listeners.pop(self._address, None)

    async def wait_closed(self) -> None:
        """At once."""

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Its loop."""
        return self._network.loop

    async def start_serving(self) -> None:
        """It does from the beginning."""

    async def serve_forever(self) -> None:
        """Until the loop ends."""
        await self.get_loop().create_future()

    def is_serving(self) -> bool:
        """Does it listen?"""
        return self.accepting

    def __repr__(self) -> str:
        return f"<listener {self._address}>"


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
