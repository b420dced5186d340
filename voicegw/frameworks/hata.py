"""voicegw for hata: `await voicegw.frameworks.hata.VoiceClient.join(client, channel)`.

hata runs on an event loop of its own; a call runs on an asyncio loop, in a thread that all calls of the process share.
What is awaited here is awaited on hata's loop.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future as ConcurrentFuture
from typing import Any, Self, TypeVar, Unpack

from voicegw.client import VoiceClient as Call
from voicegw.effects import Closed, Notice, Reconnecting
from voicegw.errors import NotAudio
from voicegw.frameworks.call import id_of, require, take_bitrate
from voicegw.media.heard import HeardFrame
from voicegw.media.listeners import Listening
from voicegw.media.live import AsyncIteratorSource
from voicegw.media.playback import HowToPlay, Playback
from voicegw.media.sinks import Sink
from voicegw.media.sources import Source
from voicegw.signalling import SignallingReceiver

__all__ = ["VoiceClient"]

Result = TypeVar("Result")

hata = require("hata", "hata", "VoiceServerUpdateEvent")
scarletio = require("scarletio", "hata", "Future")


@functools.cache
def call_loop() -> asyncio.AbstractEventLoop:
    """The loop of all calls, in a thread that ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="voicegw", daemon=True).start()
    return loop


async def on_call_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """From hata's loop: what `work` returns or raises on the loop of calls."""
    waiter = scarletio.Future(hata.KOKORO)

    def settle(done: ConcurrentFuture[Result]) -> None:
        error = done.exception()
        if error is None:
            hata.KOKORO.call_soon_thread_safe(waiter.set_result_if_pending, done.result())
        else:
            hata.KOKORO.call_soon_thread_safe(waiter.set_exception_if_pending, error)

    asyncio.run_coroutine_threadsafe(work, call_loop()).add_done_callback(settle)
    result: Result = await waiter
    return result


async def on_hatas_loop(work: Callable[[], Any]) -> Any:
    """From the loop of calls: what the coroutine that `work` makes returns or raises on hata's."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if waiter.done():
            return
        if error is None:
            waiter.set_result(result)
        else:
            waiter.set_exception(error)

    async def run() -> None:
        try:
            result = await work()
        except BaseException as error:
            loop.call_soon_threadsafe(settle, None, error)
            raise
        loop.call_soon_threadsafe(settle, result, None)

    hata.KOKORO.call_soon_thread_safe(lambda: scarletio.Task(hata.KOKORO, run()))
    return await waiter


def adapt(source: Any) -> Source:
    """An `AudioSource` of hata's as one of ours; ours as it is.

    Raises:
        NotAudio: it gives another kind of PCM than 48 kHz stereo.
    """
    if not hasattr(source, "AUDIO_SETTINGS"):
        ours: Source = source
        return ours
    settings = source.AUDIO_SETTINGS
    if source.NEEDS_ENCODE and (settings.sampling_rate, settings.channels) != (48_000, 2):
        raise NotAudio(f"{settings.sampling_rate} Hz in {settings.channels} channels; it must be 48000 Hz stereo")
    return AsyncIteratorSource(_pieces(source), is_opus=not source.NEEDS_ENCODE)


async def _pieces(source: Any) -> AsyncIterator[bytes]:
    """What hata's source gives, read on hata's loop."""
    try:
        await on_hatas_loop(source.postprocess)
        while (piece := await on_hatas_loop(source.read)) is not None:
            yield piece
    finally:
        await on_hatas_loop(source.cleanup)


class ShardSignalling:
    """Op 4 through hata's gateway."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def attach(self, receiver: SignallingReceiver) -> None:
        """The voice client hands the events over."""

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Send op 4 on the bot's own gateway."""
        gateway = self._client.gateway_for(guild_id)
        change = functools.partial(gateway.change_voice_state, guild_id, channel_id or 0)
        await on_hatas_loop(functools.partial(change, self_mute=self_mute, self_deaf=self_deaf))


class VoiceClient:
    """A call of a hata client, in the place where hata keeps its own: `client.voice_clients[guild_id]`.

    `call` is the call itself; it belongs to the loop of calls: `await voice.run(voice.call.wait_closed())`.
    """

    def __init__(self, client: Any, guild_id: int, channel_id: int, **options: Any) -> None:
        self.client = client
        self.guild_id = guild_id
        self._channel_id = channel_id
        self.call = Call(
            user_id=client.id, guild_id=guild_id, channel_id=channel_id, signalling=ShardSignalling(client), **options
        )
        self.call.add_listener(self._note)
        self._session_id = self._shard.session_id
        client.events(self._ready, name="ready")
        client.voice_clients[guild_id] = self

    @classmethod
    async def join(cls, client: Any, channel: Any, *, timeout_s: float = 30.0, **options: Any) -> Self:
        """Join a voice channel and wait until the voice session is ready; `options` are those of `voicegw.VoiceClient`.

        Raises:
            VoiceError: as `voicegw.VoiceClient.connect`.
        """

        made = cls(client, channel.guild_id, channel.id, **options)
        take_bitrate(made.call, channel)
        try:
            await on_call_loop(made.call.connect(timeout_s=timeout_s))
        except BaseException:
            await on_call_loop(made.call.close())
            raise
        return made

    # -- what a bot calls

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await something of `call`."""
        return await on_call_loop(work)

    def is_connected(self) -> bool:
        """Is there a voice session, or one that resumes?"""
        return self.call.states["call"] == "connected"

    async def play(self, source: Any, **how: Unpack[HowToPlay]) -> Playback:
        """Play a source of ours or of hata's instead of what was played before.

        `how` is as in `voicegw.VoiceClient.play`, and `await voice.run(playback.wait())` is its end.

        Raises:
            NotAudio: it gives another kind of PCM than 48 kHz stereo.
        """
        adapted = adapt(source)
        return await self._on_call_loop(lambda: self.call.play(adapted, **how))

    async def append(self, source: Any) -> Playback:
        """Play a source when all that was given before has ended.

        Raises:
            NotAudio: it gives another kind of PCM than 48 kHz stereo.
        """
        adapted = adapt(source)
        return await self._on_call_loop(lambda: self.call.player.queue(adapted))

    def is_playing(self) -> bool:
        """Is something being played, and not paused?"""
        playing = self.call.player.playing
        return playing is not None and not playing.paused

    def is_paused(self) -> bool:
        """Is what was played paused?"""
        playing = self.call.player.playing
        return playing is not None and playing.paused

    async def pause(self) -> None:
        """Be silent until `resume`."""
        await self._with_playing(Playback.pause)

    async def resume(self) -> None:
        """Go on where `pause` came."""
        await self._with_playing(Playback.resume)

    async def stop(self) -> None:
        """End what is played."""
        await self._with_playing(Playback.stop)

    async def listen(self, sink: Sink | Callable[[HeardFrame], None]) -> Listening:
        """Give what the others say to `sink`; `await voice.run(listening.stop())` ends it."""

        return await self._on_call_loop(lambda: self.call.listen(sink))

    async def move_to(self, channel: Any, timeout_s: float = 30.0) -> None:
        """Go to another channel of the guild.

        Raises:
            VoiceError: as `voicegw.VoiceClient.move_to`.
        """
        await on_call_loop(self.call.move_to(id_of(channel), timeout_s=timeout_s))

    async def disconnect(self) -> None:
        """Leave the channel."""
        await on_call_loop(self.call.close())

    # -- what hata's event handlers do with the voice client of a guild

    @property
    def channel_id(self) -> int:
        """The channel that we are in."""
        return self._channel_id

    @channel_id.setter
    def channel_id(self, channel_id: int) -> None:
        self._channel_id = channel_id
        guild = hata.GUILDS.get(self.guild_id)
        state = guild.get_voice_state(self.client.id) if guild is not None else None
        if state is not None:
            self._tell_state(channel_id, state.session_id)

    async def _create_socket(self, event: Any) -> None:
        server = {"guild_id": str(event.guild_id), "token": event.token, "endpoint": event.endpoint}
        self._tell(self.call.voice_server_update, server)

    async def _disconnect(self, force: bool = False, terminate: bool = True) -> None:
        if terminate:
            await self.disconnect()
        else:
            self._tell_state(None, "")

    # -- what happens to the bot's own session

    async def _ready(self, client: Any) -> None:
        """hata calls this whenever it has logged in anew: the voice session ids from before are dead.

        It may belong to the login that we have joined with, or to another shard's.
        """
        if self._shard.session_id not in (None, self._session_id):
            self._session_id = self._shard.session_id
            guild = hata.GUILDS.get(self.guild_id)
            if guild is not None and guild.voice_states is not None:
                guild.voice_states.pop(client.id, None)  # hata would keep the dead session id for the next voice state
            self._tell(self.call.main_session_started)

    @property
    def _shard(self) -> Any:
        return self.client.gateway_for(self.guild_id)

    # -- inside

    async def _on_call_loop(self, work: Callable[[], Result]) -> Result:
        async def run() -> Result:
            return work()

        return await on_call_loop(run())

    async def _with_playing(self, do: Callable[[Playback], None]) -> None:
        def work() -> None:
            if self.call.player.playing is not None:
                do(self.call.player.playing)

        await self._on_call_loop(work)

    def _tell(self, method: Callable[..., None], *arguments: object) -> None:
        call_loop().call_soon_threadsafe(method, *arguments)

    def _tell_state(self, channel_id: int | None, session_id: str) -> None:
        own = {"guild_id": str(self.guild_id), "user_id": str(self.client.id), "session_id": session_id}
        self._tell(self.call.voice_state_update, {**own, "channel_id": str(channel_id) if channel_id else None})

    def _note(self, notice: Notice) -> None:
        if isinstance(notice, Reconnecting) and self._shard.session_id is None:  # hata says so nowhere else
            self._tell(self.call.main_session_lost)
        elif isinstance(notice, Closed):
            hata.KOKORO.call_soon_thread_safe(self._forget)

    def _forget(self) -> None:
        """Be no longer the guild's voice client."""
        self.client.events.remove(self._ready, name="ready")
        if self.client.voice_clients.get(self.guild_id) is self:
            del self.client.voice_clients[self.guild_id]
