"""WebM and Matroska: the packets of the first Opus track (RFC 9559), read forward only, from a file or a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from voicegw.errors import NotAudio
from voicegw.media.ogg import parse_opus_head

_EBML: Final = 0x1A45DFA3
_SEGMENT, _CLUSTER, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
_TRACKS, _TRACK_ENTRY = 0x1654AE6B, 0xAE
_TRACK_NUMBER, _CODEC_ID, _CODEC_PRIVATE, _ENCODINGS = 0xD7, 0x86, 0x63A2, 0x6D80
_SIMPLE_BLOCK, _BLOCK = 0xA3, 0xA1
# Only these are looked into; what lies in others is passed over.
_ENTERED: Final = frozenset((_SEGMENT, _CLUSTER, _BLOCK_GROUP, _TRACKS))

_MAX_HEADER: Final = 1 << 20
_MAX_BLOCK: Final = 1 << 20
_SKIP_AT_ONCE: Final = 1 << 16


class WebmOpusReader:
    """The Opus packets of a WebM or Matroska stream, in order; iterate over it once.

    `channels` is 1 or 2, `pre_skip` the number of samples at 48 kHz that a decoder shall drop from the start. Other
    tracks are passed over. A stream that ends too early gives its complete packets; a damaged or foreign one raises
    NotAudio, here or while iterating.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        if self._element() is None or self._last_id != _EBML:
            raise NotAudio("the stream does not begin as WebM or Matroska does")
        self._skip(self._last_size)
        self._track, head = self._find_track()
        self.channels, self.pre_skip = parse_opus_head(head)

    def __iter__(self) -> Iterator[bytes]:
        while (found := self._element()) is not None:
            if found in _ENTERED:
                continue
            if found in (_SIMPLE_BLOCK, _BLOCK):
                yield from self._block(self._last_size)
            else:
                self._skip(self._last_size)

    # -- elements

    _last_id = 0
    _last_size = -1

    def _element(self) -> int | None:
        """The next element's id, its size (-1 where it is not known) in `_last_size`; None at the end."""
        identifier = self._vint(4, keep_marker=True)
        size = self._vint(8, keep_marker=False) if identifier is not None else None
        if identifier is None or size is None:
            return None
        if size < 0 and identifier not in _ENTERED:
            raise NotAudio("a WebM element of unknown size that must have one")
        self._last_id, self._last_size = identifier, size
        return identifier

    def _vint(self, longest: int, *, keep_marker: bool) -> int | None:
        """A number of variable length (RFC 8794 section 4); -1 for the one that stands for unknown."""
        first = self._file.read(1)
        if not first:
            return None
        length = 9 - first[0].bit_length()
        if length > longest:
            raise NotAudio("the WebM stream is damaged: a number is too long")
        rest = self._file.read(length - 1)
        if len(rest) < length - 1:
            return None
        value = int.from_bytes(first + rest, "big")
        if keep_marker:
            return value
        value &= (1 << 7 * length) - 1
        return -1 if value == (1 << 7 * length) - 1 else value

    def _skip(self, size: int) -> None:
        while size > 0:
            got = self._file.read(min(size, _SKIP_AT_ONCE))
            if not got:
                return
            size -= len(got)

    # -- tracks

    def _find_track(self) -> tuple[int, bytes]:
        while (found := self._element()) is not None:
            if found == _TRACK_ENTRY:
                if self._last_size > _MAX_HEADER:
                    raise NotAudio("a WebM track's header is too long")
                track = _parse_track(self._file.read(self._last_size))
                if track is not None:
                    return track
            elif found == _CLUSTER:
                break
            elif found not in _ENTERED:
                self._skip(self._last_size)
        raise NotAudio("the WebM stream has no Opus track")

    # -- blocks

    def _block(self, size: int) -> Iterator[bytes]:
        head = self._file.read(min(size, 12))
        track, at = _read_vint(head, 0)
        if track != self._track or size < at + 3:
            self._skip(size - len(head))
            return
        if size > _MAX_BLOCK:
            raise NotAudio("a WebM block of sound is too long")
        data = head + self._file.read(size - len(head))
        if len(data) < size:  # the stream ends in it
            return
        yield from _laced(data, at + 3, (data[at + 2] & 0x06) >> 1)


def _parse_track(body: bytes) -> tuple[int, bytes] | None:
    """Number and codec header of a track; None where it is not Opus."""
    number, codec, private, at = 0, b"", b"", 0
    while at < len(body):
        identifier, at = _read_vint(body, at, keep_marker=True)
        size, at = _read_vint(body, at)
        value = body[at : at + size]
        at += size
        if identifier == _TRACK_NUMBER:
            number = int.from_bytes(value, "big")
        elif identifier == _CODEC_ID:
            codec = value.rstrip(b"\0")
        elif identifier == _CODEC_PRIVATE:
            private = value
        elif identifier == _ENCODINGS and codec in (b"", b"A_OPUS"):
            raise NotAudio("a WebM track that is packed or encrypted cannot be read")
    return (number, private) if codec == b"A_OPUS" else None


def _read_vint(data: bytes, at: int, *, keep_marker: bool = False) -> tuple[int, int]:
    """A number of variable length and the offset behind it."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > 8 or at + length > len(data):
        raise NotAudio("the WebM stream is damaged: a number is cut off")
    value = int.from_bytes(data[at : at + length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), at + length


def _laced(data: bytes, at: int, lacing: int) -> Iterator[bytes]:
    """The frames of a block (RFC 9559 section 10.3)."""
    if lacing == 0:
        yield data[at:]
        return
    if at >= len(data):
        raise NotAudio("a WebM block ends before its frames")
    count, at = data[at] + 1, at + 1
    sizes: list[int] = []
    if lacing == 2:
        each, odd = divmod(len(data) - at, count)
        if odd:
            raise NotAudio("a WebM block does not divide into its frames")
        sizes = [each] * (count - 1)
    elif lacing == 1:
        for _ in range(count - 1):
            size = 0
            while at < len(data) and data[at] == 255:
                size, at = size + 255, at + 1
            if at >= len(data):
                raise NotAudio("a WebM block ends before its frames")
            sizes.append(size + data[at])
            at += 1
    else:
        for number in range(count - 1):
            start = at
            size, at = _read_vint(data, at)
            if number:  # a difference, in the middle of its range zero
                size = sizes[-1] + size - ((1 << (7 * (at - start) - 1)) - 1)
            sizes.append(size)
    if min(sizes, default=0) < 0 or at + sum(sizes) > len(data):
        raise NotAudio("the frames of a WebM block are longer than it is")
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]
