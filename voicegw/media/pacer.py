"""One pacer for all streams of the process: who sends when.

20 ms are divided into 20 slots, and a slot is one wake-up. A stream is served in one that is served anyway, in another
far from those where all of them are full, and in the one that has fewest where all are; one that was held goes on
within 5 ms. Frame n leaves at start + n x 20 ms of the monotonic clock. After a stall a stream sends at most three
frames at once; the rest of the time goes by, and the timestamp with it. What can be done ahead for the next frames is
done behind those of a slot.

The pacer itself is driven from outside: `run` serves what is due and says when it wants to be called again. A thread
drives the one of the process, so that media leaves while the event loop is busy; where the loop has a clock of its
own (a simulation), the loop drives one by that clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import math
import os
import platform
import struct
import sys
import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from voicegw.errors import TooManyStreams
from voicegw.media.sender import READY_FRAMES, SENDING

FRAME_S: Final = 0.02
SLOTS: Final = 20
SLOT_S: Final = FRAME_S / SLOTS
SPREAD: Final = (
    0,
    12,
    4,
    8,
    16,
    2,
    14,
    6,
    10,
    18,
    1,
    13,
    5,
    9,
    17,
    3,
    15,
    7,
    11,
    19,
)  # the order in which slots are taken
FULL_SLOT: Final = 128
PORTION: Final = 64
SOON_SLOTS: Final = 5
CATCH_UP_FRAMES: Final = 3
LEAST_GAP_S: Final = 0.01
LATENESS_MS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
LOAD_WINDOW_S: Final = 1.0
LOAD_WARNED: Final = 0.8
LOAD_REFUSED: Final = 0.95
BEHIND_SHARE: Final = 0.01
BEHIND_WINDOWS: Final = 3
WARN_EVERY_S: Final = 60.0
YIELD_S: Final = 50e-6
TURN_NS: Final = 100_000
PR_SET_TIMERSLACK: Final = 29

_log = logging.getLogger("voicegw")


class Paced(Protocol):
    """A stream. All are called with the pacer's lock held and must not block."""

    def begin(self, due: float) -> None:
        """The first frame leaves at `due` of the pacer's clock."""

    def tick(self) -> bool:
        """Send one frame; False where the stream has nothing to say any more and leaves the pacer."""

    def skip(self, frames: int) -> None:
        """Time for so many frames went by unused."""

    def prepare(self) -> None:
        """Every tenth frame, when those of the slot have left: do ahead what the next ones need."""


class Resting(Paced, Protocol):
    """A stream that says whether its last turn went by unused."""

    rested: bool


@dataclass(frozen=True, slots=True)
class PacerStats:
    """How the pacer does; `lateness` has, for each bound in ms, the frames that left within it, the last beyond all.

    `load` is the part of a core that it takes to keep all streams at pace, by what a frame cost in the last second; it
    may be more than 1. `skipped` are the frames that a stall cost, `late_s` is the lateness of all frames together, in
    seconds.
    """

    streams: int
    frames: int
    skipped: int
    load: float
    lateness: dict[str, int]
    late_s: float


class _Window(NamedTuple):
    """When a second of watching the load began, and the counts then."""

    at: float
    cpu: float
    sent: int
    missed: int


class _Turn:
    """A lock that the pacer gives away when somebody waits for it, though it would have it back at once."""

    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted: list[None] = []

    def __enter__(self) -> None:
        self.wanted.append(None)
        self.lock.acquire()
        self.wanted.pop()

    def __exit__(self, *exception: object) -> None:
        self.lock.release()


class Pacer:
    """`clock` gives seconds, `cpu` the seconds that the driver has worked; `wake` asks for an earlier `run`.

    `may_speak`, where set, is asked once before each slot is served, also after a stall; while it says no, time goes by
    and nothing leaves.
    """

    def __init__(
        self, clock: Callable[[], float], wake: Callable[[], None], cpu: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.turn = _Turn()
        self.clock = clock
        self.may_speak: Callable[[], bool] | None = None
        self._wake = wake
        self._cpu = cpu
        self._slots: list[list[Paced]] = [[] for _ in range(SLOTS)]
        self._places: dict[Paced, int] = {}
        self._epoch = clock()
        self._tick = self._unserved = 0  # the second without those that were passed over because they are empty
        self._rested: set[int] = set()
        self._skipped = self._missed = 0  # the second without those that nobody wanted to leave
        self._lateness = [0] * (len(LATENESS_MS) + 1)
        self._late_s = 0.0
        self._window: _Window | None = None
        self._load = 0.0
        self._behind = 0  # seconds in a row in which frames were skipped
        self._warned_at = -WARN_EVERY_S

    @property
    def load(self) -> float:
        """The part of a core that it takes to keep all streams at pace."""
        return self._load

    @property
    def stats(self) -> PacerStats:
        """What it has done since the process began."""
        names = [f"<= {bound:g} ms" for bound in LATENESS_MS] + [f"> {LATENESS_MS[-1]:g} ms"]
        lateness = dict(zip(names, self._lateness, strict=True))
        return PacerStats(len(self._places), sum(self._lateness), self._skipped, self._load, lateness, self._late_s)

    def add(self, stream: Paced) -> None:
        """Serve `stream` from now on; a second time changes nothing.

        Raises:
            TooManyStreams: this process cannot keep those at pace that it has.
        """
        with self.turn:
            if stream in self._places:
                return
            now = self.clock()
            if not self._places:
                self._epoch, self._load, self._window, self._behind = now, 0.0, None, 0
                self._tick = self._unserved = 0
            if self._load >= LOAD_REFUSED:
                raise TooManyStreams(
                    f"{len(self._places)} streams take {self._load:.0%} of a core; another would make all of them "
                    "late. Put it into another process"
                )
            self._seat(stream, now, SLOTS, lambda tick: (self._crowd(tick), SPREAD[tick % SLOTS]))
        self._wake()

    def hasten(self, stream: Resting) -> None:
        """Serve `stream` within 5 ms from now, where its last turn went by unused: what it waited for has come."""
        with self.turn:
            if stream not in self._places or not stream.rested:
                return
            self._drop(stream)
            self._seat(stream, self.clock(), SOON_SLOTS, self._crowd)
        self._wake()

    def remove(self, stream: Paced) -> None:
        """Serve it no longer; harmless when it is not served."""
        with self.turn:
            self._drop(stream)

    def run(self) -> float | None:
        """Serve every slot that is due; when the next one is, None while there is no stream."""
        clock, slots, turn = self.clock, self._slots, self.turn
        while True:
            if turn.wanted:
                time.sleep(YIELD_S)
            with turn.lock:
                if not self._places:
                    return None
                while not slots[self._tick % SLOTS]:
                    self._tick += 1
                now = clock()
                due = self._epoch + self._tick * SLOT_S
                if due > now:
                    self._note_load(now)
                    return due
                if self.may_speak is not None and not self.may_speak():
                    self._catch_up(now, 0)
                    self._note_load(now)
                    continue
                if now - due >= FRAME_S:
                    self._catch_up(now, CATCH_UP_FRAMES)
                    self._note_load(now)
                    continue
                place = self._tick % SLOTS
                count = self._serve(place)
                late_s = clock() - due
                self._lateness[bisect_left(LATENESS_MS, late_s * 1000)] += count
                self._late_s += late_s * count
                self._prepare(place)
                self._tick += 1
                self._unserved = self._tick

    def _seat(self, stream: Paced, now: float, slots: int, key: Callable[[int], Any]) -> None:
        """In one of so many slots to come. Empty ones have been passed over ahead of time, and may be taken."""
        self._tick = min(self._tick, max(self._unserved, math.ceil((now - self._epoch) / SLOT_S)))
        tick = min(range(self._tick, self._tick + slots), key=key)
        self._places[stream] = tick % SLOTS
        self._slots[tick % SLOTS].append(stream)
        stream.begin(self._epoch + tick * SLOT_S)

    def _crowd(self, tick: int) -> int:
        """How little a stream is wanted there: a slot that is served anyway costs no wake-up, until it is full."""
        count = len(self._slots[tick % SLOTS])
        return count if count >= FULL_SLOT else (0 if count else 1)

    def _serve(self, place: int) -> int:
        """One frame of each stream of a slot; how many were served."""
        slot = self._slots[place]
        count = len(slot)
        if place in self._rested:
            self._rested.discard(place)
            for stream in slot:
                stream.skip(1)
            self._skipped += count
            self._missed += count
            return 0
        over: list[Paced] | None = None
        with SENDING:
            for stream in slot:
                try:
                    if stream.tick():
                        continue
                except Exception:
                    _log.exception("a stream failed and is paced no longer")
                over = [*(over or ()), stream]
        for stream in over or ():
            self._drop(stream)
        return count

    def _prepare(self, place: int) -> None:
        """Have the streams of a slot do ahead what their next frames need: as many at once as do not take long."""
        slot, turn = self._slots[place], (self._tick // SLOTS + place) % READY_FRAMES
        portions = min(READY_FRAMES, len(slot) // PORTION + 1)
        portion, not_now = divmod(turn, READY_FRAMES // portions)
        if not_now or portion >= portions:
            return
        for stream in slot[portion::portions]:
            try:
                stream.prepare()
            except Exception:
                _log.exception("a stream failed and is paced no longer")
                self._drop(stream)

    def _catch_up(self, now: float, most: int) -> None:
        """Time was missed: at most so many frames a stream leave, and the rest of the time is let go."""
        target = max(self._tick, int((now - self._epoch) / SLOT_S)) + 1
        for tick in range(self._tick, self._tick + SLOTS):
            place, missed = tick % SLOTS, max(0, (target - 1 - tick) // SLOTS + 1)
            sent = min(missed, most)
            served = sum(self._serve(place) for _ in range(sent))
            lost = missed - sent
            streams = self._slots[place]
            for stream in streams if lost else ():
                stream.skip(lost)
            following = self._epoch + (tick + missed * SLOTS) * SLOT_S
            if sent == CATCH_UP_FRAMES and following - now < LEAST_GAP_S:
                self._rested.add(place)
            self._lateness[-1] += served
            self._late_s += served * (now - self._epoch - tick * SLOT_S)
            self._skipped += lost * len(streams)
            self._missed += lost * len(streams) if most else 0
        self._tick = self._unserved = target

    def _drop(self, stream: Paced) -> None:
        place = self._places.pop(stream, None)
        if place is not None:
            self._slots[place].remove(stream)

    def _note_load(self, now: float) -> None:
        """Once a second: what does a frame cost, and do all leave? After a longer rest there is nothing to tell."""
        began = self._window
        if began is not None and now - began.at < LOAD_WINDOW_S:
            return
        ended = self._window = _Window(now, self._cpu(), sum(self._lateness), self._missed)
        if began is None or now - began.at >= 2 * LOAD_WINDOW_S:
            self._load, self._behind = 0.0, 0
            return
        sent, missed = ended.sent - began.sent, ended.missed - began.missed
        if sent:
            self._load = (ended.cpu - began.cpu) / (now - began.at) * (sent + missed) / sent
        self._behind = self._behind + 1 if missed > BEHIND_SHARE * (sent + missed) else 0
        if now - self._warned_at < WARN_EVERY_S:
            return
        if self._behind >= BEHIND_WINDOWS:
            self._warned_at = now
            share = missed / (sent + missed)
            _log.warning(
                "pacing falls behind: %.0f %% of the frames of %d streams were skipped in the last second. Pacing them "
                "takes %.0f %% of a core; where that is little, something else holds the interpreter or the processor",
                share * 100,
                len(self._places),
                self._load * 100,
            )
        elif self._load >= LOAD_WARNED:
            self._warned_at = now
            _log.warning("pacing %d streams takes %.0f %% of a core", len(self._places), self._load * 100)


def ask_for_short_turns() -> None:
    """Tell Linux to wake this thread on time, and (from 6.12 on) that its turns take 0.1 ms, so that it runs soon.

    Needs no privilege; elsewhere nothing happens.
    """
    number = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    with contextlib.suppress(OSError, AttributeError):  # by default a waking may come 50 us late, to save power
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1))
    # struct sched_attr: size, policy (other), flags, nice, priority, then the turn's length in ns, deadline, period.
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, TURN_NS, 0, 0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


class PacerThread:
    """Drives a pacer; the thread lives while there are streams."""

    def __init__(self) -> None:
        self._bell = threading.Lock()
        self._bell.acquire()
        self._guard = threading.Lock()
        self._running = False
        self.pacer = Pacer(time.monotonic, self._ring, time.thread_time)

    def _ring(self) -> None:
        with self._guard:
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="voicegw pacer", daemon=True).start()
            elif self._bell.locked():
                self._bell.release()

    def _run(self) -> None:
        ask_for_short_turns()
        run, clock, bell = self.pacer.run, self.pacer.clock, self._bell
        while True:
            due = run()
            if due is None:
                with self._guard:
                    if self.pacer.stats.streams == 0:
                        self._running = False
                        return
                continue
            wait_s = due - clock()
            if wait_s > 0:
                bell.acquire(timeout=wait_s)


class PacerTimer:
    """Drives a pacer by the timers of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._timer: asyncio.TimerHandle | None = None
        self.pacer = Pacer(self._now, self._arm)

    def _now(self) -> float:
        loop = self._loop()
        return 0.0 if loop is None else loop.time()

    def _arm(self, at: float | None = None) -> None:
        loop = self._loop()
        if loop is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(loop.time() if at is None else at, self._run)

    def _run(self) -> None:
        self._timer = None
        due = self.pacer.run()
        if due is not None:
            self._arm(due)


@functools.cache
def process_pacer() -> Pacer:
    """The one of this process, driven by a thread."""
    return PacerThread().pacer


if hasattr(os, "register_at_fork"):  # the thread is not in the child
    os.register_at_fork(after_in_child=process_pacer.cache_clear)

_timers: weakref.WeakKeyDictionary[object, PacerTimer] = weakref.WeakKeyDictionary()


def has_own_clock(loop: asyncio.AbstractEventLoop) -> bool:
    """Does time on this loop pass in another way than on the host? Those of asyncio and uvloop follow the host."""
    return getattr(type(loop), "time", None) is not asyncio.BaseEventLoop.time and type(loop).__module__ != "uvloop"


def pacer_of(loop: asyncio.AbstractEventLoop) -> Pacer:
    """The pacer for streams of this loop: the process's, or one of its own where the loop has its own clock.

    A loop that stands for several processes says by `process()` which of them asks.
    """
    if not has_own_clock(loop):
        return process_pacer()
    process = getattr(loop, "process", lambda: loop)()
    timer = _timers.get(process)
    if timer is None:
        timer = _timers[process] = PacerTimer(loop)
    return timer.pacer
