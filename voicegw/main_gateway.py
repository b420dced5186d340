"""A bot's own connection to Discord, for tools without a bot framework: enough to join voice channels, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Self

import yarl

from voicegw.adapters.rest import get_json
from voicegw.adapters.timers import Timers
from voicegw.adapters.websocket import VoiceWebSocket, tls_context
from voicegw.client import VoiceClient
from voicegw.core.main_gateway import (
    LoginAccepted,
    LoginEvent,
    LoginRequested,
    LoginResumed,
    LoginSession,
    LogoutRequested,
    ReconnectRequested,
    SessionInvalidated,
)
from voicegw.effects import (
    AbortSocket,
    ArmTimer,
    CancelTimer,
    CloseSocket,
    Effect,
    OpenSocket,
    SendHeartbeat,
    SendIdentify,
    SendResume,
)
from voicegw.errors import (
    CertificateRefused,
    ConnectionClosed,
    ConnectionFailed,
    InvalidEndpoint,
    LoginRefused,
    MalformedFrame,
    SignallingError,
    VoiceError,
    VoiceTimeout,
)
from voicegw.events import DeadlinePassed, SocketClosed, SocketFailed, SocketOpened, SocketRefused
from voicegw.secret import Secret
from voicegw.signalling import SignallingReceiver, snowflake_of
from voicegw.wire import main_gateway as wire
from voicegw.wire.payloads import HeartbeatAcked, HeartbeatRequested, HelloReceived

DISCORD_API = "https://discord.com/api/v10"
DISCORD_SUFFIX = ".discord.gg"
PEER = "Discord's main gateway"
CLOSING_S = 2.0


class MainGateway:
    """Logs one bot in and signals for its voice clients; give it to each as `signalling`.

    `api` is the base URL of the REST API, `ca_pem` one more certificate authority: both for a Discord of your own.

    Raises:
        InvalidEndpoint: `api` is no URL of http or https.
        CertificateRefused: `ca_pem` holds no certificate.
    """

    def __init__(self, token: str | Secret[str], *, api: str = DISCORD_API, ca_pem: bytes | None = None) -> None:
        self._token = token if isinstance(token, Secret) else Secret(token)
        self._api = _url(api)
        if self._api.scheme not in ("http", "https"):
            raise InvalidEndpoint(f"{api!r} is not the base URL of a REST API, like {DISCORD_API}")
        self._tls = tls_context(ca_pem)
        self._session = LoginSession()
        self._receivers: list[SignallingReceiver] = []
        self._url = yarl.URL()
        self._timers: Timers | None = None
        self._generation = 0
        self._dial: asyncio.Task[None] | None = None
        self._socket: VoiceWebSocket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def state(self) -> str:
        """The state of `states/main_gateway.toml` that the login is in."""
        return self._session.login.state

    @property
    def host(self) -> str:
        """The host of the API."""
        return self._api.host or ""

    @property
    def user_id(self) -> int:
        """Who the bot is; 0 before the first login."""
        return self._session.login.user_id

    async def login(self, timeout_s: float = 30.0) -> None:
        """Log in and wait until it is done.

        Raises:
            LoginRefused: a wrong token, intents that the bot may not have.
            VoiceTimeout: not logged in after `timeout_s` seconds.
            VoiceError: what ended the attempts.
        """
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._get("/gateway/bot")
                self._url = self._allowed(str(data.get("url", "")))
                self._timers = Timers(asyncio.get_running_loop(), lambda name, at: self._feed(DeadlinePassed(name, at)))
                self._feed(LoginRequested())
                while self.state not in ("ready", "down"):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            if isinstance(error, VoiceError):
                raise
            raise VoiceTimeout(f"{PEER} did not log the bot in within {timeout_s:g} s") from None
        if self._session.login.error is not None:
            raise self._session.login.error

    async def channel(self, channel_id: int) -> Mapping[str, Any]:
        """A channel as REST describes it.

        Raises:
            LoginRefused: there is none of that id, or the bot may not see it.
        """
        return await self._get(f"/channels/{channel_id}", f"channel {channel_id}")

    async def close(self) -> None:
        """Log out and free everything, within 2 s; harmless when it is done already."""
        self._feed(LogoutRequested())
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSING_S)
            for task in late:  # the other end does not answer the close frame
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # -- as the signalling of voice clients

    def attach(self, receiver: SignallingReceiver) -> None:
        """Hand the voice events of every guild to `receiver`, which knows its own."""
        self._receivers.append(receiver)

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Op 4.

        Raises:
            SignallingError: the bot is not logged in at present.
        """
        if self._socket is None or self.state != "ready":
            raise SignallingError("the bot is not logged in at present")
        frame = wire.voice_state(guild_id, channel_id, self_mute=self_mute, self_deaf=self_deaf)
        await self._socket.send(frame)

    # -- REST

    async def _get(self, path: str, what: str = "the gateway") -> Mapping[str, Any]:
        url = self._api / path.lstrip("/")
        status, data = await get_json(url, self._token, self._tls)
        if status == 401:
            raise LoginRefused("Discord does not know this bot token; copy it again from the developer portal")
        if status in (403, 404):
            raise LoginRefused(f"the bot may not see {what}, or there is none")
        if status != 200 or not isinstance(data, dict):
            raise ConnectionFailed(f"{url.host} answers {path} with HTTP {status}")
        return data

    def _allowed(self, url: str) -> yarl.URL:
        """The gateway's URL, if the token may go there: Discord's own hosts, or the host of the API."""
        parsed = _url(url)
        host = parsed.host or ""
        if parsed.scheme != "wss" or not (host == self._api.host or host.endswith(DISCORD_SUFFIX)):
            raise InvalidEndpoint(f"{host or 'nothing'} is not a gateway of Discord")
        return parsed.update_query(v="10", encoding="json")

    # -- the loop between core and hands

    def _feed(self, event: LoginEvent, generation: int | None = None) -> None:
        for effect in self._session.receive(event, asyncio.get_running_loop().time(), generation=generation):
            self._perform(effect)
        told, self._session.login.told = self._session.login.told, []
        for news in told:
            for receiver in self._receivers:
                if isinstance(receiver, VoiceClient):
                    receiver.feed(news)
        self._changed.set()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ArmTimer():
                assert self._timers is not None
                self._timers.arm(effect)
            case CancelTimer(name=name):
                assert self._timers is not None
                self._timers.cancel(name)
            case OpenSocket(generation=generation):
                self._dial = self._spawn(self._run(generation))
            case AbortSocket() | CloseSocket():
                self._drop(gently=isinstance(effect, CloseSocket))
            case SendIdentify():
                self._send(wire.identify(self._token))
            case SendResume(seq_ack=seq):
                session_id = self._session.login.session_id
                assert session_id is not None
                self._send(wire.resume(self._token, session_id, seq))
            case SendHeartbeat(seq_ack=seq):
                self._send(wire.heartbeat(seq))
            case _:
                raise AssertionError(f"no row of the login asks for {type(effect).__name__}")

    # -- one websocket's life

    async def _run(self, generation: int) -> None:
        resume_url = self._session.login.resume_url
        try:
            url = self._allowed(resume_url) if resume_url else self._url
            socket = await VoiceWebSocket.connect(str(url), self._tls, peer=PEER)
        except CertificateRefused as error:
            self._feed(SocketRefused(error), generation)
            return
        except (ConnectionFailed, InvalidEndpoint) as error:
            self._feed(SocketFailed(error), generation)
            return
        self._socket = socket
        try:
            self._feed(SocketOpened(), generation)
            while generation == self._session.shared.socket_generation:  # until we drop it ourselves
                with contextlib.suppress(MalformedFrame):  # it says nothing; the heart notices where nothing comes
                    message = await socket.receive()
                    if isinstance(message, Secret):
                        self._take(wire.decode(message), generation)
        except ConnectionClosed as closed:
            self._feed(SocketClosed(closed.code), generation)
        finally:
            if self._socket is socket:
                self._socket = None
            await socket.release()

    def _take(self, message: wire.MainMessage, generation: int) -> None:
        event = _event_of(message)
        if message.seq is not None:
            self._session.shared.sequence.last = message.seq
        if event is not None:
            self._feed(event, generation)
        elif message.event in ("VOICE_STATE_UPDATE", "VOICE_SERVER_UPDATE") and isinstance(message.data, Mapping):
            for receiver in self._receivers:
                if message.event == "VOICE_STATE_UPDATE":
                    receiver.voice_state_update(message.data)
                else:
                    receiver.voice_server_update(message.data)

    def _send(self, frame: str | Secret[str]) -> None:
        if self._socket is not None:
            self._spawn(self._post(self._socket, frame))

    async def _post(self, socket: VoiceWebSocket, frame: str | Secret[str]) -> None:
        with contextlib.suppress(ConnectionClosed):  # the reader tells
            await socket.send(frame)

    def _drop(self, *, gently: bool) -> None:
        socket, self._socket = self._socket, None
        if socket is not None and gently:
            self._spawn(self._say_goodbye(socket))
        elif self._dial is not None and self._dial is not asyncio.current_task():
            self._dial.cancel()

    async def _say_goodbye(self, socket: VoiceWebSocket) -> None:
        with contextlib.suppress(VoiceError, OSError, TimeoutError):
            await socket.close(1000)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _url(text: str) -> yarl.URL:
    """The empty URL for what is none, or has no host."""
    with contextlib.suppress(ValueError):
        url = yarl.URL(text)
        if url.host:
            return url
    return yarl.URL()


def _event_of(message: wire.MainMessage) -> LoginEvent | None:
    match message.op:
        case wire.HELLO:
            interval_ms = wire.need(message.data, "heartbeat_interval")
            if not isinstance(interval_ms, int | float) or not 1000 <= interval_ms <= 300_000:
                raise MalformedFrame("a heartbeat interval that is none")
            return HelloReceived(interval_ms / 1000, 10)
        case wire.HEARTBEAT_ACK:
            return HeartbeatAcked(None)
        case wire.HEARTBEAT:
            return HeartbeatRequested()
        case wire.RECONNECT:
            return ReconnectRequested()
        case wire.INVALID_SESSION:
            return SessionInvalidated(message.data is True)
        case wire.DISPATCH if message.event == "RESUMED":
            return LoginResumed()
        case wire.DISPATCH if message.event == "READY":
            user_id = snowflake_of(wire.need(wire.need(message.data, "user"), "id"))
            if user_id is None:
                raise MalformedFrame("a READY without a user id")
            session_id = Secret(str(wire.need(message.data, "session_id")))
            return LoginAccepted(user_id, session_id, str(message.data.get("resume_gateway_url") or ""))
    return None
