"""Run the tables: one flat, synchronous `transitions.Machine` for all sessions of a table.

A session is never registered with the machine; it is passed to every trigger and keeps its state in `session.state`.
That costs a session a few slots and an event some 10 µs, and nothing of a session outlives it.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Protocol

import transitions

from voicegw.errors import EventNotAllowed
from voicegw.tables.load import load_table
from voicegw.tables.model import REFUSE, Table, Transition


class EngineSession(Protocol):
    """What the engine asks of a session, besides the guards and effects that its rows name."""

    state: str

    def arm(self, deadline: str, seconds: float) -> None:
        """A state that waits is entered: bring the deadline's event after `seconds`."""

    def cancel(self, deadline: str) -> None:
        """A state that waits is left."""

    def ignored(self, event: Any) -> None:
        """The table has no row for the event here and ignores it."""


class WaitingState(transitions.State):
    """A state that arms its deadline when it is entered and cancels it when it is left."""

    table: ClassVar[Table]

    def enter(self, event_data: transitions.EventData) -> None:
        """Arm the deadline."""
        name = self.table.states[self.name].deadline
        if name is not None:
            session: Any = event_data.model
            deadline = self.table.deadlines[name]
            seconds = getattr(session, deadline.given_by)() if deadline.given_by else deadline.seconds
            session.arm(name, seconds)

    def exit(self, event_data: transitions.EventData) -> None:
        """Cancel the deadline."""
        name = self.table.states[self.name].deadline
        if name is not None:
            session: Any = event_data.model
            session.cancel(name)


class Engine:
    """One table's machine; a row's effects run in order before the old deadline is cancelled and the new one armed."""

    def __init__(self, table: Table) -> None:
        self.table = table
        state_class = type(f"{table.machine.title()}State", (WaitingState,), {"table": table})
        machine_class = type(f"{table.machine.title()}Machine", (transitions.Machine,), {"state_cls": state_class})
        self.machine: transitions.Machine = machine_class(
            model=None,
            states=list(table.states),
            transitions=[_keywords(transition) for transition in table.transitions],
            initial=table.initial,
            auto_transitions=False,
        )
        self._triggers = {name: event.trigger for name, event in self.machine.events.items()}
        self._decided = frozenset((row.state, row.event) for row in table.transitions)

    def fire(self, session: EngineSession, event: Any) -> bool:
        """Take the first row of (session's state, `event.name`) whose guard agrees; False where there is no row.

        Raises:
            EventNotAllowed: the table refuses the event in this state; nothing has changed.
        """
        name: str = event.name
        if (session.state, name) not in self._decided:
            if self.table.otherwise(name) == REFUSE:
                raise EventNotAllowed(name, session.state)
            session.ignored(event)
            return False
        self._triggers[name](session, event)
        return True


@functools.cache
def engine(name: str) -> Engine:
    """The engine of one table, made once.

    Raises:
        TableError: the table is wrong.
    """
    return Engine(load_table(name))


def _keywords(row: Transition) -> dict[str, Any]:
    keywords: dict[str, Any] = {
        "trigger": row.event,
        "source": row.state,
        "dest": row.to,
        "before": list(row.effects),
    }
    if row.guard is not None:
        negated = row.guard.startswith("!")
        keywords["unless" if negated else "conditions"] = row.guard.removeprefix("!")
    return keywords
