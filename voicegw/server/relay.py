"""The UDP side of the local server: IP discovery, and media from each member to all others, encrypted anew for each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable

from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.errors import PacketRejected
from voicegw.server.faults import Faults
from voicegw.server.session import ServerSession
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.discovery import discovery_response, parse_request
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.rtp import RTCP_AAD_BYTES, SILENCE_FRAME, kind_of, parse_rtp, strip

RECEIVE_BUFFER_BYTES = 8 << 20
DRAIN_LIMIT = 512


class Relay:
    """One socket for all sessions; a session is known by its SSRC and the address that its discovery came from.

    `listeners_of(session)` names who hears it. `tap(user_id, datagram)`, where set, sees every authentic datagram of
    a member.
    """

    def __init__(
        self,
        address: tuple[str, int],
        faults: Faults,
        session_of: Callable[[int], ServerSession | None],
        listeners_of: Callable[[ServerSession], Iterable[ServerSession]],
        on_media: Callable[[], None],
        system: System = THIS_SYSTEM,
    ) -> None:
        """Bind; a port of 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._faults = faults
        self._session_of = session_of
        self._listeners_of = listeners_of
        self._on_media = on_media
        self.tap: Callable[[int, bytes], None] | None = None
        self._socket = system.udp_socket(socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            self._socket.setblocking(False)
            self._socket.bind(address)
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._drain)

    @property
    def port(self) -> int:
        """The UDP port."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Close the socket."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def send(self, session: ServerSession, data: bytes) -> None:
        """Send any bytes to a member's socket."""
        if session.address is not None:
            try:
                self._socket.sendto(data, session.address)
            except OSError:
                session.counters["datagrams not sent"] += 1

    def _drain(self) -> None:
        for _ in range(DRAIN_LIMIT):
            try:
                data, address = self._socket.recvfrom(65536)
            except OSError:
                return
            self._take(data, address)

    def _take(self, data: bytes, address: tuple[str, int]) -> None:
        asked = parse_request(data)
        if asked is not None:
            self._answer_discovery(asked, address)
            return
        kind = kind_of(data)
        if kind == "control":
            return  # keepalives; they are never answered
        ssrc = int.from_bytes(data[4:8] if kind == "rtcp" else data[8:12], "big")
        session = self._session_of(ssrc)
        if session is None or session.cipher is None:
            return
        if session.address != address:
            session.counters["datagrams from elsewhere"] += 1
            return
        session.counters["datagrams"] += 1
        try:
            view = parse_rtp(data) if kind == "rtp" else None
            aad_length = view.aad_length if view is not None else RTCP_AAD_BYTES
            plain = _opened(session.cipher, session.previous, data, aad_length)
            if view is not None:
                self._look_at(session, strip(plain, view))
        except PacketRejected:
            session.counters["datagrams rejected"] += 1
            return
        if self.tap is not None:
            self.tap(session.user_id, data)
        if kind == "rtp":
            self._forward(session, data[:aad_length], plain)
            self._on_media()

    def _look_at(self, session: ServerSession, frame: bytes) -> None:
        session.counters["media"] += 1
        if frame == SILENCE_FRAME:
            session.counters["silence"] += 1
        elif not is_dave_frame(frame):
            session.counters["media in the clear"] += 1

    def _answer_discovery(self, ssrc: int, address: tuple[str, int]) -> None:
        session = self._session_of(ssrc)
        if session is None:
            return
        session.counters["discoveries"] += 1
        if self._faults.ignore_discovery > 0:
            self._faults.ignore_discovery -= 1
            return
        session.address = address
        self.send(session, discovery_response(ssrc, *address))

    def _forward(self, speaker: ServerSession, header: bytes, plain: bytes) -> None:
        for listener in self._listeners_of(speaker):
            if listener.cipher is not None and listener.address is not None:
                sealed = listener.cipher.seal(header, plain)
                for data in self._faults.datagrams(listener.user_id, sealed):
                    self.send(listener, data)
                    listener.counters["media forwarded"] += 1


def _opened(cipher: TransportCipher, previous: TransportCipher | None, data: bytes, aad_length: int) -> bytes:
    try:
        return cipher.open(data, aad_length)
    except PacketRejected:
        if previous is None:
            raise
        return previous.open(data, aad_length)
