"""The heart's session: `states/heartbeat.toml`."""

from __future__ import annotations

from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.core.signals import HeartDied, HeartStarted
from voicegw.effects import SendHeartbeat


class HeartbeatSession(MachineSession):
    """When to beat, and when to call the link dead."""

    __slots__ = ("interval_s", "next_beat_at")
    machine: ClassVar[str] = "heartbeat"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.interval_s = self.bound("beat_due")
        self.next_beat_at = 0.0

    # deadlines

    def until_next_beat(self) -> float:
        """Seconds to the next beat of the schedule, whatever the answer's delay was."""
        return max(0.0, self.next_beat_at - self.shared.now)

    # effects

    def note_interval(self, event: HeartStarted) -> None:
        """Hello's interval is an upper bound, and so is ours."""
        self.interval_s = min(event.interval_s, self.bound("beat_due"))

    def send_beat(self, event: Any) -> None:
        """Beat, and plan the next one from here."""
        self.next_beat_at = self.shared.now + self.interval_s
        self.shared.effects.append(SendHeartbeat(self.shared.sequence.last))

    def send_extra_beat(self, event: Any) -> None:
        """Beat outside the schedule."""
        self.shared.effects.append(SendHeartbeat(self.shared.sequence.last))

    def announce_death(self, event: Any) -> None:
        """Tell the gateway that the link is dead."""
        self.shared.signals.append(HeartDied())
