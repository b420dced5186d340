"""One voice session on the server's side; it outlives its websocket for as long as it may be resumed."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from voicegw.secret import Secret
from voicegw.signalling import Credentials
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.opcodes import Opcode

BUFFERED_FRAMES = 4096
UNNUMBERED = frozenset({Opcode.HELLO, Opcode.HEARTBEAT_ACK, Opcode.RESUMED})
REDACTED = frozenset({"token", "session_id", "secret_key"})


@dataclass(frozen=True, slots=True)
class Record:
    """One message, as the server saw it; `data` is `d` without secrets, or the bytes after the opcode."""

    user_id: int
    direction: Literal["in", "out"]
    op: int
    data: object


@dataclass(frozen=True, slots=True)
class Frame:
    """One outgoing message, numbered or not; it may have a key in it, so its content is not shown."""

    op: int
    seq: int | None
    content: str | bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class ServerSession:
    """Credentials, keys, what was sent and may have to be sent again."""

    credentials: Credentials
    ssrc: int
    on_record: Callable[[Record], None]
    secret_key: Secret[bytes] = field(default_factory=lambda: Secret(secrets.token_bytes(32)))
    mode: str = ""
    cipher: TransportCipher | None = None
    previous: TransportCipher | None = None
    address: tuple[str, int] | None = None
    described: bool = False
    speaking: int | None = None
    outbox: asyncio.Queue[Frame] | None = None
    seq: int = 0
    buffer: deque[Frame] = field(default_factory=lambda: deque(maxlen=BUFFERED_FRAMES))
    expiry: asyncio.TimerHandle | None = None
    counters: Counter[str] = field(default_factory=Counter)

    @property
    def user_id(self) -> int:
        """Whose session it is."""
        return self.credentials.user_id

    @property
    def connected(self) -> bool:
        """Has it a websocket now?"""
        return self.outbox is not None

    def describe(self, mode: str, keep_key: bool = False) -> None:
        """The transport encryption is chosen; a new key comes with it. What is under way opens with the one before."""
        if keep_key and self.cipher is not None and mode == self.mode:
            return
        self.previous = self.cipher
        self.secret_key = Secret(secrets.token_bytes(32))
        self.mode = mode
        self.cipher = TransportCipher(mode, self.secret_key, "server")
        self.described = True

    def send(self, op: int, data: object) -> None:
        """Send `data` (bytes make a binary frame); without a websocket it waits for the resume."""
        self.on_record(Record(self.user_id, "out", int(op), redact(data)))
        seq = None
        if op not in UNNUMBERED:
            self.seq = (self.seq + 1) & 0xFFFF
            seq = self.seq
        frame = Frame(int(op), seq, encode(op, data, seq))
        if seq is not None:
            self.buffer.append(frame)
        if self.outbox is not None:
            self.outbox.put_nowait(frame)

    def missed(self, seq_ack: int) -> list[Frame] | None:
        """What was numbered after `seq_ack`; None where that is not known any more."""
        frames = list(self.buffer)
        if seq_ack == self.seq:
            return []
        for index, frame in enumerate(frames):
            if frame.seq == seq_ack:
                return frames[index + 1 :]
        first = frames[0].seq if frames else None
        return frames if first is not None and seq_ack in (-1, first - 1) else None


def encode(op: int, data: object, seq: int | None) -> str | bytes:
    """One frame as a server sends it."""
    if isinstance(data, bytes):
        return (seq or 0).to_bytes(2, "big") + bytes((op,)) + data
    message: dict[str, object] = {"op": int(op), "d": data}
    if seq is not None:
        message["seq"] = seq
    return json.dumps(message, separators=(",", ":"))


def redact(data: object) -> object:
    """The same without secrets."""
    if isinstance(data, dict):
        return {key: "<secret>" if key in REDACTED else redact(value) for key, value in data.items()}
    return data
