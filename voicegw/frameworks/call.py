"""What every framework's voice client has in common: the call, and what a bot does with it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar, Unpack

from voicegw.client import VoiceClient
from voicegw.effects import Closed, Notice
from voicegw.errors import AudioError, VoiceError
from voicegw.frameworks.audio import FrameworkSource
from voicegw.media.heard import HeardFrame
from voicegw.media.listeners import FrameStream, Listening
from voicegw.media.opus import LEAST_BITRATE, MOST_BITRATE
from voicegw.media.playback import HowToPlay, Playback
from voicegw.media.sinks import Sink
from voicegw.media.sources import Source

Result = TypeVar("Result")
After = Callable[[AudioError | None], object]

_log = logging.getLogger("voicegw")


def require(module: str, package: str, needed: str = "VoiceProtocol") -> Any:
    """The framework's module.

    Raises:
        VoiceError: it is not installed, or is too old to have what is `needed` of it.
    """
    try:
        framework = importlib.import_module(module)
    except ImportError as error:
        raise VoiceError(f"{package} is not installed: pip install {package}") from error
    if not hasattr(framework, needed):
        raise VoiceError(f"this {package} is too old, it has no {needed}: pip install --upgrade {package}")
    return framework


def id_of(thing: Any) -> int:
    """The id of a framework's channel, member or user; an id is its own."""
    return int(getattr(thing, "id", thing))


def take_bitrate(voice: VoiceClient, channel: Any) -> None:
    """Encode as the channel has it, where the framework says it."""
    bitrate = getattr(channel, "bitrate", None)
    if isinstance(bitrate, int):
        voice.player.bitrate = min(max(bitrate, LEAST_BITRATE), MOST_BITRATE)


class FrameworkCall:
    """A call as the bot of a framework sees it; `voice` is the call itself, with everything else.

    What concerns playing may be called from any thread: frameworks call `after` in threads, and bots play on there.
    """

    voice: VoiceClient
    _loop: asyncio.AbstractEventLoop
    _encoded_for: int | None = None

    def take(self, voice: VoiceClient) -> None:
        """Be this call from now on; on its event loop."""
        self.voice = voice
        self._loop = asyncio.get_running_loop()
        voice.add_listener(self.noted)

    def noted(self, notice: Notice) -> None:
        """Something has happened in the call."""
        if isinstance(notice, Closed):
            self.ended()

    def ended(self) -> None:
        """The call is over, for whatever reason."""

    def encode_for(self, channel: Any) -> None:
        """Take the channel's bitrate, where the framework says it; a bot may set another while we are there."""
        if channel is not None and id_of(channel) != self._encoded_for:
            self._encoded_for = id_of(channel)
            take_bitrate(self.voice, channel)

    def is_connected(self) -> bool:
        """Is there a voice session, or one that resumes?"""
        return self.voice.states["call"] == "connected"

    # -- playing

    def play(self, source: Any, *, after: After | None = None, **how: Unpack[HowToPlay]) -> Playback:
        """Play a source of ours or the framework's own, instead of what was played before.

        `after(error)` is called in a thread of its own when it has ended, whatever ended it; `how` is as in
        `voicegw.VoiceClient.play`.

        Raises:
            TypeError: `source` is none, or `after` cannot be called.
            TooManyStreams: this process cannot keep another stream at pace.
        """
        if after is not None and not callable(after):
            raise TypeError(f"after must be a function, not {type(after).__name__}")
        adapted = self.adapt(source)

        def play() -> Playback:
            playback = self.voice.play(adapted, **how)
            if after is not None:
                playback.add_done_callback(lambda _: _call_after(after, playback))
            return playback

        return self.on_loop(play)

    def adapt(self, source: Any) -> Source:
        """A source of the framework's as one of ours; ours as it is."""
        ours: Source = FrameworkSource(source) if callable(getattr(source, "is_opus", None)) else source
        return ours

    @property
    def playing(self) -> Playback | None:
        """What is being played, paused or held now."""
        return self.voice.player.playing

    def is_playing(self) -> bool:
        """Is something being played, and not paused?"""
        return self.playing is not None and not self.playing.paused

    def is_paused(self) -> bool:
        """Is what was played paused?"""
        return self.playing is not None and self.playing.paused

    def pause(self) -> None:
        """Be silent until `resume`."""
        self._with_playing(Playback.pause)

    def resume(self) -> None:
        """Go on where `pause` came."""
        self._with_playing(Playback.resume)

    def stop(self) -> None:
        """End what is played."""
        self._with_playing(Playback.stop)

    # -- listening

    def listen(self, sink: Sink | Callable[[HeardFrame], None]) -> Listening:
        """Give what the others say to `sink`, off the event loop."""
        return self.voice.listen(sink)

    def frames(self, *members: Any) -> FrameStream:
        """What these members or users, or all, say from now on, 20 ms at a time: `async for frame in ...`."""
        return self.voice.frames(*(id_of(member) for member in members))

    # -- inside

    def on_loop(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises on the event loop, from whatever thread."""
        try:
            elsewhere = asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            elsewhere = True
        if not elsewhere:
            return work()

        answer: Future[Result] = Future()

        def run() -> None:
            try:
                answer.set_result(work())
            except Exception as error:
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return answer.result()

    def _with_playing(self, do: Callable[[Playback], None]) -> None:
        def work() -> None:
            if self.playing is not None:
                do(self.playing)

        self.on_loop(work)


def _call_after(after: After, playback: Playback) -> None:
    def run() -> None:
        try:
            after(playback.error)
        except Exception:
            _log.exception("what was to be called after a source has ended failed")

    threading.Thread(target=run, name="voicegw after", daemon=True).start()
