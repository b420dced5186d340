"""RTP and RTCP of Discord voice: headers, extensions, padding, reports. Source: RFC 3550, RFC 8285, Discord voice docs.

    | header 12 + 4 x CSRC (+ 4 preamble) | ciphertext of extension body, payload, padding | tag 16 | nonce 4 |

The first part is the AAD of the transport encryption. RTCP has an AAD of 8 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

from voicegw.errors import PacketRejected

SAMPLE_RATE = 48_000
FRAME_TICKS = 960
OPUS_PAYLOAD_TYPE = 120
SILENCE_FRAME = b"\xf8\xff\xfe"
HEADER_BYTES = 12
RTCP_AAD_BYTES = 8
MIN_DATAGRAM = HEADER_BYTES + 16 + 4
MAX_DATAGRAM = 1500
ONE_BYTE_PROFILE = 0xBEDE

HEADER = struct.Struct(">BBHII")  # flags, marker and payload type, sequence, timestamp, SSRC
_REPORT_BLOCK = struct.Struct(">IB3sIIII")


class RtpView(NamedTuple):
    """What the clear part of an RTP packet says; `aad_length` bytes of it are authenticated."""

    sequence: int
    timestamp_ticks: int
    ssrc: int
    payload_type: int
    marker: bool
    aad_length: int
    extension_words: int
    has_padding: bool
    has_extension: bool


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """One block of a receiver report: how a stream arrived at its receiver. `fraction_lost` is 0 to 1."""

    ssrc: int
    fraction_lost: float
    cumulative_lost: int
    highest_sequence: int
    jitter_ticks: int


def pack_header(sequence: int, timestamp_ticks: int, ssrc: int) -> bytes:
    """The 12 bytes of an outgoing Opus packet; sequence and timestamp wrap."""
    return HEADER.pack(0x80, OPUS_PAYLOAD_TYPE, sequence & 0xFFFF, timestamp_ticks & 0xFFFFFFFF, ssrc)


def kind_of(data: bytes) -> Literal["rtp", "rtcp", "control"]:
    """Which of the three a datagram is, by its first two bytes and its length."""
    if len(data) < MIN_DATAGRAM or data[0] >> 6 != 2:
        if len(data) >= RTCP_AAD_BYTES + 20 and data[0] >> 6 == 2 and 200 <= data[1] <= 206:
            return "rtcp"
        return "control"
    return "rtcp" if 200 <= data[1] <= 206 else "rtp"


def parse_rtp(data: bytes) -> RtpView:
    """Read the clear part.

    Raises:
        PacketRejected: not RTP, or shorter than its own header says.
    """
    if len(data) < HEADER_BYTES or data[0] >> 6 != 2:
        raise PacketRejected("not an RTP packet")
    first, second, sequence, timestamp, ssrc = HEADER.unpack_from(data)
    aad_length = HEADER_BYTES + 4 * (first & 0x0F)
    words = 0
    if first & 0x10:
        aad_length += 4
        words = int.from_bytes(data[aad_length - 2 : aad_length], "big")
    if len(data) < aad_length:
        raise PacketRejected("an RTP packet shorter than its header")
    # One a packet: made without the detour through RtpView's own constructor, half as fast again.
    return tuple.__new__(
        RtpView,
        (
            sequence,
            timestamp,
            ssrc,
            second & 0x7F,
            second >= 0x80,
            aad_length,
            words,
            first & 0x20 != 0,
            first & 0x10 != 0,
        ),
    )


def strip(plaintext: bytes, view: RtpView) -> bytes:
    """The payload alone: padding cut from the end, the extension's body from the front.

    Raises:
        PacketRejected: either is longer than what is there.
    """
    end = len(plaintext)
    start = 4 * view.extension_words
    if view.has_padding:
        padding = plaintext[-1] if plaintext else 0
        if padding == 0 or padding > end:
            raise PacketRejected("an RTP packet with impossible padding")
        end -= padding
    if start > end:
        raise PacketRejected("an RTP packet with an extension longer than itself")
    return plaintext[start:end]


def parse_extension(profile: int, body: bytes) -> dict[int, bytes] | None:
    """Elements by id of a one-byte header extension; None for another profile. A cut element ends the list."""
    if profile != ONE_BYTE_PROFILE:
        return None
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(body):
        identifier, length = body[at] >> 4, (body[at] & 0x0F) + 1
        if identifier == 15:
            break
        if identifier == 0:
            at += 1
            continue
        value = body[at + 1 : at + 1 + length]
        if len(value) < length:
            break
        elements[identifier] = value
        at += 1 + length
    return elements


def speaking_flag_to_extension(flags: int) -> int:
    """Op 5's flags as element 9 of the header extension carries them."""
    return ((flags & 3) << 1) | ((flags & 4) >> 2)


def parse_rtcp(plain: bytes) -> list[ReportBlock]:
    """All report blocks of a decrypted compound packet; what is not known or not complete is passed over."""
    blocks: list[ReportBlock] = []
    at = 0
    while at + 4 <= len(plain):
        count, kind = plain[at] & 0x1F, plain[at + 1]
        end = at + 4 + 4 * int.from_bytes(plain[at + 2 : at + 4], "big")
        if plain[at] >> 6 != 2 or end > len(plain):
            break
        first = {200: at + 28, 201: at + 8}.get(kind)
        if first is not None:
            for offset in range(first, first + count * _REPORT_BLOCK.size, _REPORT_BLOCK.size):
                if offset + _REPORT_BLOCK.size > end:
                    break
                ssrc, fraction, lost, highest, jitter, _, _ = _REPORT_BLOCK.unpack_from(plain, offset)
                cumulative = int.from_bytes(lost, "big", signed=True)
                blocks.append(ReportBlock(ssrc, fraction / 256, cumulative, highest, jitter))
        at = end
    return blocks
