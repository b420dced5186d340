"""A minimal main gateway and REST API beside the local voice server: a bot can log in and join voice channels.

Any token is taken; one that begins with a user id and a dot, as such or in base64 as Discord writes it, belongs to
that user. There is one guild with two voice channels. Source: Discord docs, "Gateway" version 10.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import secrets
import zlib
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from voicegw.errors import MalformedFrame, VoiceError
from voicegw.server.commands import ALL_PERMISSIONS, Commands
from voicegw.server.guild import CHANNEL_IDS, GUILD_ID, channels, guild, member, user, voice_state
from voicegw.server.signalling import LocalSignalling
from voicegw.wire.frames import read_envelope

if TYPE_CHECKING:
    from voicegw.server.server import VoiceServer

__all__ = ["CHANNEL_IDS", "GUILD_ID", "Bot", "MainGateway"]

OWNER_ID = 900000000000000000
HEARTBEAT_MS = 41_250
API = "/api/v{version:\\d+}"
MISSED = 1000

DISPATCH, HEARTBEAT, IDENTIFY, VOICE_STATE, RESUME, HELLO, HEARTBEAT_ACK = 0, 1, 2, 4, 6, 10, 11
RECONNECT, INVALID_SESSION = 7, 9
DECODE_ERROR, NOT_AUTHENTICATED, AUTHENTICATION_FAILED, DISALLOWED_INTENTS = 4002, 4003, 4004, 4014
ENDS_SESSION = (1000, 1001)

Message = dict[str, Any]


class MainGateway:
    """Logs bots in and signals for them; `bots` are those that are connected, by user id. `commands` is what users ask.

    To be set at any time: `refuse_tokens` (401 and 4004), `refuse_intents` (4014), `server_first` (the voice server
    comes before the voice state), `full` (channels whose join is answered with silence) and `forbidden` (channels that
    bots may not see: 403, and silence for who joins them all the same).

    What happens to one bot is done by `bots[user_id]` (`drop`, `reconnect`, `invalidate`) and by
    `signalling(user_id)` (`move`, `kick`, `hand_over`, `remove_server`).
    """

    def __init__(self, server: VoiceServer) -> None:
        self.server = server
        self.refuse_tokens = False
        self.refuse_intents = False
        self.server_first = False
        self.full: set[int] = set()
        self.forbidden: set[int] = set()
        self.sessions: dict[str, Bot] = {}
        self._users: dict[str, int] = {}
        self._numbers = itertools.count(OWNER_ID + 1)
        self.commands = Commands(self)

    @property
    def bots(self) -> dict[int, Bot]:
        """Who is connected."""
        return {bot.user_id: bot for bot in self.sessions.values() if bot.connection is not None}

    def routes(self) -> list[web.RouteDef]:
        """What is served beside the voice websocket."""
        return [
            web.get("/gateway", self._gateway),
            web.get(f"{API}/users/@me", self._me),
            web.get(f"{API}/oauth2/applications/@me", self._application),
            web.get(f"{API}/applications/@me", self._application),
            web.get(f"{API}/soundboard-default-sounds", self._sounds),
            web.get(f"{API}/gateway", self._where),
            web.get(f"{API}/gateway/bot", self._where_for_bots),
            web.get(f"{API}/channels/{{channel_id:\\d+}}", self._channel),
            *self.commands.routes(),
        ]

    def signalling(self, user_id: int) -> LocalSignalling:
        """A connected bot's voice signalling, to move it, kick it, or change its server.

        Raises:
            VoiceError: no such bot is connected.
        """
        return self.bot(user_id).signalling

    def bot(self, user_id: int) -> Bot:
        """A connected bot.

        Raises:
            VoiceError: no such bot is connected.
        """
        if user_id not in self.bots:
            raise VoiceError(f"no bot {user_id} is connected to the main gateway")
        return self.bots[user_id]

    def take_all(self) -> None:
        """Refuse nobody any more."""
        self.refuse_tokens = self.refuse_intents = False

    def user_of(self, token: str) -> int:
        """Whose token it is."""
        if token not in self._users:
            self._users[token] = _named_user(token.partition(".")[0]) or next(self._numbers)
        return self._users[token]

    def answers(self, channel_id: int) -> bool:
        """Is a join of this channel answered?"""
        return channel_id in CHANNEL_IDS and channel_id not in self.full | self.forbidden

    def voice_states(self) -> list[Message]:
        """Everybody's voice state, as a guild carries it."""
        return [
            voice_state(user_id, channel_id, "")
            for channel_id in CHANNEL_IDS
            for user_id in self.server.members(channel_id)
        ]

    # -- for commands

    def user(self, user_id: int) -> Message:
        """A user, as REST shows it."""
        return user(user_id)

    def somebody(self, but: Collection[int]) -> tuple[int, int]:
        """A user who is in a voice channel, and the channel; somebody who is in none where there is nobody."""
        for channel_id in CHANNEL_IDS:
            for user_id in self.server.members(channel_id):
                if user_id not in but:
                    return user_id, channel_id
        return OWNER_ID, CHANNEL_IDS[0]

    def changed(self) -> None:
        """Something has happened that the server's `wait_for` may wait for."""
        self.server.changed()

    def interaction(self, user_id: int, channel_id: int) -> Message:
        """What an interaction says about who gave it, and where."""
        (channel,) = (data for data in channels() if data["id"] == str(channel_id))
        return {
            "version": 1,
            "guild_id": str(GUILD_ID),
            "guild": {"id": str(GUILD_ID), "locale": "en-US", "features": []},
            "channel_id": str(channel_id),
            "channel": {**channel, "permissions": ALL_PERMISSIONS},
            "member": {**member(user_id), "permissions": ALL_PERMISSIONS, "pending": False},
            "app_permissions": ALL_PERMISSIONS,
            "locale": "en-US",
            "guild_locale": "en-US",
            "entitlements": [],
            "authorizing_integration_owners": {"0": str(GUILD_ID)},
            "context": 0,
            "attachment_size_limit": 10 << 20,
        }

    # -- REST

    async def _me(self, request: web.Request) -> web.Response:
        token = self._token(request)
        return _unauthorized() if token is None else _json(user(self.user_of(token)))

    async def _application(self, request: web.Request) -> web.Response:
        token = self._token(request)
        if token is None:
            return _unauthorized()
        user_id = self.user_of(token)
        application = {
            "id": str(user_id),
            "name": "bot",
            "icon": None,
            "description": "",
            "summary": "",
            "bot_public": True,
            "bot_require_code_grant": False,
            "verify_key": "0" * 64,
            "owner": user(user_id),
            "team": None,
            "flags": 0,
        }
        return _json(application)

    async def _sounds(self, request: web.Request) -> web.Response:
        return _json([])

    async def _channel(self, request: web.Request) -> web.Response:
        channel_id = int(request.match_info["channel_id"])
        if self._token(request) is None:
            return _unauthorized()
        if channel_id in self.forbidden:
            return _json({"message": "Missing Access", "code": 50001}, status=403)
        for data in channels(self.full):
            if data["id"] == str(channel_id):
                return _json(data)
        return _json({"message": "Unknown Channel", "code": 10003}, status=404)

    async def _where_for_bots(self, request: web.Request) -> web.Response:
        return _unauthorized() if self._token(request) is None else await self._where(request)

    async def _where(self, request: web.Request) -> web.Response:
        limit = {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 16}
        return _json({"url": self.server.gateway_url, "shards": 1, "session_start_limit": limit})

    def _token(self, request: web.Request) -> str | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bot" and token and not self.refuse_tokens else None

    # -- the gateway

    async def _gateway(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False, timeout=1.0)
        if not socket.can_prepare(request).ok:
            return web.Response(status=426, text="This is a gateway; speak websocket.\n")
        await socket.prepare(request)
        await Connection(self, socket, request.query.get("compress") == "zlib-stream").run()
        return socket


class Bot:
    """One bot's session with the main gateway; it outlives its `connection`, and is resumed on another one."""

    def __init__(self, gateway: MainGateway, user_id: int) -> None:
        self._gateway = gateway
        self._dispatched: deque[Message] = deque(maxlen=MISSED)
        self._sequence = 0
        self.user_id = user_id
        self.session_id = secrets.token_hex(16)
        self.connection: Connection | None = None
        self.signalling = LocalSignalling(gateway.server, user_id)
        self.signalling.attach(self)

    # -- as the receiver of the local signalling

    def voice_state_update(self, data: Mapping[str, Any]) -> None:
        """The bot's voice state changed: all bots of the guild hear of it."""
        channel_id = int(data["channel_id"]) if data["channel_id"] else None
        for bot in self._gateway.sessions.values():
            bot.dispatch("VOICE_STATE_UPDATE", voice_state(self.user_id, channel_id, data["session_id"]))

    def voice_server_update(self, data: Mapping[str, Any]) -> None:
        """The bot's voice server changed."""
        self.dispatch("VOICE_SERVER_UPDATE", dict(data))

    def dispatch(self, name: str, data: Message) -> None:
        """Send an event; while the bot is away it waits for the resume."""
        self._sequence += 1
        message = {"op": DISPATCH, "d": data, "t": name, "s": self._sequence}
        self._dispatched.append(message)
        if self.connection is not None:
            self.connection.say(message)

    # -- what goes wrong, when a test says so

    async def drop(self, code: int = 4000) -> None:
        """Close the connection; the session can be resumed."""
        if self.connection is not None:
            await self.connection.close(code)

    def reconnect(self) -> None:
        """Ask the bot to come back on another connection (op 7)."""
        if self.connection is not None:
            self.connection.say({"op": RECONNECT, "d": None, "t": None, "s": None})

    async def invalidate(self) -> None:
        """End the session (op 9), and with it the voice session (4014): the bot must identify anew."""
        if self.connection is not None:
            self.connection.say({"op": INVALID_SESSION, "d": False, "t": None, "s": None})
        await self.end()

    # -- for connections

    def attach(self, connection: Connection) -> None:
        """The bot is here."""
        self.connection = connection
        self._gateway.sessions[self.session_id] = self
        self._gateway.changed()

    def resume(self, connection: Connection, sequence: int) -> None:
        """The bot is back, and gets what it has missed since `sequence`."""
        self.attach(connection)
        for message in self._dispatched:
            if message["s"] > sequence:
                connection.say(message)
        self.dispatch("RESUMED", {})

    async def end(self) -> None:
        """Nobody can resume it any more."""
        self.connection = None
        self._gateway.sessions.pop(self.session_id, None)
        credentials = self.signalling.credentials
        if credentials is not None:
            self.voice_state_update({"channel_id": None, "session_id": credentials.session_id.reveal()})
            self.signalling.forget()
            await self._gateway.server.expel(credentials)


class Connection:
    """One websocket of the main gateway."""

    def __init__(self, gateway: MainGateway, socket: web.WebSocketResponse, zipped: bool) -> None:
        self._gateway = gateway
        self._socket = socket
        self._zip = zlib.compressobj() if zipped else None
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._bot: Bot | None = None

    async def run(self) -> None:
        """Serve until either side closes."""
        writer = asyncio.get_running_loop().create_task(self._write())
        hello = {"heartbeat_interval": HEARTBEAT_MS, "_trace": []}
        self.say({"op": HELLO, "d": hello, "t": None, "s": None})
        try:
            async for message in self._socket:
                if message.type is aiohttp.WSMsgType.BINARY:  # JSON, too
                    text = message.data.decode("utf-8", "replace")
                elif message.type is aiohttp.WSMsgType.TEXT:
                    text = message.data
                else:
                    continue
                if not await self._take(text):
                    return
        finally:
            writer.cancel()
            await self._gone()

    def say(self, message: Message) -> None:
        """Send it, in its turn."""
        self._outbox.put_nowait(message)

    async def close(self, code: int) -> None:
        """Close the websocket."""
        if self._bot is not None and self._bot.connection is self:
            self._bot.connection = None
        await self._socket.close(code=code)

    # -- inside

    async def _gone(self) -> None:
        bot = self._bot
        if bot is None or bot.connection is not self:
            return
        bot.connection = None
        if self._socket.close_code in ENDS_SESSION:
            await bot.end()

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError, RuntimeError):
            while True:
                text = json.dumps(await self._outbox.get(), separators=(",", ":"))
                if self._zip is None:
                    await self._socket.send_str(text)
                else:
                    await self._socket.send_bytes(
                        self._zip.compress(text.encode()) + self._zip.flush(zlib.Z_SYNC_FLUSH)
                    )

    async def _take(self, text: str) -> bool:
        try:
            message = read_envelope(text)
        except MalformedFrame:
            await self._socket.close(code=DECODE_ERROR)
            return False
        op, d = message["op"], message.get("d")
        if op == HEARTBEAT:
            self.say({"op": HEARTBEAT_ACK, "d": None, "t": None, "s": None})
        elif op == IDENTIFY and isinstance(d, dict):
            if self._gateway.refuse_tokens or self._gateway.refuse_intents:
                code = AUTHENTICATION_FAILED if self._gateway.refuse_tokens else DISALLOWED_INTENTS
                await self._socket.close(code=code)
                return False
            await self._log_in(str(d.get("token", "")).removeprefix("Bot "))
        elif op == RESUME and isinstance(d, dict):
            self._resume(str(d.get("session_id")), d.get("seq"))
        elif self._bot is None:
            await self._socket.close(code=NOT_AUTHENTICATED)
            return False
        elif op == VOICE_STATE and isinstance(d, dict):
            await self._voice_state(self._bot, d)
        return True

    def _resume(self, session_id: str, sequence: object) -> None:
        self._bot = self._gateway.sessions.get(session_id)
        if self._bot is None:
            self.say({"op": INVALID_SESSION, "d": False, "t": None, "s": None})
            return
        self._bot.resume(self, sequence if isinstance(sequence, int) else 0)

    async def _log_in(self, token: str) -> None:
        user_id = self._gateway.user_of(token)
        for before in list(self._gateway.sessions.values()):
            if before.user_id == user_id and before.connection is None:  # it will not be resumed any more
                await before.end()
        self._bot = Bot(self._gateway, user_id)
        self._bot.attach(self)
        ready = {
            "v": 10,
            "user": user(user_id),
            "session_id": self._bot.session_id,
            "resume_gateway_url": self._gateway.server.gateway_url,
            "guilds": [{"id": str(GUILD_ID), "unavailable": True}],
            "application": {"id": str(user_id), "flags": 0},
            "shard": [0, 1],
            "private_channels": [],
            "relationships": [],
            "_trace": [],
        }
        self._bot.dispatch("READY", ready)
        self._bot.dispatch("GUILD_CREATE", guild(user_id, self._gateway.voice_states(), self._gateway.full))

    async def _voice_state(self, bot: Bot, d: Mapping[str, Any]) -> None:
        channel_id = int(d["channel_id"]) if d.get("channel_id") else None
        mute, deaf = bool(d.get("self_mute")), bool(d.get("self_deaf"))
        if channel_id is None or self._gateway.answers(channel_id):
            bot.signalling.server_first = self._gateway.server_first
            await bot.signalling.update_voice_state(GUILD_ID, channel_id, self_mute=mute, self_deaf=deaf)


def _unauthorized() -> web.Response:
    return _json({"message": "401: Unauthorized", "code": 0}, status=401)


def _json(data: object, status: int = 200) -> web.Response:
    """As Discord answers: some libraries compare the content type to the letter."""
    return web.Response(body=json.dumps(data).encode(), status=status, headers={"Content-Type": "application/json"})


def _named_user(segment: str) -> int | None:
    """The user id that a token's first segment holds."""
    if segment.isdecimal():
        return int(segment)
    with contextlib.suppress(ValueError):
        decoded = base64.b64decode(segment + "=" * (-len(segment) % 4), validate=True)
        return int(decoded) if decoded.isdigit() else None
    return None
