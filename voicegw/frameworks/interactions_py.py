"""voicegw for interactions.py: `await voicegw.frameworks.interactions_py.VoiceClient.connect_to(channel)`."""

from __future__ import annotations

import threading
from typing import Any, Self

from voicegw.client import VoiceClient as Call
from voicegw.effects import Connected, Moved, Notice
from voicegw.frameworks.audio import FRAME_BYTES, filled
from voicegw.frameworks.call import FrameworkCall, id_of, require
from voicegw.media.sources import Source
from voicegw.signalling import SignallingReceiver

__all__ = ["VoiceClient"]

interactions = require("interactions", "interactions.py", "Listener")
PAUSE_S = 0.02


class AudioSource:
    """A `BaseAudio` of interactions.py (`Audio`, `AudioVolume`) as a source of ours.

    Where it has nothing yet, but more is to come (`locked_stream`, or not `audio_complete`), `read` waits for it.
    """

    def __init__(self, audio: Any) -> None:
        self.audio = audio
        self.is_opus = not audio.needs_encode
        self._aborted = threading.Event()

    def read(self) -> bytes:
        """The next 20 ms, b"" at the end."""
        while not self._aborted.is_set():
            over = not self.audio.locked_stream and self.audio.audio_complete  # asked first: the last read may follow
            frame = bytes(self.audio.read(FRAME_BYTES))
            if frame or over:
                return frame if self.is_opus else filled(frame)
            self._aborted.wait(PAUSE_S)
        return b""

    def abort(self) -> None:
        """End a `read` that waits in another thread."""
        self._aborted.set()

    def close(self) -> None:
        """Let the audio clean up."""
        self.audio.cleanup()


class ClientSignalling:
    """Op 4 through the bot's gateway, and the two raw events as they come."""

    def __init__(self, client: Any, guild_id: int) -> None:
        self._client = client
        self._guild_id = guild_id
        self._receiver: SignallingReceiver | None = None
        self._listeners = [
            interactions.Listener.create(name)(take)
            for name, take in (
                ("raw_voice_state_update", self._voice_state),
                ("raw_voice_server_update", self._voice_server),
                ("websocket_ready", self._begun_anew),
                ("resume", self._resumed),
            )
        ]

    def attach(self, receiver: SignallingReceiver) -> None:
        """Remember who gets the events, and begin to listen for them."""
        self._receiver = receiver
        for listener in self._listeners:
            self._client.add_listener(listener)

    def detach(self) -> None:
        """Listen no more."""
        for listener in self._listeners:
            if listener in self._client.listeners.get(listener.event, ()):
                self._client.listeners[listener.event].remove(listener)

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Send op 4 on the bot's own gateway."""
        gateway = self._client.get_guild_websocket(guild_id)
        await gateway.voice_state_update(guild_id, channel_id, self_mute, self_deaf)

    async def _voice_state(self, event: Any) -> None:
        if self._receiver is not None:
            self._receiver.voice_state_update(event.data)

    async def _voice_server(self, event: Any) -> None:
        if self._receiver is not None:
            self._receiver.voice_server_update(event.data)

    async def _begun_anew(self, event: Any) -> None:
        """A shard has identified anew: the voice session ids of its guilds are dead."""
        shard = self._client.get_guild_websocket(self._guild_id).shard
        if isinstance(self._receiver, Call) and event.data.get("shard", [0])[0] == shard[0]:
            self._receiver.main_session_started()

    async def _resumed(self, event: Any) -> None:
        if isinstance(self._receiver, Call):
            self._receiver.main_session_resumed()


class VoiceClient(FrameworkCall):
    """A call of an interactions.py bot; the framework's own `channel.connect()` is not used."""

    def __init__(self, channel: Any, **options: Any) -> None:
        client, guild_id = channel.client, int(channel.guild.id)
        self.channel = channel
        self._signalling = ClientSignalling(client, guild_id)
        voice = Call(
            user_id=int(client.user.id),
            guild_id=guild_id,
            channel_id=int(channel.id),
            signalling=self._signalling,
            **options,
        )
        self.take(voice)

    @classmethod
    async def connect_to(cls, channel: Any, *, timeout_s: float = 30.0, **options: Any) -> Self:
        """Join a voice channel and wait until the voice session is ready; `options` are those of `voicegw.VoiceClient`.

        Raises:
            VoiceError: as `voicegw.VoiceClient.connect`.
        """
        client = cls(channel, **options)
        try:
            await client.voice.connect(timeout_s=timeout_s)
        except BaseException:
            await client.voice.close()
            raise
        return client

    async def move_to(self, channel: Any, timeout_s: float = 30.0) -> None:
        """Go to another channel of the guild.

        Raises:
            VoiceError: as `voicegw.VoiceClient.move_to`.
        """
        await self.voice.move_to(id_of(channel), timeout_s=timeout_s)

    async def disconnect(self) -> None:
        """Leave the channel."""
        await self.voice.close()

    def adapt(self, source: Any) -> Source:
        """A `BaseAudio` as a source of ours; ours as it is."""
        return AudioSource(source) if hasattr(source, "audio_complete") else source

    # -- inside

    def noted(self, notice: Notice) -> None:
        super().noted(notice)
        if isinstance(notice, Connected | Moved):
            self.channel = self.channel.client.get_channel(notice.channel_id) or self.channel
            self.encode_for(self.channel)

    def ended(self) -> None:
        """Listen to the bot's gateway no more."""
        self._signalling.detach()
