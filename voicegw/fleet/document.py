"""What is kept of a call, sealed, for whoever goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from voicegw.fleet.sealing import Seal


@dataclass(slots=True)
class CallDocument:
    """`life` is the lease of the worker that wrote it, `channel_id` where the bot wants to be, `options` what it chose
    for its VoiceClient. `done` is the number of the bot's last command that is in it, `bot` who counts. `frozen` is the
    call as `voicegw.frozen` seals it; without it the call is joined."""

    life: str
    channel_id: int
    options: Mapping[str, Any] = field(default_factory=dict)
    bot: str = ""
    done: int = 0
    frozen: bytes | None = None

    def to_bytes(self, seal: Seal, call_id: str) -> bytes:
        """As it stands in the bucket."""
        fields = {"life": self.life, "channel": self.channel_id, "options": dict(self.options)}
        fields |= {"bot": self.bot, "done": self.done}
        return seal.close(fields | ({} if self.frozen is None else {"frozen": self.frozen}), f"document {call_id}")

    @classmethod
    def from_bytes(cls, data: bytes, seal: Seal, call_id: str) -> Self:
        """Read it.

        Raises:
            FleetError: it was sealed with another key.
        """
        found = seal.open(data, f"document {call_id}")
        return cls(
            str(found["life"]),
            int(found["channel"]),
            found.get("options", {}),
            str(found.get("bot", "")),
            int(found.get("done", 0)),
            found.get("frozen"),
        )
