"""Notices that the host has slept, or that this process has not run, for longer than anybody waits for an answer."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voicegw.adapters.system import System

TICK_S = 0.5
GAP_S = 10.0


class WakeWatch:
    """One for all calls of a loop: looks twice a second at the boot clock, while somebody wants to know."""

    def __init__(self, loop: asyncio.AbstractEventLoop, system: System) -> None:
        self._loop = weakref.ref(loop)
        self._system = system
        self._woken: dict[object, Callable[[float], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._boot_s = 0.0

    def add(self, owner: object, woken: Callable[[float], None]) -> None:
        """Call `woken(seconds)` after each sleep of more than 10 s, until `remove(owner)`."""
        self._woken[owner] = woken
        if self._timer is None:
            self._arm()

    def remove(self, owner: object) -> None:
        """Harmless where `owner` was not added."""
        self._woken.pop(owner, None)
        if not self._woken and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        loop = self._loop()
        if loop is not None:
            self._boot_s = self._system.boot_s()
            self._timer = loop.call_later(TICK_S, self._look)

    def _look(self) -> None:
        gap_s = self._system.boot_s() - self._boot_s - TICK_S
        self._arm()
        if gap_s > GAP_S:
            for woken in tuple(self._woken.values()):
                woken(gap_s)


_watches: weakref.WeakKeyDictionary[System, weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, WakeWatch]]
_watches = weakref.WeakKeyDictionary()


def wake_watch(loop: asyncio.AbstractEventLoop, system: System) -> WakeWatch:
    """The watch of this loop on this host."""
    of_system = _watches.setdefault(system, weakref.WeakKeyDictionary())
    watch = of_system.get(loop)
    if watch is None:
        watch = of_system[loop] = WakeWatch(loop, system)
    return watch
