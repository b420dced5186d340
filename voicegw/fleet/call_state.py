"""What a bot may ask of a call that is elsewhere: as its worker told last."""

from __future__ import annotations

from typing import Any

from voicegw.media.heard import CallStats
from voicegw.signalling import NO_FLAGS, VoiceFlags


class FleetCallState:
    """The part of `FleetClient` that is only looked at."""

    def __init__(self) -> None:
        self._about: dict[str, Any] = {}

    @property
    def states(self) -> dict[str, str]:
        """The state of each machine."""
        return dict(self._about.get("states", {}))

    @property
    def latency(self) -> float:
        """The last heartbeat's round trip in seconds, between worker and voice server."""
        return float(self._about.get("latency", 0.0))

    @property
    def users(self) -> frozenset[int]:
        """The others in the call."""
        return frozenset(self._about.get("users", ()))

    @property
    def speaking(self) -> frozenset[int]:
        """Who is being heard."""
        return frozenset(self._about.get("speaking", ()))

    @property
    def flags(self) -> VoiceFlags:
        """Whether a moderator, the bot or the stage has muted, deafened or suppressed us."""
        return VoiceFlags(**self._about["flags"]) if "flags" in self._about else NO_FLAGS

    @property
    def epoch(self) -> int:
        """The epoch of the E2EE group, 0 while there is none."""
        return int(self._about.get("epoch", 0))

    @property
    def privacy_code(self) -> str:
        """30 digits that all in the call see alike where nobody listens in; empty while there is no group."""
        return str(self._about.get("privacy_code", ""))

    @property
    def stats(self) -> CallStats:
        """What the present worker has sent."""
        packets, sent, held, errors = self._about.get("stats", (0, 0, 0, 0))
        return CallStats(packets, sent, held, errors, {})
