"""Ways through a table's graph: to a state, round and round, the longest in seconds, and with something left open.

Guards are left aside: a way that is found may be one that no session takes, but none that a session takes is missing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from voicegw.tables.model import Resource, Table, Transition


@dataclass(frozen=True, slots=True)
class Round:
    """The longest way from `start` until something is decided: its seconds and its events."""

    start: str
    seconds: float
    events: tuple[str, ...]


def way_to(table: Table, state: str) -> tuple[str, ...]:
    """The shortest list of events from the initial state to `state`; empty where there is none."""
    ways: dict[str, tuple[str, ...]] = {table.initial: ()}
    todo = deque([table.initial])
    while todo and state not in ways:
        name = todo.popleft()
        for transition in table.transitions:
            if transition.state == name and transition.to is not None and transition.to not in ways:
                ways[transition.to] = (*ways[name], transition.event)
                todo.append(transition.to)
    return ways.get(state, ())


def rounds(table: Table) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The shortest way round of each state that waits and can be come round to without spending an attempt.

    Looked for where the table counts attempts, or says what begins a round; such events end a way.
    """
    if table.spends is None and not table.begun_by:
        return
    ways = _waits(table)
    for start in ways:
        seen: set[str] = set()
        todo: deque[tuple[str, tuple[str, ...]]] = deque([(start, ())])
        while todo:
            name, events = todo.popleft()
            for transition in ways[name]:
                if table.spends is not None and table.spends in transition.effects:
                    continue
                if transition.to == start:
                    yield start, (*events, transition.event)
                    todo.clear()
                    break
                if transition.to is not None and transition.to not in seen:
                    seen.add(transition.to)
                    todo.append((transition.to, (*events, transition.event)))


def longest_round(table: Table, max_attempts: int) -> Round:
    """The longest way through states that wait, where one of `max_attempts` is spent by each row that says so.

    Resting and final states end a way. It is endless where something comes round for nothing.
    """
    ways = _waits(table)
    known: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}

    def longest(name: str, spent: int) -> tuple[float, tuple[str, ...]]:
        if (name, spent) in known:
            return known[name, spent]
        known[name, spent] = math.inf, ()  # what comes round to here never ends
        deadline = table.states[name].deadline
        assert deadline is not None
        best: tuple[float, tuple[str, ...]] = (0.0, (deadline,))
        for transition in ways[name]:
            assert transition.to is not None
            after = spent + (table.spends is not None and table.spends in transition.effects)
            if after < max_attempts:
                seconds, events = longest(transition.to, after)
                best = max(best, (seconds, (transition.event, *events)))
        known[name, spent] = table.deadlines[deadline].seconds + best[0], best[1]
        return known[name, spent]

    found = [Round(name, round(seconds, 6), events) for name in ways for seconds, events in (longest(name, 0),)]
    return max(found, key=lambda one: one.seconds, default=Round(table.initial, 0.0, ()))


def unclosed(table: Table, resource: Resource) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Where something is open at an end, or is opened while it is: place, what is wrong, the events that lead there."""
    begin = (table.initial, False)
    ways: dict[tuple[str, bool], tuple[str, ...]] = {begin: ()}
    todo = deque([begin])
    while todo:
        state, opened = here = todo.popleft()
        for transition in table.transitions:
            if transition.state != state:
                continue
            events = (*ways[here], transition.event)
            after, twice = _after(resource, transition, opened)
            if twice and not resource.replaced:
                yield str(transition.row), f"opens the {resource.name} in {state} while it is open", events
            there = (transition.to or state, after)
            if there not in ways:
                ways[there] = events
                todo.append(there)
                if after and there[0] in table.final:
                    yield f"state {there[0]}", f"the {resource.name} is still open", events


def _after(resource: Resource, transition: Transition, opened: bool) -> tuple[bool, bool]:
    """Is it open after this row, and was it opened while it was?"""
    twice = False
    if any(fnmatchcase(transition.event, pattern) for pattern in resource.ended_by):
        opened = False
    for effect in transition.effects:
        if effect in resource.closed_by:
            opened = False
        elif effect in resource.opened_by:
            twice = twice or opened
            opened = True
    return opened, twice


def _waits(table: Table) -> dict[str, list[Transition]]:
    """From each state that waits the rows to others that wait; what begins a round afresh is left out.

    Where no attempts are counted, a ready state (phase R) ends a round, even if it keeps a timer running.
    """
    over = "R" if table.spends is None else ""
    waits = {name for name, state in table.states.items() if state.deadline and state.phase != over}
    ways: dict[str, list[Transition]] = {name: [] for name in table.states if name in waits}
    for transition in table.transitions:
        if transition.state in waits and transition.to in waits and transition.event not in table.begun_by:
            ways[transition.state].append(transition)
    return ways
