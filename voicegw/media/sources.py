"""Where sound to be sent comes from, 20 ms at a time."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from voicegw.errors import NotAudio, SourceFailed
from voicegw.media.opus import SAMPLE_RATE, OpusDecoder
from voicegw.media.opus_packets import FRAME_SAMPLES
from voicegw.media.wav import WavReader

_TONE_PEAK: Final = 32768 * 10 ** (-12 / 20)
_FADE_SAMPLES: Final = 480


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """How another process opens the same source: `kind` names the opener, `arguments` are what it takes, as JSON.

    What is `live` goes on where it is by then; everything else goes on where it was left.
    """

    kind: str
    arguments: Mapping[str, Any] = field(repr=False)  # a URL may have a token in it
    live: bool = False


class Source(Protocol):
    """Something to play.

    `is_opus` says what `read` gives: Opus packets of 20 ms that go out as they are, or 3840 bytes of PCM (16 bit
    little-endian, stereo, 48 kHz) to be encoded. It does not change.

    Five more where a source has them: `seek(seconds)` goes there from the start, AudioError where that cannot be; loops
    need it. `abort()` ends a `read` that blocks in another thread. `bind(on_more)` is called on the event loop before
    the first `read`, which may give None then, for "nothing yet"; it calls `on_more` when there is more. `description`
    is a `SourceDescription`, or None where nobody else could open it. `duration_s` is its length in seconds, or None.
    """

    @property
    def is_opus(self) -> bool:
        """Whether `read` gives Opus packets."""

    def read(self) -> bytes | None:
        """The next 20 ms; b"" at the end and ever after. NotAudio where the source turns out to be damaged.

        None where a source with `bind` has nothing yet.
        """

    def close(self) -> None:
        """Let go of files; `read` gives b"" from now on. A second call does nothing."""


class Frames:
    """A source over iterators of frames: `begin(seconds)` makes one that starts there, or raises AudioError."""

    def __init__(self, begin: Callable[[float], Iterator[bytes]], *, is_opus: bool) -> None:
        self.is_opus: Final = is_opus
        self._begin = begin
        self._frames: Iterator[bytes] = begin(0.0)
        self._closed = False
        self.duration_s: float | None = None

    def read(self) -> bytes:
        """The next 20 ms, b"" at the end. NotAudio if the file has been damaged since it was opened."""
        return next(self._frames, b"")

    def seek(self, seconds: float) -> None:
        """Go to `seconds` from the start."""
        if not self._closed:
            self._frames = self._begin(seconds)

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._frames = iter(())


class WavSource(Frames):
    """A WAV file of any PCM that `WavReader` reads; NotAudio otherwise."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self.description = file_description(path)
        self._reader = WavReader(path)
        super().__init__(self._from, is_opus=False)
        self.duration_s = self._reader.duration_s

    def _from(self, seconds: float) -> Iterator[bytes]:
        if seconds or self._reader.begun:
            self._reader.close()
            self._reader = WavReader(self._path)
            self._reader.skip(seconds)
        return iter(self._reader)

    def close(self) -> None:
        super().close()
        self._reader.close()


class ToneSource(Frames):
    """A sine of `hz` on both channels, its peaks at -12 dBFS, for `seconds` or without end.

    It begins with a fade of 10 ms. NotAudio unless 0 < `hz` < 24000 and `seconds` is a finite length.
    """

    def __init__(self, hz: float, seconds: float | None = None) -> None:
        if not 0 < hz < SAMPLE_RATE / 2:
            raise NotAudio(f"a tone lies between 0 and {SAMPLE_RATE // 2} Hz, not at {hz:g}")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise NotAudio(f"a tone cannot last {seconds:g} seconds")
        self.description = SourceDescription("tone", {"hz": hz, "seconds": seconds})
        super().__init__(lambda start_s: _tone(hz, seconds, start_s), is_opus=False)
        self.duration_s = seconds


def _tone(hz: float, seconds: float | None, start_s: float = 0.0) -> Iterator[bytes]:
    end = math.inf if seconds is None else round(seconds * SAMPLE_RATE)
    at, turn = round(start_s * SAMPLE_RATE), 2 * math.pi / SAMPLE_RATE
    while at < end:
        wave = [_TONE_PEAK * math.sin(turn * (hz * n % SAMPLE_RATE)) for n in range(at, at + FRAME_SAMPLES)]
        if at < _FADE_SAMPLES:
            wave = [sample * min(1.0, n / _FADE_SAMPLES) for n, sample in enumerate(wave, at)]
        if at + FRAME_SAMPLES > end:
            wave = [sample if n < end else 0.0 for n, sample in enumerate(wave, at)]
        pcm = array.array("h", [round(sample) for sample in wave for _ in range(2)])
        if sys.byteorder == "big":
            pcm.byteswap()
        yield pcm.tobytes()
        at += FRAME_SAMPLES


class LimitedSource:
    """The first `seconds` of another source; all of it where `seconds` is None."""

    def __init__(self, source: Source, seconds: float | None = None) -> None:
        self.is_opus: Final = source.is_opus
        self._source = source
        self._seconds = seconds
        self._whole = self._left = math.inf if seconds is None else round(seconds * SAMPLE_RATE / FRAME_SAMPLES)

    @property
    def description(self) -> SourceDescription | None:
        """The other source, cut."""
        inner = description_of(self._source)
        if inner is None:
            return None
        whole = {"kind": inner.kind, "arguments": inner.arguments}
        return SourceDescription("limited", {"source": whole, "seconds": self._seconds}, inner.live)

    @property
    def duration_s(self) -> float | None:
        """Its length, where that is known."""
        inner: float | None = getattr(self._source, "duration_s", None)
        whole_s = self._whole * FRAME_SAMPLES / SAMPLE_RATE
        return min(inner, whole_s) if inner is not None else (None if math.isinf(whole_s) else whole_s)

    def read(self) -> bytes | None:
        """The next 20 ms, b"" at the end. NotAudio where the source turns out to be damaged."""
        frame = self._source.read() if self._left > 0 else b""
        if frame is not None:
            self._left -= 1
        return frame

    def bind(self, on_more: Callable[[], None]) -> None:
        """As the other source's; nothing where that one never gives None."""
        bind = getattr(self._source, "bind", None)
        if bind is not None:
            bind(on_more)

    def abort(self) -> None:
        """End a `read` of another thread, where the other source can."""
        abort = getattr(self._source, "abort", None)
        if abort is not None:
            abort()

    def seek(self, seconds: float) -> None:
        """Go to `seconds` from the start. SourceFailed where the other source cannot."""
        seek_in(self._source, seconds)
        self._left = max(0, self._whole - round(seconds * SAMPLE_RATE / FRAME_SAMPLES))

    def close(self) -> None:
        """Close the other source."""
        self._source.close()


def description_of(source: Source) -> SourceDescription | None:
    """How another process could open it; None where it cannot be said."""
    found = getattr(source, "description", None)
    return found if isinstance(found, SourceDescription) else None


def file_description(path: str | Path) -> SourceDescription:
    """A file, by a path that means the same wherever a process was started."""
    return SourceDescription("file", {"path": str(Path(path).absolute())})


def seek_in(source: Source, seconds: float) -> None:
    """Have a source go to `seconds` from its start. SourceFailed where it cannot."""
    seek = getattr(source, "seek", None)
    if seek is None:
        raise SourceFailed(f"a {type(source).__name__} cannot be sought")
    seek(seconds)


def read_pcm(source: Source) -> bytes:
    """All of a source that ends, decoded, and close it."""
    decoder = OpusDecoder() if source.is_opus else None
    parts = []
    while frame := source.read():
        parts.append(frame if decoder is None else decoder.decode(frame))
    source.close()
    return b"".join(parts)
