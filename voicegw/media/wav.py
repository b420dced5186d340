"""WAV files: any PCM in, 48 kHz stereo of 16 bit out, and a writer whose files survive a crash."""

from __future__ import annotations

import array
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from voicegw.errors import NotAudio
from voicegw.media.files import open_for_reading
from voicegw.media.opus import FRAME_BYTES, SAMPLE_RATE
from voicegw.media.resample import Resampler

_PCM: Final = 1
_FLOAT: Final = 3
_EXTENSIBLE: Final = 0xFFFE
_GUID_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")
_WIDTHS: Final = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}
_UNKNOWN_LENGTH: Final = 0xFFFFFFFF
_MAX_CHUNKS: Final = 1000
_BLOCK_FRAMES: Final = 24_000
_LOUDEST: Final = 8 * 32768.0
_HALF: Final = math.sqrt(0.5)

# What each channel gives to the left and the right, in the order of the speaker mask's usual layouts.
_LEFT, _RIGHT, _CENTRE, _NONE = (1.0, 0.0), (0.0, 1.0), (_HALF, _HALF), (0.0, 0.0)
_BACK_LEFT, _BACK_RIGHT = (_HALF, 0.0), (0.0, _HALF)
_MIXES: Final = {
    3: (_LEFT, _RIGHT, _CENTRE),
    4: (_LEFT, _RIGHT, _BACK_LEFT, _BACK_RIGHT),
    5: (_LEFT, _RIGHT, _CENTRE, _BACK_LEFT, _BACK_RIGHT),
    6: (_LEFT, _RIGHT, _CENTRE, _NONE, _BACK_LEFT, _BACK_RIGHT),
    7: (_LEFT, _RIGHT, _CENTRE, _NONE, _CENTRE, _BACK_LEFT, _BACK_RIGHT),
    8: (_LEFT, _RIGHT, _CENTRE, _NONE, _BACK_LEFT, _BACK_RIGHT, _BACK_LEFT, _BACK_RIGHT),
}


class NotPcm(NotAudio):
    """A WAV file of another coding than PCM, for which a decoder may be had."""


class WavReader:
    """The sound of a WAV file in frames of 20 ms: 3840 bytes, the last one filled up with zeros.

    Integers of 8, 16, 24 and 32 bit and floats of 32 and 64 are read, 1 to 8 channels (`channels`), 1000 to 384000
    samples a second (`rate`), also with WAVE_FORMAT_EXTENSIBLE. A data chunk that is longer than the file ends with
    the file. Rates whose ratio to 48 kHz has a large denominator are met to about a millionth. Iterate over it once;
    what cannot be read raises NotAudio.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = open_for_reading(path)
        self.begun = False
        try:
            self._find_data()
        except OSError as error:
            self._file.close()
            raise NotAudio(f"{path} cannot be read: {error.strerror}") from None
        except NotAudio:
            self._file.close()
            raise

    def _find_data(self) -> None:
        head = self._file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            raise NotAudio("the file is no WAV file: it does not begin with RIFF and WAVE")
        known = False
        for _ in range(_MAX_CHUNKS):
            chunk = self._file.read(8)
            if len(chunk) < 8:
                break
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                if not known:
                    raise NotAudio("the WAV file's sound comes before its format")
                self._left = sys.maxsize if length == _UNKNOWN_LENGTH else length
                return
            if name == b"fmt ":
                body = self._file.read(min(length, 40))
                self._parse_format(body)
                known = True
                length -= len(body)
            self._file.seek(length + (length & 1), 1)
        raise NotAudio("the WAV file has no sound in it")

    def _parse_format(self, body: bytes) -> None:
        if len(body) < 16:
            raise NotAudio("the WAV file's format is cut off")
        tag, channels, rate, _, alignment, bits = struct.unpack_from("<HHIIHH", body)
        if tag == _EXTENSIBLE:
            if len(body) < 40 or body[26:40] != _GUID_TAIL:
                raise NotAudio("the WAV file's extended format is not known")
            tag = struct.unpack_from("<H", body, 24)[0]
        if (tag, bits) not in _WIDTHS:
            raise NotPcm(f"WAV format {tag} with {bits} bit is not PCM we can read")
        if not 1 <= channels <= 8:
            raise NotAudio(f"a WAV file of {channels} channels cannot be mixed to stereo")
        if not 1000 <= rate <= 384_000:
            raise NotAudio(f"a WAV file of {rate} samples a second cannot be converted")
        if alignment != channels * bits // 8:
            raise NotAudio("the WAV file's format contradicts itself: block size, channels and bits")
        self.channels: int = channels
        self.rate: int = rate
        self._kind: tuple[int, int] = (tag, bits)
        self._frame_bytes: int = alignment

    @property
    def duration_s(self) -> float:
        """What is left of it, in seconds; by the length of the file where its header exaggerates."""
        here = self._file.tell()
        there = self._file.seek(0, 2)
        self._file.seek(here)
        return min(self._left, there - here) / self._frame_bytes / self.rate

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        held = b""
        try:
            for piece in self._stereo():
                held += piece
                whole = len(held) - len(held) % FRAME_BYTES
                for at in range(0, whole, FRAME_BYTES):
                    yield held[at : at + FRAME_BYTES]
                held = held[whole:]
            if held:
                yield held.ljust(FRAME_BYTES, b"\0")
        except OSError as error:
            raise NotAudio(f"the file cannot be read further: {error.strerror}") from None
        finally:
            self.close()

    def _blocks(self) -> Iterator[bytes]:
        while self._left > 0:
            data = self._file.read(min(self._left, _BLOCK_FRAMES * self._frame_bytes))
            self._left -= len(data)
            data = data[: len(data) - len(data) % self._frame_bytes]
            if not data:
                return
            yield data

    def _stereo(self) -> Iterator[bytes]:
        if self.rate == SAMPLE_RATE and self.channels == 2 and self._kind == (_PCM, 16):
            yield from self._blocks()
            return
        sides = 1 if self.channels == 1 else 2
        resamplers = [Resampler(self.rate, SAMPLE_RATE) for _ in range(sides)]
        for block in self._blocks():
            samples = _to_floats(block, self._kind)
            mixed = _mix([samples[n :: self.channels] for n in range(self.channels)])
            yield _interleave([r.feed(side) for r, side in zip(resamplers, mixed, strict=True)])
        yield _interleave([r.finish() for r in resamplers])

    def skip(self, seconds: float) -> None:
        """Leave out so much of what comes; before iterating."""
        count = min(self._left, round(seconds * self.rate) * self._frame_bytes)
        self._file.seek(count, 1)
        self._left -= count

    def close(self) -> None:
        """Close the file; iterating to the end does so too."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_floats(data: bytes, kind: tuple[int, int]) -> list[float]:
    """Samples in units of 16 bit PCM; what is no number counts as nothing."""
    if kind == (_PCM, 8):
        return [(sample - 128) * 256.0 for sample in data]
    if kind == (_PCM, 24):
        wide = bytearray(len(data) // 3 * 4)
        wide[1::4], wide[2::4], wide[3::4] = data[::3], data[1::3], data[2::3]
        data = bytes(wide)
    values: array.array[int] | array.array[float]
    values = array.array({(_PCM, 16): "h", (_FLOAT, 32): "f", (_FLOAT, 64): "d"}.get(kind, "i"), data)
    if sys.byteorder == "big":
        values.byteswap()
    if kind == (_PCM, 16):
        return [float(value) for value in values]
    if kind[0] == _PCM:
        return [value / 65536 for value in values]
    return [max(-_LOUDEST, min(_LOUDEST, value * 32768)) if math.isfinite(value) else 0.0 for value in values]


def _mix(channels: list[list[float]]) -> list[list[float]]:
    """One list for mono, two for everything else."""
    if len(channels) <= 2:
        return channels
    mix = _MIXES[len(channels)]
    sides = []
    for side in (0, 1):
        weights = [weight[side] for weight in mix]
        total = sum(weights)
        heard = [(w / total, channel) for w, channel in zip(weights, channels, strict=True) if w]
        out = [0.0] * len(channels[0])
        for weight, channel in heard:
            out = [sample + weight * more for sample, more in zip(out, channel, strict=True)]
        sides.append(out)
    return sides


def _interleave(sides: list[list[float]]) -> bytes:
    length = len(sides[0])
    pcm = array.array("h", bytes(4 * length))
    for n, side in enumerate(sides):
        if side and (max(side) > 32767 or min(side) < -32768):
            side = [s if -32768 <= s <= 32767 else math.copysign(32767, s) for s in side]
        pcm[n::2] = array.array("h", map(round, side))
    if len(sides) == 1:
        pcm[1::2] = pcm[::2]
    if sys.byteorder == "big":
        pcm.byteswap()
    return pcm.tobytes()


class WavWriter:
    """Writes 48 kHz stereo PCM of 16 bit. Not for two threads at once.

    The lengths in the header are brought up to date with every second of sound, so a file whose writer died is a
    valid WAV file that lacks at most the last second. Beyond 4 GiB (6.2 hours) the header says "unknown length" and
    the sound goes on. OSError where the file cannot be written.
    """

    _HEADER: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")
    _SECOND: Final = SAMPLE_RATE * 4

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115 - close() closes it
        self._length = 0
        self._stated = 0
        self._file.write(
            self._HEADER.pack(b"RIFF", 36, b"WAVE", b"fmt ", 16, _PCM, 2, SAMPLE_RATE, self._SECOND, 4, 16, b"data", 0)
        )
        self._file.flush()

    @property
    def seconds(self) -> float:
        """Length of what was written."""
        return self._length / self._SECOND

    def write(self, pcm: bytes) -> None:
        """Add stereo samples, any number of them; half a sample raises NotAudio."""
        if len(pcm) % 4:
            raise NotAudio(f"{len(pcm)} bytes are no whole number of stereo samples")
        self._file.write(pcm)
        self._length += len(pcm)
        if self._length - self._stated >= self._SECOND:
            self._state_length()

    def skip(self, samples: int) -> None:
        """Add silence; it takes no room where the file system knows holes."""
        self._length += 4 * samples
        self._state_length()
        self._file.truncate(self._HEADER.size + self._length)
        self._file.seek(0, 2)

    def _state_length(self) -> None:
        self._file.flush()
        for at, length in ((4, self._length + 36), (40, self._length)):
            self._file.seek(at)
            self._file.write(struct.pack("<I", min(length, _UNKNOWN_LENGTH)))
        self._file.seek(0, 2)
        self._file.flush()
        self._stated = self._length

    def close(self) -> None:
        """Finish the file; a second call does nothing."""
        if not self._file.closed:
            self._state_length()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
