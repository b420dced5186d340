"""Answers from the tables: what a call waits for, and what a flight record tells, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from voicegw.core.machine_session import MachineSession
from voicegw.flight import Record
from voicegw.session import Transition, VoiceSession
from voicegw.tables.load import load_table
from voicegw.tables.model import Table

AT_WORK = "R"  # the phase of states in which the call does its work; their deadlines are its pulse, not a wait
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Why:
    """What a call waits for. Times in seconds; `state` is None and the rest empty where it waits for nothing.

    `seen` are the last things that happened to the machine that waits, `missing` what would move it on, `cause` what
    it means when that does not come, `next` what happens then, `in_s` seconds from now.
    """

    state: str | None = None
    since_s: float = 0.0
    waits_for: str = ""
    seen: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cause: str = ""
    next: str = ""
    in_s: float = 0.0

    def __str__(self) -> str:
        if self.state is None:
            return "it waits for nothing"
        lines = [f"{self.state} for {self.since_s:.1f} s: {self.waits_for}"]
        lines += [f"  seen: {what}" for what in self.seen]
        lines += [f"  missing: {what}" for what in self.missing]
        lines.append(f"  in {self.in_s:.1f} s: {self.cause}; then {self.next}")
        return "\n".join(lines)


def why(session: VoiceSession, history: Iterable[Transition], now: float) -> Why:
    """What `session` waits for at the monotonic time `now`; `history` are its steps, the oldest first."""
    machine = _who_waits(session)
    if machine is None:
        return Why()
    table = machine.table
    state = table.states[machine.state]
    assert state.deadline is not None
    steps = [step for step in history if step.machine == machine.machine]
    entered = next((step.at for step in reversed(steps) if step.before != step.after), now)
    return Why(
        state=f"{machine.machine} {machine.state}",
        since_s=now - entered,
        waits_for=state.text,
        seen=tuple(f"{_word(table, step.event)} ({now - step.at:.1f} s ago)" for step in steps[-SHOWN:]),
        missing=tuple(_awaited(table, machine.state)),
        cause=table.deadlines[state.deadline].text,
        next=_after(table, machine.state, state.deadline),
        in_s=max(0.0, session.shared.timers[state.deadline] - now),
    )


def explain(record: Record) -> Iterator[str]:
    """A flight record in words, a line a step."""
    begin = record.entries[0].at if record.entries else 0.0
    if record.dropped:
        yield f"(the first {record.dropped} events are not in this record)"
    for entry in record.entries:
        for step in entry.steps:
            machine, _, rest = step.partition(": ")
            before, event, after = rest.replace("-->", "--").split("--")
            table = load_table(machine)
            before, event, after = before.strip(), event.strip(), after.strip()
            moved = f"{before} > {after}: {table.states[after].text}" if before != after else f"stays {after}"
            yield f"{entry.at - begin:10.3f} s  {machine:9}  {_word(table, event)}; {moved}"


def _who_waits(session: VoiceSession) -> MachineSession | None:
    """The machine nearest to the cause: the websocket before the group, the group before the membership."""
    for machine in (session.gateway, session.dave, session.call):
        state = machine.table.states[machine.state]
        if state.deadline is not None and state.phase != AT_WORK:
            return machine
    return None


def _awaited(table: Table, name: str) -> Iterator[str]:
    """What the state's own rows would take it on: not the ways out that every state of the machine has."""
    shared = set.intersection(*(set(table.enabled(other)) for other in table.states if other not in table.final))
    for event in table.events:
        rows = table.rows_for(name, event)
        if event not in shared and any(name in row.row.sources and row.to not in (None, name) for row in rows):
            yield _word(table, event)


def _after(table: Table, name: str, deadline: str) -> str:
    rows = table.rows_for(name, deadline)
    words = dict.fromkeys(f"{row.to}: {table.states[row.to].text}" for row in rows if row.to is not None)
    return ", or ".join(words)


def _word(table: Table, event: str) -> str:
    text = table.events[event].text if event in table.events else table.deadlines[event].text
    return f"{event} ({text})"
