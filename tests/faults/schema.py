"""What a voice server accepts of a client, strictly: every key, every type, every range of each frame of version 8."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

U16, U32, U64 = 1 << 16, 1 << 32, 1 << 64
MODES = {"aead_aes256_gcm_rtpsize", "aead_xchacha20_poly1305_rtpsize"}

Check = Callable[[object], bool]


def _integer(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value < high


def _snowflake(value: object) -> bool:
    return type(value) is str and value.isascii() and value.isdecimal() and 0 < int(value) < U64


def _text(value: object) -> bool:
    return type(value) is str and 0 < len(value) < 512


def _address(value: object) -> bool:
    import ipaddress

    try:
        return type(value) is str and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _fields(value: object, checks: Mapping[str, Check]) -> bool:
    return (
        type(value) is dict
        and value.keys() == checks.keys()
        and all(check(value[name]) for name, check in checks.items())
    )


SELECTED: Mapping[str, Check] = {
    "address": _address,
    "port": _integer(1, U16),
    "mode": lambda value: value in MODES,
}
TRANSITION: Mapping[str, Check] = {"transition_id": _integer(0, U16)}
TEXT: Mapping[int, Mapping[str, Check]] = {
    0: {
        "server_id": _snowflake,
        "user_id": _snowflake,
        "session_id": _text,
        "token": _text,
        "max_dave_protocol_version": _integer(0, 2),
    },
    1: {"protocol": lambda value: value == "udp", "data": lambda value: _fields(value, SELECTED)},
    3: {"t": _integer(0, 1 << 63), "seq_ack": _integer(-1, U16)},
    5: {"speaking": _integer(0, 8), "delay": lambda value: value == 0, "ssrc": _integer(1, U32)},
    7: {"server_id": _snowflake, "session_id": _text, "token": _text, "seq_ack": _integer(-1, U16)},
    23: TRANSITION,
    31: TRANSITION,
}
BINARY = (26, 28)


def wrong(frame: str | bytes) -> str | None:
    """What a strict server has against this frame of a client; None where nothing."""
    if isinstance(frame, bytes):
        return None if len(frame) > 1 and frame[0] in BINARY else f"binary op {frame[:1].hex()} of {len(frame)} bytes"
    message: Any = json.loads(frame)
    if type(message) is not dict or message.keys() != {"op", "d"}:
        return f"no envelope of op and d: {frame[:80]}"
    checks = TEXT.get(message["op"]) if type(message["op"]) is int else None
    if checks is None:
        return f"op {message['op']!r} is none that a client may send as text"
    if not _fields(message["d"], checks):
        return f"op {message['op']} with d of another shape: {frame[:80]}"
    return None
