"""Where an object lives: one event loop of one thread of one process. Elsewhere it must not be touched."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable

from voicegw.errors import UsedElsewhere


class Home:
    """Settles on the loop that is running when `settle` is called first. `on_fork` is called in a child process."""

    def __init__(self, what: str, on_fork: Callable[[], None]) -> None:
        self._what = what
        self._on_fork = on_fork
        self._thread: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forked = False
        _HOMES.add(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, once it is known."""
        return self._loop

    def settle(self) -> asyncio.AbstractEventLoop:
        """Live on the running loop from now on.

        Raises:
            UsedElsewhere: it lives on another one already.
        """
        running = asyncio.get_running_loop()
        if self._loop is None and not self._forked:
            self._loop, self._thread = running, threading.get_ident()
        self.check()
        if running is not self._loop:
            raise UsedElsewhere(f"{self._what} belongs to another event loop")
        return running

    def check(self) -> None:
        """Are we at home?

        Raises:
            UsedElsewhere: in another thread, or in a child process.
        """
        if self._forked:
            raise UsedElsewhere(f"{self._what} belongs to the process that this one was forked from")
        if self._thread is not None and self._thread != threading.get_ident():
            raise UsedElsewhere(f"{self._what} belongs to the thread of its event loop; use call_soon_threadsafe")

    @property
    def elsewhere(self) -> bool:
        """Is this another thread than the one of the loop?"""
        return self._thread is not None and self._thread != threading.get_ident()

    def forked(self) -> None:
        """This is a child: what lives in the parent is dead here."""
        self._forked = True
        self._on_fork()


_HOMES: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork() -> None:
    for home in tuple(_HOMES):
        home.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
