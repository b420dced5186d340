"""Work off the event loop that must keep its order: decoding one call, writing to one sink."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from voicegw.media.pacer import has_own_clock
from voicegw.media.workers import Workers

TURN: Final = 16  # items of one strand before another has its turn
MANY: Final = 5  # items that wait where perhaps no thread is free

Item = TypeVar("Item")
Work = Sequence["Strand[Any]"] | None


class Strand(Generic[Item]):
    """Does `work(item)` for one item after another, by some worker. `work` must not raise.

    It may return strands to which it has `offer`ed something and that must run now: they do so on the same thread once
    this strand has let go of it, so that handing on costs no waking of another thread and blocks nobody.

    At most `limit` items wait; then the oldest is dropped and counted in `dropped`, and `on_drop` is called the first
    time, on the caller's thread.
    """

    def __init__(
        self, workers: Workers, work: Callable[[Item], Work], limit: int, on_drop: Callable[[], None] = lambda: None
    ) -> None:
        self._workers = workers
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
        if self.offer(item):
            self._workers.submit(self.run)

    def offer(self, item: Item) -> bool:
        """Add an item; must `run` be called for it?"""
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
            waiting = len(self._items)
        if waiting > MANY:
            self._workers.relieve()
        if first:
            self._on_drop()
        return starts

    def after(self, done: Callable[[], None]) -> None:
        """Call `done`, which must not raise, once all items that are there now were worked on; on some thread."""
        with self._lock:
            self._afterwards.append((self._taken + len(self._items), done))
            starts = not self._running
            self._running = True
        if starts:
            self._workers.submit(self.run)

    def run(self) -> None:
        """Work, on this thread, until nothing is left or it is another strand's turn."""
        following: list[Strand[Any]] = []
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
                    break
            if done is not None:
                done()
            else:
                following += self._work(item) or ()
        else:
            self._workers.submit(self.run)
        for strand in following[1:]:
            self._workers.submit(strand.run)
        if following:
            following[0].run()


async def finished(strand: Strand[Item]) -> None:
    """Until a strand has done what it had to do."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    strand.after(lambda: call_soon(loop, settle))
    await done


def call_soon(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Run `what` on the loop, from any thread; nothing where the loop is closed."""
    try:
        if has_own_clock(loop):  # nothing runs beside it
            loop.call_soon(what)
        else:
            loop.call_soon_threadsafe(what)
    except RuntimeError:
        if not loop.is_closed():
            raise
