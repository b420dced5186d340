"""Answers from the tables: what a call waits for, and what a flight record tells, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from voicegw.core.machine_session import MachineSession
from voicegw.events import Event, SocketClosed, Stamped
from voicegw.flight import Entry, Record
from voicegw.session import Transition, VoiceSession
from voicegw.tables.load import load_table
from voicegw.tables.model import Table

AT_WORK = "R"  # the phase of states in which the call does its work; their deadlines are its pulse, not a wait
SHOWN = 5
TOLD = frozenset(
    {"channel_id", "code", "error", "reason", "user_ids", "user_id", "transition_id", "protocol_version"}
    | {"dave_protocol_version", "epoch", "what", "op"}
)
PULSE = frozenset({"beat_due", "heartbeat_acked", "keepalive_due", "path_heard", "path_unheard"})


@dataclass(frozen=True, slots=True)
class Why:
    """What a call waits for. Times in seconds; `state` is None and the rest empty where it waits for nothing.

    `seen` are the last things that happened to the machine that waits, `missing` what would move it on, `cause` what
    it means when that does not come, `next` what happens then, `in_s` seconds from now; None where nothing happens
    by itself.
    """

    state: str | None = None
    since_s: float = 0.0
    waits_for: str = ""
    seen: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cause: str = ""
    next: str = ""
    in_s: float | None = None

    def __str__(self) -> str:
        if self.state is None:
            return "it waits for nothing"
        lines = [f"{self.state} for {self.since_s:.1f} s: {self.waits_for}"]
        lines += [f"  seen: {what}" for what in self.seen]
        lines += [f"  missing: {what}" for what in self.missing]
        if self.in_s is None:
            lines.append(f"  until then {self.cause}; then {self.next}")
        else:
            lines.append(f"  in {self.in_s:.1f} s: {self.cause}; then {self.next}")
        return "\n".join(lines)


def why(session: VoiceSession, history: Iterable[Transition], now: float) -> Why:
    """What `session` waits for at the monotonic time `now`; `history` are its steps, the oldest first."""
    machine = _who_waits(session)
    if machine is None:
        return Why()
    table = machine.table
    state = table.states[machine.state]
    steps = [step for step in history if step.machine == machine.machine]
    entered = next((step.at for step in reversed(steps) if step.before != step.after), now)
    deadline = state.deadline
    return Why(
        state=f"{machine.machine} {machine.state}",
        since_s=now - entered,
        waits_for=state.text,
        seen=tuple(f"{_word(table, step.event)} ({now - step.at:.1f} s ago)" for step in steps[-SHOWN:]),
        missing=tuple(_awaited(table, machine.state)),
        cause="nothing leaves" if deadline is None else table.deadlines[deadline].text,
        next="what there is to say is heard" if deadline is None else _after(table, machine.state, deadline),
        in_s=None if deadline is None else max(0.0, session.shared.timers[deadline] - now),
    )


def explain(record: Record) -> Iterator[str]:
    """A flight record in words: a line a step, with what the event brought; the pulse of a quiet call in one line."""
    begin = record.entries[0].at if record.entries else 0.0
    if record.dropped:
        yield f"(the first {record.dropped} events are not in this record)"
    pulse: list[Entry] = []
    for entry in record.entries:
        if _is_pulse(entry):
            pulse.append(entry)
            continue
        yield from _beats(pulse, begin)
        pulse = []
        yield from (f"{entry.at - begin:10.3f} s  {machine:9}  {words}" for machine, words in tell(entry))
    yield from _beats(pulse, begin)


def tell(entry: Entry) -> Iterator[tuple[str, str]]:
    """One entry in words: the machine that moved and how, or no machine and what nobody minded."""
    detail = _detail(entry.event)
    if not entry.steps:
        yield "", f"{_name(entry.event)}{detail}; nobody minds it in these states"
    for step in entry.steps:
        machine, before, event, after = parts_of(step)
        table = load_table(machine)
        moved = f"{before} > {after}: {table.states[after].text}" if before != after else f"stays {after}"
        yield machine, f"{_word(table, event)}{detail}; {moved}"
        detail = ""


def parts_of(step: str) -> tuple[str, str, str, str]:
    """Machine, state before, event and state after of a step as the record has it."""
    machine, _, rest = step.partition(": ")
    before, event, after = rest.replace("-->", "--").split("--")
    return machine, before.strip(), event.strip(), after.strip()


def _is_pulse(entry: Entry) -> bool:
    """Heartbeats that are answered and keepalives: nothing but the time that passes."""
    if not entry.steps:
        return _name(entry.event) in PULSE
    for step in entry.steps:
        machine, before, event, after = parts_of(step)
        if event not in PULSE or (machine == "transport" and before != after) or "overdue" in before + after:
            return False
    return True


def _beats(pulse: list[Entry], begin: float) -> Iterator[str]:
    if pulse:
        lasted = pulse[-1].at - pulse[0].at
        yield f"{pulse[0].at - begin:10.3f} s  {'':9}  ({len(pulse)} heartbeats and keepalives, in {lasted:.0f} s)"


def _name(event: object) -> str:
    return str(getattr(getattr(event, "event", event), "name", ""))


def _detail(event: Event | Stamped) -> str:
    """What an event brought, where people want to know it."""
    inner = getattr(event, "event", event)
    found = [
        f"{field.name} {value}"
        for field in fields(inner)
        if field.name in TOLD and (value := getattr(inner, field.name)) not in (None, "", ())
    ]
    if isinstance(inner, SocketClosed) and inner.code is None:
        found.append("without a close frame")
    return f" [{', '.join(found)}]" if found else ""


def _who_waits(session: VoiceSession) -> MachineSession | None:
    """The machine nearest to the cause: the websocket before the group, the group before the membership.

    A group that rests is waited for, too, where there is something to say and nobody may hear it.
    """
    for machine in (session.gateway, session.dave, session.call):
        state = machine.table.states[machine.state]
        if state.deadline is not None and state.phase != AT_WORK:
            return machine
    return session.dave if session.speech.state.startswith("held") and session.gateway.state == "ready" else None


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
