"""The two plain UDP packets: IP discovery (74 bytes) and the keepalive (8 bytes).

Source: Discord voice docs, "IP Discovery". The keepalive is undocumented; servers stop forwarding to clients that
never send.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

DISCOVERY_BYTES = 74
REQUEST, RESPONSE = 1, 2
BODY_BYTES = 70

_LAYOUT = struct.Struct(">HHI64sH")
_KEEPALIVE = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Discovered:
    """Our address as the voice server sees it."""

    address: str
    port: int


def discovery_request(ssrc: int) -> bytes:
    """Ask for our public address."""
    return _LAYOUT.pack(REQUEST, BODY_BYTES, ssrc, b"", 0)


def discovery_response(ssrc: int, address: str, port: int) -> bytes:
    """What a voice server answers."""
    return _LAYOUT.pack(RESPONSE, BODY_BYTES, ssrc, address.encode("ascii"), port)


def parse_request(data: bytes) -> int | None:
    """The SSRC of a discovery request; None for any other datagram."""
    if len(data) != DISCOVERY_BYTES:
        return None
    kind, length, ssrc, _, _ = _LAYOUT.unpack(data)
    return ssrc if (kind, length) == (REQUEST, BODY_BYTES) else None


def parse_discovery(data: bytes, ssrc: int) -> Discovered | None:
    """The answer to our request; None for any other datagram, which is no error: media may come before it."""
    if len(data) != DISCOVERY_BYTES:
        return None
    kind, length, echoed, field, port = _LAYOUT.unpack(data)
    if (kind, length, echoed) != (RESPONSE, BODY_BYTES, ssrc) or port == 0:
        return None
    text, end, _ = field.partition(b"\0")
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        return None
    if not end or b"%" in text or address.is_unspecified or address.is_multicast:
        return None
    return Discovered(str(address), port)


def keepalive(counter: int) -> bytes:
    """Keeps NAT and voice server awake; little-endian counter, four zero bytes."""
    return _KEEPALIVE.pack(counter & 0xFFFFFFFF, 0)
