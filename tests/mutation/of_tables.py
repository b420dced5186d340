"""Mutants of a table: what somebody who edits it could get wrong, one thing at a time.

Two neighbouring effects change places only where one touches what the other does: otherwise the order says nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from tests.mutation.mutant import Mutant, Trace
from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.errors import TableError
from voicegw.session import ALL_SESSIONS
from voicegw.tables.check import check_table, check_words
from voicegw.tables.load import flattened
from voicegw.tables.machine import Engine
from voicegw.tables.model import IGNORE, REFUSE, Row, Table

Change = tuple[str, str, Table, Iterable[Trace]]
"""A kind, what is changed, the changed table, and the traces of tests that may notice it."""


def mutants(machine: str) -> Iterator[Mutant]:
    """All of one table."""
    session = ALL_SESSIONS[machine]
    table = session.table
    known: Counter[str] = Counter()
    for kind, what, changed, traces in _changes(table, session):
        known[what] += 1
        again = f" ({known[what]})" if known[what] > 1 else ""
        install = functools.partial(_install, session, changed)
        yield Mutant(f"{machine}: {what}{again}", f"{machine}.toml", kind, frozenset(traces), install)


def _install(session: type[MachineSession], changed: Table) -> None:
    """Put it in the place of the table that everybody holds.

    Raises:
        TableError: the checks that every table must pass when it is loaded refuse it.
    """
    changed = flattened(changed)
    for violation in (*check_table(changed), *check_words(changed, session)):
        raise TableError(str(violation))
    for field in dataclasses.fields(changed):
        object.__setattr__(session.table, field.name, getattr(changed, field.name))
    Engine.__init__(session.engine, session.table)


def _changes(table: Table, session: type[MachineSession]) -> Iterator[Change]:
    for index, row in enumerate(table.rows):
        leaves = tuple(dict.fromkeys(leaf for source in row.sources for leaf in table.leaves(source)))
        taken = [("taken", table.machine, row.number, leaf) for leaf in leaves]
        declined = [("declined", table.machine, row.number, leaf) for leaf in leaves]
        others = (*table.rows[:index], *table.rows[index + 1 :])
        name = _name(row)
        yield "row", f"{name}: removed", replace(table, rows=others), taken
        for kind, what, changed, looked_at in _row_changes(table, session, row, leaves):
            rows = (*table.rows[:index], changed, *table.rows[index + 1 :])
            traces = {"taken": taken, "declined": declined, "both": taken + declined}.get(looked_at)
            yield (
                kind,
                f"{name}: {what}",
                replace(table, rows=rows),
                traces or [("taken", table.machine, row.number, looked_at)],
            )
    yield from _deadlines(table)
    yield from _events(table)


def _name(row: Row) -> str:
    guard = f" [{row.guard}]" if row.guard else ""
    more = " ..." if len(row.sources) > 1 else ""
    return f"{row.sources[0]}{more} --{row.event}{guard}--> {row.to or 'stays'}"


def _row_changes(
    table: Table, session: type[MachineSession], row: Row, leaves: tuple[str, ...]
) -> Iterator[tuple[str, str, Row, str]]:
    """A kind, what is changed, the row, and how a test must have met the row."""
    if row.to is not None:
        if set(leaves) != {row.to}:
            yield "to", "stays", replace(row, to=None), "taken"
        names = list(table.states)
        place = names.index(row.to)
        near = [name for name in names if table.states[name].parent == table.states[row.to].parent and name != row.to]
        other = near[0] if near else names[(place + 1) % len(names)]
        yield "to", f"to {other}", replace(row, to=other), "taken"
    elif len(leaves) == 1 and table.states[leaves[0]].deadline:
        yield "to", "enters its state anew", replace(row, to=leaves[0]), "taken"
    if row.guard is not None:
        turned = row.guard[1:] if row.guard.startswith("!") else f"!{row.guard}"
        yield "guard", "guard removed", replace(row, guard=None), "declined"
        yield "guard", "guard turned round", replace(row, guard=turned), "both"
    for place, effect in enumerate(row.effects):
        kept = (*row.effects[:place], *row.effects[place + 1 :])
        yield "effect", f"without {effect}", replace(row, effects=kept), "taken"
    for place, (first, second) in enumerate(zip(row.effects, row.effects[1:], strict=False)):
        if _depend(session, first, second):
            order = (*row.effects[:place], second, first, *row.effects[place + 2 :])
            yield "order", f"{second} before {first}", replace(row, effects=order), "taken"


def _deadlines(table: Table) -> Iterator[Change]:
    for name, deadline in table.deadlines.items():
        waiting = [("waits", table.machine, state.name) for state in table.states.values() if state.deadline == name]
        for what, changed in (
            ("half as long", replace(deadline, seconds=deadline.seconds / 2)),
            ("twice as long", replace(deadline, seconds=deadline.seconds * 2)),
            ("as long as its bound", replace(deadline, given_by=None)),
            ("jitter turned round", replace(deadline, jitter=not deadline.jitter)),
        ):
            if changed != deadline:
                deadlines = {**table.deadlines, name: changed}
                yield "deadline", f"deadline {name}: {what}", replace(table, deadlines=deadlines), waiting
    for name, state in table.states.items():
        if state.deadline is not None:
            states = {**table.states, name: replace(state, deadline=None, rest=True)}
            yield "deadline", f"{name}: rests", replace(table, states=states), [("waits", table.machine, name)]


def _events(table: Table) -> Iterator[Change]:
    for name, event in table.events.items():
        other = REFUSE if event.otherwise == IGNORE else IGNORE
        events = {**table.events, name: replace(event, otherwise=other)}
        yield "otherwise", f"event {name}: {other}", replace(table, events=events), [("unheard", table.machine, name)]
    for index, entry in enumerate(table.close_codes):
        for item in entry.codes:
            left = replace(entry, codes=tuple(code for code in entry.codes if code != item))
            codes = (*table.close_codes[:index], left, *table.close_codes[index + 1 :])
            low, high = left_out = (replace(entry, codes=(item,)).ranges or ((None, None),))[0]
            met = [None] if left_out == (None, None) else range(low or 0, (high or 0) + 1)
            traces = [("close", table.machine, code) for code in met]
            yield "close code", f"close {item}: not {entry.event}", replace(table, close_codes=codes), traces


# -- what effects touch


def _depend(session: Any, first: str, second: str) -> bool:
    reads, writes = _touched(session, first)
    others_reads, others_writes = _touched(session, second)
    return first != second and bool(writes & (others_reads | others_writes) or others_writes & reads)


@functools.cache
def _touched(owner: Any, method: str) -> tuple[frozenset[str], frozenset[str]]:
    """The values of the session and of the call that a method reads, and those that it changes; counters commute."""
    value: Any = inspect.getattr_static(owner, method)
    function: Any = value.fget if isinstance(value, property) else value
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    reads: set[str] = set()
    writes: set[str] = set()
    changing = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    changing |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) in changing}
    for node in ast.walk(tree):
        path = _path(node)
        if path is None or path[0] != "self" or len(path) < 2:
            continue
        of, name = (Shared, path[2]) if path[1] == "shared" and len(path) > 2 else (owner, path[1])
        if name in ("counters", "shared"):
            continue
        if callable(inspect.getattr_static(of, name, None)) or isinstance(
            inspect.getattr_static(of, name, None), property
        ):
            more_reads, more_writes = _touched(of, name)
            reads |= more_reads
            writes |= more_writes
        else:
            reads.add(name)
            stored = isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)
            if stored or id(node) in changing:
                writes.add(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            path = _path(node.value)
            if path is not None and path[0] == "self":
                writes.add(path[-1])
    return frozenset(reads), frozenset(writes)


def _path(node: ast.AST) -> tuple[str, ...] | None:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        path = _path(node.value)
        return None if path is None else (*path, node.attr)
    return None
