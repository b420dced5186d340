"""The UDP socket of one voice session: connected, never queueing, drained at every wake-up."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable

from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.errors import ConnectionFailed, UdpBlocked

RECEIVE_BUFFER_BYTES = 4 << 20
DATAGRAM_BYTES = 65536
DRAIN_LIMIT = 256
LOST_AFTER_S = 2.0
NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM})


def _without_giving_way() -> Callable[[int, bytes, int, int], int] | None:
    """The system's `send`, which does not give the interpreter away.

    `socket.send` lets other threads run during each call. While one of them computes, the interpreter comes back
    after 5 ms, and a pacer that sends hundreds of packets a second falls behind for good. These sockets never block,
    so nobody needs to be let in.
    """
    try:
        send = ctypes.PyDLL(None)["send"]
    except (OSError, TypeError, AttributeError):  # Windows
        return None
    # Without argtypes: integers and bytes are passed as C has them, which is a tenth of a packet faster.
    send.restype = ctypes.c_ssize_t
    native: Callable[[int, bytes, int, int], int] = send
    return native


_native_send = _without_giving_way()  # one for all: of each socket's own, memory that no cache has at every packet


class VoiceUdp:
    """A kernel-connected socket; datagrams of other sources are not heard, by the kernel's check and by our own.

    `on_datagram(data)` is called on the loop for each datagram. Sending never queues: what the kernel refuses is
    lost, since late audio is worse than none, and counted in `refused` by the name of its error. `on_lost(name)` is
    called once where it has refused everything for 2 s. Any thread may send.
    """

    __slots__ = (
        "_address",
        "_descriptor",
        "_loop",
        "_lost",
        "_native",
        "_on_datagram",
        "_on_lost",
        "_peer",
        "_reader",
        "_refusing_since",
        "_socket",
        "_system",
        "received",
        "refused",
        "strangers",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: tuple[str, int],
        on_datagram: Callable[[bytes], None],
        on_lost: Callable[[str], None] = lambda name: None,
        system: System = THIS_SYSTEM,
    ) -> None:
        """Open it; the family is the address's.

        Raises:
            UdpBlocked: no way from here to that address.
            ConnectionFailed: no socket can be had.
        """
        self._loop = loop
        self._address = address
        self._on_datagram = on_datagram
        self._on_lost = on_lost
        self._system = system
        self._reader: asyncio.Task[None] | None = None
        self._refusing_since: float | None = None
        self._lost = False
        self.received = 0
        self.strangers = 0
        self.refused: Counter[str] = Counter()
        try:
            self._socket = self._connected()
        except OSError as error:
            raise _opening_error(error, address[0]) from error
        self._peer: tuple[str, int] = self._socket.getpeername()[:2]
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._descriptor = self._socket.fileno()
        self._native = _native_send if isinstance(self._socket, socket.socket) else None  # else a simulated one
        try:
            loop.add_reader(self._socket.fileno(), self._drain)
        except NotImplementedError:  # the proactor loop of Windows
            self._reader = loop.create_task(self._read())

    @property
    def local_port(self) -> int:
        """Our port on this host."""
        port: int = self._socket.getsockname()[1]
        return port

    def send(self, data: bytes) -> bool:
        """Send one datagram now; False where the kernel refuses it, which is counted and never an error."""
        native = self._native
        if native is None or native(self._descriptor, data, len(data), 0) < 0:
            try:  # where the kernel has refused it, asking once more the ordinary way tells why
                self._socket.send(data)
            except OSError as error:
                self._note_refused(error)
                return False
        if self._refusing_since is not None:
            self._refusing_since = None
        return True

    def moved(self) -> bool:
        """Would a new socket send from another address of this host than this one?"""
        try:
            with contextlib.closing(self._connected()) as fresh:
                return bool(fresh.getsockname()[0] != self._socket.getsockname()[0])
        except OSError:  # no way at all: what is sent will tell
            return False

    def close(self) -> None:
        """Close; harmless when closed already."""
        if self._socket.fileno() < 0:
            return
        if self._reader is not None:
            self._reader.cancel()
        else:
            self._loop.remove_reader(self._descriptor)
        self._descriptor = -1  # the number may be another's soon
        self._socket.close()

    def _connected(self) -> socket.socket:
        family = socket.AF_INET6 if ipaddress.ip_address(self._address[0]).version == 6 else socket.AF_INET
        made = self._system.udp_socket(family)
        try:
            made.setblocking(False)
            made.connect(self._address)
        except OSError:
            made.close()
            raise
        return made

    def _note_refused(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        self.refused[name] += 1
        now = self._loop.time()
        if self._refusing_since is None:
            self._refusing_since = now
        elif now - self._refusing_since >= LOST_AFTER_S and not self._lost:
            self._lost = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._on_lost, name)

    def _drain(self) -> None:
        receive, deliver, peer = self._socket.recvfrom, self._on_datagram, self._peer
        for _ in range(DRAIN_LIMIT):
            try:
                data, source = receive(DATAGRAM_BYTES)
            except OSError:  # nothing left, or an ICMP error of an earlier send
                return
            if source[:2] != peer:
                self.strangers += 1
                continue
            self.received += 1
            deliver(data)
            if self._socket.fileno() < 0:
                return

    async def _read(self) -> None:
        while True:
            try:
                data, source = await self._loop.sock_recvfrom(self._socket, DATAGRAM_BYTES)
            except ConnectionError:
                continue
            except OSError:
                return
            if source[:2] != self._peer:
                self.strangers += 1
                continue
            self.received += 1
            self._on_datagram(data)


def _opening_error(error: OSError, host: str) -> ConnectionFailed:
    if error.errno not in NO_ROUTE:
        return ConnectionFailed(f"no UDP socket can be had: {error.strerror}")
    advice = "" if ":" in host else "; where this host has IPv6 alone, it needs NAT64 with a CLAT (464XLAT)"
    return UdpBlocked("route", f"no UDP route to the voice server: {error.strerror}{advice}")
