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

    def reserve(self, now: float, longest_s: float) -> float:
        """Take the next turn: in how many seconds it comes, with some jitter where others wait as well.

        Where it is more than `longest_s` away no turn is taken; to come back after the seconds that are returned then
        finds one, or a later window. They differ by up to a tenth of the longest window, so that not all come at once.
        """
        with self._lock:
            turn = max(now, self._turns[-1]) if self._turns else now
            for most, window_s in self._budgets:
                if len(self._turns) >= most:
                    turn = max(turn, self._turns[-most] + window_s)
            if turn > now:
                most, window_s = self._budgets[0]
                turn += self._random.uniform(0.0, window_s / most)
            if turn - now > longest_s:
                return turn - now + self._random.uniform(0.0, max(window_s for _, window_s in self._budgets) / 10)
            self._turns.append(turn)
            return turn - now
