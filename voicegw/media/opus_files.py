"""Opus that is there already, out of its container: it goes out as it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from voicegw.errors import NotAudio, SourceFailed
from voicegw.media.files import open_for_reading
from voicegw.media.ogg import OggOpusReader
from voicegw.media.opus import FRAME_BYTES, SAMPLE_RATE, OpusDecoder
from voicegw.media.opus_packets import FRAME_SAMPLES, packet_samples
from voicegw.media.sources import Frames, file_description
from voicegw.media.webm import WebmOpusReader

_LOOKED_AT: Final = 25


class Reader(Protocol):
    """Packets of a container, and how many samples a decoder drops from the start."""

    pre_skip: int

    def __iter__(self) -> Iterator[bytes]:
        """The packets, once."""


class _OpusSource(Frames):
    """Where every packet is 20 ms long they are sent unchanged; otherwise they are decoded, the pre-skip is dropped
    and the rest cut into frames of 20 ms.

    A file is looked through before; NotAudio if anything in it is damaged. Of a stream only the beginning is, and it
    cannot be sought.
    """

    def __init__(self, file: str | Path | BinaryIO, read: Callable[[BinaryIO], Reader]) -> None:
        self._read = read
        self._path = file if isinstance(file, str | Path) else None
        self.description = None if self._path is None else file_description(self._path)
        self._file = open_for_reading(file) if isinstance(file, str | Path) else file
        try:
            if self._path is not None:
                reader = read(self._file)
                lengths = Counter(packet_samples(packet) for packet in reader)
                as_it_is = set(lengths) <= {FRAME_SAMPLES}
                self._file.close()
                super().__init__(self._decode if not as_it_is else self._pass, is_opus=as_it_is)
                skipped = 0 if as_it_is else reader.pre_skip
                self.duration_s = max(0, sum(lengths.elements()) - skipped) / SAMPLE_RATE
            else:
                reader = read(self._file)
                packets = iter(reader)
                begin = list(itertools.islice(packets, _LOOKED_AT))
                as_it_is = {packet_samples(packet) for packet in begin} <= {FRAME_SAMPLES}
                rest = itertools.chain(begin, packets)
                frames = _checked(rest) if as_it_is else _decoded(rest, reader.pre_skip)
                super().__init__(lambda seconds: _only_from_the_start(frames, seconds), is_opus=as_it_is)
        except NotAudio:
            self._file.close()
            raise

    def close(self) -> None:
        super().close()
        self._file.close()

    def abort(self) -> None:
        """End a `read` of another thread."""
        abort = getattr(self._file, "abort", None)
        if abort is not None:
            abort()

    def seek(self, seconds: float) -> None:
        if self._path is None:
            raise SourceFailed("a stream cannot be sought")
        super().seek(seconds)

    def _again(self) -> Reader:
        assert self._path is not None
        self._file.close()
        self._file = open_for_reading(self._path)
        return self._read(self._file)

    def _pass(self, seconds: float) -> Iterator[bytes]:
        return itertools.islice(iter(self._again()), round(seconds * SAMPLE_RATE / FRAME_SAMPLES), None)

    def _decode(self, seconds: float) -> Iterator[bytes]:
        reader = self._again()
        return _decoded(reader, reader.pre_skip + round(seconds * SAMPLE_RATE))


class OggOpusSource(_OpusSource):
    """An Ogg Opus file or stream."""

    def __init__(self, file: str | Path | BinaryIO) -> None:
        super().__init__(file, OggOpusReader)


class WebmOpusSource(_OpusSource):
    """The first Opus track of a WebM or Matroska file or stream."""

    def __init__(self, file: str | Path | BinaryIO) -> None:
        super().__init__(file, WebmOpusReader)


def _only_from_the_start(frames: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    if seconds:
        raise SourceFailed("a stream cannot be sought")
    return frames


def _checked(packets: Iterable[bytes]) -> Iterator[bytes]:
    for packet in packets:
        if packet_samples(packet) != FRAME_SAMPLES:
            raise NotAudio("the stream changes the length of its packets")
        yield packet


def _decoded(packets: Iterable[bytes], skip_samples: int) -> Iterator[bytes]:
    decoder, held, skip = OpusDecoder(), b"", skip_samples * 4
    for packet in packets:
        pcm = decoder.decode(packet)
        held += pcm[skip:]
        skip = max(0, skip - len(pcm))
        while len(held) >= FRAME_BYTES:
            yield held[:FRAME_BYTES]
            held = held[FRAME_BYTES:]
    if held:
        yield held.ljust(FRAME_BYTES, b"\0")
