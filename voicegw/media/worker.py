"""Work off the event loop: a few threads for the whole process, and strands that keep each one's work in order."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

MOST_THREADS: Final = 32
IDLE_S: Final = 5.0
TURN: Final = 16  # items of one strand before another has its turn

Item = TypeVar("Item")


class _Threads:
    """Daemon threads that are made when all are busy and end when there is nothing to do."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait and to which no job was promised
        self._unpromised = 0  # jobs that wait for any thread to become free
        self.count = 0

    def run(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, on some thread."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self.count < MOST_THREADS:
                self.count += 1
                threading.Thread(target=self._work, name="voicegw-worker", daemon=True).start()
            else:
                self._unpromised += 1
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._idle:
                        self._idle -= 1
                        self.count -= 1
                        return
                continue  # a job was promised to this thread
            job()
            with self._lock:
                if self._unpromised:
                    self._unpromised -= 1
                else:
                    self._idle += 1


THREADS: Final = _Threads()


class Strand(Generic[Item]):
    """Does `work(item)` for one item after another, off the caller's thread. `work` must not raise.

    At most `limit` items wait; then the oldest is dropped and counted in `dropped`, and `on_drop` is called the first
    time, on the caller's thread.
    """

    def __init__(self, work: Callable[[Item], None], limit: int, on_drop: Callable[[], None] = lambda: None) -> None:
        self._work = work
        self._limit = limit
        self._on_drop = on_drop
        self._items: deque[Item] = deque()
        self._afterwards: deque[tuple[int, Callable[[], None]]] = deque()
        self._lock = threading.Lock()
        self._running = False
        self._taken = 0  # items that were ever taken out
        self.dropped = 0

    def put(self, item: Item) -> None:
        """Add an item."""
        first = False
        with self._lock:
            if len(self._items) >= self._limit:
                self._items.popleft()
                self._taken += 1
                self.dropped += 1
                first = self.dropped == 1
            self._items.append(item)
            starts = not self._running
            self._running = True
        if starts:
            THREADS.run(self._drain)
        if first:
            self._on_drop()

    def after(self, done: Callable[[], None]) -> None:
        """Call `done`, which must not raise, once all items that are there now were worked on; on some thread."""
        with self._lock:
            self._afterwards.append((self._taken + len(self._items), done))
            starts = not self._running
            self._running = True
        if starts:
            THREADS.run(self._drain)

    def _drain(self) -> None:
        for _ in range(TURN):
            done: Callable[[], None] | None = None
            with self._lock:
                if self._afterwards and self._afterwards[0][0] <= self._taken:
                    done = self._afterwards.popleft()[1]
                elif self._items:
                    item = self._items.popleft()
                    self._taken += 1
                else:
                    self._running = False
                    return
            if done is not None:
                done()
            else:
                self._work(item)
        THREADS.run(self._drain)
