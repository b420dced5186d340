"""What one simulated call brought, and how its steps and effects are told for the trace's hash."""

from __future__ import annotations

import operator
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from voicegw.effects import Effect
from voicegw.session import Transition
from voicegw.testing.plan import Plan
from voicegw.testing.world import World

KEPT_LINES = 50

Row = tuple[str, int, str, str]


@dataclass(slots=True)
class Run:
    """What one plan brought; `violation` is None where all invariants held and the call came to ready or to its end.

    `voice_sessions` is how often the call identified or resumed at a voice server. `rows` are the rows that were taken,
    as (machine, row, state before, state after), `last` the last of all steps.
    """

    plan: Plan
    events: int = 0
    virtual_s: float = 0.0
    voice_sessions: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    rows: set[Row] = field(default_factory=set)
    trace_hash: str = ""
    violation: str | None = None
    last: deque[Transition] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    story: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The plan's."""
        return self.plan.seed

    @property
    def kind(self) -> str | None:
        """The id of the invariant that does not hold."""
        return None if self.violation is None else self.violation[:3]

    @property
    def tail(self) -> list[str]:
        """The end of the trace, in lines for people."""
        return [
            f"{step.at - World.BEGIN:9.3f} {step.machine} {step.before} --{step.event}--> {step.after} (row {step.row})"
            for step in self.last
        ]


def fields_of(effect: Effect) -> str:
    """An effect's name and fields as text; what `repr` says, at a third of its time."""
    kind = type(effect)
    getter = _getters.get(kind)
    if getter is None:
        names = [one.name for one in fields(kind)]
        getter = _getters[kind] = operator.attrgetter(*names) if names else lambda effect: ()
    return f"{kind.__name__} {getter(effect)}"


_getters: dict[type, Callable[[Any], object]] = {}


class _Told(dict[Row, str]):
    """Rows as text; what was told once is known."""

    def __missing__(self, row: Row) -> str:
        machine, number, _, after = row
        text = self[row] = f"{machine} {number} {after}"
        return text


TOLD = _Told()
row_of = operator.itemgetter(*map(Transition._fields.index, ("machine", "row", "before", "after")))
