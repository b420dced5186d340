"""voicegw for hikari: `await bot.voice.connect_to(guild, channel, voicegw.frameworks.hikari.VoiceConnection)`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

from voicegw.client import VoiceClient
from voicegw.effects import Moved, Notice
from voicegw.frameworks.call import FrameworkCall, id_of, require
from voicegw.signalling import SignallingReceiver

__all__ = ["VoiceConnection"]

hikari = require("hikari", "hikari", "VoiceServerUpdateEvent")
api = require("hikari.api", "hikari", "VoiceConnection")


class ShardSignalling:
    """Op 4 through a shard. The first one is hikari's own: it was answered before we are asked."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard
        self.receiver: SignallingReceiver | None = None
        self.first: Callable[[], None] | None = None

    def attach(self, receiver: SignallingReceiver) -> None:
        """Remember who gets the events."""
        self.receiver = receiver

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Send op 4 on the bot's own gateway."""
        if self.first is not None:
            answer, self.first = self.first, None
            answer()
            return
        await self._shard.update_voice_state(guild_id, channel_id, self_mute=self_mute, self_deaf=self_deaf)


class VoiceConnection(FrameworkCall, api.VoiceConnection):  # type: ignore[misc, name-defined]
    """A voice connection of hikari.

    `connect_to` passes on what `voicegw.VoiceClient` takes (`policy`, ...), and `connect_timeout_s`: seconds until the
    voice session must be ready (30).
    """

    def __init__(
        self, voice: VoiceClient, owner: Any, shard_id: int, on_close: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.voice = voice
        self._owner = owner
        self._shard_id = shard_id
        self._on_close = on_close
        self._unregistering: asyncio.Future[None] | None = None
        self._subscriptions = (
            (hikari.ShardDisconnectedEvent, self._disconnected),
            (hikari.ShardReadyEvent, self._begun_anew),
            (hikari.ShardResumedEvent, self._resumed),
        )

    @classmethod
    async def initialize(
        cls,
        channel_id: int,
        endpoint: str,
        guild_id: int,
        on_close: Callable[[Any], Awaitable[None]],
        owner: Any,
        session_id: str,
        shard_id: int,
        token: str,
        user_id: int,
        *,
        connect_timeout_s: float = 30.0,
        **options: Any,
    ) -> Self:
        """Make the voice session of a pair that hikari has received.

        Raises:
            VoiceError: as `voicegw.VoiceClient.connect`.
        """
        app = owner._app  # hikari hands its voice component to connections, and nothing else that can send op 4
        signalling = ShardSignalling(app.shards[shard_id])
        voice = VoiceClient(
            user_id=int(user_id),
            guild_id=int(guild_id),
            channel_id=int(channel_id),
            signalling=signalling,
            **options,
        )
        connection = cls(voice, owner, shard_id, on_close)
        guild = str(int(guild_id))
        shown = app.cache.get_voice_state(guild_id, user_id)  # as `connect_to(mute=..., deaf=...)` has asked for
        if shown is not None:
            voice.mute(self_mute=shown.is_self_muted, self_deaf=shown.is_self_deafened)

        def answer() -> None:
            own = {"guild_id": guild, "channel_id": str(int(channel_id)), "user_id": str(int(user_id))}
            voice.voice_state_update({**own, "session_id": session_id})
            server = {"guild_id": guild, "token": token, "endpoint": endpoint.removeprefix("wss://")}
            voice.voice_server_update(server)

        signalling.first = answer

        async def meanwhile(event: Any) -> None:
            if int(event.guild_id) == int(guild_id):
                await connection.notify(event)

        # hikari passes events on only once this method has returned
        app.event_manager.subscribe(hikari.VoiceEvent, meanwhile)
        try:
            await voice.connect(timeout_s=connect_timeout_s)
        except BaseException:
            await voice.close()
            raise
        finally:
            app.event_manager.unsubscribe(hikari.VoiceEvent, meanwhile)
        connection.take(voice)
        connection.encode_for(app.cache.get_guild_channel(channel_id))
        for event, callback in connection._subscriptions:
            app.event_manager.subscribe(event, callback)
        return connection

    def noted(self, notice: Notice) -> None:
        super().noted(notice)
        if isinstance(notice, Moved):
            self.encode_for(self._owner._app.cache.get_guild_channel(notice.channel_id))

    # -- what hikari asks

    @property
    def channel_id(self) -> Any:
        """The channel that we are in."""
        return hikari.Snowflake(self.voice.session.shared.channel_id)

    @property
    def guild_id(self) -> Any:
        """The guild of the call."""
        return hikari.Snowflake(self.voice.session.shared.guild_id)

    @property
    def is_alive(self) -> bool:
        """Is the call not over?"""
        return self.voice.states["call"] != "closed"

    @property
    def shard_id(self) -> int:
        """The shard that signals for the call."""
        return self._shard_id

    @property
    def owner(self) -> Any:
        """The bot's voice component."""
        return self._owner

    async def disconnect(self) -> None:
        """Leave the channel."""
        await self.voice.close()
        if self._unregistering is not None:
            await asyncio.shield(self._unregistering)

    async def join(self) -> None:
        """Until the call is over; it keeps up by itself, so nothing is to be waited for but its end."""
        await self.voice.wait_closed()

    async def notify(self, event: Any) -> None:
        """Take a voice event of this guild."""
        if isinstance(event, hikari.VoiceServerUpdateEvent):
            server = {"guild_id": str(event.guild_id), "token": event.token, "endpoint": event.raw_endpoint}
            self.voice.voice_server_update(server)
        elif isinstance(event, hikari.VoiceStateUpdateEvent):
            state = event.state
            own = {"guild_id": str(state.guild_id), "user_id": str(state.user_id), "session_id": state.session_id}
            channel = str(state.channel_id) if state.channel_id is not None else None
            self.voice.voice_state_update({**own, "channel_id": channel})

    # -- what a bot calls

    async def move_to(self, channel: Any, timeout_s: float = 30.0) -> None:
        """Go to another channel of the guild.

        Raises:
            VoiceError: as `voicegw.VoiceClient.move_to`.
        """
        await self.voice.move_to(id_of(channel), timeout_s=timeout_s)

    # -- what happens to the bot's own session

    async def _disconnected(self, event: Any) -> None:
        """The shard forgets its session's id where it was invalidated, and keeps it where it may be resumed."""
        if event.shard.id == self._shard_id and getattr(event.shard, "_session_id", "") is None:
            self.voice.main_session_lost()

    async def _begun_anew(self, event: Any) -> None:
        """The shard has identified anew: its voice session ids are dead."""
        if event.shard.id == self._shard_id:
            self.voice.main_session_started()

    async def _resumed(self, event: Any) -> None:
        if event.shard.id == self._shard_id:
            self.voice.main_session_resumed()

    # -- inside

    def ended(self) -> None:
        """Be no longer the guild's voice connection."""
        for event, callback in self._subscriptions:
            self._owner._app.event_manager.unsubscribe(event, callback)
        self._unregistering = asyncio.ensure_future(self._on_close(self))
