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
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from voicegw.errors import MalformedFrame
from voicegw.server.commands import ALL_PERMISSIONS, Commands
from voicegw.server.signalling import LocalSignalling
from voicegw.wire.frames import read_envelope

if TYPE_CHECKING:
    from voicegw.server.server import VoiceServer

GUILD_ID = 41771983423143937
CHANNEL_IDS = (127121515262115840, 127121515262115841)
OWNER_ID = 900000000000000000
HEARTBEAT_MS = 41_250
API = "/api/v{version:\\d+}"

DISPATCH, HEARTBEAT, IDENTIFY, VOICE_STATE, RESUME, HELLO, HEARTBEAT_ACK = 0, 1, 2, 4, 6, 10, 11
RECONNECT, INVALID_SESSION = 7, 9
DECODE_ERROR, NOT_AUTHENTICATED, AUTHENTICATION_FAILED, DISALLOWED_INTENTS = 4002, 4003, 4004, 4014


class MainGateway:
    """Logs bots in and signals for them; `bots` are those that are connected, by user id. `commands` is what users ask.

    To be set at any time: `refuse_tokens` (401 and 4004), `refuse_intents` (4014), and the channels that bots may not
    see, `forbidden` (403, and silence for who joins them all the same).
    """

    def __init__(self, server: VoiceServer) -> None:
        self._server = server
        self.refuse_tokens = False
        self.refuse_intents = False
        self.forbidden: set[int] = set()
        self.sessions: dict[str, Bot] = {}
        self._users: dict[str, int] = {}
        self._numbers = itertools.count(900000000000000001)
        self.bots: dict[int, Bot] = {}
        self.commands = Commands(self)

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
        """A connected bot's voice signalling, to move it, kick it, or change its server."""
        return self.bots[user_id].signalling

    def user_of(self, token: str) -> int:
        """Whose token it is."""
        if token not in self._users:
            self._users[token] = _named_user(token.partition(".")[0]) or next(self._numbers)
        return self._users[token]

    def voice_states(self) -> list[dict[str, Any]]:
        """Everybody's voice state, as a guild carries it."""
        return [
            voice_state(user_id, channel_id, "")
            for channel_id in CHANNEL_IDS
            for user_id in self._server.members(channel_id)
        ]

    # -- for commands

    def user(self, user_id: int) -> dict[str, Any]:
        """A user, as REST shows it."""
        return user(user_id)

    def somebody(self, but: Collection[int]) -> tuple[int, int]:
        """A user who is in a voice channel, and the channel; somebody who is in none where there is nobody."""
        for channel_id in CHANNEL_IDS:
            for user_id in self._server.members(channel_id):
                if user_id not in but:
                    return user_id, channel_id
        return OWNER_ID, CHANNEL_IDS[0]

    def changed(self) -> None:
        """Something has happened that the server's `wait_for` may wait for."""
        self._server.changed()

    def interaction(self, user_id: int, channel_id: int) -> dict[str, Any]:
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
        for data in channels():
            if data["id"] == str(channel_id):
                return _json(data)
        return _json({"message": "Unknown Channel", "code": 10003}, status=404)

    async def _where_for_bots(self, request: web.Request) -> web.Response:
        return _unauthorized() if self._token(request) is None else await self._where(request)

    async def _where(self, request: web.Request) -> web.Response:
        limit = {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 16}
        return _json({"url": self._server.gateway_url, "shards": 1, "session_start_limit": limit})

    def _token(self, request: web.Request) -> str | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bot" and token and not self.refuse_tokens else None

    # -- the gateway

    async def _gateway(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False, timeout=1.0)
        if not socket.can_prepare(request).ok:
            return web.Response(status=426, text="This is a gateway; speak websocket.\n")
        await socket.prepare(request)
        await Bot(self, self._server, socket, request.query.get("compress") == "zlib-stream").run()
        return socket


class Bot:
    """One bot's connection to the main gateway."""

    def __init__(self, gateway: MainGateway, server: VoiceServer, socket: web.WebSocketResponse, zipped: bool) -> None:
        self._gateway = gateway
        self._server = server
        self._socket = socket
        self._zip = zlib.compressobj() if zipped else None
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._sequence = 0
        self._session_id = secrets.token_hex(16)
        self.user_id = 0
        self.signalling = LocalSignalling(server, 0)

    async def run(self) -> None:
        """Serve until either side closes."""
        writer = asyncio.get_running_loop().create_task(self._write())
        self._say(HELLO, {"heartbeat_interval": HEARTBEAT_MS, "_trace": []})
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
            if self._gateway.bots.get(self.user_id) is self:
                del self._gateway.bots[self.user_id]

    # -- as the receiver of the local signalling

    def voice_state_update(self, data: Mapping[str, Any]) -> None:
        """The bot's voice state changed: all bots of the guild hear of it."""
        channel_id = int(data["channel_id"]) if data["channel_id"] else None
        for bot in self._gateway.bots.values():
            bot.dispatch("VOICE_STATE_UPDATE", voice_state(self.user_id, channel_id, data["session_id"]))

    def voice_server_update(self, data: Mapping[str, Any]) -> None:
        """The bot's voice server changed."""
        self.dispatch("VOICE_SERVER_UPDATE", dict(data))

    def dispatch(self, name: str, data: dict[str, Any]) -> None:
        """Send an event."""
        self._sequence += 1
        self._say(DISPATCH, data, t=name, s=self._sequence)

    # -- what goes wrong, when a test says so

    async def drop(self, code: int = 4000) -> None:
        """Close the connection; the session can be resumed."""
        await self._socket.close(code=code)

    def reconnect(self) -> None:
        """Ask the bot to come back on another connection (op 7)."""
        self._say(RECONNECT, None)

    def invalidate(self) -> None:
        """End the session (op 9): the bot must identify anew."""
        del self._gateway.sessions[self._session_id]
        self._say(INVALID_SESSION, False)

    # -- inside

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

    def _say(self, op: int, d: Any, t: str | None = None, s: int | None = None) -> None:
        self._outbox.put_nowait({"op": op, "d": d, "t": t, "s": s})

    async def _take(self, text: str) -> bool:
        try:
            message = read_envelope(text)
        except MalformedFrame:
            await self._socket.close(code=DECODE_ERROR)
            return False
        op, d = message["op"], message.get("d")
        if op == HEARTBEAT:
            self._say(HEARTBEAT_ACK, None)
        elif op == IDENTIFY and isinstance(d, dict):
            if self._gateway.refuse_tokens or self._gateway.refuse_intents:
                code = AUTHENTICATION_FAILED if self._gateway.refuse_tokens else DISALLOWED_INTENTS
                await self._socket.close(code=code)
                return False
            self._log_in(str(d.get("token", "")).removeprefix("Bot "))
        elif op == RESUME and isinstance(d, dict):
            self._resume(str(d.get("session_id")))
        elif not self.user_id:
            await self._socket.close(code=NOT_AUTHENTICATED)
            return False
        elif op == VOICE_STATE and isinstance(d, dict):
            await self._voice_state(d)
        return True

    def _resume(self, session_id: str) -> None:
        before = self._gateway.sessions.get(session_id)
        if before is None:
            self._say(INVALID_SESSION, False)
            return
        self._session_id, self._sequence = session_id, before._sequence
        self.user_id, self.signalling = before.user_id, before.signalling
        self._begin()
        self.dispatch("RESUMED", {})

    def _begin(self) -> None:
        self.signalling.attach(self)
        self._gateway.sessions[self._session_id] = self
        self._gateway.bots[self.user_id] = self
        self._gateway.changed()

    def _log_in(self, token: str) -> None:
        self.user_id = self._gateway.user_of(token)
        self.signalling = LocalSignalling(self._server, self.user_id)
        self._begin()
        ready = {
            "v": 10,
            "user": user(self.user_id),
            "session_id": self._session_id,
            "resume_gateway_url": self._server.gateway_url,
            "guilds": [{"id": str(GUILD_ID), "unavailable": True}],
            "application": {"id": str(self.user_id), "flags": 0},
            "shard": [0, 1],
            "private_channels": [],
            "relationships": [],
            "_trace": [],
        }
        self.dispatch("READY", ready)
        self.dispatch("GUILD_CREATE", guild(self.user_id, self._gateway.voice_states()))

    async def _voice_state(self, d: Mapping[str, Any]) -> None:
        channel_id = int(d["channel_id"]) if d.get("channel_id") else None
        mute, deaf = bool(d.get("self_mute")), bool(d.get("self_deaf"))
        known = set(CHANNEL_IDS) - self._gateway.forbidden
        if channel_id is None or channel_id in known:  # one that it may not join is answered with silence
            await self.signalling.update_voice_state(GUILD_ID, channel_id, self_mute=mute, self_deaf=deaf)


def user(user_id: int) -> dict[str, Any]:
    """A bot user, as REST and gateway show it."""
    return {
        "id": str(user_id),
        "username": f"bot-{user_id}",
        "discriminator": "0",
        "global_name": None,
        "avatar": None,
        "bot": True,
        "mfa_enabled": False,
        "verified": True,
        "email": None,
        "flags": 0,
        "public_flags": 0,
    }


def member(user_id: int) -> dict[str, Any]:
    """A guild member."""
    joined = "2026-01-01T00:00:00.000000+00:00"
    return {
        "user": user(user_id),
        "nick": None,
        "roles": [],
        "joined_at": joined,
        "deaf": False,
        "mute": False,
        "flags": 0,
    }


def voice_state(user_id: int, channel_id: int | None, session_id: str) -> dict[str, Any]:
    """A voice state of the guild."""
    return {
        "guild_id": str(GUILD_ID),
        "channel_id": str(channel_id) if channel_id else None,
        "user_id": str(user_id),
        "member": member(user_id),
        "session_id": session_id,
        "deaf": False,
        "mute": False,
        "self_deaf": False,
        "self_mute": False,
        "self_video": False,
        "suppress": False,
        "request_to_speak_timestamp": None,
    }


def guild(user_id: int, voice_states: list[dict[str, Any]]) -> dict[str, Any]:
    """The guild, as a bot that logs in gets it."""
    everyone = {
        "id": str(GUILD_ID),
        "name": "@everyone",
        "permissions": ALL_PERMISSIONS,
        "position": 0,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "managed": False,
        "mentionable": False,
        "flags": 0,
    }
    members = sorted({user_id, *(int(state["user_id"]) for state in voice_states)})
    lists = (
        "emojis",
        "stickers",
        "threads",
        "soundboard_sounds",
        "presences",
        "stage_instances",
        "guild_scheduled_events",
        "features",
    )
    nothing = ("afk_channel_id", "system_channel_id", "rules_channel_id", "public_updates_channel_id", "icon", "splash")
    return {
        **{name: [] for name in lists},
        **dict.fromkeys((*nothing, "application_id", "banner", "description", "discovery_splash", "vanity_url_code")),
        "id": str(GUILD_ID),
        "name": "local",
        "owner_id": str(user_id),
        "member_count": len(members),
        "large": False,
        "unavailable": False,
        "joined_at": "2026-01-01T00:00:00.000000+00:00",
        "afk_timeout": 300,
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "mfa_level": 0,
        "system_channel_flags": 0,
        "premium_tier": 0,
        "premium_progress_bar_enabled": False,
        "nsfw_level": 0,
        "preferred_locale": "en-US",
        "roles": [everyone],
        "channels": channels(),
        "members": [member(present) for present in members],
        "voice_states": voice_states,
    }


def channels() -> list[dict[str, Any]]:
    """The guild's voice channels."""
    return [
        {
            "id": str(channel_id),
            "type": 2,
            "guild_id": str(GUILD_ID),
            "name": f"voice-{number}",
            "position": number,
            "permission_overwrites": [],
            "bitrate": 64_000,
            "user_limit": 0,
            "parent_id": None,
            "nsfw": False,
            "rtc_region": None,
        }
        for number, channel_id in enumerate(CHANNEL_IDS, 1)
    ]


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
