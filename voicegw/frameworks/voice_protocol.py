"""What discord.py, py-cord, nextcord and disnake have in common: `VoiceProtocol`, and a guild that sends op 4."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from voicegw.client import VoiceClient
from voicegw.errors import VoiceError
from voicegw.media.player import Playback
from voicegw.media.sinks import Sink
from voicegw.media.sources import Source
from voicegw.signalling import SignallingReceiver

FRAME_BYTES = 3840


def require(module: str, package: str) -> Any:
    """The framework's module.

    Raises:
        VoiceError: it is not installed, or is too old to have `VoiceProtocol`.
    """
    try:
        framework = importlib.import_module(module)
    except ImportError as error:
        raise VoiceError(f"{package} is not installed: pip install {package}") from error
    if not hasattr(framework, "VoiceProtocol"):
        raise VoiceError(f"this {package} is too old, it has no VoiceProtocol: pip install --upgrade {package}")
    return framework


class FrameworkSource:
    """A framework's `AudioSource` (20 ms of PCM or one Opus packet a `read()`) as a source of ours."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.is_opus = bool(source.is_opus())

    def read(self) -> bytes:
        """The next 20 ms; a short last frame is filled with silence."""
        frame: bytes = self._source.read()
        return frame if self.is_opus or not frame else frame.ljust(FRAME_BYTES, b"\0")

    def close(self) -> None:
        """Let the framework's source clean up."""
        self._source.cleanup()


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


class GuildVoiceClient:
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
            self.cleanup()  # type: ignore[attr-defined]
            raise

    async def disconnect(self, *, force: bool = False) -> None:
        """Leave the channel."""
        try:
            await self.voice.close()
        finally:
            self.cleanup()  # type: ignore[attr-defined]

    # -- what a bot calls

    def is_connected(self) -> bool:
        """Is there a voice session, or one that resumes?"""
        return self.voice.states["call"] == "connected"

    def play(self, source: Any) -> Playback:
        """Play a source of ours or the framework's own `AudioSource`, instead of what was played before."""
        ours: Source = FrameworkSource(source) if callable(source.is_opus) else source
        return self.voice.play(ours)

    def listen(self, sink: Sink | None) -> None:
        """Give what the others say to `sink`; None stops."""
        self.voice.listen(sink)

    def stop(self) -> None:
        """End what is played."""
        playing = self.voice.player.playing
        if playing is not None:
            playing.stop()

    async def move_to(self, channel: Any, timeout: float = 30.0) -> None:
        """Go to another channel of the guild."""
        await self.voice.move_to(channel.id, timeout_s=timeout)
        self.channel = channel
