"""Opus packets from outside: how long one plays, and whether it carries a copy of the one before it (RFC 6716)."""

from __future__ import annotations

from typing import Final

from voicegw.errors import NotAudio

FRAME_SAMPLES: Final = 960
MAX_FRAME_SAMPLES: Final = 5760
MAX_FRAME_BYTES: Final = 1275


def _samples_per_frame(config: int) -> int:
    """Samples at 48 kHz of one frame (RFC 6716 section 3.1, table 2)."""
    if config < 12:
        return (480, 960, 1920, 2880)[config & 3]
    if config < 16:
        return (480, 960)[config & 1]
    return (120, 240, 480, 960)[config & 3]


_SAMPLES: Final = tuple(_samples_per_frame(config) for config in range(32))


def _frame_length(packet: bytes, at: int) -> tuple[int, int]:
    """A frame length and the offset behind it (RFC 6716 section 3.2.1)."""
    if at >= len(packet):
        raise NotAudio("an Opus packet ends inside a frame length")
    first = packet[at]
    if first < 252:
        return first, at + 1
    if at + 1 >= len(packet):
        raise NotAudio("an Opus packet ends inside a frame length")
    return first + 4 * packet[at + 1], at + 2


def packet_samples(packet: bytes) -> int:
    """How long an Opus packet plays, in samples at 48 kHz (120 to 5760), without decoding it.

    The frame layout is checked as RFC 6716 section 3.4 demands; a packet that breaks it raises NotAudio.
    """
    if not packet:
        raise NotAudio("an Opus packet has at least one byte")
    toc = packet[0]
    each = _SAMPLES[toc >> 3]
    code = toc & 3
    if not code and len(packet) <= MAX_FRAME_BYTES:
        return each
    if code == 3:
        count, longest = _many_frames(packet, each)
    else:
        count = 2 if code else 1
        longest = len(packet) - 1
        if code == 1:
            if longest % 2:
                raise NotAudio("two Opus frames of one size cannot share an odd number of bytes")
            longest //= 2
        elif code == 2:
            first, at = _frame_length(packet, 1)
            rest = len(packet) - at - first
            if rest < 0:
                raise NotAudio("the first of two Opus frames is longer than its packet")
            longest = max(first, rest)
    if longest > MAX_FRAME_BYTES:
        raise NotAudio(f"an Opus frame of {longest} bytes is longer than {MAX_FRAME_BYTES}")
    return count * each


def _many_frames(packet: bytes, each: int) -> tuple[int, int]:
    """Number of frames and length of the longest in a code 3 packet (RFC 6716 section 3.2.5)."""
    if len(packet) < 2:
        raise NotAudio("an Opus packet ends before its frame count")
    header, at, padding = packet[1], 2, 0
    count = header & 0x3F
    if not count or count * each > MAX_FRAME_SAMPLES:
        raise NotAudio(f"an Opus packet cannot hold {count} frames of {each} samples")
    if header & 0x40:
        more = 255
        while more == 255:
            if at >= len(packet):
                raise NotAudio("an Opus packet ends inside its padding length")
            more = packet[at]
            padding += 254 if more == 255 else more
            at += 1
    if header & 0x80:
        lengths = []
        for _ in range(count - 1):
            length, at = _frame_length(packet, at)
            lengths.append(length)
        lengths.append(len(packet) - at - padding - sum(lengths))
        if lengths[-1] < 0:
            raise NotAudio("the frames of an Opus packet are longer than it is")
        return count, max(lengths)
    room = len(packet) - at - padding
    if room < 0 or room % count:
        raise NotAudio("an Opus packet does not divide into its frames")
    return count, room // count


def has_copy(packet: bytes) -> bool:
    """Does a packet of one frame carry a copy of the frame before it (in-band FEC, "LBRR")?

    Only frames with a SILK part can. They begin with one bit a 20 ms for voice activity, then one that says so; where
    they are stereo, the side channel has the same bits behind these (RFC 6716 section 4.2.3).
    """
    config = packet[0] >> 3
    if config >= 16 or packet[0] & 3 or len(packet) < 2:
        return False
    first = packet[1]
    activity_bits = max(1, _SAMPLES[config] // FRAME_SAMPLES)
    if first >> (7 - activity_bits) & 1:
        return True
    return bool(packet[0] & 4 and first >> (6 - 2 * activity_bits) & 1)
