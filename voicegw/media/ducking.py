"""What is played goes down while the others speak, and comes up again when they have been silent for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol, TypedDict

ATTACK_S: Final = 0.1
HOLD_S: Final = 0.5
RELEASE_S: Final = 0.6


class HowToDuck(TypedDict, total=False):
    """It goes down within `attack_s`, stays down for `hold_s` after the last word, and comes up within `release_s`.
    Users in `ignored`, such as other bots, change nothing."""

    attack_s: float
    hold_s: float
    release_s: float
    ignored: Iterable[int]


class Duckable(Protocol):
    """What can be turned down."""

    def duck(self, level: float = ..., fade_s: float = ...) -> None:
        """Turn it to `level` within so many seconds; 1 is as it is."""


class Ducking:
    """Turns `player` down when the first speaks, and up again some time after the last has stopped.

    So music does not pump between words. All of it belongs to the event loop and hears who begins and who stops, not
    packets. It does nothing before `use`.
    """

    def __init__(self, player: Duckable) -> None:
        self._player = player
        self._level: float | None = None
        self._attack_s, self._hold_s, self._release_s = ATTACK_S, HOLD_S, RELEASE_S
        self._ignored: frozenset[int] = frozenset()
        self._speaking: set[int] = set()
        self._down = False
        self._rising: asyncio.TimerHandle | None = None

    def use(
        self,
        level: float | None,
        attack_s: float = ATTACK_S,
        hold_s: float = HOLD_S,
        release_s: float = RELEASE_S,
        ignored: Iterable[int] = (),
    ) -> None:
        """Turn it to `level` from now on; None ends that."""
        if level is not None and not 0.0 <= level < 1.0:
            raise ValueError(f"a level to duck to is 0 to less than 1, not {level}")
        if min(attack_s, hold_s, release_s) < 0.0:
            raise ValueError("the times of ducking are seconds, not less than 0")
        self.stop()
        self._attack_s, self._hold_s, self._release_s = attack_s, hold_s, release_s
        self._ignored = frozenset(ignored)
        self._level = level
        if level is not None:
            self._player.duck(1.0)  # so that little is made ahead when it matters
            self._follow()

    def hear(self, user_id: int, speaking: bool) -> None:
        """A user begins to speak, or has stopped."""
        if speaking:
            self._speaking.add(user_id)
        else:
            self._speaking.discard(user_id)
        self._follow()

    def stop(self) -> None:
        """Hear nobody any more; what is down comes up."""
        self._level = None
        self._stay()
        if self._down:
            self._rise()

    def _follow(self) -> None:
        if self._level is None:
            return
        if self._speaking - self._ignored:
            self._stay()
            if not self._down:
                self._down = True
                self._player.duck(self._level, self._attack_s)
        elif self._down and self._rising is None:
            self._rising = asyncio.get_running_loop().call_later(self._hold_s, self._rise)

    def _stay(self) -> None:
        if self._rising is not None:
            self._rising.cancel()
            self._rising = None

    def _rise(self) -> None:
        self._rising, self._down = None, False
        self._player.duck(1.0, self._release_s)
