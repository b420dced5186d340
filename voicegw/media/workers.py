"""Threads that read and encode ahead, decode and call sinks; their number does not grow with the streams.

A job that blocks (a source on a network that hangs) keeps its thread. So that the others' jobs do not wait for it, a
thread is counted as lost after a quarter of a second, and another one takes its place until it is back.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from voicegw.media.pacer import has_own_clock

STUCK_S: Final = 0.25
IDLE_S: Final = 5.0
MOST_STUCK: Final = 256

Job = Callable[[], None]

_log = logging.getLogger("voicegw")


class Workers(Protocol):
    """Who does jobs."""

    def submit(self, job: Job) -> None:
        """Do `job` soon, elsewhere; it may block."""

    def relieve(self) -> None:
        """Somebody waits: see whether a thread hangs."""


class ThreadWorkers:
    """`size` threads, and one more for each that hangs."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._busy_since: dict[int, float] = {}
        self._threads = 0

    @property
    def threads(self) -> int:
        """How many there are now."""
        return self._threads

    def submit(self, job: Job) -> None:
        self._jobs.put(job)
        if self._idle == 0:
            self.relieve()

    def relieve(self) -> None:
        with self._lock:
            if self._threads >= self._allowed() or self._jobs.empty():
                return
            self._threads += 1
        threading.Thread(target=self._work, name=f"voicegw {self._name}", daemon=True).start()

    def _allowed(self) -> int:
        if self._threads < self._size:
            return self._size
        before = time.monotonic() - STUCK_S
        stuck = sum(since < before for since in tuple(self._busy_since.values()))
        return self._size + min(stuck, MOST_STUCK)

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            with self._lock:
                if self._threads > self._allowed():
                    self._threads -= 1
                    return
                self._idle += 1
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._jobs.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            self._busy_since[me] = time.monotonic()
            try:
                job()
            except Exception:
                _log.exception("a job of the media path failed")
            finally:
                del self._busy_since[me]


class LoopWorkers:
    """Jobs run on an event loop with a clock of its own, where nothing blocks and every run is the same."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)

    def submit(self, job: Job) -> None:
        loop = self._loop()
        if loop is not None:
            loop.call_soon(job)

    def relieve(self) -> None:
        pass


@functools.cache
def _readers() -> ThreadWorkers:
    return ThreadWorkers("reader", 2)


@functools.cache
def _encoders() -> ThreadWorkers:
    return ThreadWorkers("encoder", min(4, _cores()))


def _cores() -> int:
    """How many this process may use: more threads than these would only wait for each other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _listeners() -> ThreadWorkers:
    return ThreadWorkers("listener", 2)


def _forget() -> None:
    _listeners.cache_clear()
    _readers.cache_clear()
    _encoders.cache_clear()


if hasattr(os, "register_at_fork"):  # the threads are not in the child
    os.register_at_fork(after_in_child=_forget)


def readers_of(loop: asyncio.AbstractEventLoop) -> Workers:
    """Those that read sources of this loop."""
    return LoopWorkers(loop) if has_own_clock(loop) else _readers()


def encoders_of(loop: asyncio.AbstractEventLoop) -> Workers:
    """Those that decode, mix and encode for this loop."""
    return LoopWorkers(loop) if has_own_clock(loop) else _encoders()


def listeners_of(loop: asyncio.AbstractEventLoop) -> Workers:
    """Those that decode what this loop receives and call the sinks."""
    return LoopWorkers(loop) if has_own_clock(loop) else _listeners()
