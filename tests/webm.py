"""A WebM writer for tests: the few elements that an Opus track needs."""

from __future__ import annotations

import struct
from collections.abc import Iterable

UNKNOWN = b"\x01" + b"\xff" * 7
OPUS_HEAD = struct.pack("<8sBBHIhB", b"OpusHead", 1, 2, 312, 48_000, 0, 0)


def size(value: int) -> bytes:
    return (value | 1 << 56).to_bytes(8, "big")


def element(identifier: int, *body: bytes, unknown: bool = False) -> bytes:
    data = b"".join(body)
    name = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")
    return name + (UNKNOWN if unknown else size(len(data))) + data


def track(number: int, codec: bytes, private: bytes = b"", *more: bytes) -> bytes:
    return element(0xAE, element(0xD7, bytes((number,))), element(0x86, codec), element(0x63A2, private), *more)


def block(number: int, data: bytes, flags: int = 0x80, grouped: bool = False) -> bytes:
    body = bytes((0x80 | number,)) + b"\0\0" + bytes((flags,)) + data
    return element(0xA0, element(0xA1, body), element(0x9B, b"\x14")) if grouped else element(0xA3, body)


def header(*tracks: bytes) -> bytes:
    start = element(0x1A45DFA3, element(0x4282, b"webm"))
    body = element(0x1549A966, element(0x2AD7B1, b"\x0f\x42\x40")) + element(0x1654AE6B, *tracks)
    return start + b"\x18\x53\x80\x67" + UNKNOWN + body


def cluster(*blocks: bytes, live: bool = False) -> bytes:
    return element(0x1F43B675, element(0xE7, b"\0"), *blocks, unknown=live)


def webm(packets: Iterable[bytes], live: bool = False) -> bytes:
    """A file with a video track before, whose blocks lie between."""
    blocks = [part for packet in packets for part in (block(1, b"video"), block(2, packet))]
    whole = header(track(1, b"V_VP9"), track(2, b"A_OPUS", OPUS_HEAD))
    return whole + b"".join(cluster(*blocks[at : at + 8], live=live) for at in range(0, len(blocks), 8))
