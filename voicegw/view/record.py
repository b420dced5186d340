"""A flight record, step by step, as the page plays it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any, Final

from voicegw.core.machine_session import MachineSession
from voicegw.errors import EventNotAllowed
from voicegw.events import Event, Stamped
from voicegw.flight import Record, parse_record, step_of
from voicegw.session import SESSIONS, Transition, VoiceSession
from voicegw.why import parts_of, tell

EXACT_IN_BROWSERS: Final = 1 << 53


def played(text: str, name: str) -> dict[str, Any]:
    """The record's head, where its machines begin, and its frames.

    A frame is one event: `at` ms after the first, its name and content (secrets are numbers), what happened in words,
    the steps of the machines with the rows that were taken, and the effects. Where the record cannot be run (its
    beginning was dropped) or today's tables do something else (from frame `differs` on), `rows` are all that fit.

    Raises:
        NotARecord: it is none, or of another format.
    """
    record = parse_record(text, name)
    lines = [json.loads(line) for line in text.splitlines() if line]
    rows = _Rows(record)
    frames, begin = [], record.entries[0].at if record.entries else 0.0
    for number, (entry, line) in enumerate(zip(record.entries, lines[1:], strict=True)):
        taken = rows.of(number, entry.event, entry.at, entry.steps)
        inner = line["event"].get("event", line["event"]) if line["event"]["$"] == "Stamped" else line["event"]
        frames.append(
            {
                "at": round((entry.at - begin) * 1000, 1),
                "event": getattr(getattr(entry.event, "event", entry.event), "name", ""),
                "content": {key: _for_browsers(value) for key, value in inner.items() if key != "$"},
                "words": [f"{machine}: {words}" if machine else words for machine, words in tell(entry)],
                "steps": [_step(step, found) for step, found in zip(entry.steps, taken, strict=True)],
                "effects": entry.effects,
            }
        )
    options = {key: str(value) for key, value in dataclasses.asdict(record.options).items()}
    return {
        "name": name,
        "user": str(record.user_id),
        "guild": str(record.guild_id),
        "options": options,
        "dropped": record.dropped,
        "lasted": round(record.lasted_s * 1000, 1),
        "begin": _begin(record),
        "differs": rows.differs,
        "frames": frames,
    }


def _begin(record: Record) -> dict[str, str]:
    """Every machine's state before the first event; where the beginning was dropped, as far as its first step tells."""
    begin = {} if record.dropped else {name: session.table.initial for name, session in SESSIONS.items()}
    for entry in reversed(record.entries):
        for step in reversed(entry.steps):
            machine, before, _, _ = parts_of(step)
            begin[machine] = before
    return begin


def _for_browsers(value: Any) -> Any:
    """Ids as text: a browser's numbers are too short for them."""
    if isinstance(value, list):
        return [_for_browsers(item) for item in value]
    return str(value) if isinstance(value, int) and abs(value) >= EXACT_IN_BROWSERS else value


def _step(step: str, rows: tuple[int, ...]) -> dict[str, Any]:
    machine, before, event, after = parts_of(step)
    return {"machine": machine, "before": before, "event": event, "after": after, "rows": rows}


class _Rows:
    """Which rows were taken: those of today's core where it does what was recorded, else those that fit."""

    def __init__(self, record: Record) -> None:
        self._steps: list[Transition] = []
        self._session = VoiceSession(record.user_id, record.guild_id, record.options, self._steps.append)
        self._runs = record.dropped == 0
        self.differs: int | None = None

    def of(self, number: int, event: Event | Stamped, at: float, recorded: tuple[str, ...]) -> list[tuple[int, ...]]:
        """The rows of each step of frame `number`."""
        if self._runs:
            self._steps.clear()
            with contextlib.suppress(EventNotAllowed):  # a wish that the state forbade then and forbids now
                self._session.receive(event, at)
            if tuple(map(step_of, self._steps)) == recorded:
                return [(step.row,) for step in self._steps]
            self._runs, self.differs = False, number
        return [_fitting(SESSIONS[parts_of(step)[0]], *parts_of(step)[1:]) for step in recorded]


def _fitting(session: type[MachineSession], before: str, event: str, after: str) -> tuple[int, ...]:
    rows = session.table.rows_for(before, event)
    return tuple(dict.fromkeys(row.row.number for row in rows if (row.to or before) == after))
