"""Timers of one call on an event loop: one per name, armed and cancelled as the core says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.effects import ArmTimer, CancelTimer, Effect

LATE_S = 0.1


class Timers:
    """Brings `fire(name, at)` at its time; `at` is the one that the effect named.

    A timer that the loop brings late, as after a stall of the process, gives way once to what has arrived meanwhile:
    an answer that lies in a socket's buffer is not late, its reader was.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fire: Callable[[str, float], None], system: System = THIS_SYSTEM
    ) -> None:
        self._loop = loop
        self._random = system.random
        self._fire = fire
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def arm(self, effect: ArmTimer) -> None:
        """Arm one timer; an older one of its name is replaced."""
        self.cancel(effect.name)
        due = effect.at
        if effect.jitter:
            due -= self._random.uniform(0.0, effect.after_s)
        self._handles[effect.name] = self._loop.call_at(due, self._pass, effect.name, effect.at, due)

    def follow(self, effects: Iterable[Effect]) -> None:
        """Arm and cancel as a machine wants it that has nothing but timers for effects."""
        for effect in effects:
            match effect:
                case ArmTimer():
                    self.arm(effect)
                case CancelTimer(name=name):
                    self.cancel(name)

    def cancel(self, name: str) -> None:
        """Forget one timer."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.cancel()

    def cancel_all(self) -> None:
        """Forget all."""
        for name in tuple(self._handles):
            self.cancel(name)

    def __len__(self) -> int:
        return len(self._handles)

    def _pass(self, name: str, at: float, due: float) -> None:
        if self._loop.time() - due > LATE_S:
            self._handles[name] = self._loop.call_later(0.0, self._fire_now, name, at)
        else:
            self._fire_now(name, at)

    def _fire_now(self, name: str, at: float) -> None:
        self._handles.pop(name, None)
        self._fire(name, at)
