"""The tables as the page wants them: what its pictures mean."""

from __future__ import annotations

import functools
from typing import Any, Final

from voicegw.session import SESSIONS
from voicegw.tables.load import load_table
from voicegw.tables.model import Table
from voicegw.why import PULSE

MACHINES: Final = tuple(SESSIONS)


@functools.cache
def described() -> dict[str, Any]:
    """Every machine's states, events and rows, by name."""
    return {name: _machine(load_table(name)) for name in MACHINES}


def close_meaning(code: int | None) -> str:
    """What a close of the voice websocket means."""
    return load_table("gateway").close_event(code).meaning


def _machine(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "initial": table.initial,
        "final": table.final,
        "states": {
            state.name: {
                "text": state.text,
                "phase": state.phase,
                "deadline": state.deadline,
            }
            for state in table.states.values()
        },
        "events": {
            **{event.name: event.text for event in table.events.values()},
            **{deadline.name: deadline.text for deadline in table.deadlines.values()},
        },
        "rows": [
            {
                "number": row.number,
                "event": row.event,
                "from": row.sources,
                "to": row.to,
                "guard": row.guard,
                "effects": row.effects,
                "source": row.source,
            }
            for row in table.rows
        ],
        "pulse": sorted(PULSE.intersection(table.vocabulary)),
    }
