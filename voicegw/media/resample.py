"""One rate of samples to another, with nothing but the standard library."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Final

_REACH: Final = 6
_MAX_PHASES: Final = 1024


@functools.lru_cache(maxsize=4)
def _kernel(up: int, down: int) -> tuple[tuple[float, ...], ...]:
    """A Hann-windowed sinc for each of `up` phases; each adds up to 1, so that a constant stays what it is."""
    cutoff = min(1.0, up / down) * 0.95
    reach = _reach(up, down)
    phases = []
    for phase in range(up):
        between = (phase * down % up) / up
        taps = []
        for n in range(1 - reach, reach + 1):
            away = n - between
            angle = math.pi * away * cutoff
            sinc = math.sin(angle) / angle if angle else 1.0
            taps.append(sinc * (0.5 + 0.5 * math.cos(math.pi * away / reach)) if abs(away) < reach else 0.0)
        total = sum(taps)
        phases.append(tuple(tap / total for tap in taps))
    return tuple(phases)


def _reach(up: int, down: int) -> int:
    """Input samples that count on either side: more when the rate falls, for the low-pass; a multiple of six."""
    return _REACH * math.ceil(max(1.0, down / up))


class Resampler:
    """One channel from rate to rate, block by block.

    Sound keeps its place in time: output sample n stands for the moment n / `to_rate`. Ratios with more than 1024
    phases are replaced by the nearest one with fewer.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._from_rate, self._to_rate = from_rate, to_rate
        ratio = Fraction(from_rate, to_rate).limit_denominator(_MAX_PHASES)
        self._up, self._down = ratio.denominator, ratio.numerator
        self._same = self._up == self._down
        self._reach = _reach(self._up, self._down)
        self._taken = 0
        self._given = 0
        self._held = [0.0] * (self._reach - 1)

    def feed(self, samples: list[float]) -> list[float]:
        """Take samples of any number, give those that can be told by now."""
        if self._same:
            return samples
        self._taken += len(samples)
        self._held += samples
        repeats = (len(self._held) - 2 * self._reach) // self._down
        return self._run(repeats) if repeats > 0 else []

    def finish(self) -> list[float]:
        """The rest, as if silence followed."""
        if self._same:
            return []
        wanted = -(-self._taken * self._to_rate // self._from_rate) - self._given
        if wanted <= 0:
            return []
        repeats = -(-wanted // self._up)
        missing = repeats * self._down + 2 * self._reach - len(self._held)
        self._held += [0.0] * missing
        return self._run(repeats)[:wanted]

    def _run(self, repeats: int) -> list[float]:
        out = [0.0] * (repeats * self._up)
        last = (repeats - 1) * self._down + 1
        for phase, taps in enumerate(_kernel(self._up, self._down)):
            first = phase * self._down // self._up
            column = [0.0] * repeats
            # Twelve at a time, written out: a loop over taps takes twice as long.
            for t in range(0, len(taps), 12):
                c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 = taps[t : t + 12]
                starts = range(first + t, first + t + 12)
                windows = (self._held[at : at + last : self._down] for at in starts)
                column = [
                    (s + c0 * a + c1 * b + c2 * c + c3 * d + c4 * e + c5 * f)
                    + (c6 * g + c7 * h + c8 * i + c9 * j + c10 * k + c11 * m)
                    for s, a, b, c, d, e, f, g, h, i, j, k, m in zip(column, *windows, strict=True)
                ]
            out[phase :: self._up] = column
        del self._held[: repeats * self._down]
        self._given += len(out)
        return out
