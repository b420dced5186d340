"""How often a process may dial: a start budget, so that hundreds of calls that are lost at once come back in a row."""

from __future__ import annotations

import random
import threading
from collections import deque

BUDGETS = ((10, 1.0), (300, 600.0))  # so many dials in so many seconds


class DialBudget:
    """Gives turns. All calls of a process share one; any thread may ask."""

    def __init__(self, chance: random.Random, budgets: tuple[tuple[int, float], ...] = BUDGETS) -> None:
        self._random = chance
        self._budgets = budgets
        self._turns: deque[float] = deque(maxlen=max(most for most, _ in budgets))
        self._lock = threading.Lock()

    def reserve(self, now: float, longest_s: float) -> float | None:
        """Take the next turn: in how many seconds it comes, with some jitter where others wait as well.

        None where it is more than `longest_s` away; then no turn is taken.
        """
        with self._lock:
            turn = now
            for most, window_s in self._budgets:
                if len(self._turns) >= most:
                    turn = max(turn, self._turns[-most] + window_s)
            if turn > now:
                most, window_s = self._budgets[0]
                turn = max(turn, self._turns[-1]) + self._random.uniform(0.0, window_s / most)
            if turn - now > longest_s:
                return None
            self._turns.append(turn)
            return turn - now
