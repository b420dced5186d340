"""What a process knows of its fleet: who lives, what has an owner, and whose turn a call without one is.

A worker's key is renewed every third of its lease. Whoever has seen it unchanged for a whole lease may end it, by its
last revision: had the worker renewed it meanwhile, that would fail. The owner counts from when it asked for the
renewal, everybody else from when they saw it, so no two clocks are compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Generic, Self, TypeVar

from voicegw.fleet.bus import Entry

WORKER: Final = "worker."
CALL: Final = "call."
T = TypeVar("T")

TURN_S: Final = 0.4  # between the turns of two workers
DRIFT: Final = 0.02  # no clock that is used here runs faster or slower than this


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """What a worker says of itself at each renewal.

    `life` is its lease's own name, `document` the newest format of calls that it reads, `free` how many more streams
    its pacer can keep at pace, `load` the part of a core that pacing takes.
    """

    life: str
    version: str
    document: int
    lease_s: float
    calls: int = 0
    streams: int = 0
    load: float = 0.0
    free: int = 0
    draining: bool = False
    host: str = ""

    def to_bytes(self) -> bytes:
        """As it stands in the bucket."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read; what a newer version says besides is left out."""
        return cls(**_known(cls, data))


@dataclass(frozen=True, slots=True)
class CallEntry:
    """Whose a call is: `owner` and its `life`, empty where nobody's. `before` offered it; `document` is its format."""

    owner: str = ""
    life: str = ""
    before: str = ""
    document: int = 1

    def to_bytes(self) -> bytes:
        """As it stands in the bucket."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read; what a newer version says besides is left out."""
        return cls(**_known(cls, data))


@dataclass(slots=True)
class Seen(Generic[T]):
    """The last revision of one key, and when it was seen."""

    entry: T
    revision: int
    at: float


class FleetView:
    """Follows the leases' bucket. `on_call(call_id)` and `on_worker(name)` are called after each change,
    `on_silent(name)` when a worker has not renewed for its whole lease."""

    def __init__(
        self,
        now: Callable[[], float],
        on_call: Callable[[str], None] = lambda call_id: None,
        on_worker: Callable[[str], None] = lambda name: None,
        on_silent: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._now = now
        self._on_call = on_call
        self._on_worker = on_worker
        self._on_silent = on_silent
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.workers: dict[str, Seen[WorkerEntry]] = {}
        self.calls: dict[str, Seen[CallEntry]] = {}
        self.changed = asyncio.Event()

    def take(self, entry: Entry) -> None:
        """One change; an old revision, as a new watch brings it, is none."""
        now = self._now()
        if entry.key.startswith(WORKER):
            name = entry.key.removeprefix(WORKER)
            known = self.workers.get(name)
            if known is not None and known.revision >= entry.revision:
                return
            self._forget_timer(name)
            if entry.value is None:
                self.workers.pop(name, None)
            else:
                worker = WorkerEntry.from_bytes(entry.value)
                self.workers[name] = Seen(worker, entry.revision, now)
                self._watch_over(name, worker.lease_s)
            self._on_worker(name)
        elif entry.key.startswith(CALL):
            call_id = entry.key.removeprefix(CALL)
            call = self.calls.get(call_id)
            if call is not None and call.revision >= entry.revision:
                return
            if entry.value is None:
                self.calls.pop(call_id, None)
            else:
                self.calls[call_id] = Seen(CallEntry.from_bytes(entry.value), entry.revision, now)
            self._on_call(call_id)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Until `holds()`; it is asked after every change."""
        while not holds():
            self.changed.clear()
            await self.changed.wait()

    def close(self) -> None:
        """Watch over nobody any more."""
        for name in tuple(self._timers):
            self._forget_timer(name)

    @property
    def lives(self) -> dict[str, str]:
        """The living workers' leases, and whose they are."""
        return {seen.entry.life: name for name, seen in self.workers.items()}

    def owner(self, call_id: str) -> str | None:
        """The living worker that has the call; None where nobody has it, or the one who had it is gone."""
        seen = self.calls.get(call_id)
        return self.lives.get(seen.entry.life) if seen is not None else None

    def unowned(self) -> list[str]:
        """Calls without a living owner."""
        lives = self.lives
        return [call_id for call_id, seen in self.calls.items() if seen.entry.life not in lives]

    def order(self, call_id: str) -> list[str]:
        """Who may claim this revision of the call, the first to try at the head; all who look see the same.

        A draw of each worker for each revision, weighted with its room: where many calls are without an owner, each
        worker gets its share of them at once. Who offered the call comes last.
        """
        call = self.calls[call_id]
        draws = []
        for name, seen in self.workers.items():
            worker = seen.entry
            if worker.draining or worker.document < call.entry.document or worker.free <= 0:
                continue
            digest = hashlib.sha256(f"{call_id} {call.revision} {name}".encode()).digest()
            draw = (int.from_bytes(digest[:8], "big") + 1) / 2.0**64
            draws.append((name == call.entry.before, -math.log(draw) / worker.free, name))
        return [name for _, _, name in sorted(draws)]

    def _watch_over(self, name: str, lease_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(lease_s * (1 + DRIFT), self._silent, name, lease_s)

    def _silent(self, name: str, lease_s: float) -> None:
        self._watch_over(name, lease_s / 4)  # who ends it may fail; ask again
        self._on_silent(name)

    def _forget_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _known(kind: Any, data: bytes) -> dict[str, Any]:
    names = kind.__dataclass_fields__
    return {name: value for name, value in json.loads(data).items() if name in names}


def call_id(guild_id: int, user_id: int) -> str:
    """The name of a user's call in a guild, in keys and subjects."""
    return f"{guild_id}-{user_id}"


def ids_of(call: str) -> tuple[int, int]:
    """Guild and user of a call's name."""
    guild_id, _, user_id = call.partition("-")
    return int(guild_id), int(user_id)
