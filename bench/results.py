"""What a benchmark says: values by who was measured, ratios against targets, and the page made of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

OURS = "voicegw"


@dataclass(frozen=True)
class Settings:
    """How long to measure: `rounds` interleaved ones, each window `seconds` long."""

    rounds: int = 5
    seconds: float = 1.5


@dataclass(frozen=True)
class Ratio:
    """`value` is the median over rounds of ours by theirs in the same round; `target` is what it should reach."""

    of: str
    value: float
    target: float
    better: Literal["more", "less"]

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.better == "more" else self.value <= self.target


@dataclass
class Result:
    """One benchmark: for each who was measured its value in every round, in `unit`; `more` is for programs."""

    name: str
    title: str
    unit: str
    values: Mapping[str, Sequence[float]]
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def medians(self) -> dict[str, float]:
        """Who, and the median of its rounds."""
        return {who: statistics.median(values) for who, values in self.values.items() if values}

    def compare(
        self,
        other: str,
        target: float,
        better: Literal["more", "less"],
        ours: str = OURS,
        by: Callable[[float, float], float] = lambda a, b: a / (b or 1e-9),
        of: str = "",
    ) -> None:
        """Add the ratio of ours to `other`; nothing where the other could not be measured here."""
        pairs = list(zip(self.values.get(ours, ()), self.values.get(other, ()), strict=False))
        if pairs:
            value = statistics.median(by(a, b) for a, b in pairs)
            self.ratios.append(Ratio(of or f"{ours} / {other}", value, target, better))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        data = asdict(self)
        data["medians"] = self.medians()
        data["ratios"] = [asdict(ratio) | {"met": ratio.met} for ratio in self.ratios]
        data["command"] = f"voicegw bench {self.name}"
        return data


def rounded(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
