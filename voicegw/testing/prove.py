"""What tables and sessions prove together; `voicegw.tables.check` has the checks that need the tables alone.

| check | how |
|---|---|
| T04 | every pair of state and event is put to the engine, with a session that only notes; what is ignored is idle |
| T07 | all six machines together, from every kind of call under every event: `voicegw.testing.product` |
| T10 | the engine takes the rows of the table and no others, in simulated calls as with the session that only notes |
| T11 | sockets of before have no effect in any kind of call; two calls in one process do what each does alone |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from voicegw.core.machine_session import MachineSession
from voicegw.errors import EventNotAllowed
from voicegw.session import SESSIONS, E2EEPolicy
from voicegw.tables.check import Violation
from voicegw.tables.flow import way_to
from voicegw.tables.model import REFUSE, Table, Transition
from voicegw.testing.chaos import Chaos
from voicegw.testing.product import explore
from voicegw.testing.run import Run

Taken = tuple[str, int, str, str]
"""A machine, the number of the row that was taken, the state before and the state after."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was looked at, and what does not hold; `complete` where the product was followed to its end."""

    pairs: int
    kinds: int
    steps: int
    runs: int
    complete: bool
    violations: tuple[Violation, ...]


def prove(kinds: int, runs: int) -> Proof:
    """T04, T07, T10 and T11, following at most `kinds` kinds of calls a policy, and simulating `runs` calls."""
    violations: list[Violation] = []
    pairs = 0
    for session in SESSIONS.values():
        looked_at, found = put_to_the_engine(session)
        pairs += looked_at
        violations += found
    followed = [explore(policy, kinds) for policy in (E2EEPolicy.REQUIRE, E2EEPolicy.ALLOW)]
    for exploration in followed:
        for example in exploration.counterexamples:
            check = "T11" if example.what.startswith("V04") else "T07"
            violations.append(Violation(check, "all", "together", example.what, example.events))
    taken = {step for seed in range(runs) for step in Chaos(seed).go().rows}
    violations += not_in_the_tables(taken)
    violations += interleaved(range(runs))
    return Proof(
        pairs=pairs,
        kinds=sum(one.kinds for one in followed),
        steps=sum(one.steps for one in followed),
        runs=runs,
        complete=all(one.complete for one in followed),
        violations=tuple(violations),
    )


# -- T04 and T10: the engine


class Noting:
    """A session of any table: notes effects, timers and what is ignored, and answers guards as it is told."""

    def __init__(self, state: str, answers: Mapping[str, bool]) -> None:
        self.state = state
        self.answers = answers
        self.log: list[str] = []

    def arm(self, deadline: str, seconds: float) -> None:
        """Noted."""
        self.log.append(f"arm {deadline}")

    def cancel(self, deadline: str) -> None:
        """Noted."""
        self.log.append(f"cancel {deadline}")

    def bound(self, deadline: str) -> float:
        """Any time will do."""
        return 1.0

    def ignored(self, event: Any) -> None:
        """Right, and not worth a note."""

    def __getattr__(self, name: str) -> Any:
        if name in self.answers:
            return lambda event: self.answers[name]

        def note(event: Any = None) -> float:
            if event is not None:
                self.log.append(name)
            return 1.0

        return note


@dataclass(frozen=True, slots=True)
class _Named:
    name: str


def put_to_the_engine(session: type[MachineSession]) -> tuple[int, list[Violation]]:
    """Every pair of state and event, and where there are rows each row; how many that were, and what is wrong."""
    table, found, looked_at = session.table, [], 0
    for state in table.states:
        for word in table.vocabulary:
            rows = table.rows_for(state, word)
            for row in rows or (None,):
                looked_at += 1
                answers = _answers_for(rows, row)
                if answers is None:
                    continue
                wrong = _one_pair(session, state, word, row, answers)
                if wrong is not None:
                    where = str(row.row) if row else f"{word} in {state}"
                    events = (*way_to(table, state), word)
                    found.append(Violation("T10" if row else "T04", table.machine, where, wrong, events))
    return looked_at, found


def _one_pair(
    session: type[MachineSession], state: str, word: str, row: Transition | None, answers: Mapping[str, bool]
) -> str | None:
    table = session.table
    noting = Noting(state, answers)
    refused = False
    try:
        taken = session.engine.fire(noting, _Named(word))
    except EventNotAllowed:
        taken, refused = None, True
    if row is None:
        if noting.log or noting.state != state:
            return f"is ignored, and yet: {', '.join(noting.log) or noting.state}"
        return None if refused == (table.otherwise(word) == REFUSE) else "is not refused as the table says"
    expected = [*row.effects, *_timers(table, row)]
    if taken is None or taken.row.number != row.row.number:
        return f"another row is taken: {taken and taken.row}"
    if noting.log != expected or noting.state != (row.to or state):
        return f"the row says {expected}, the engine did {noting.log} and went to {noting.state}"
    return None


def _timers(table: Table, row: Transition) -> Iterator[str]:
    if row.to is not None:
        if table.states[row.state].deadline:
            yield f"cancel {table.states[row.state].deadline}"
        if table.states[row.to].deadline:
            yield f"arm {table.states[row.to].deadline}"


def _answers_for(rows: Iterable[Transition], wanted: Transition | None) -> dict[str, bool] | None:
    """Answers to all guards with which `wanted` is the first row that agrees; None where there are none."""
    answers: dict[str, bool] = {}
    for row in rows:
        if row.guard is None:
            return answers if row is wanted else None
        question, agrees = row.guard.removeprefix("!"), not row.guard.startswith("!")
        if answers.setdefault(question, agrees == (row is wanted)) != (agrees == (row is wanted)):
            return None
        if row is wanted:
            return answers
    return answers


# -- T10: simulated calls


def not_in_the_tables(taken: Iterable[Taken]) -> list[Violation]:
    """Steps that no row of the tables allows."""
    allowed = {
        (name, transition.row.number, transition.state, transition.to or transition.state)
        for name, session in SESSIONS.items()
        for transition in session.table.transitions
    }
    return [
        Violation("T10", machine, f"row {row}", f"a simulated call went from {before} to {after}, the row does not")
        for machine, row, before, after in sorted(set(taken) - allowed)
    ]


def never_taken(taken: Iterable[Taken]) -> list[str]:
    """The rows that no simulated call has taken."""
    used = {(machine, row) for machine, row, _, _ in taken}
    return [
        f"{name} {row}"
        for name, session in SESSIONS.items()
        for row in session.table.rows
        if (name, row.number) not in used
    ]


# -- T11: two calls


def interleaved(seeds: Iterable[int]) -> list[Violation]:
    """Each seed's call beside the next seed's, step by step in turns: both do what they do alone."""
    found = []
    for seed in seeds:
        both = (Chaos(seed), Chaos(seed + 1))
        for turn in range(max(len(chaos.plan.steps) for chaos in both)):
            for chaos in both:
                chaos.step(turn)
        together = [chaos.end() for chaos in both]
        alone = [Chaos(chaos.plan).go() for chaos in both]
        for run, before in zip(together, alone, strict=True):
            if run.trace_hash != before.trace_hash:
                found.append(Violation("T11", "all", f"seed {run.seed}", _difference(before, run)))
    return found


def _difference(alone: Run, together: Run) -> str:
    for before, after in zip(alone.tail, together.tail, strict=False):
        if before != after:
            return f"alone: {before}; beside another call: {after}"
    return f"alone: {alone.violation or alone.events}; beside another call: {together.violation or together.events}"
