"""Virtual UDP: datagrams in an inbox of bounded size.

Arrivals are the kernel's work and go on while a process is frozen; reading them is a callback of the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voicegw.testing.network import Address, Host

RECEIVE_BUFFER_BYTES = 212_992


class DatagramSocket:
    """What VoiceUdp and the relay use of a UDP socket."""

    type = socket.SOCK_DGRAM
    proto = 17

    def __init__(self, host: Host, family: socket.AddressFamily) -> None:
        self.host = host
        self.family = family
        self.readable: asyncio.Handle | None = None
        self.dropped = 0
        self._network = host.network
        self._number = self._network.descriptor(self)
        self._name: Address | None = None
        self._peer: Address | None = None
        self._inbox: deque[tuple[bytes, Address]] = deque()
        self._inbox_bytes = 0
        self._receive_buffer = RECEIVE_BUFFER_BYTES
        self._awake = False

    def fileno(self) -> int:
        """Its number, -1 when closed."""
        return self._number

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""
        assert not flag, "nothing blocks in virtual time"

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Only the receive buffer means something."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            self._receive_buffer = value

    def getsockopt(self, level: int, option: int) -> int:
        """Only the receive buffer is known."""
        return self._receive_buffer if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF) else 0

    def getsockname(self) -> Address:
        """Our own address, before any NAT."""
        return self._name or ("0.0.0.0", 0)  # noqa: S104 - what an unbound socket says

    def getpeername(self) -> Address:
        """Whom it is connected to."""
        if self._peer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._peer

    def bind(self, address: Address) -> None:
        """Take an address; port 0 takes a free one."""
        name = (self.host.address, address[1] or self.host.free_port())
        if name in self._network.bound:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._name = name
        self._network.bound[name] = self

    def connect(self, address: Address) -> None:
        """From now on only datagrams from `address` come in."""
        self.host.check("connect")
        if self._name is None:
            self.bind((self.host.address, 0))
        self._peer = (address[0], address[1])

    def send(self, data: bytes) -> int:
        """To the peer."""
        return self.sendto(data, self.getpeername())

    def sendto(self, data: bytes, address: Address) -> int:
        """To anybody."""
        self._check_open()
        self.host.check("send")
        if self._network.on_datagram is not None:
            self._network.on_datagram(self.host, address, data)
        if self._name is None:
            self.bind((self.host.address, 0))
        self._network.send(self.host, self.getsockname(), address, bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        """The oldest datagram."""
        return self.recvfrom(size)[0]

    def recvfrom(self, size: int) -> tuple[bytes, Address]:
        """The oldest datagram and its source."""
        self._check_open()
        self.host.check("recv")
        if not self._inbox:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        data, source = self._inbox.popleft()
        self._inbox_bytes -= len(data)
        return data[:size], source

    def close(self) -> None:
        """Close; harmless when closed."""
        if self._number >= 0:
            del self._network.descriptors[self._number]
            if self._name is not None:
                del self._network.bound[self._name]
            self._number = -1
            self._inbox.clear()

    def arrive(self, source: Address, data: bytes) -> None:
        """The kernel has a datagram for us."""
        if self._peer is not None and source != self._peer:
            self._network.counters["datagrams of strangers"] += 1
            return
        if self._inbox_bytes + len(data) > self._receive_buffer:
            self.dropped += 1
            return
        self._inbox.append((data, source))
        self._inbox_bytes += len(data)
        self.wake()

    def wake(self) -> None:
        """Call the reader while there is something to read, as a selector does."""
        if self._inbox and self.readable is not None and not self._awake:
            self._awake = True
            reader = self.readable
            context: contextvars.Context = reader._context  # type: ignore[attr-defined]
            self._network.loop.ready(asyncio.Handle(self._read, (reader,), self._network.loop, context))

    def _read(self, reader: asyncio.Handle) -> None:
        self._awake = False
        if not reader.cancelled():
            reader._callback(*reader._args)  # type: ignore[attr-defined]
        self.wake()

    def _check_open(self) -> None:
        if self._number < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def __repr__(self) -> str:
        return f"<udp {self.getsockname()} to {self._peer}>"
