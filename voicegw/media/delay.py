"""How long packets must wait so that late ones still find their turn: measured, forgotten slowly, followed."""

from __future__ import annotations

from typing import Final

LEAST_SLOTS: Final = 2.0
MOST_SLOTS: Final = 40.0

_BUCKETS: Final = 100  # of half a slot
_WINDOW: Final = 250
_GROWTH: Final = 1.002  # a packet weighs half of one that came 350 packets later
_LATE_SHARE: Final = 0.008
_FORGOTTEN: Final = 1e-6
_LEARN_EVERY: Final = 16


class DelayEstimate:
    """Watches one stream's packets, all times in slots of 20 ms.

    A packet's transit is its arrival minus its place in the stream; the least transit of the last 5 to 10 s is `base`,
    the delay of a packet that met no queue. `target` is what a buffer must add so that all but a few of a thousand
    packets come in time. The base follows a sender whose clock runs fast or slow.
    """

    __slots__ = (
        "_before",
        "_buckets",
        "_fresh",
        "_last",
        "_least",
        "_seen",
        "_top",
        "_total",
        "_weight",
        "base",
        "jitter",
        "target",
    )

    def __init__(self) -> None:
        self._buckets = [0.0] * _BUCKETS
        self._top = 0  # there is nothing in the buckets above
        self._total = 0.0
        self._weight = 1.0
        self._seen = 0
        self._fresh: list[float] = []  # transits that nothing was learnt from yet
        self._last = self._least = self._before = 0.0
        self.base = 0.0
        self.jitter = 0.0
        self.target = LEAST_SLOTS

    def restart(self, transit: float) -> None:
        """The sender's clock has a new zero, as after a pause; what was learnt of the jitter stays."""
        self._learn()
        self.base = self._last = self._least = self._before = transit
        self._seen = 0

    def note(self, transit: float) -> bool:
        """One packet came. Every sixteenth makes `target` and `jitter` new: True."""
        fresh = self._fresh
        fresh.append(transit)
        if transit < self.base:
            self.base = transit
        if len(fresh) < _LEARN_EVERY:
            return False
        self._learn()
        self._evaluate()
        return True

    def _learn(self) -> None:
        base, last, jitter, total, weight = self.base, self._last, self.jitter, self._total, self._weight
        buckets, top = self._buckets, self._top
        for transit in self._fresh:
            jitter += (abs(transit - last) - jitter) / 16
            last = transit
            bucket = int((transit - base) * 2)
            if bucket > top:
                bucket = top = min(bucket, _BUCKETS - 1)
            buckets[bucket] += weight
            total += weight
            weight *= _GROWTH
        self._last, self._top, self.jitter, self._total, self._weight = last, top, jitter, total, weight
        self._least = min(self._least, *self._fresh, last)
        self._seen += len(self._fresh)
        self._fresh.clear()
        if self._seen >= _WINDOW:
            self._seen = 0
            self._before, self._least = self._least, last
            self.base = min(self._before, last)

    def _evaluate(self) -> None:
        late = self._total * _LATE_SHARE
        bucket = self._top + 1
        while bucket and late >= 0:
            bucket -= 1
            late -= self._buckets[bucket]
        self.target = min(max((bucket + 1) / 2 + 0.5, LEAST_SLOTS), MOST_SLOTS)
        if self._weight > 1e9:
            self._buckets = [weight / self._weight for weight in self._buckets]
            self._total /= self._weight
            self._weight = 1.0
            self._top = max(bucket for bucket, weight in enumerate(self._buckets) if weight > _FORGOTTEN)
