"""How long packets must wait so that late ones still find their turn: measured, forgotten slowly, followed."""

from __future__ import annotations

from typing import Final

LEAST_SLOTS: Final = 2.0
MOST_SLOTS: Final = 40.0

_BUCKETS: Final = 100  # of half a slot
_WINDOW: Final = 250
_GROWTH: Final = 1.002  # a packet weighs half of one that came 350 packets later
_LATE_SHARE: Final = 0.008
_EVALUATE_EVERY: Final = 16


class DelayEstimate:
    """Watches one stream's packets, all times in slots of 20 ms.

    A packet's transit is its arrival minus its place in the stream; the least transit of the last 5 to 10 s is `base`,
    the delay of a packet that met no queue. `target` is what a buffer must add so that all but a few of a thousand
    packets come in time. The base follows a sender whose clock runs fast or slow.
    """

    __slots__ = ("_before", "_buckets", "_last", "_least", "_seen", "_total", "_weight", "base", "jitter", "target")

    def __init__(self) -> None:
        self._buckets = [0.0] * _BUCKETS
        self._total = 0.0
        self._weight = 1.0
        self._seen = 0
        self._last = self._least = self._before = 0.0
        self.base = 0.0
        self.jitter = 0.0
        self.target = LEAST_SLOTS

    def restart(self, transit: float) -> None:
        """The sender's clock has a new zero, as after a pause; what was learnt of the jitter stays."""
        self.base = self._last = self._least = self._before = transit
        self._seen = 0

    def note(self, transit: float) -> None:
        """One packet came."""
        self.jitter += (abs(transit - self._last) - self.jitter) / 16
        self._last = transit
        self._seen += 1
        if transit < self._least:
            self._least = transit
            if transit < self.base:
                self.base = transit
        if self._seen >= _WINDOW:
            self._seen = 0
            self._before, self._least = self._least, transit
            self.base = min(self._before, transit)
        bucket = min(int((transit - self.base) * 2), _BUCKETS - 1)
        self._buckets[bucket] += self._weight
        self._total += self._weight
        self._weight *= _GROWTH
        if not self._seen % _EVALUATE_EVERY:
            self._evaluate()

    def _evaluate(self) -> None:
        late = self._total * _LATE_SHARE
        bucket = _BUCKETS
        while bucket and late >= 0:
            bucket -= 1
            late -= self._buckets[bucket]
        self.target = min(max((bucket + 1) / 2 + 0.5, LEAST_SLOTS), MOST_SLOTS)
        if self._weight > 1e9:
            self._buckets = [weight / self._weight for weight in self._buckets]
            self._total /= self._weight
            self._weight = 1.0
