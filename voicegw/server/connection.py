"""One websocket of the local server: what a client says, and the close code for what it must not say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from voicegw.errors import GroupError, MalformedFrame
from voicegw.server.session import Frame, Record, ServerSession, encode, redact
from voicegw.wire.frames import read_envelope
from voicegw.wire.opcodes import BINARY_FROM_CLIENT, GATEWAY_VERSION, Opcode

if TYPE_CHECKING:
    from voicegw.server.server import VoiceServer

UNKNOWN_ERROR = 4000
UNKNOWN_OPCODE = 4001
DECODE_ERROR = 4002
NOT_AUTHENTICATED = 4003
AUTHENTICATION_FAILED = 4004
ALREADY_AUTHENTICATED = 4005
SESSION_INVALID = 4006
SESSION_TIMEOUT = 4009
SERVER_NOT_FOUND = 4011
UNKNOWN_PROTOCOL = 4012
UNKNOWN_MODE = 4016
E2EE_REQUIRED = 4017
BAD_REQUEST = 4020
RATE_LIMITED = 4021

_log = logging.getLogger("voicegw.server")

RATE_FRAMES, RATE_S = 600, 10.0
MISSED_BEATS = 3
IGNORED = frozenset(
    {
        Opcode.VIDEO,
        Opcode.SESSION_UPDATE,
        Opcode.MEDIA_SINK_WANTS,
        Opcode.CLIENT_FLAGS,
        Opcode.CLIENT_PLATFORM,
        Opcode.NO_ROUTE,
    }
)


class Refused(Exception):
    """The client did what ends its connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Connection:
    """From the upgrade to the close of one websocket."""

    def __init__(self, server: VoiceServer, socket: web.WebSocketResponse, transport: asyncio.Transport | None) -> None:
        self._server = server
        self._socket = socket
        self._transport = transport
        self._outbox: asyncio.Queue[Frame] = asyncio.Queue()
        self._session: ServerSession | None = None
        self._arrivals: deque[float] = deque(maxlen=RATE_FRAMES)
        self._beat_at = 0.0
        self._closing = False

    async def run(self, version: int) -> None:
        """Serve until either side closes."""
        loop = asyncio.get_running_loop()
        writer = loop.create_task(self._write())
        self._beat_at = loop.time()
        watch = loop.create_task(self._watch_heart())
        interval_ms = self._server.heartbeat_interval_s * 1000
        self._say(Opcode.HELLO, {"v": GATEWAY_VERSION, "heartbeat_interval": interval_ms})
        try:
            if version < GATEWAY_VERSION:
                raise Refused(BAD_REQUEST, f"Voice gateway version {GATEWAY_VERSION} is required.")
            async for message in self._socket:
                self._take(message)
        except Refused as refused:
            await self.close(refused.code, refused.reason)
        except Exception:
            _log.exception("the local voice server failed")
            await self.close(UNKNOWN_ERROR, "Unknown error.")
        finally:
            watch.cancel()
            writer.cancel()
            session = self._session
            if session is not None and session.outbox is self._outbox:
                session.outbox = None
                gone = not self._closing and self._socket.close_code == aiohttp.WSCloseCode.OK
                self._server.detached(session, gone)

    async def close(self, code: int, reason: str = "") -> None:
        """Close with a code."""
        self._closing = True
        await self._socket.close(code=code, message=reason.encode()[:120])

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        if self._transport is not None:
            self._transport.abort()

    def send_raw(self, content: str | bytes) -> None:
        """Send any text or bytes as one frame."""
        self._outbox.put_nowait(Frame(-1, None, content))

    async def _write(self) -> None:
        faults = self._server.faults
        with contextlib.suppress(ConnectionError, aiohttp.ClientError, RuntimeError):
            while True:
                frame = await self._outbox.get()
                if frame.op in faults.withhold:
                    continue
                if frame.op in faults.delay_s:
                    await asyncio.sleep(faults.delay_s[frame.op])
                if isinstance(frame.content, str):
                    await self._socket.send_str(frame.content)
                else:
                    await self._socket.send_bytes(frame.content)

    async def _watch_heart(self) -> None:
        loop = asyncio.get_running_loop()
        allowed = MISSED_BEATS * self._server.heartbeat_interval_s
        while (left := self._beat_at + allowed - loop.time()) > 0:  # noqa: ASYNC110 - each beat moves the end
            await asyncio.sleep(left)
        await self.close(SESSION_TIMEOUT, "Session timed out.")

    def _say(self, op: int, data: object) -> None:
        """Send what belongs to the connection, not to the session."""
        self._record("out", op, data)
        self._outbox.put_nowait(Frame(int(op), None, encode(op, data, None)))

    def _record(self, direction: Any, op: int, data: object) -> None:
        user_id = self._session.user_id if self._session is not None else 0
        self._server.note(Record(user_id, direction, int(op), redact(data)))

    # -- what the client says

    def _take(self, message: aiohttp.WSMessage) -> None:
        now = asyncio.get_running_loop().time()
        if len(self._arrivals) == RATE_FRAMES and now - self._arrivals[0] < RATE_S:
            raise Refused(RATE_LIMITED, "You are being rate limited.")
        self._arrivals.append(now)
        if message.type is aiohttp.WSMsgType.TEXT:
            try:
                envelope = read_envelope(message.data)
            except MalformedFrame as error:
                raise Refused(DECODE_ERROR, "Failed to decode payload.") from error
            self._record("in", envelope["op"], envelope.get("d"))
            self._text(envelope["op"], envelope.get("d"))
        elif message.type is aiohttp.WSMsgType.BINARY:
            if not message.data:
                raise Refused(DECODE_ERROR, "Failed to decode payload.")
            op, payload = message.data[0], message.data[1:]
            self._record("in", op, payload)
            self._binary(op, payload)

    def _text(self, op: int, d: Any) -> None:
        if op == Opcode.HEARTBEAT:
            self._heartbeat(d)
        elif op == Opcode.IDENTIFY:
            self._identify(_fields(d))
        elif op == Opcode.RESUME:
            self._resume(_fields(d))
        elif self._session is None:
            raise Refused(NOT_AUTHENTICATED, "Not authenticated.")
        elif op == Opcode.SELECT_PROTOCOL:
            self._select_protocol(self._session, _fields(d))
        elif op == Opcode.SPEAKING:
            flags = _int(_fields(d), "speaking")
            self._server.channel_of(self._session).speak(self._session, flags)
        elif op in (Opcode.DAVE_TRANSITION_READY, Opcode.MLS_INVALID_COMMIT_WELCOME):
            self._server.channel_of(self._session).transition(self._session, op, _int(_fields(d), "transition_id"))
        elif op == Opcode.VOICE_BACKEND_VERSION:
            self._session.send(op, {"voice": "0.1.0", "rtc_worker": "0.1.0"})
        elif op not in IGNORED:
            raise Refused(UNKNOWN_OPCODE, "Unknown opcode.")

    def _binary(self, op: int, payload: bytes) -> None:
        if self._session is None:
            raise Refused(NOT_AUTHENTICATED, "Not authenticated.")
        if op not in BINARY_FROM_CLIENT:
            raise Refused(UNKNOWN_OPCODE, "Unknown opcode.")
        try:
            self._server.channel_of(self._session).mls(self._session, op, payload)
        except GroupError as error:
            raise Refused(BAD_REQUEST, f"Bad MLS message: {error}") from error

    def _heartbeat(self, d: Any) -> None:
        nonce = _int(_fields(d), "t")
        self._beat_at = asyncio.get_running_loop().time()
        if self._server.faults.ack_heartbeats:
            self._say(Opcode.HEARTBEAT_ACK, {"t": nonce})

    def _identify(self, fields: Mapping[str, Any]) -> None:
        if self._session is not None:
            raise Refused(ALREADY_AUTHENTICATED, "Already authenticated.")
        session = self._server.identify(fields)
        if self._server.dave and not _offers_dave(fields):
            raise Refused(E2EE_REQUIRED, "E2EE/DAVE protocol required")
        self._attach(session)
        session.send(
            Opcode.READY,
            {
                "ssrc": session.ssrc,
                "ip": self._server.host,
                "port": self._server.udp_port,
                "modes": list(self._server.modes),
                "experiments": [],
                "heartbeat_interval": 1,
            },
        )
        self._server.channel_of(session).greet(session)

    def _resume(self, fields: Mapping[str, Any]) -> None:
        if self._session is not None:
            raise Refused(ALREADY_AUTHENTICATED, "Already authenticated.")
        seq_ack = _int(fields, "seq_ack", least=-1) if "seq_ack" in fields else -1
        session = self._server.resume(fields)
        missed = session.missed(seq_ack)
        if missed is None:
            raise Refused(SESSION_INVALID, "Session is no longer valid.")
        self._attach(session)
        self._say(Opcode.RESUMED, None)
        for frame in missed:
            self._outbox.put_nowait(frame)

    def _attach(self, session: ServerSession) -> None:
        self._session = session
        session.outbox = self._outbox
        self._server.attached(session, self)

    def _select_protocol(self, session: ServerSession, fields: Mapping[str, Any]) -> None:
        data = _fields(fields.get("data"))
        if fields.get("protocol") != "udp":
            raise Refused(UNKNOWN_PROTOCOL, "Unknown protocol.")
        mode = data.get("mode")
        if not isinstance(mode, str) or mode not in self._server.modes:
            raise Refused(UNKNOWN_MODE, "Unknown encryption mode.")
        channel = self._server.channel_of(session)
        first = not session.described
        session.describe(mode, self._server.faults.keep_key)
        session.send(
            Opcode.SESSION_DESCRIPTION,
            {
                "mode": mode,
                "secret_key": list(session.secret_key.reveal()),
                "dave_protocol_version": channel.protocol_version,
                "audio_codec": "opus",
                "video_codec": None,
                "media_session_id": "0" * 32,
            },
        )
        if first:
            channel.admit(session)


def _fields(d: Any) -> Mapping[str, Any]:
    if not isinstance(d, Mapping):
        raise Refused(BAD_REQUEST, "Bad request.")
    return d


def _int(fields: Mapping[str, Any], name: str, least: int = 0) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Refused(BAD_REQUEST, f"Bad request: {name}.")
    return value


def _offers_dave(fields: Mapping[str, Any]) -> bool:
    version = fields.get("max_dave_protocol_version")
    return isinstance(version, int) and version >= 1
