"""What every framework's voice client has in common: the call, and what a bot does with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from voicegw.client import VoiceClient
from voicegw.errors import VoiceError
from voicegw.media.heard import HeardFrame
from voicegw.media.listeners import Listening
from voicegw.media.playback import Playback
from voicegw.media.sinks import Sink
from voicegw.media.sources import Source

FRAME_BYTES = 3840


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


class FrameworkCall:
    """A call as the bot of a framework sees it; `voice` is the call itself, with everything else."""

    voice: VoiceClient

    def is_connected(self) -> bool:
        """Is there a voice session, or one that resumes?"""
        return self.voice.states["call"] == "connected"

    def play(self, source: Any) -> Playback:
        """Play a source of ours or the framework's own `AudioSource`, instead of what was played before."""
        return self.voice.play(self.adapt(source))

    def listen(self, sink: Sink | Callable[[HeardFrame], None]) -> Listening:
        """Give what the others say to `sink`, off the event loop."""
        return self.voice.listen(sink)

    def stop(self) -> None:
        """End what is played."""
        playing = self.voice.player.playing
        if playing is not None:
            playing.stop()

    def adapt(self, source: Any) -> Source:
        """A source of the framework's as one of ours; ours as it is."""
        ours: Source = FrameworkSource(source) if callable(source.is_opus) else source
        return ours
