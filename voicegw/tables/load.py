"""Find and read the tables.

What a table says about states, events and deadlines is looked at in `voicegw.tables.check`.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from voicegw.errors import TableError
from voicegw.tables.model import (
    IGNORE,
    REFUSE,
    CloseCode,
    Deadline,
    Event,
    Resource,
    Row,
    State,
    Table,
    Transition,
)

HEADER = {
    "machine",
    "title",
    "text",
    "initial",
    "final",
    "spends",
    "limited_by",
    "begun_by",
    "gives_up_after",
}
SECTIONS = {"deadline", "state", "event", "close_code", "transition", "resource"}


def tables_directory() -> Traversable:
    """Where the tables are: inside the installed package, or beside it in a checkout.

    Raises:
        TableError: neither is there.
    """
    return _beside("states")


def map_of(name: str) -> str:
    """A machine's map, as `voicegw.tables.draw.to_map` has drawn it.

    Raises:
        TableError: it is not there.
    """
    return (_beside("diagrams") / f"{name}.map.svg").read_text(encoding="utf-8")


def _beside(folder: str) -> Traversable:
    package = importlib.resources.files("voicegw")
    inside = package / folder
    if inside.is_dir():
        return inside
    checkout = Path(str(package)).parent
    if (checkout / "pyproject.toml").is_file() and (checkout / folder).is_dir():
        return checkout / folder
    raise TableError(f"the {folder} are missing from this installation of voicegw; install it again")


@functools.cache
def table_names() -> tuple[str, ...]:
    """The machines' names, sorted."""
    names = (entry.name for entry in tables_directory().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


@functools.cache
def load_table(name: str) -> Table:
    """One table, read and checked.

    Raises:
        TableError: there is no such table, or it is wrong; the message names the row.
    """
    from voicegw.tables.check import check_table

    if name not in table_names():
        raise TableError(f"there is no machine {name!r}; there are: {', '.join(table_names())}")
    text = (tables_directory() / f"{name}.toml").read_text(encoding="utf-8")
    table = parse_table(text, name)
    for violation in check_table(table):
        raise TableError(str(violation))
    return table


def parse_table(text: str, machine: str) -> Table:
    """Read one table's TOML and flatten its rows to leaves.

    Raises:
        TableError: TOML or shape are wrong; unknown words are refused, so that a typing error cannot hide.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TableError(f"{machine}: not TOML: {error}") from error
    reader = _Reader(machine)
    reader.only(data, HEADER | SECTIONS, "the table")
    header = reader.fields(
        data, "the table", {"machine": str, "title": str, "text": str, "initial": str, "final": list}
    )
    if header["machine"] != machine:
        raise TableError(f"{machine}: the file says that it is {header['machine']!r}")
    if not _all_texts(header["final"]):
        raise reader.complain("the table", "'final' is a list of states")
    states, parents = reader.states(reader.entries(data, "state"))
    table = Table(
        machine=machine,
        title=header["title"],
        text=header["text"].strip(),
        initial=header["initial"],
        final=tuple(header["final"]),
        spends=reader.optional(data, "the table", "spends", str),
        states=states,
        parents=parents,
        events=reader.events(reader.entries(data, "event")),
        deadlines=reader.deadlines(reader.entries(data, "deadline")),
        rows=reader.rows(reader.entries(data, "transition")),
        close_codes=reader.close_codes(reader.entries(data, "close_code")),
        limited_by=reader.texts(data, "the table", "limited_by"),
        begun_by=reader.texts(data, "the table", "begun_by"),
        gives_up_after=reader.optional(data, "the table", "gives_up_after", float),
        resources=reader.resources(reader.entries(data, "resource")),
    )
    return flattened(table)


def flattened(table: Table) -> Table:
    """The same table with its transitions made from its rows: one per row and leaf, in the order of the rows."""
    transitions = tuple(
        Transition(row.event, leaf, row.to, row.guard, row.effects, row)
        for row in table.rows
        for leaf in dict.fromkeys(leaf for source in row.sources for leaf in table.leaves(source))
    )
    pairs: dict[tuple[str, str], tuple[Transition, ...]] = {}
    for transition in transitions:
        pair = (transition.state, transition.event)
        pairs[pair] = (*pairs.get(pair, ()), transition)
    enabled = {leaf: frozenset(event for state, event in pairs if state == leaf) for leaf in table.states}
    return replace(table, transitions=transitions, _by_pair=pairs, _enabled=enabled)


class _Reader:
    """Turns the TOML of one table into its parts; every complaint says where."""

    def __init__(self, machine: str) -> None:
        self.machine = machine

    def complain(self, where: str, what: str) -> TableError:
        return TableError(f"{self.machine}: {where}: {what}")

    def only(self, entry: dict[str, Any], allowed: set[str], where: str) -> None:
        unknown = sorted(set(entry) - allowed)
        if unknown:
            raise self.complain(where, f"unknown word {unknown[0]!r}")

    def entries(self, data: dict[str, Any], section: str) -> list[dict[str, Any]]:
        entries = data.get(section, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.complain(section, f"is written [[{section}]]")
        return entries

    def fields(self, entry: dict[str, Any], where: str, wanted: dict[str, type]) -> dict[str, Any]:
        for name, kind in wanted.items():
            if name not in entry:
                raise self.complain(where, f"{name!r} is missing")
            value = entry[name]
            if isinstance(value, bool) != (kind is bool) or not isinstance(
                value, (int, float) if kind is float else kind
            ):
                raise self.complain(where, f"{name!r} must be of type {kind.__name__}")
        return {name: entry[name] for name in wanted}

    def optional(self, entry: dict[str, Any], where: str, name: str, kind: type) -> Any:
        return self.fields(entry, where, {name: kind})[name] if name in entry else None

    def texts(self, entry: dict[str, Any], where: str, name: str) -> tuple[str, ...]:
        items = entry.get(name, [])
        if not _all_texts(items):
            raise self.complain(where, f"{name!r} is a list of names")
        return tuple(items)

    def unique(self, where: str, name: str, known: Callable[[str], bool]) -> None:
        if known(name):
            raise self.complain(where, f"{name!r} is there twice")

    def states(self, entries: list[dict[str, Any]]) -> tuple[dict[str, State], dict[str, str]]:
        names = [str(entry.get("name")) for entry in entries]
        with_children = {name.partition(".")[0] for name in names if "." in name}
        states: dict[str, State] = {}
        parents: dict[str, str] = {}
        for name, entry in zip(names, entries, strict=True):
            where = f"state {name}"
            self.unique(where, name, lambda name: name in states or name in parents)
            self.only(entry, {"name", "text", "phase", "deadline", "rest"}, where)
            text = self.fields(entry, where, {"text": str})["text"]
            if name in with_children:
                self.only(entry, {"name", "text"}, f"{where}, a parent")
                parents[name] = text
                continue
            if name.count(".") > 1:
                raise self.complain(where, "states have one level of children")
            states[name] = State(
                name=name,
                phase=self.fields(entry, where, {"phase": str})["phase"],
                text=text,
                deadline=self.optional(entry, where, "deadline", str),
                rest=bool(self.optional(entry, where, "rest", bool)),
            )
        return states, parents

    def events(self, entries: list[dict[str, Any]]) -> dict[str, Event]:
        events: dict[str, Event] = {}
        for entry in entries:
            where = f"event {entry.get('name')}"
            self.only(entry, {"name", "otherwise", "text"}, where)
            values = self.fields(entry, where, {"name": str, "otherwise": str, "text": str})
            self.unique(where, values["name"], events.__contains__)
            if values["otherwise"] not in (IGNORE, REFUSE):
                raise self.complain(where, f"'otherwise' is {IGNORE} or {REFUSE}")
            events[values["name"]] = Event(**values)
        return events

    def deadlines(self, entries: list[dict[str, Any]]) -> dict[str, Deadline]:
        deadlines: dict[str, Deadline] = {}
        for entry in entries:
            where = f"deadline {entry.get('name')}"
            self.only(entry, {"name", "seconds", "text", "given_by", "jitter"}, where)
            values = self.fields(entry, where, {"name": str, "seconds": float, "text": str})
            self.unique(where, values["name"], deadlines.__contains__)
            if not values["seconds"] > 0:
                raise self.complain(where, "'seconds' must be positive")
            deadlines[values["name"]] = Deadline(
                name=values["name"],
                seconds=float(values["seconds"]),
                text=values["text"],
                given_by=self.optional(entry, where, "given_by", str),
                jitter=bool(self.optional(entry, where, "jitter", bool)),
            )
        return deadlines

    def rows(self, entries: list[dict[str, Any]]) -> tuple[Row, ...]:
        rows = []
        for number, entry in enumerate(entries, 1):
            where = f"row {number} ({entry.get('event')} from {entry.get('from')})"
            self.only(entry, {"event", "from", "to", "guard", "effects", "source"}, where)
            sources = entry.get("from", [])
            if isinstance(sources, str):
                sources = [sources]
            if not sources or not _all_texts(sources):
                raise self.complain(where, "'from' is a state, a list of states, or *")
            effects = entry.get("effects", [])
            if not _all_texts(effects):
                raise self.complain(where, "'effects' is a list of names")
            values = self.fields(entry, where, {"event": str, "source": str})
            rows.append(
                Row(
                    number=number,
                    event=values["event"],
                    sources=tuple(sources),
                    to=self.optional(entry, where, "to", str),
                    guard=self.optional(entry, where, "guard", str),
                    effects=tuple(effects),
                    source=values["source"],
                )
            )
        return tuple(rows)

    def close_codes(self, entries: list[dict[str, Any]]) -> tuple[CloseCode, ...]:
        found = []
        for entry in entries:
            where = f"close code {entry.get('codes')}"
            self.only(entry, {"codes", "event", "meaning", "reason", "source"}, where)
            values = self.fields(
                entry, where, {"codes": list, "event": str, "meaning": str, "reason": str, "source": str}
            )
            for item in values["codes"]:
                if not isinstance(item, int) and item != "none" and not _is_range(item):
                    raise self.complain(where, f"{item!r} is no code, no range, and not 'none'")
            found.append(CloseCode(**{**values, "codes": tuple(values["codes"])}))
        return tuple(found)

    def resources(self, entries: list[dict[str, Any]]) -> tuple[Resource, ...]:
        found: list[Resource] = []
        for entry in entries:
            where = f"resource {entry.get('name')}"
            self.only(entry, {"name", "opened_by", "closed_by", "ended_by", "replaced", "text"}, where)
            values = self.fields(entry, where, {"name": str, "text": str})
            found.append(
                Resource(
                    name=values["name"],
                    opened_by=self.texts(entry, where, "opened_by"),
                    closed_by=self.texts(entry, where, "closed_by"),
                    ended_by=self.texts(entry, where, "ended_by"),
                    replaced=bool(self.optional(entry, where, "replaced", bool)),
                    text=values["text"],
                )
            )
        return tuple(found)


def _all_texts(items: object) -> bool:
    return isinstance(items, list) and all(isinstance(item, str) for item in items)


def _is_range(item: object) -> bool:
    if not isinstance(item, str):
        return False
    low, _, high = item.partition("-")
    return low.isdecimal() and high.isdecimal() and int(low) < int(high)
