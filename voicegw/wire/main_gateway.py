"""The main gateway's messages, as far as a voice tool needs them: JSON text frames of version 10.

Source: Discord docs, "Gateway" and "Gateway Events".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from voicegw.errors import MalformedFrame
from voicegw.secret import Secret
from voicegw.wire.frames import read_envelope

DISPATCH, HEARTBEAT, IDENTIFY, VOICE_STATE, RESUME = 0, 1, 2, 4, 6
RECONNECT, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 7, 9, 10, 11
GUILDS, GUILD_VOICE_STATES = 1 << 0, 1 << 7


@dataclass(frozen=True, slots=True)
class MainMessage:
    """One message: its opcode and `d`; `event` and `seq` of a dispatch."""

    op: int
    data: Any = field(repr=False)  # it may hold a token
    event: str | None
    seq: int | None


def decode(text: str | Secret[str]) -> MainMessage:
    """Read one text frame; it may hold a session id or a token.

    Raises:
        MalformedFrame: not JSON, not an object, no opcode.
    """
    message = read_envelope(text)
    event, seq = message.get("t"), message.get("s")
    return MainMessage(
        message["op"],
        message.get("d"),
        event if isinstance(event, str) else None,
        seq if isinstance(seq, int) else None,
    )


def identify(token: Secret[str]) -> Secret[str]:
    """Op 2: guilds and voice states are all that we want to hear of."""
    properties = {"os": sys.platform, "browser": "voicegw", "device": "voicegw"}
    data = {"token": token.reveal(), "intents": GUILDS | GUILD_VOICE_STATES, "properties": properties}
    return Secret(_encode(IDENTIFY, data))


def resume(token: Secret[str], session_id: Secret[str], seq: int) -> Secret[str]:
    """Op 6."""
    data = {"token": token.reveal(), "session_id": session_id.reveal(), "seq": max(seq, 0)}
    return Secret(_encode(RESUME, data))


def heartbeat(seq: int) -> str:
    """Op 1; null while nothing was dispatched."""
    return _encode(HEARTBEAT, seq if seq >= 0 else None)


def voice_state(guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool) -> str:
    """Op 4."""
    channel = str(channel_id) if channel_id is not None else None
    data = {"guild_id": str(guild_id), "channel_id": channel, "self_mute": self_mute, "self_deaf": self_deaf}
    return _encode(VOICE_STATE, data)


def need(data: object, key: str) -> Any:
    """One value of a message's `d`.

    Raises:
        MalformedFrame: it is not there.
    """
    if not isinstance(data, Mapping) or key not in data:
        raise MalformedFrame(f"a main gateway message without {key!r}")
    return data[key]


def _encode(op: int, data: object) -> str:
    return json.dumps({"op": op, "d": data}, separators=(",", ":"))
