"""Run the tables: one flat, synchronous `transitions.Machine` for all sessions of a table.

A session is never registered with the machine; it is passed to every trigger and keeps its state in `session.state`.
That costs a session a few slots and an event some 2 µs, and nothing of a session outlives it.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, ClassVar, Protocol

import transitions

from voicegw.errors import EventNotAllowed
from voicegw.tables.load import load_table
from voicegw.tables.model import REFUSE, Deadline, Table, Transition


class EngineSession(Protocol):
    """What the engine asks of a session, besides the guards and effects that its rows name."""

    state: str

    def bound(self, deadline: str) -> float:
        """How many seconds the deadline may last at most: the table's, or another that was chosen."""

    def arm(self, deadline: str, seconds: float) -> None:
        """A state that waits is entered: bring the deadline's event after `seconds`."""

    def cancel(self, deadline: str) -> None:
        """A state that waits is left."""

    def ignored(self, event: Any) -> None:
        """The table has no row for the event here and ignores it."""


class TableState(transitions.State):
    """A state that arms its deadline when it is entered and cancels it when it is left."""

    table: ClassVar[Table]

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        deadline = self.table.states[name].deadline
        self.deadline: Deadline | None = None if deadline is None else self.table.deadlines[deadline]

    def come(self, session: Any) -> None:
        """Arm the deadline."""
        deadline = self.deadline
        if deadline is not None:
            seconds = getattr(session, deadline.given_by)() if deadline.given_by else session.bound(deadline.name)
            session.arm(deadline.name, seconds)

    def leave(self, session: Any) -> None:
        """Cancel the deadline."""
        if self.deadline is not None:
            session.cancel(self.deadline.name)

    def enter(self, event_data: transitions.EventData) -> None:
        """What `transitions` calls for `come`."""
        self.come(event_data.model)

    def exit(self, event_data: transitions.EventData) -> None:
        """What `transitions` calls for `leave`."""
        self.leave(event_data.model)


class TableTransition(transitions.Transition):
    """One row for one leaf, with that row, and with the states that it leaves and enters if it moves."""

    left: TableState
    entered: TableState

    def __init__(self, *args: Any, row: Transition, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row = row
        self.question = None if row.guard is None else row.guard.removeprefix("!")
        self.wanted = row.guard is None or not row.guard.startswith("!")


class TableEvent(transitions.Event):
    """Takes the first row that agrees, and says which it was.

    What `transitions` does between trigger and row (a queue, callbacks around callbacks, event data) is for what our
    rows do not have; without it an event costs a quarter. A test runs both ways and compares.
    """

    def trigger(self, model: Any, event: Any) -> Any:
        """The `Transition` that was taken; None where every guard said no."""
        rows: list[Any] = self.transitions[model.state]
        for transition in rows:
            if transition.question is not None and getattr(model, transition.question)(event) != transition.wanted:
                continue
            for effect in transition.before:
                getattr(model, effect)(event)
            if transition.dest is not None:
                if transition.left.deadline is not None:
                    model.cancel(transition.left.deadline.name)
                model.state = transition.dest
                if transition.entered.deadline is not None:
                    transition.entered.come(model)
            return transition.row
        return None


class Engine:
    """One table's machine; a row's effects run in order before the old deadline is cancelled and the new one armed."""

    def __init__(self, table: Table, event_class: type[transitions.Event] = TableEvent) -> None:
        self.table = table
        classes = {
            "state_cls": type(f"{table.machine.title()}State", (TableState,), {"table": table}),
            "transition_cls": TableTransition,
            "event_cls": event_class,
        }
        machine_class = type(f"{table.machine.title()}Machine", (transitions.Machine,), classes)
        self.machine: transitions.Machine = machine_class(
            model=None,
            states=list(table.states),
            transitions=[_keywords(transition) for transition in table.transitions],
            initial=table.initial,
            auto_transitions=False,
        )
        for event in self.machine.events.values():
            for transition in itertools.chain.from_iterable(event.transitions.values()):
                if transition.dest is not None:
                    transition.left = self.machine.states[transition.source]
                    transition.entered = self.machine.states[transition.dest]
        self._decided = {(row.state, row.event): self.machine.events[row.event].trigger for row in table.transitions}

    def fire(self, session: EngineSession, event: Any) -> Transition | None:
        """Take the first row of (session's state, `event.name`) whose guard agrees; None where there is no row.

        Raises:
            EventNotAllowed: the table refuses the event in this state; nothing has changed.
        """
        name: str = event.name
        trigger = self._decided.get((session.state, name))
        if trigger is None:
            if self.table.otherwise(name) == REFUSE:
                raise EventNotAllowed(name, session.state)
            session.ignored(event)
            return None
        taken: Transition | None = trigger(session, event)
        return taken


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
        "row": row,
    }
    if row.guard is not None:
        negated = row.guard.startswith("!")
        keywords["unless" if negated else "conditions"] = row.guard.removeprefix("!")
    return keywords
