"""Ogg Opus files: packets out of pages and back (RFC 3533, RFC 7845)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

from voicegw.errors import NotAudio
from voicegw.media.files import open_for_reading
from voicegw.media.opus import SAMPLE_RATE
from voicegw.media.opus_packets import packet_samples

_HEADER: Final = struct.Struct("<4sBBqIIIB")
_CONTINUED: Final = 1
_FIRST: Final = 2
_LAST: Final = 4
_MAX_TAGS: Final = 16 << 20
_MAX_AUDIO: Final = 48 * 1277
_REVERSED_BITS: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    flags: int
    serial: int
    sequence: int
    lacing: bytes
    body: bytes


def _checksum(data: bytes) -> int:
    """Ogg's CRC-32: zlib's polynomial with bits taken from the other end, and no inversion."""
    mirrored = zlib.crc32(data.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _read_page(file: BinaryIO) -> _Page | None:
    """The next page; None at the end of the file, also when it ends inside a page."""
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        if head and not head.startswith(b"OggS"[: len(head)]):
            raise NotAudio("there is no Ogg page where one should begin")
        return None
    magic, version, flags, _, serial, sequence, checksum, segments = _HEADER.unpack(head)
    if magic != b"OggS" or version != 0:
        raise NotAudio("there is no Ogg page where one should begin")
    lacing = file.read(segments)
    length = sum(lacing)
    body = file.read(length)
    if len(lacing) < segments or len(body) < length:
        return None
    if _checksum(head[:22] + bytes(4) + head[26:] + lacing + body) != checksum:
        raise NotAudio("an Ogg page is damaged: its checksum is wrong")
    return _Page(flags, serial, sequence, lacing, body)


def parse_opus_head(packet: bytes) -> tuple[int, int]:
    """Channels and pre-skip of an OpusHead (RFC 7845 section 5.1)."""
    if len(packet) < 19:
        raise NotAudio("the Opus header is too short")
    version, channels, pre_skip, family = packet[8], packet[9], *struct.unpack_from("<H6xB", packet, 10)
    if version & 0xF0:
        raise NotAudio(f"version {version} of the Opus header is not known")
    if family != 0 or channels not in (1, 2):
        raise NotAudio(f"an Opus stream of {channels} channels in mapping family {family} is neither mono nor stereo")
    return channels, pre_skip


class OggOpusReader:
    """The Opus packets of a file or of an open stream, in order; iterate over it once.

    `channels` is 1 or 2, `pre_skip` the number of samples at 48 kHz that a decoder shall drop from the start. The
    first Opus stream counts, others are passed over. A file that ends too early gives its complete packets, a
    packet with a hole in it is left out; a damaged or foreign file raises NotAudio, here or while iterating. The
    header's output gain is not applied.
    """

    def __init__(self, path: str | Path | BinaryIO) -> None:
        self._file = open_for_reading(path) if isinstance(path, str | Path) else path
        try:
            self._serial, head = self._find_stream()
            self.channels, self.pre_skip = parse_opus_head(head)
        except OSError as error:
            self._file.close()
            raise NotAudio(f"{path} cannot be read: {error.strerror}") from None
        except NotAudio:
            self._file.close()
            raise

    def _find_stream(self) -> tuple[int, bytes]:
        page = _read_page(self._file)
        if page is None:
            raise NotAudio("the file ends before its first Ogg page does")
        # Every stream of a group begins with one page, before any other page of the group.
        while page is not None and page.flags & _FIRST:
            if page.body.startswith(b"OpusHead"):
                return page.serial, page.body
            page = _read_page(self._file)
        raise NotAudio("the Ogg file has no Opus stream")

    def __iter__(self) -> Iterator[bytes]:
        try:
            packets = self._packets()
            tags = next(packets, None)
            if tags is not None and not tags.startswith(b"OpusTags"):
                raise NotAudio("the Opus stream has no comment header")
            yield from packets
        except OSError as error:
            raise NotAudio(f"the file cannot be read further: {error.strerror}") from None
        finally:
            self.close()

    def _packets(self) -> Iterator[bytes]:
        limit = _MAX_TAGS
        partial: bytes | None = None
        last_sequence: int | None = None
        while (page := _read_page(self._file)) is not None:
            if page.serial != self._serial:
                continue
            unbroken = last_sequence is None or page.sequence == (last_sequence + 1) & 0xFFFFFFFF
            last_sequence = page.sequence
            # None while the packet under way has lost its beginning.
            if not page.flags & _CONTINUED:
                partial = b""
            elif not unbroken:
                partial = None
            at = 0
            for segment in page.lacing:
                if partial is not None:
                    partial += page.body[at : at + segment]
                    if len(partial) > limit:
                        raise NotAudio(f"an Ogg packet is longer than {limit} bytes")
                at += segment
                if segment < 255:
                    if partial:
                        yield partial
                        limit = _MAX_AUDIO
                    partial = b""
            if page.flags & _LAST:
                return

    def close(self) -> None:
        """Close the file; iterating to the end does so too."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OggOpusWriter:
    """Writes Opus packets of any length to a file, a page about every second.

    `channels` is 1 or 2, `pre_skip` in samples at 48 kHz: 312 is what libopus needs. OSError where the file cannot
    be written.
    """

    _SERIAL: Final = 0x76676F70
    # Frames of silence, 20 ms each, as one packet of 120 ms (RFC 6716 section 3.2.5) and alone.
    _LONG_SILENCE: Final = bytes((0xFB, 6)) + 6 * b"\xff\xfe"
    _SILENCES: Final = {5760: _LONG_SILENCE, 960: b"\xf8\xff\xfe", 120: b"\xe0\xff\xfe"}

    def __init__(self, path: str | Path, *, channels: int = 2, pre_skip: int = 312) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115 - close() closes it
        self._sequence = 0
        self._granule = 0
        self._page_began = 0
        self._lacing = bytearray()
        self._body = bytearray()
        self._put_page(_FIRST, *_laced(struct.pack("<8sBBHIhB", b"OpusHead", 1, channels, pre_skip, SAMPLE_RATE, 0, 0)))
        vendor = b"voicegw"
        self._put_page(0, *_laced(struct.pack("<8sI7sI", b"OpusTags", len(vendor), vendor, 0)))

    def write(self, packet: bytes) -> None:
        """Add one packet; NotAudio if it is none."""
        samples = packet_samples(packet)
        lacing, body = _laced(packet)
        full = len(self._lacing) + len(lacing) > 255
        if full or self._granule - self._page_began >= SAMPLE_RATE:
            self._end_page(0)
        self._lacing += lacing
        self._body += body
        self._granule += samples

    @property
    def samples(self) -> int:
        """How long the packets play that were written so far, at 48 kHz."""
        return self._granule

    def write_silence(self, samples: int) -> None:
        """Add silence, to the next 2.5 ms below `samples`; nothing for a negative number."""
        for length, packet in self._SILENCES.items():
            while samples >= length:
                self.write(packet)
                samples -= length

    def write_lost(self, like: bytes) -> None:
        """Mark 20 ms as lost: empty frames of their neighbour's kind, which decoders conceal (RFC 7845 section 4.1)."""
        toc = like[0] & 0xFC
        for _ in range(max(1, 960 // packet_samples(bytes((toc,))))):
            self.write(bytes((toc,)))

    def close(self) -> None:
        """Write what is held and the end mark; a second call does nothing."""
        if not self._file.closed:
            self._end_page(_LAST)
            self._file.close()

    def _end_page(self, flags: int) -> None:
        self._put_page(flags, bytes(self._lacing), bytes(self._body))
        self._lacing.clear()
        self._body.clear()
        self._page_began = self._granule

    def _put_page(self, flags: int, lacing: bytes, body: bytes) -> None:
        fields = (b"OggS", 0, flags, self._granule, self._SERIAL, self._sequence)
        head = _HEADER.pack(*fields, 0, len(lacing))
        head = _HEADER.pack(*fields, _checksum(head + lacing + body), len(lacing))
        self._file.write(head + lacing + body)
        self._file.flush()
        self._sequence += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _laced(packet: bytes) -> tuple[bytes, bytes]:
    """Segment lengths of one packet, and the packet."""
    return b"\xff" * (len(packet) // 255) + bytes((len(packet) % 255,)), packet
