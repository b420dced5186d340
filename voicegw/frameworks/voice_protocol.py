"""What discord.py, py-cord, nextcord and disnake have in common: `VoiceProtocol`, and a guild that sends op 4."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from voicegw.client import VoiceClient
from voicegw.effects import Connected, Moved, Notice
from voicegw.frameworks.audio import FrameworkSource
from voicegw.frameworks.call import FrameworkCall, id_of
from voicegw.signalling import SignallingReceiver


class GuildSignalling:
    """Op 4 through a framework's guild; `GuildVoiceClient` hands the two events back."""

    def __init__(self, guild: Any) -> None:
        self._guild = guild
        self.receiver: SignallingReceiver | None = None

    def attach(self, receiver: SignallingReceiver) -> None:
        """Remember who gets the events."""
        self.receiver = receiver

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Send op 4 on the bot's own gateway."""
        channel = SimpleNamespace(id=channel_id) if channel_id is not None else None
        await self._guild.change_voice_state(channel=channel, self_mute=self_mute, self_deaf=self_deaf)


class MainSessionWatch:
    """Calls three functions for what the framework says of the bot's own session with Discord, until `stop`.

    `lost` where it was invalidated, `started` where the bot has identified anew, `resumed` where it was away for a
    while. A bot with several shards hears only of its guild's.
    """

    def __init__(
        self,
        client: Any,
        guild: Any,
        lost: Callable[[], None],
        started: Callable[[], None],
        resumed: Callable[[], None],
    ) -> None:
        self._client = client
        self._guild_id = guild.id
        self._shard_id = guild.shard_id if hasattr(client, "shards") else None
        self._lost = lost
        self._waiting = [
            self._on("disconnect", self._disconnected),
            self._on("connect", started),
            self._on("resumed", resumed),
        ]

    def stop(self) -> None:
        """Hear no more."""
        for task in self._waiting:
            task.cancel()

    def _on(self, event: str, told: Callable[[], None]) -> asyncio.Future[None]:
        """A check that never holds is called at each event, before the framework goes on to what follows it."""

        def check(*shard_id: int) -> bool:
            if self._shard_id is None or self._shard_id in shard_id:
                told()
            return False

        name = event if self._shard_id is None else f"shard_{event}"
        waiting: asyncio.Future[None] = asyncio.ensure_future(self._client.wait_for(name, check=check))
        return waiting

    def _disconnected(self) -> None:
        """The frameworks forget the session's id where it was invalidated, and keep it where it may be resumed."""
        websocket = self._client._connection._get_websocket(self._guild_id)
        if getattr(websocket, "session_id", "") is None:
            self._lost()


class GuildVoiceClient(FrameworkCall):
    """The body of each framework's `VoiceClient`; `voice` is the call itself, a `voicegw.VoiceClient`.

    `options` are that client's keyword arguments: subclass to change them, say `options = {"policy": "allow"}`.
    """

    options: ClassVar[Mapping[str, Any]] = {}
    client: Any
    channel: Any

    def __init__(self, client: Any, channel: Any) -> None:
        super().__init__(client, channel)  # type: ignore[call-arg]
        self._known = True
        self.take(
            VoiceClient(
                user_id=client.user.id,
                guild_id=channel.guild.id,
                channel_id=channel.id,
                signalling=GuildSignalling(channel.guild),
                **self.options,
            )
        )
        self._watch = MainSessionWatch(
            client,
            channel.guild,
            lost=self.voice.main_session_lost,
            started=self._begun_anew,
            resumed=self.voice.main_session_resumed,
        )

    # -- what the framework calls

    async def on_voice_state_update(self, data: Any) -> None:
        """The bot's own voice state changed."""
        self.voice.voice_state_update({"guild_id": str(self.guild.id), **data})

    async def on_voice_server_update(self, data: Any) -> None:
        """The guild's voice server changed."""
        self.voice.voice_server_update(data)

    async def connect(
        self, *, timeout: float, reconnect: bool, self_deaf: bool = False, self_mute: bool = False
    ) -> None:
        """Join the channel and wait until the voice session is ready; the call comes back by itself in any case.

        Raises:
            VoiceError: as `voicegw.VoiceClient.connect`.
        """
        self.voice.mute(self_mute=self_mute, self_deaf=self_deaf)
        try:
            await self.voice.connect(timeout_s=timeout)
        except BaseException:
            self.ended()
            raise

    async def disconnect(self, *, force: bool = False) -> None:
        """Leave the channel."""
        try:
            await self.voice.close()
        finally:
            self.ended()

    # -- what a bot calls

    async def move_to(self, channel: Any, timeout: float = 30.0) -> None:
        """Go to another channel of the guild; None leaves.

        Raises:
            VoiceError: as `voicegw.VoiceClient.move_to`.
        """
        if channel is None:
            await self.disconnect()
            return
        await self.voice.move_to(id_of(channel), timeout_s=timeout)

    @property
    def guild(self) -> Any:
        """The guild of the call."""
        return self.channel.guild

    @property
    def user(self) -> Any:
        """The bot itself."""
        return self.client.user

    @property
    def latency(self) -> float:
        """The last heartbeat's round trip with the voice server, in seconds."""
        return self.voice.latency

    @property
    def source(self) -> Any:
        """The source that plays now, as it was given; None while nothing does.

        Set, it takes the other one's place within a second, and the other one is not cleaned up:
        `client.source = PCMVolumeTransformer(client.source)`. ValueError where nothing plays, or of the other kind.
        """
        source = self.playing.source if self.playing is not None else None
        return source.source if isinstance(source, FrameworkSource) else source

    @source.setter
    def source(self, value: Any) -> None:
        source = self.playing.source if self.playing is not None else None
        if not isinstance(source, FrameworkSource) or bool(value.is_opus()) != source.is_opus:
            raise ValueError("only a source of the framework's that plays gives its place to another of its kind")
        source.source = value

    # -- inside

    def noted(self, notice: Notice) -> None:
        super().noted(notice)
        if isinstance(notice, Connected | Moved):
            self.channel = self.client.get_channel(notice.channel_id) or self.channel
            self.encode_for(self.channel)

    def ended(self) -> None:
        """Be no longer the guild's voice client, so that the bot can connect again."""
        self._watch.stop()
        if self._known:
            self._known = False
            self.cleanup()  # type: ignore[attr-defined]

    def _begun_anew(self) -> None:
        """The bot has identified anew: its voice session ids are dead, and the framework has forgotten its calls."""
        if self._known:
            self.client._connection._add_voice_client(self.guild.id, self)
            self.voice.main_session_started()
