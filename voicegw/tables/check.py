"""Look at a table for everything that can be seen without running it; a finding names its check and its row or state.

| check | a table passes if |
|---|---|
| T01 | every pair of state and event is decided: each word is known, each row can be taken, no last row is guarded |
| T02 | every state is reached from the initial one, and an end from every state |
| T03 | every state rests, is final, or waits with a deadline that leads on |
| T04 | no row arms a deadline anew and does nothing else; none waits for a deadline that its state does not have |
| T05 | no way through waiting states comes round, but by spending one of the attempts that a guard counts |
| T06 | the longest way is over within the time that the table promises |
| T08 | every close code is decided once, and ends every state that has a connection |
| T09 | what a row opens is closed on every way to an end |

T07, T10 and T11 need the sessions: `voicegw.testing.prove`. A finding brings the shortest list of events that leads to
it, guards left aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from voicegw.tables.flow import longest_round, rounds, unclosed, way_to
from voicegw.tables.load import load_table, table_names
from voicegw.tables.model import Table, Transition

CLOSE_CODES = range(1000, 5000)


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong, the check that finds it, and the events that lead there."""

    check: str
    machine: str
    where: str
    what: str
    events: tuple[str, ...] = ()

    def __str__(self) -> str:
        after = f"; after: {', '.join(self.events)}" if self.events else ""
        return f"{self.check} {self.machine}: {self.where}: {self.what}{after}"


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


Finding = tuple[str, str, str, tuple[str, ...]]


def check_table(table: Table, max_attempts: int = 12) -> list[Violation]:
    """Everything that is wrong with one table, in a fixed order; empty where all is well."""
    found = [Violation("T01", table.machine, where, what) for where, what in _words(table)]
    if not found:  # the graph means nothing while names do not resolve
        looks = (_rows, _graph, _waiting, _deadlines, _liveness, _closes, _resources)
        found = [
            Violation(check, table.machine, where, what, events)
            for look in looks
            for check, where, what, events in look(table)
        ]
        found += [] if found else _bound(table, max_attempts)
    return found


def check_words(table: Table, session: type) -> list[Violation]:
    """Guards, effects and `given_by` that the session's class does not have."""
    found = []
    for row in table.rows:
        for name in (*([row.guard.removeprefix("!")] if row.guard else []), *row.effects):
            if not callable(getattr(session, name, None)):
                found.append(Violation("T01", table.machine, str(row), f"{session.__name__} has no {name!r}"))
    for deadline in table.deadlines.values():
        if deadline.given_by and not callable(getattr(session, deadline.given_by, None)):
            where = f"deadline {deadline.name}"
            found.append(Violation("T01", table.machine, where, f"{session.__name__} has no {deadline.given_by!r}"))
    return found


def check_all(sessions: Mapping[str, type], max_attempts: int) -> Report:
    """All tables, with the words of their sessions' classes; `max_attempts` bounds the call's attempts.

    Raises:
        TableError: a table cannot even be read.
    """
    tables = [load_table(name) for name in table_names()]
    violations: list[Violation] = []
    for table in tables:
        violations += check_table(table, max_attempts)
        if table.machine in sessions:
            violations += check_words(table, sessions[table.machine])
        else:
            violations.append(Violation("T01", table.machine, "the table", "no session carries it out"))
    return Report(
        states=sum(len(table.states) for table in tables),
        rows=sum(len(table.rows) for table in tables),
        pairs=sum(len(table.states) * len(table.vocabulary) for table in tables),
        bound_s=longest_round(load_table("call"), max_attempts).seconds,
        violations=tuple(violations),
    )


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
    effects = {effect for row in table.rows for effect in row.effects}
    guards = {row.guard.removeprefix("!") for row in table.rows if row.guard}
    for where, names, known in (
        ("begun_by", table.begun_by, set(table.vocabulary)),
        ("limited_by", table.limited_by, guards),
        *((f"resource {one.name}", (*one.opened_by, *one.closed_by), effects) for one in table.resources),
    ):
        for name in names:
            if name not in known:
                yield where, f"{name!r} is in no row"


def _rows(table: Table) -> Iterator[Finding]:
    used = {row.event for row in table.rows}
    for name in table.vocabulary:
        if name not in used:
            yield "T01", f"event {name}", "no row uses it", ()
    for name in table.states:
        for event in sorted(table.enabled(name)):
            rows = table.rows_for(name, event)
            if all(row.guard is not None for row in rows):
                what = f"the last row of {event} in {name} is guarded: nothing decides the rest"
                yield "T01", str(rows[-1].row), what, (*way_to(table, name), event)
    taken = {
        transition.row.number
        for name in table.states
        for event in table.enabled(name)
        for transition in takeable(table, name, event)
    }
    for row in table.rows:
        if row.number not in taken:
            yield "T01", str(row), "shadowed: in each of its states an earlier row decides", ()


def takeable(table: Table, state: str, event: str) -> Iterator[Transition]:
    """The rows that can be taken: not after one without a guard, nor where the same guard was asked before."""
    asked: set[str] = set()
    for transition in table.rows_for(state, event):
        if transition.guard is None:
            yield transition
            return
        if transition.guard not in asked:
            yield transition
        asked.add(transition.guard)


def _graph(table: Table) -> Iterator[Finding]:
    seen = reachable(table, (table.initial,))
    for name in table.states:
        if name not in seen:
            yield "T02", f"state {name}", "cannot be reached", ()
    if table.final:
        ending = reachable(table, table.final, backwards=True)
        for name in table.states:
            if name not in ending:
                yield "T02", f"state {name}", "has no way to an end", way_to(table, name)


def _waiting(table: Table) -> Iterator[Finding]:
    waited_for = {state.deadline for state in table.states.values()}
    for name in table.deadlines:
        if name not in waited_for:
            yield "T03", f"deadline {name}", "no state waits with it", ()
    for state in table.states.values():
        where = f"state {state.name}"
        if (state.deadline is not None) + state.rest + (state.name in table.final) != 1:
            what = "must have a deadline, rest, or be final: exactly one"
            yield "T03", where, what, way_to(table, state.name)
        if state.deadline is not None:
            rows = table.rows_for(state.name, state.deadline)
            way = (*way_to(table, state.name), state.deadline)
            if not rows:
                yield "T03", where, f"its deadline {state.deadline} has no row", way
            for row in rows:
                if row.to is None:
                    what = f"{state.deadline} passes in {state.name} and nothing is armed any more"
                    yield "T03", str(row.row), what, way


def _deadlines(table: Table) -> Iterator[Finding]:
    for transition in table.transitions:
        state = table.states[transition.state]
        way = (*way_to(table, state.name), transition.event)
        if transition.event in table.deadlines and transition.event != state.deadline:
            what = f"{state.name} does not wait with {transition.event}: it is cancelled there"
            yield "T04", str(transition.row), what, way
        if state.deadline and transition.to == state.name and not transition.effects:
            what = f"{transition.event} arms {state.deadline} anew in {state.name} and does nothing else"
            yield "T04", str(transition.row), what, way


def _liveness(table: Table) -> Iterator[Finding]:
    for start, events in rounds(table):
        what = f"a way round that spends nothing: {', '.join(events)}"
        yield "T05", f"state {start}", what, (*way_to(table, start), *events)
    for transition in table.transitions:
        if table.spends in transition.effects and table.states[transition.state].deadline:
            before = []
            for row in table.rows_for(transition.state, transition.event):
                if row is transition:
                    break
                before.append(row.guard)
            if not set(before) & set(table.limited_by):
                what = f"spends an attempt in {transition.state} and no row before it asks whether one is left"
                yield "T05", str(transition.row), what, (*way_to(table, transition.state), transition.event)


def _bound(table: Table, max_attempts: int) -> list[Violation]:
    if table.gives_up_after is None:
        return []
    longest = longest_round(table, max_attempts)
    if longest.seconds <= table.gives_up_after:
        return []
    what = f"a round can last {longest.seconds:g} s, the table promises {table.gives_up_after:g} s"
    return [Violation("T06", table.machine, f"state {longest.start}", what, longest.events)]


def _closes(table: Table) -> Iterator[Finding]:
    if not table.close_codes:
        return
    for code in (None, *CLOSE_CODES):
        widths = [width for entry in table.close_codes if (width := entry.width(code)) is not None]
        if not widths:
            yield "T08", f"close code {code}", "is not decided", ()
        elif widths.count(min(widths)) > 1:
            yield "T08", f"close code {code}", "is decided twice", ()
    for name in table.states:
        if name not in table.final:
            for entry in table.close_codes:
                rows = table.rows_for(name, entry.event)
                if not any(row.to is not None for row in rows):
                    what = f"close {', '.join(map(str, entry.codes))} ({entry.event}) does not end it"
                    yield "T08", f"state {name}", what, (*way_to(table, name), entry.event)


def _resources(table: Table) -> Iterator[Finding]:
    for resource in table.resources:
        for where, what, events in unclosed(table, resource):
            yield "T09", where, what, events
