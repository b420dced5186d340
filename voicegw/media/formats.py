"""What a file is, by its first bytes. Only what is named here is ever given to a decoder, under this name.

A decoder that may guess can be talked into playlists, which open whatever they list; one that is told cannot.
"""

from __future__ import annotations

from typing import Final

LOOK_BYTES: Final = 512

OGG_OPUS, WAV, WEBM = "opus", "wav", "matroska"

_STARTS: Final = (
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"OggS", "ogg"),
    (b"\x1aE\xdf\xa3", WEBM),
    (b"FLV\x01", "flv"),
    (b"caff", "caf"),
    (b".snd", "au"),
    (b"wvpk", "wv"),
    (b"MAC ", "ape"),
    (b"#!AMR", "amr"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)


def format_of(start: bytes) -> str | None:
    """The name that FFmpeg's demuxers have for it; "opus" for Ogg Opus; None for what is not known."""
    if start[:4] == b"OggS" and b"OpusHead" in start[:LOOK_BYTES]:
        return OGG_OPUS
    for magic, name in _STARTS:
        if start.startswith(magic):
            return name
    if start[:4] in (b"RIFF", b"RF64"):
        return {b"WAVE": WAV, b"AVI ": "avi"}.get(start[8:12])
    if start[:4] == b"FORM" and start[8:11] == b"AIF":
        return "aiff"
    if start[4:8] == b"ftyp":
        return "mov"
    if len(start) > 188 and start[0] == start[188] == 0x47:
        return "mpegts"
    if len(start) > 1 and start[0] == 0xFF:
        if start[1] & 0xF6 == 0xF0:
            return "aac"
        if start[1] & 0xE0 == 0xE0 and start[1] & 0x06:
            return "mp3"
    return None
