"""The local voice server: TLS websocket and UDP on one host, one process, for demos and tests."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypedDict

from aiohttp import web

from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.adapters.waiters import Waiters
from voicegw.errors import VoiceError
from voicegw.secret import Secret
from voicegw.server.certificates import make_authority, server_context
from voicegw.server.channel import Channel
from voicegw.server.connection import AUTHENTICATION_FAILED, SERVER_NOT_FOUND, SESSION_INVALID, Connection, Refused
from voicegw.server.faults import Faults
from voicegw.server.main_gateway import MainGateway
from voicegw.server.relay import Relay
from voicegw.server.session import Record, ServerSession
from voicegw.signalling import Credentials
from voicegw.wire.encryption import PREFERRED_MODES

if TYPE_CHECKING:
    import trustme

RECORDS = 50_000
MAX_FRAME_BYTES = 1 << 20


class Trust(TypedDict):
    """Options of a `VoiceClient`: an authority of our own, a host that is not Discord's, addresses of this machine."""

    ca_pem: bytes
    allowed_hosts: tuple[str, ...]
    allow_private_media: bool


class VoiceServer:
    """A voice server that real clients accept: version 8 handshake, both modes, relay, buffered resume, DAVE.

    `admit` makes the credentials that the main gateway would give; with `open` any token and session id will do (the
    channel is then Identify's `channel_id`, else `channel_id`, else the server id). `faults` makes it misbehave. It
    has its own certificate authority, `ca_pem`. A session whose websocket broke may be resumed for `resume_window_s`
    seconds. With `main_gateway` bots log in at `api` and `gateway_url`. `name` is what clients are told to dial where
    it is not `host`; `authority` is shared by servers that clients shall trust alike; `system` is the host to run on.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        udp_port: int = 0,
        open: bool = False,
        dave: bool = True,
        modes: Iterable[str] = PREFERRED_MODES,
        heartbeat_interval_s: float = 13.75,
        resume_window_s: float = 60.0,
        channel_id: int | None = None,
        main_gateway: bool = False,
        name: str | None = None,
        authority: trustme.CA | None = None,
        system: System = THIS_SYSTEM,
    ) -> None:
        self.host = host
        self.name = name or host
        self.system = system
        self.open = open
        self.dave = dave
        self.modes = tuple(modes)
        self.heartbeat_interval_s = heartbeat_interval_s
        self.faults = Faults()
        self.main_gateway = MainGateway(self) if main_gateway else None
        self._ports = (port, udp_port)
        self._resume_window_s = resume_window_s
        self._channel_id = channel_id
        self._authority = authority or make_authority()
        self._admitted: dict[str, Credentials] = {}
        self._sessions: dict[str, ServerSession] = {}
        self._newest: dict[int, ServerSession] = {}
        self._by_ssrc: dict[int, ServerSession] = {}
        self._connections: dict[ServerSession, Connection] = {}
        self._channels: dict[int, Channel] = {}
        self._records: deque[Record] = deque(maxlen=RECORDS)
        self._ssrcs = itertools.count(10_001)
        self._waiters = Waiters()
        self._runner: web.AppRunner | None = None
        self._relay: Relay | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = port

    # -- life

    async def start(self) -> None:
        """Listen.

        Raises:
            VoiceError: a port is taken.
        """
        application = web.Application()
        if self.main_gateway is not None:
            application.router.add_routes(self.main_gateway.routes())
        application.router.add_get("/{path:.*}", self._serve)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(
                runner, self.host, self._ports[0], ssl_context=server_context(self._authority, self.host, self.name)
            )
            await site.start()
            self._port = runner.addresses[0][1]
            address = (self.host, self._ports[1])
            self._relay = Relay(
                address, self.faults, self._by_ssrc.get, self._listeners_of, self._waiters.notify, self.system
            )
        except OSError as error:
            await runner.cleanup()
            raise VoiceError(f"the local voice server cannot listen on {self.host}: {error.strerror}") from error
        self._runner = runner

    async def close(self) -> None:
        """Close every connection and both ports; harmless when closed already."""
        if self._runner is None or self._relay is None:
            return
        for connection in list(self._connections.values()):
            connection.abort()
        runner, self._runner = self._runner, None
        await runner.cleanup()
        self._relay.close()
        for session in self._sessions.values():
            if session.expiry is not None:
                session.expiry.cancel()
        for channel in self._channels.values():
            channel.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # -- what its owner uses

    @property
    def endpoint(self) -> str:
        """host:port, as VOICE_SERVER_UPDATE would name it."""
        return f"{self.name}:{self._port}"

    @property
    def trust(self) -> Trust:
        """What a `VoiceClient` must be told to call it: `VoiceClient(..., **server.trust)`."""
        return {"ca_pem": self.ca_pem, "allowed_hosts": (self.name,), "allow_private_media": True}

    @property
    def api(self) -> str:
        """The base URL of the REST API, with `main_gateway`."""
        return f"https://{self.endpoint}/api/v10"

    @property
    def gateway_url(self) -> str:
        """The main gateway's websocket, with `main_gateway`."""
        return f"wss://{self.endpoint}/gateway"

    @property
    def udp_port(self) -> int:
        """Where media goes."""
        return self.relay.port

    @property
    def ca_pem(self) -> bytes:
        """The certificate authority, for clients to trust."""
        return self._authority.cert_pem.bytes()

    @property
    def relay(self) -> Relay:
        """The UDP side; its `tap` sees every authentic datagram."""
        assert self._relay is not None, "the server has not started"
        return self._relay

    def admit(
        self, *, guild_id: int, channel_id: int, user_id: int, session_id: Secret[str] | None = None
    ) -> Credentials:
        """Credentials for one session, as a join on the main gateway brings them: for `session_id` a new token."""
        credentials = Credentials(
            guild_id=guild_id,
            channel_id=channel_id,
            user_id=user_id,
            session_id=session_id or Secret(secrets.token_hex(16)),
            token=Secret(secrets.token_hex(8)),
            endpoint=self.endpoint,
        )
        self._admitted[credentials.session_id.reveal()] = credentials
        return credentials

    def records(self, user_id: int | None = None, op: int | None = None, direction: str | None = None) -> list[Record]:
        """Every message both ways, the oldest first, without secrets."""
        return [
            record
            for record in self._records
            if user_id in (None, record.user_id) and op in (None, record.op) and direction in (None, record.direction)
        ]

    def members(self, channel_id: int) -> list[int]:
        """Who is in a channel."""
        channel = self._channels.get(channel_id)
        return list(channel.sessions) if channel is not None else []

    def channel(self, channel_id: int) -> Channel:
        """A channel; made when it is asked for first."""
        if channel_id not in self._channels:
            self._channels[channel_id] = Channel(channel_id, self.dave)
        return self._channels[channel_id]

    def session(self, user_id: int) -> ServerSession:
        """A user's newest session, ended or not.

        Raises:
            KeyError: there was none.
        """
        return self._newest[user_id]

    async def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Until `predicate()` holds; it is asked after every message, every media packet, and what bots say to REST.

        Raises:
            VoiceTimeout: it did not hold in time.
        """
        await self._waiters.wait_for(predicate, timeout_s)

    # -- what it does to a member on purpose

    def drop_socket(self, user_id: int) -> None:
        """Break a member's websocket without a close frame."""
        self._connection(user_id).abort()

    async def close_socket(self, user_id: int, code: int, reason: str = "") -> None:
        """Close a member's websocket with a code; the session can be resumed."""
        await self._connection(user_id).close(code, reason)

    def send_raw(self, user_id: int, content: str | bytes) -> None:
        """Send anything as one frame."""
        self._connection(user_id).send_raw(content)

    def send_datagram(self, user_id: int, data: bytes) -> None:
        """Send anything to a member's UDP socket."""
        self.relay.send(self.session(user_id), data)

    async def disconnect(self, user_id: int, code: int = 4014) -> None:
        """Take a member out: its session ends, its websocket is closed with `code`."""
        await self._expel(self.session(user_id), code)

    async def expel(self, credentials: Credentials) -> None:
        """The main gateway took this voice state away; what was admitted under it is void."""
        session_id = credentials.session_id.reveal()
        self._admitted.pop(session_id, None)
        if session_id in self._sessions:
            await self._expel(self._sessions[session_id], 4014)

    async def _expel(self, session: ServerSession, code: int) -> None:
        connection = self._connections.get(session)
        self._forget(session)
        if connection is not None:
            await connection.close(code, "Disconnected.")

    async def crash(self) -> None:
        """Close every websocket with 4015, as a voice server that restarts; the sessions can be resumed."""
        for connection in list(self._connections.values()):
            await connection.close(4015, "Voice server crashed.")

    async def delete_channel(self, channel_id: int) -> None:
        """End the call of a channel for everybody, with 4022."""
        for session in list(self.channel(channel_id).sessions.values()):
            await self._expel(session, 4022)

    # -- for connections

    def identify(self, fields: Mapping[str, Any]) -> ServerSession:
        """The session that Identify asks for.

        Raises:
            Refused: with the close code.
        """
        credentials = self._open_credentials(fields) if self.open else self._known_credentials(fields)
        session_id = credentials.session_id.reveal()
        living = self._sessions.get(session_id)
        if living is not None and living.connected and living.credentials.token == credentials.token:
            raise Refused(SESSION_INVALID, "Session is no longer valid.")
        self._replace(credentials)
        session = ServerSession(credentials, next(self._ssrcs), self.note)
        self._sessions[session_id] = session
        self._newest[session.user_id] = session
        self._by_ssrc[session.ssrc] = session
        return session

    def resume(self, fields: Mapping[str, Any]) -> ServerSession:
        """The session that Resume asks for.

        Raises:
            Refused: with the close code.
        """
        session = self._sessions.get(str(fields.get("session_id")))
        if session is None or self.faults.refuse_resume:
            raise Refused(SESSION_INVALID, "Session is no longer valid.")
        if not _same(fields.get("token"), session.credentials.token):
            raise Refused(AUTHENTICATION_FAILED, "Authentication failed.")
        if str(session.credentials.guild_id) != str(fields.get("server_id")):
            raise Refused(SERVER_NOT_FOUND, "Server not found.")
        return session

    def attached(self, session: ServerSession, connection: Connection) -> None:
        """A websocket serves the session now, and no other one."""
        before = self._connections.get(session)
        if before is not None and before is not connection:
            self._spawn(before.close(SESSION_INVALID, "Session is no longer valid."))
        if session.expiry is not None:
            session.expiry.cancel()
            session.expiry = None
        self._connections[session] = connection

    def detached(self, session: ServerSession, gone: bool) -> None:
        """The session's websocket is gone; with `gone` the client closed for good."""
        self._connections.pop(session, None)
        if self._sessions.get(session.credentials.session_id.reveal()) is not session:
            return
        if gone or self._resume_window_s <= 0:
            self._forget(session)
        else:
            loop = asyncio.get_running_loop()
            session.expiry = loop.call_later(self._resume_window_s, self._forget, session)
        self._waiters.notify()

    def channel_of(self, session: ServerSession) -> Channel:
        """Where the session is."""
        return self.channel(session.credentials.channel_id)

    def note(self, record: Record) -> None:
        """Keep a record."""
        self._records.append(record)
        self.changed()

    def changed(self) -> None:
        """Something has happened that `wait_for` may wait for."""
        self._waiters.notify()

    # -- inside

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=1.0)
        if not socket.can_prepare(request).ok:
            return web.Response(status=426, text="This is a voice gateway; speak websocket.\n")
        await socket.prepare(request)
        version = request.query.get("v", "0")
        await Connection(self, socket, request.transport).run(int(version) if version.isdecimal() else 0)
        return socket

    def _known_credentials(self, fields: Mapping[str, Any]) -> Credentials:
        credentials = self._admitted.get(str(fields.get("session_id")))
        if credentials is None:
            raise Refused(SESSION_INVALID, "Session is no longer valid.")
        if not _same(fields.get("token"), credentials.token) or str(fields.get("user_id")) != str(credentials.user_id):
            raise Refused(AUTHENTICATION_FAILED, "Authentication failed.")
        if str(fields.get("server_id")) != str(credentials.guild_id):
            raise Refused(SERVER_NOT_FOUND, "Server not found.")
        return credentials

    def _open_credentials(self, fields: Mapping[str, Any]) -> Credentials:
        try:
            guild_id = int(str(fields["server_id"]))
            user_id = int(str(fields["user_id"]))
            channel_id = int(str(fields["channel_id"])) if "channel_id" in fields else self._channel_id or guild_id
        except (KeyError, ValueError) as error:
            raise Refused(AUTHENTICATION_FAILED, "Authentication failed.") from error
        session_id, token = str(fields.get("session_id")), str(fields.get("token"))
        return Credentials(guild_id, channel_id, user_id, Secret(session_id), Secret(token), self.endpoint)

    def _replace(self, credentials: Credentials) -> None:
        """A user has one session a guild: an older one ends with 4014."""
        place = (credentials.guild_id, credentials.user_id)
        for session in list(self._sessions.values()):
            if (session.credentials.guild_id, session.user_id) == place:
                connection = self._connections.get(session)
                self._forget(session)
                self._admitted.setdefault(credentials.session_id.reveal(), credentials)
                if connection is not None:
                    self._spawn(connection.close(4014, "Disconnected."))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connection(self, user_id: int) -> Connection:
        connection = self._connections.get(self.session(user_id))
        if connection is None:
            raise VoiceError(f"user {user_id} has no websocket now")
        return connection

    def _forget(self, session: ServerSession) -> None:
        session_id = session.credentials.session_id.reveal()
        if self._sessions.get(session_id) is session:
            del self._sessions[session_id]
            self._admitted.pop(session_id, None)
        self._by_ssrc.pop(session.ssrc, None)
        if session.expiry is not None:
            session.expiry.cancel()
            session.expiry = None
        self.channel_of(session).leave(session)
        self._waiters.notify()

    def _listeners_of(self, speaker: ServerSession) -> Iterable[ServerSession]:
        return [member for member in self.channel_of(speaker).listeners if member is not speaker]


def _same(value: object, secret: Secret[str]) -> bool:
    return isinstance(value, str) and hmac.compare_digest(value.encode(), secret.reveal().encode())
