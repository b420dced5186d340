"""What the sessions of all machines share: the state, and the deadline that goes with it."""

from __future__ import annotations

from typing import Any, ClassVar

from voicegw.core.shared import Shared
from voicegw.effects import ArmTimer, CancelTimer
from voicegw.errors import TableError
from voicegw.tables.check import check_words
from voicegw.tables.load import load_table
from voicegw.tables.machine import Engine, engine
from voicegw.tables.model import Table, Transition


class MachineSession:
    """One machine's state in one call; rows and guards are the methods of the subclass.

    All sessions of a machine share one `transitions.Machine`; none is registered with it, so a session is a few slots.
    """

    __slots__ = ("shared", "state")
    machine: ClassVar[str]
    table: ClassVar[Table]
    engine: ClassVar[Engine]

    def __init_subclass__(cls) -> None:
        cls.table = load_table(cls.machine)
        for violation in check_words(cls.table, cls):
            raise TableError(str(violation))
        cls.engine = engine(cls.machine)

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.state = self.table.initial

    def fire(self, event: Any) -> Transition | None:
        """Let the table decide; the row that was taken. Raises EventNotAllowed where the table refuses."""
        return self.engine.fire(self, event)

    # what the engine asks for when a state is entered or left

    def bound(self, deadline: str) -> float:
        """How long the deadline lasts at most: what the bot's options say, else the table."""
        seconds = self.shared.options.deadlines.get(deadline)
        return self.table.deadlines[deadline].seconds if seconds is None else seconds

    def arm(self, deadline: str, seconds: float) -> None:
        """The state that is being entered waits no longer than this."""
        at = self.shared.now + seconds
        self.shared.timers[deadline] = at
        jitter = self.table.deadlines[deadline].jitter
        self.shared.effects.append(ArmTimer(deadline, at, seconds, jitter))

    def cancel(self, deadline: str) -> None:
        """The state that waited is being left."""
        if self.shared.timers.pop(deadline, None) is not None:
            self.shared.effects.append(CancelTimer(deadline))

    def ignored(self, event: Any) -> None:
        """The table ignores this event here; it is counted."""
        self.shared.counters[f"ignored: {event.name}"] += 1
