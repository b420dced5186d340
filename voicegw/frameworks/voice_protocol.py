"""What discord.py, py-cord, nextcord and disnake have in common: `VoiceProtocol`, and a guild that sends op 4."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from voicegw.client import VoiceClient
from voicegw.effects import Closed, Notice
from voicegw.frameworks.call import FrameworkCall
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


class GuildVoiceClient(FrameworkCall):
    """The body of each framework's `VoiceClient`; `voice` is the call itself, a `voicegw.VoiceClient`.

    `options` are that client's keyword arguments: subclass to change them, say `options = {"policy": "allow"}`.
    """

    options: ClassVar[Mapping[str, Any]] = {}
    client: Any
    channel: Any

    def __init__(self, client: Any, channel: Any) -> None:
        super().__init__(client, channel)  # type: ignore[call-arg]
        self.voice = VoiceClient(
            user_id=client.user.id,
            guild_id=channel.guild.id,
            channel_id=channel.id,
            signalling=GuildSignalling(channel.guild),
            **self.options,
        )
        self.voice.add_listener(self._note)
        self._forgotten = False

    # -- what the framework calls

    async def on_voice_state_update(self, data: Mapping[str, Any]) -> None:
        """The bot's own voice state changed."""
        self.voice.voice_state_update({"guild_id": str(self.channel.guild.id), **data})

    async def on_voice_server_update(self, data: Mapping[str, Any]) -> None:
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
            self._forget()
            raise

    async def disconnect(self, *, force: bool = False) -> None:
        """Leave the channel."""
        try:
            await self.voice.close()
        finally:
            self._forget()

    async def move_to(self, channel: Any, timeout: float = 30.0) -> None:
        """Go to another channel of the guild."""
        await self.voice.move_to(channel.id, timeout_s=timeout)
        self.channel = channel

    # -- inside

    def _note(self, notice: Notice) -> None:
        if isinstance(notice, Closed):
            self._forget()

    def _forget(self) -> None:
        """Have the framework forget us, once: another call of the guild may be there by then."""
        if not self._forgotten:
            self._forgotten = True
            self.cleanup()  # type: ignore[attr-defined]
