"""The flight record: a bounded, redacted log of what moved a call's machines, as JSON lines that can be run again.

    {"voicegw": 1, "user_id": ..., "guild_id": ..., "options": {...}}         the head
    {"at": 12.345, "event": {...}, "steps": [...], "effects": [...]}          one line an event

A secret becomes a number: the same secret the same number, so that a replay can tell them apart and nobody can read
them. MLS bytes become their length and a digest, and our own public address one that is nobody's: a record can be
shown to others. What the ids tell stays in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voicegw import errors, events
from voicegw.core.shared import E2EEPolicy, Options
from voicegw.effects import Effect
from voicegw.errors import EventNotAllowed, VoiceError
from voicegw.events import Event, Stamped
from voicegw.secret import Secret
from voicegw.session import Transition, VoiceSession
from voicegw.snapshot import SessionSnapshot
from voicegw.wire import payloads

FORMAT = 1
KEPT_EVENTS = 5000
KEPT_BYTES = 4 << 20
NOBODYS_ADDRESS = "192.0.2.1"

CLASSES: Mapping[str, type] = {
    name: value
    for module in (events, payloads)
    for name, value in vars(module).items()
    if inspect.isclass(value) and dataclasses.is_dataclass(value)
}


class NotARecord(VoiceError):
    """A file that is no flight record, or of another format."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event: when it came (monotonic seconds), what it was, the steps it caused and the effects that followed.

    A step reads `machine: before --event--> after`; `refused` where the event was.
    """

    at: float
    event: Event | Stamped
    steps: tuple[str, ...]
    effects: tuple[str, ...]


class FlightRecorder:
    """Keeps the last events of one call, `kept` of them and 4 MiB at most.

    `note` is called by the client after each event; `save` writes them down.
    """

    def __init__(self, user_id: int, guild_id: int, options: Options, kept: int = KEPT_EVENTS) -> None:
        self._head = {
            "voicegw": FORMAT,
            "user_id": user_id,
            "guild_id": guild_id,
            "options": dataclasses.asdict(options),
        }
        self._lines: deque[str] = deque()
        self._kept = kept
        self._bytes = 0
        self._writer = _Writer()
        self._steps: list[str] = []
        self.dropped = 0

    def step(self, transition: Transition) -> None:
        """One step of one machine, for the next entry."""
        self._steps.append(step_of(transition))

    def note(self, at: float, event: Event | Stamped, effects: Iterable[Effect]) -> None:
        """One event is done."""
        line = json.dumps(
            {
                "at": at,  # to the last bit: timers are told apart by it
                "event": self._writer.write(event),
                "steps": self._steps,
                "effects": [type(effect).__name__ for effect in effects],
            }
        )
        self._steps = []
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > self._kept or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._lines.popleft())
            self.dropped += 1

    def lines(self) -> Iterator[str]:
        """The record, head first; `dropped` says how many events are missing after it."""
        yield json.dumps({**self._head, "dropped": self.dropped})
        yield from self._lines

    def save(self, path: str | Path) -> None:
        """Write the record."""
        Path(path).write_text("\n".join(self.lines()) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Record:
    """A record that was read."""

    user_id: int
    guild_id: int
    options: Options
    entries: tuple[Entry, ...]
    dropped: int

    @property
    def lasted_s(self) -> float:
        """From the first event that was kept to the last."""
        return self.entries[-1].at - self.entries[0].at if self.entries else 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Where today's core does something else: entry number (from 1), what was recorded, what happens now."""

    number: int
    entry: Entry
    recorded: tuple[str, ...]
    replayed: tuple[str, ...]


def read_record(path: str | Path) -> Record:
    """Read a flight record.

    Raises:
        NotARecord: it is none, or of another format.
        OSError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except ValueError as error:
        raise NotARecord(f"{path} is not a flight record") from error
    return parse_record(text, str(path))


def parse_record(text: str, name: str = "this") -> Record:
    """A flight record from its lines; `name` is for what is said of it.

    Raises:
        NotARecord: it is none, or of another format.
    """
    try:
        lines = [json.loads(line) for line in text.splitlines() if line]
        head = lines[0]
        if head["voicegw"] != FORMAT:
            raise NotARecord(f"{name} is a flight record of format {head['voicegw']}, this is format {FORMAT}")
        options = head["options"]
        return Record(
            user_id=int(head["user_id"]),
            guild_id=int(head["guild_id"]),
            options=Options(
                policy=E2EEPolicy(options["policy"]),
                modes=tuple(options["modes"]),
                allowed_hosts=tuple(options["allowed_hosts"]),
                allow_private_media=bool(options["allow_private_media"]),
                max_attempts=int(options["max_attempts"]),
                rejoin_after_rate_limit=bool(options.get("rejoin_after_rate_limit", False)),
                deadlines={name: float(seconds) for name, seconds in options.get("deadlines", {}).items()},
            ),
            entries=tuple(
                Entry(float(line["at"]), _read(line["event"]), tuple(line["steps"]), tuple(line["effects"]))
                for line in lines[1:]
            ),
            dropped=int(head["dropped"]),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NotARecord(f"{name} is not a flight record") from error


def replay(record: Record) -> Difference | None:
    """Run a record through today's core; the first difference, None where there is none.

    Raises:
        NotARecord: its beginning was dropped, so it cannot be run.
    """
    if record.dropped:
        raise NotARecord(f"the first {record.dropped} events of this record were dropped; it can be read, not run")
    steps: list[str] = []
    session = VoiceSession(
        record.user_id, record.guild_id, record.options, lambda transition: steps.append(step_of(transition))
    )
    for number, entry in enumerate(record.entries, 1):
        steps.clear()
        try:
            effects = [type(effect).__name__ for effect in session.receive(entry.event, entry.at)]
        except EventNotAllowed:
            effects = []
        if tuple(steps) != entry.steps:
            return Difference(number, entry, entry.steps, tuple(steps))
        if tuple(effects) != entry.effects:
            return Difference(number, entry, entry.effects, tuple(effects))
    return None


def step_of(transition: Transition) -> str:
    """A step as the record has it."""
    return f"{transition.machine}: {transition.before} --{transition.event}--> {transition.after}"


class _Writer:
    """Turns events into JSON; secrets into numbers."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def write(self, value: object) -> object:
        if isinstance(value, events.IpDiscovered):
            value = dataclasses.replace(value, address=NOBODYS_ADDRESS)
        elif isinstance(value, SessionSnapshot):
            value = dataclasses.replace(value, selected=(NOBODYS_ADDRESS, value.selected[1]))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: self.write(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"$": type(value).__name__, **fields}
        if isinstance(value, Secret):
            kind = "bytes" if isinstance(value.reveal(), bytes) else "str"
            return {"$": "Secret", "kind": kind, "number": self._number(value)}
        if isinstance(value, bytes):
            return {"$": "bytes", "length": len(value), "digest": hashlib.sha256(value).hexdigest()[:16]}
        if isinstance(value, VoiceError):
            code = getattr(value, "code", None)
            return {"$": "error", "kind": type(value).__name__, "text": str(value), "code": code}
        if isinstance(value, tuple | list):
            return [self.write(item) for item in value]
        return value

    def _number(self, secret: Secret[Any]) -> int:
        """By its digest: a record does not keep a secret alive."""
        return self._numbers.setdefault(secret.digest(), len(self._numbers) + 1)


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value["$"]
    if kind == "Secret":
        text = f"secret {value['number']}"
        return Secret(text.encode().ljust(payloads.KEY_BYTES)) if value["kind"] == "bytes" else Secret(text)
    if kind == "bytes":
        return f"{value['length']} bytes {value['digest']}".encode()
    if kind == "error":
        error = getattr(errors, value["kind"], errors.VoiceError)
        return _error(error, value)
    return CLASSES[kind](**{name: _read(item) for name, item in value.items() if name != "$"})


def _error(kind: type[VoiceError], value: Mapping[str, Any]) -> VoiceError:
    if issubclass(kind, errors.ConnectionClosed):
        return kind(value["code"], value["text"])
    return kind(value["text"])
