"""What a state table says, as plain frozen data; `states/README.md` explains the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from voicegw.errors import TableError

IGNORE = "ignore"
REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class State:
    """One leaf state; `deadline` names the timer that runs while it waits."""

    name: str
    phase: str
    text: str
    deadline: str | None = None
    rest: bool = False

    @property
    def parent(self) -> str:
        """The name before the dot, or the whole name of a state without children."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Event:
    """One word that the machine hears; `otherwise` decides in all states without a row for it."""

    name: str
    otherwise: str
    text: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """A timer, and the event that fires when it passes.

    `seconds` is the bound; with `given_by` the session's method of that name gives the actual seconds.
    """

    name: str
    seconds: float
    text: str
    given_by: str | None = None
    jitter: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One `[[transition]]` as declared; `number` counts from 1 in its table."""

    number: int
    event: str
    sources: tuple[str, ...]
    to: str | None
    guard: str | None
    effects: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        guard = f" [{self.guard}]" if self.guard else ""
        return f"row {self.number}: {', '.join(self.sources)} --{self.event}{guard}--> {self.to or 'stays'}"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row for one leaf; `to` None stays in the state and leaves its deadline untouched."""

    event: str
    state: str
    to: str | None
    guard: str | None
    effects: tuple[str, ...]
    row: Row


@dataclass(frozen=True, slots=True)
class CloseCode:
    """What a websocket close means: the event that the gateway's table hears instead of the code."""

    codes: tuple[int | str, ...]
    event: str
    meaning: str
    reason: str
    source: str

    def width(self, code: int | None) -> int | None:
        """How many codes the entry's matching part stands for; None when it does not match."""
        if code is None:
            return 1 if "none" in self.codes else None
        widths = [high - low + 1 for low, high in self.ranges if low <= code <= high]
        return min(widths, default=None)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The codes as closed ranges of integers."""
        found = []
        for item in self.codes:
            if isinstance(item, int):
                found.append((item, item))
            elif item != "none":
                low, _, high = item.partition("-")
                found.append((int(low), int(high)))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Resource:
    """What a machine opens and must have closed when it ends.

    `opened_by` and `closed_by` are effects; `ended_by` are events after which it is gone by itself; `replaced` says
    that opening it again closes the one before.
    """

    name: str
    opened_by: tuple[str, ...]
    closed_by: tuple[str, ...]
    ended_by: tuple[str, ...]
    replaced: bool
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """One machine. `transitions` is `rows` flattened to leaves, in the order in which they are tried.

    `spends` is the effect that uses up one of a bounded number of attempts, where the machine has such a bound, and
    `limited_by` are the guards that ask for that bound. `begun_by` are the events with which another machine begins
    a new round. `gives_up_after` are the seconds in which a round is over, whatever happens.
    """

    machine: str
    title: str
    text: str
    initial: str
    final: tuple[str, ...]
    spends: str | None
    states: Mapping[str, State]
    parents: Mapping[str, str]
    events: Mapping[str, Event]
    deadlines: Mapping[str, Deadline]
    rows: tuple[Row, ...]
    close_codes: tuple[CloseCode, ...]
    limited_by: tuple[str, ...] = ()
    begun_by: tuple[str, ...] = ()
    gives_up_after: float | None = None
    resources: tuple[Resource, ...] = ()
    transitions: tuple[Transition, ...] = ()
    _by_pair: Mapping[tuple[str, str], tuple[Transition, ...]] = field(default_factory=dict, repr=False)
    _enabled: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    _closes: dict[int | None, CloseCode] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word that the machine hears: events, then deadlines."""
        return (*self.events, *self.deadlines)

    def enabled(self, state: str) -> frozenset[str]:
        """The events that have a row in `state`."""
        return self._enabled.get(state, frozenset())

    def rows_for(self, state: str, event: str) -> tuple[Transition, ...]:
        """What is tried, top down, when `event` comes in `state`."""
        return self._by_pair.get((state, event), ())

    def otherwise(self, event: str) -> str:
        """What happens where there is no row; a deadline that does not belong to the state is ignored."""
        return self.events[event].otherwise if event in self.events else IGNORE

    def leaves(self, name: str) -> tuple[str, ...]:
        """The leaves that `name` stands for: itself, a parent's children, or with `*` all."""
        if name == "*":
            return tuple(self.states)
        if name in self.states:
            return (name,)
        return tuple(leaf for leaf, state in self.states.items() if state.parent == name)

    def close_event(self, code: int | None) -> CloseCode:
        """The entry that decides a close; a single code beats a range, a narrow range a wide one.

        Raises:
            TableError: no entry covers the code.
        """
        known = self._closes.get(code)
        if known is not None:
            return known
        best: tuple[int, CloseCode] | None = None
        for entry in self.close_codes:
            width = entry.width(code)
            if width is not None and (best is None or width < best[0]):
                best = (width, entry)
        if best is None:
            raise TableError(f"{self.machine}: no entry for close code {code}")
        return self._closes.setdefault(code, best[1])
