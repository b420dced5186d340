"""Look at a table for everything that can be seen without running it; each finding names its row or state.

The rules: every word is known; every row can be taken and the last row of an event is not guarded; every state is
reachable; where a machine has an end, every state has a way to it; every state either rests, is final, or waits with
a deadline, and a deadline that passes always leads somewhere else; where attempts are counted, no way through waiting
states comes round without spending one; every close code ends every state of a connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from voicegw.tables.load import load_table, table_names
from voicegw.tables.model import Table, Transition

CLOSE_CODES = range(1000, 5000)


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a table."""

    machine: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.machine}: {self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class Report:
    """All tables together.

    `pairs` counts (state, event) pairs, all of them decided; `bound_s` is the longest that a wish to join can stay
    undecided.
    """

    states: int
    rows: int
    pairs: int
    bound_s: float
    violations: tuple[Violation, ...]


def check_table(table: Table) -> list[Violation]:
    """Everything that is wrong with one table, in a fixed order; empty where all is well."""
    found = [Violation(table.machine, where, what) for where, what in _words(table)]
    if not found:  # the graph means nothing while names do not resolve
        looks = (_rows, _waiting, _graph, _liveness, _closes)
        found = [Violation(table.machine, where, what) for look in looks for where, what in look(table)]
    return found


def check_words(table: Table, session: type) -> list[Violation]:
    """Guards, effects and `given_by` that the session's class does not have."""
    found = []
    for row in table.rows:
        for name in (*([row.guard.removeprefix("!")] if row.guard else []), *row.effects):
            if not callable(getattr(session, name, None)):
                found.append(Violation(table.machine, str(row), f"{session.__name__} has no {name!r}"))
    for deadline in table.deadlines.values():
        if deadline.given_by and not callable(getattr(session, deadline.given_by, None)):
            where = f"deadline {deadline.name}"
            found.append(Violation(table.machine, where, f"{session.__name__} has no {deadline.given_by!r}"))
    return found


def check_all(sessions: Mapping[str, type], max_attempts: int) -> Report:
    """All tables, with the words of their sessions' classes; `max_attempts` bounds the call's attempts.

    Raises:
        TableError: a table cannot even be read.
    """
    tables = [load_table(name) for name in table_names()]
    violations: list[Violation] = []
    for table in tables:
        violations += check_table(table)
        if table.machine in sessions:
            violations += check_words(table, sessions[table.machine])
        else:
            violations.append(Violation(table.machine, "the table", "no session carries it out"))
    return Report(
        states=sum(len(table.states) for table in tables),
        rows=sum(len(table.rows) for table in tables),
        pairs=sum(len(table.states) * len(table.vocabulary) for table in tables),
        bound_s=max_attempts * longest_wait(load_table("call")),
        violations=tuple(violations),
    )


def longest_wait(table: Table) -> float:
    """Seconds of the longest way through states that wait, without a row that spends an attempt.

    Resting and final states end a way. Where the rows are sound there is no way round, so this is a bound.
    """
    ways, waits = _ways(table)

    def longest(name: str, passed: frozenset[str]) -> float:
        onward = (longest(other, passed | {other}) for other in ways[name] if other not in passed)
        return waits[name] + max(onward, default=0.0)

    return max((longest(name, frozenset({name})) for name in waits), default=0.0)


def _ways(table: Table) -> tuple[dict[str, list[str]], dict[str, float]]:
    """From each state that waits to the next ones, without spending; and how long each waits."""
    waits = {name: table.deadlines[state.deadline].seconds for name, state in table.states.items() if state.deadline}
    ways: dict[str, list[str]] = {name: [] for name in waits}
    for transition in table.transitions:
        source, target = transition.state, transition.to
        if (
            source in waits
            and target in waits
            and table.spends not in transition.effects
            and target not in ways[source]
        ):
            ways[source].append(target)
    return ways, waits


def reachable(table: Table, start: Iterable[str], *, backwards: bool = False) -> set[str]:
    """The states that rows lead to from `start`, or with `backwards` those that lead there."""
    ways: dict[str, set[str]] = {name: set() for name in table.states}
    for transition in table.transitions:
        if transition.to is not None:
            source, target = (transition.to, transition.state) if backwards else (transition.state, transition.to)
            ways[source].add(target)
    seen = set(start)
    todo = list(seen)
    while todo:
        for name in ways[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    return seen


def _words(table: Table) -> Iterator[tuple[str, str]]:
    for what, names in (("initial", (table.initial,)), ("final", table.final)):
        for name in names:
            if name not in table.states:
                yield what, f"{name!r} is not a leaf state"
    for name in set(table.events) & set(table.deadlines):
        yield f"event {name}", "is a deadline, too"
    for state in table.states.values():
        if state.deadline is not None and state.deadline not in table.deadlines:
            yield f"state {state.name}", f"unknown deadline {state.deadline!r}"
    for row in table.rows:
        if row.event not in table.vocabulary:
            yield str(row), f"unknown event {row.event!r}"
        for source in row.sources:
            if not table.leaves(source):
                yield str(row), f"unknown state {source!r}"
        if row.to is not None and row.to not in table.states:
            yield str(row), f"'to' must be a leaf state, {row.to!r} is not"
    for entry in table.close_codes:
        if entry.event not in table.events:
            yield f"close code {entry.codes}", f"unknown event {entry.event!r}"


def _rows(table: Table) -> Iterator[tuple[str, str]]:
    used = {row.event for row in table.rows}
    for name in table.vocabulary:
        if name not in used:
            yield f"event {name}", "no row uses it"
    for name in table.states:
        for event in sorted(table.enabled(name)):
            rows = table.rows_for(name, event)
            if all(row.guard is not None for row in rows):
                yield (
                    str(rows[-1].row),
                    f"the last row of {event} in {name} is guarded: nothing decides the rest",
                )
    taken = {
        transition.row.number
        for name in table.states
        for event in table.enabled(name)
        for transition in _takeable(table, name, event)
    }
    for row in table.rows:
        if row.number not in taken:
            yield str(row), "shadowed: in each of its states an earlier row decides"
    if table.close_codes:
        for code in (None, *CLOSE_CODES):
            if all(entry.width(code) is None for entry in table.close_codes):
                yield f"close code {code}", "is not decided"


def _takeable(table: Table, state: str, event: str) -> Iterator[Transition]:
    """The rows that can be taken: not after one without a guard, nor where the same guard was asked before."""
    asked: set[str] = set()
    for transition in table.rows_for(state, event):
        if transition.guard is None:
            yield transition
            return
        if transition.guard not in asked:
            yield transition
        asked.add(transition.guard)


def _waiting(table: Table) -> Iterator[tuple[str, str]]:
    waited_for = {state.deadline for state in table.states.values()}
    for name in table.deadlines:
        if name not in waited_for:
            yield f"deadline {name}", "no state waits with it"
    for state in table.states.values():
        where = f"state {state.name}"
        if (state.deadline is not None) + state.rest + (state.name in table.final) != 1:
            yield where, "must have a deadline, rest, or be final: exactly one"
        if state.deadline is not None:
            rows = table.rows_for(state.name, state.deadline)
            if not rows:
                yield where, f"its deadline {state.deadline} has no row"
            for row in rows:
                if row.to is None:
                    yield (
                        str(row.row),
                        f"{state.deadline} passes in {state.name} and nothing is armed any more",
                    )


def _graph(table: Table) -> Iterator[tuple[str, str]]:
    seen = reachable(table, (table.initial,))
    for name in table.states:
        if name not in seen:
            yield f"state {name}", "cannot be reached"
    if table.final:
        ending = reachable(table, table.final, backwards=True)
        for name in table.states:
            if name not in ending:
                yield f"state {name}", "has no way to an end"


def _liveness(table: Table) -> Iterator[tuple[str, str]]:
    """No way round through states that wait without spending an attempt, where attempts are counted."""
    if table.spends is None:
        return
    ways, _ = _ways(table)
    for start in ways:
        todo: list[tuple[str, tuple[str, ...]]] = [(start, (start,))]
        seen: set[str] = set()
        while todo:
            name, path = todo.pop(0)
            for other in ways[name]:
                if other == start:
                    yield f"state {start}", f"a way round that spends nothing: {' > '.join((*path, start))}"
                    todo.clear()
                    break
                if other not in seen:
                    seen.add(other)
                    todo.append((other, (*path, other)))


def _closes(table: Table) -> Iterator[tuple[str, str]]:
    """Each close code leads out of every state that has a session or makes one."""
    for name in table.states:
        if table.close_codes and name not in table.final:
            for entry in table.close_codes:
                rows = table.rows_for(name, entry.event)
                if not any(row.to is not None for row in rows):
                    yield f"state {name}", f"close {', '.join(map(str, entry.codes))} ({entry.event}) does not end it"
