"""Websocket frames of voice gateway version 8: decode what the server sends, build what the client sends.

    text, both ways        {"op": int, "d": any, "seq"?: int}
    binary, from server    u16 seq, u8 opcode, payload
    binary, from client    u8 opcode, payload

Source: Discord voice docs, "Gateway Events" and "Buffered Resume". Integers wider than 64 bits, more than 10,000
items in a list, 32 levels, 32,768 values in all, 1 MiB, NaN, repeated keys and half surrogate pairs are refused,
whatever opcode they come in.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NoReturn

from voicegw.errors import MalformedFrame
from voicegw.secret import Secret
from voicegw.wire.opcodes import BINARY_FROM_SERVER, NOT_NEEDED
from voicegw.wire.payloads import BINARY_PAYLOADS, TEXT_PAYLOADS, U16, U64, Payload, Unlisted

MAX_FRAME_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_LIST = 10_000
MAX_ITEMS = 32_768
MESSAGES_REMEMBERED = 1024
WATCHED_AFTER_RESUME = 64


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded frame; `seq` is its sequence number where it has one."""

    seq: int | None
    payload: Payload


class SequenceCounter:
    """The last sequence number seen, whatever it was: text and binary frames share it, and it wraps. -1 means none.

    `applied` are the messages that were taken last, by number and content: one of them that comes again, as a replay
    after a resume may bring it, must not be applied again.
    """

    __slots__ = ("_watched", "applied", "last")

    def __init__(self) -> None:
        self.last = -1
        self.applied: dict[int, None] = {}
        self._watched = 0

    def watch(self) -> None:
        """A resume asks for all after the last number: the next ones must follow it and each other."""
        self._watched = WATCHED_AFTER_RESUME

    def note(self, seq: int | None) -> str | None:
        """Take a message's number, if it has one; says what is odd: "repeated", "skipped" or "stepped back".

        Numbers skipped soon after a resume, which should have brought them, are "lost".
        """
        if seq is None:
            return None
        step = (seq - self.last) & 0xFFFF
        first, self.last = self.last < 0, seq
        if 0 < step < 0x8000:
            watched, self._watched = self._watched, max(0, self._watched - 1)
            return None if first or step == 1 else "lost" if watched else "skipped"
        return None if first else "repeated" if step == 0 else "stepped back"

    def applies(self, seq: int, payload: Hashable) -> bool:
        """Is this message new? It counts as applied from here on."""
        identity = hash((seq, payload))
        if identity in self.applied:
            return False
        self.applied[identity] = None
        if len(self.applied) > MESSAGES_REMEMBERED:
            del self.applied[next(iter(self.applied))]
        return True

    def reset(self) -> None:
        """A new session counts afresh."""
        self.last = -1
        self.applied.clear()
        self._watched = 0


# -- decode


def decode_text(text: str | Secret[str]) -> Message:
    """Decode one text frame; a key in it comes out as a `Secret`.

    Raises:
        MalformedFrame: and nothing else; its `op` and `seq` are set where they could be read.
    """
    envelope = read_envelope(text)
    op, seq = envelope["op"], envelope.get("seq")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < U64:
        seq = None
    if op in BINARY_FROM_SERVER:
        raise MalformedFrame("an MLS message in a text frame", seq=seq)
    decode = TEXT_PAYLOADS.get(op)
    if decode is None:
        return Message(seq, Unlisted(op))
    try:
        return Message(seq, decode(envelope.get("d")))
    except MalformedFrame as error:
        if op in NOT_NEEDED:
            return Message(seq, Unlisted(op))
        raise MalformedFrame(str(error), op, seq) from error


def decode_binary(data: bytes) -> Message:
    """Decode one binary frame.

    Raises:
        MalformedFrame: and nothing else; its `op` and `seq` are set where they could be read.
    """
    if len(data) < 3:
        raise MalformedFrame("a binary frame shorter than its header")
    seq, op = int.from_bytes(data[:2], "big"), data[2]
    if len(data) > MAX_FRAME_BYTES:
        raise MalformedFrame("a frame above 1 MiB", op, seq)
    decode = BINARY_PAYLOADS.get(op)
    if decode is None:
        if op in TEXT_PAYLOADS:
            raise MalformedFrame("a JSON message in a binary frame", seq=seq)
        return Message(seq, Unlisted(op))
    try:
        return Message(seq, decode(bytes(data[3:])))
    except MalformedFrame as error:
        raise MalformedFrame(str(error), op, seq) from error


def read_envelope(text: str | Secret[str]) -> dict[str, Any]:
    """The object of a text frame, from either side; `op` is there and is an integer.

    Raises:
        MalformedFrame: not JSON, not an object, no opcode, or beyond the limits.
    """
    if len(_bare(text)) > MAX_FRAME_BYTES:
        raise MalformedFrame("a frame above 1 MiB")
    if _bare(text).count(",") > MAX_ITEMS:  # before it is parsed: what could take long is not begun
        raise MalformedFrame("a text frame with too many values")
    data, wrong = None, ""
    try:
        data = _DECODER.decode(_bare(text))
        if "\\ud" in _bare(text).lower():
            # Half of a surrogate pair is no text; what is sealed already is none that could have one.
            json.dumps(data, ensure_ascii=False, default=repr).encode()
    except MalformedFrame as error:
        wrong = str(error)
    except (ValueError, RecursionError):
        wrong = "a text frame that is not JSON"
    if wrong:
        raise MalformedFrame(wrong)  # not "from" the decoder's: that one holds the frame
    if not isinstance(data, dict):
        raise MalformedFrame("a text frame that is not an object")
    _check_size(data, MAX_DEPTH)
    op = data.get("op")
    if not isinstance(op, int) or isinstance(op, bool) or not 0 <= op < U16:
        raise MalformedFrame("a text frame without an opcode")
    return data


def _bare(text: str | Secret[str]) -> str:
    """The frame's text, never kept in a variable that a traceback could show."""
    return text if isinstance(text, str) else text.reveal()


def _check_size(value: list[Any] | dict[str, Any], depth: int) -> None:
    if depth == 0:
        raise MalformedFrame("a text frame nested too deeply")
    if len(value) > MAX_LIST:
        raise MalformedFrame("a text frame with too long a list")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, int):
            if not -U64 // 2 <= item < U64:
                raise MalformedFrame("a number wider than 64 bits")
        elif isinstance(item, list | dict):
            _check_size(item, depth - 1)


def _constant(word: str) -> NoReturn:
    raise MalformedFrame(f"{word} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MalformedFrame("a text frame with a key that is there twice")
    key = fields.get("secret_key")
    if isinstance(key, list):  # a transport key becomes a secret as soon as it is read
        octets = all(type(octet) is int and 0 <= octet < 256 for octet in key)
        fields["secret_key"] = Secret(bytes(key)) if octets else None
    return fields


_DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_object)


# -- encode


def encode_json(data: object) -> str:
    """Compact JSON; secrets are revealed in it."""
    return json.dumps(data, separators=(",", ":"), default=_revealed)


def _revealed(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not JSON")


def encode_text(op: int, d: object) -> str:
    """One text frame of a client."""
    return encode_json({"op": int(op), "d": d})


def encode_secret_text(op: int, d: object) -> Secret[str]:
    """One text frame of a client that has secrets in it."""
    return Secret(encode_text(op, d))


def encode_binary(op: int, payload: bytes) -> bytes:
    """One binary frame of a client."""
    return bytes((op,)) + payload


def identify(
    server_id: int,
    user_id: int,
    session_id: Secret[str],
    token: Secret[str],
    max_dave_protocol_version: int,
    channel_id: int | None = None,
) -> dict[str, object]:
    """`d` of op 0; `channel_id` is a key of version 9 that version 8 ignores."""
    data: dict[str, object] = {
        "server_id": str(server_id),
        "user_id": str(user_id),
        "session_id": session_id,
        "token": token,
        "max_dave_protocol_version": max_dave_protocol_version,
    }
    if channel_id is not None:
        data["channel_id"] = str(channel_id)
    return data


def resume(server_id: int, session_id: Secret[str], token: Secret[str], seq_ack: int) -> dict[str, object]:
    """`d` of op 7."""
    return {
        "server_id": str(server_id),
        "session_id": session_id,
        "token": token,
        "seq_ack": seq_ack,
    }


def select_protocol(address: str, port: int, mode: str) -> dict[str, object]:
    """`d` of op 1."""
    return {"protocol": "udp", "data": {"address": address, "port": port, "mode": mode}}


def heartbeat(nonce: int, seq_ack: int) -> dict[str, object]:
    """`d` of op 3, in the form of version 8."""
    return {"t": nonce, "seq_ack": seq_ack}


def speaking(flags: int, ssrc: int) -> dict[str, object]:
    """`d` of op 5."""
    return {"speaking": flags, "delay": 0, "ssrc": ssrc}


def transition_ready(transition_id: int) -> dict[str, object]:
    """`d` of op 23."""
    return {"transition_id": transition_id}


def invalid_commit_welcome(transition_id: int) -> dict[str, object]:
    """`d` of op 31."""
    return {"transition_id": transition_id}
