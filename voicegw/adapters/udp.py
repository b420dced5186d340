"""The UDP socket of one voice session: connected, never queueing, drained at every wake-up."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.errors import ConnectionFailed

RECEIVE_BUFFER_BYTES = 4 << 20
DATAGRAM_BYTES = 65536
DRAIN_LIMIT = 256


def _sending(udp: socket.socket) -> Callable[[bytes], object]:
    """The socket's `send`, without giving the interpreter away.

    `socket.send` lets other threads run during each call. While one of them computes, the interpreter comes back
    after 5 ms, and a pacer that sends hundreds of packets a second falls behind for good. This socket never blocks,
    so nobody needs to be let in.
    """
    try:
        send: Any = ctypes.PyDLL(None)["send"]
    except (OSError, TypeError, AttributeError):  # Windows
        return udp.send
    send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    send.restype = ctypes.c_ssize_t
    descriptor = udp.fileno()

    def send_now(data: bytes) -> object:
        # Where the kernel refuses it, asking once more the ordinary way tells why.
        return send(descriptor, data, len(data), 0) >= 0 or udp.send(data)

    return send_now


class VoiceUdp:
    """A kernel-connected socket: datagrams of other sources never reach us.

    `on_datagram(data)` is called on the loop for each datagram. Sending never queues: what the kernel refuses is
    lost, since late audio is worse than none: `send(data)` raises OSError then. It may be called by another thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: tuple[str, int],
        on_datagram: Callable[[bytes], None],
        system: System = THIS_SYSTEM,
    ) -> None:
        """Open it.

        Raises:
            ConnectionFailed: no socket, or no route to that address.
        """
        self._loop = loop
        self._on_datagram = on_datagram
        self._reader: asyncio.Task[None] | None = None
        self.received = 0
        family = socket.AF_INET6 if ipaddress.ip_address(address[0]).version == 6 else socket.AF_INET
        try:
            self._socket = system.udp_socket(family)
        except OSError as error:
            raise ConnectionFailed(f"no UDP socket can be had: {error.strerror}") from error
        try:
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise ConnectionFailed(f"no UDP route to the voice server: {error.strerror}") from error
        self.send: Callable[[bytes], object] = _sending(self._socket)
        try:
            loop.add_reader(self._socket.fileno(), self._drain)
        except NotImplementedError:  # the proactor loop of Windows
            self._reader = loop.create_task(self._read())

    @property
    def local_port(self) -> int:
        """Our port on this host."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Close; harmless when closed already."""
        if self._socket.fileno() < 0:
            return
        if self._reader is not None:
            self._reader.cancel()
        else:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _drain(self) -> None:
        receive, deliver = self._socket.recv, self._on_datagram
        for _ in range(DRAIN_LIMIT):
            try:
                data = receive(DATAGRAM_BYTES)
            except OSError:  # nothing left, or an ICMP error of an earlier send
                return
            self.received += 1
            deliver(data)
            if self._socket.fileno() < 0:
                return

    async def _read(self) -> None:
        while True:
            try:
                data = await self._loop.sock_recv(self._socket, DATAGRAM_BYTES)
            except ConnectionError:
                continue
            except OSError:
                return
            self.received += 1
            self._on_datagram(data)
