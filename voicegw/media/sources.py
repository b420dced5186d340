"""Where sound to be sent comes from, 20 ms at a time."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from voicegw.errors import NotAudio
from voicegw.media.files import open_for_reading
from voicegw.media.ogg import OggOpusReader
from voicegw.media.opus import FRAME_BYTES, SAMPLE_RATE, OpusDecoder
from voicegw.media.opus_packets import FRAME_SAMPLES, packet_samples
from voicegw.media.wav import WavReader

_TONE: Final = "tone:"
_TONE_PEAK: Final = 32768 * 10 ** (-12 / 20)
_FADE_SAMPLES: Final = 480


class Source(Protocol):
    """Something to play.

    `is_opus` says what `read` gives: Opus packets of 20 ms that go out as they are, or 3840 bytes of PCM (16 bit
    little-endian, stereo, 48 kHz) to be encoded. It does not change.
    """

    @property
    def is_opus(self) -> bool:
        """Whether `read` gives Opus packets."""

    def read(self) -> bytes:
        """The next 20 ms; b"" at the end and ever after. NotAudio where the source turns out to be damaged."""

    def close(self) -> None:
        """Let go of files; `read` gives b"" from now on. A second call does nothing."""


class _Frames:
    """A source over an iterator of frames."""

    def __init__(self, frames: Iterator[bytes], *, is_opus: bool) -> None:
        self.is_opus: Final = is_opus
        self._frames: Iterator[bytes] = frames

    def read(self) -> bytes:
        """The next 20 ms, b"" at the end. NotAudio if the file has been damaged since it was opened."""
        return next(self._frames, b"")

    def close(self) -> None:
        """Close the file."""
        self._frames = iter(())


class OggOpusSource(_Frames):
    """An Ogg Opus file.

    Where every packet is 20 ms long they are sent unchanged; otherwise they are decoded, the pre-skip is dropped and
    the rest cut into frames of 20 ms. The whole file is looked through before; NotAudio if anything in it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        with OggOpusReader(path) as reader:
            lengths = {packet_samples(packet) for packet in reader}
        as_it_is = lengths <= {FRAME_SAMPLES}
        reader = OggOpusReader(path)
        self._reader = reader
        super().__init__(iter(reader) if as_it_is else _decoded(reader), is_opus=as_it_is)

    def close(self) -> None:
        super().close()
        self._reader.close()


def _decoded(reader: OggOpusReader) -> Iterator[bytes]:
    decoder, held, skip = OpusDecoder(), b"", reader.pre_skip * 4
    for packet in reader:
        pcm = decoder.decode(packet)
        held += pcm[skip:]
        skip = max(0, skip - len(pcm))
        while len(held) >= FRAME_BYTES:
            yield held[:FRAME_BYTES]
            held = held[FRAME_BYTES:]
    if held:
        yield held.ljust(FRAME_BYTES, b"\0")


class WavSource(_Frames):
    """A WAV file of any PCM that `WavReader` reads; NotAudio otherwise."""

    def __init__(self, path: str | Path) -> None:
        self._reader = WavReader(path)
        super().__init__(iter(self._reader), is_opus=False)

    def close(self) -> None:
        super().close()
        self._reader.close()


class ToneSource(_Frames):
    """A sine of `hz` on both channels, its peaks at -12 dBFS, for `seconds` or without end.

    It begins with a fade of 10 ms. NotAudio unless 0 < `hz` < 24000 and `seconds` is a finite length.
    """

    def __init__(self, hz: float, seconds: float | None = None) -> None:
        if not 0 < hz < SAMPLE_RATE / 2:
            raise NotAudio(f"a tone lies between 0 and {SAMPLE_RATE // 2} Hz, not at {hz:g}")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise NotAudio(f"a tone cannot last {seconds:g} seconds")
        super().__init__(_tone(hz, seconds), is_opus=False)


def _tone(hz: float, seconds: float | None) -> Iterator[bytes]:
    end = math.inf if seconds is None else round(seconds * SAMPLE_RATE)
    at, turn = 0, 2 * math.pi / SAMPLE_RATE
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
        self._left = math.inf if seconds is None else round(seconds * SAMPLE_RATE / FRAME_SAMPLES)

    def read(self) -> bytes:
        """The next 20 ms, b"" at the end. NotAudio where the source turns out to be damaged."""
        if self._left <= 0:
            return b""
        self._left -= 1
        return self._source.read()

    def close(self) -> None:
        """Close the other source."""
        self._source.close()


def read_pcm(source: Source) -> bytes:
    """All of a source that ends, decoded, and close it."""
    decoder = OpusDecoder() if source.is_opus else None
    parts = []
    while frame := source.read():
        parts.append(frame if decoder is None else decoder.decode(frame))
    source.close()
    return b"".join(parts)


def open_source(name: str) -> Source:
    """A source by name: "tone:440" is a sine of 440 Hz without end, everything else the path of a file.

    Files are told apart by what is in them: Ogg Opus or WAV. NotAudio, in one line, for what is missing, no file, or
    not audio.
    """
    if name.startswith(_TONE):
        try:
            hz = float(name.removeprefix(_TONE))
        except ValueError:
            raise NotAudio(f"{name!r} names no tone; write it like tone:440") from None
        return ToneSource(hz)
    try:
        with open_for_reading(name) as file:
            start = file.read(12)
    except OSError as error:
        raise NotAudio(f"{name} cannot be read: {error.strerror}") from None
    try:
        if start[:4] == b"OggS":
            return OggOpusSource(name)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            return WavSource(name)
    except NotAudio as error:
        raise NotAudio(f"{name}: {error}") from None
    raise NotAudio(f"{name} is neither Ogg Opus nor WAV; convert it, for instance with ffmpeg -i FILE sound.ogg")
