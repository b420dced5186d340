"""What a benchmark says: values by who was measured, ratios against targets, and the page made of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.machine import host

OURS = "voicegw"


@dataclass(frozen=True)
class Settings:
    """How long to measure: `rounds` interleaved ones, each window `seconds` long."""

    rounds: int = 5
    seconds: float = 2.0


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
    """One benchmark: for each who was measured its value in every round, in `unit`."""

    name: str
    title: str
    unit: str
    values: Mapping[str, Sequence[float]]
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
    ) -> None:
        """Add the ratio of ours to `other`; nothing where the other could not be measured here."""
        pairs = list(zip(self.values.get(ours, ()), self.values.get(other, ()), strict=False))
        if pairs:
            value = statistics.median(by(a, b) for a, b in pairs)
            self.ratios.append(Ratio(f"{ours} / {other}", value, target, better))

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


def page(results: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    """The results page, in Markdown, from what `as_json` gives."""
    lines = [
        "# Speed",
        "",
        "Written by `voicegw bench all --page docs/speed.md`; do not edit it. Sender and sink have a core each, the",
        "candidates take turns within a round, and every figure is the median of the rounds. Absolute figures are",
        "this machine's; the ratios are made within one run.",
        "",
        f"{host()}. {settings.rounds} rounds, windows of {settings.seconds:g} s.",
        "",
        "| measure | against | reached | target | |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        for ratio in result["ratios"]:
            sign, mark = ("≥" if ratio["better"] == "more" else "≤"), ("met" if ratio["met"] else "missed")
            target = f"{sign} {ratio['target']:g}"
            name = f"[{result['title']}](#{result['name']})"
            lines.append(f"| {name} | {ratio['of']} | {rounded(ratio['value'])} | {target} | {mark} |")
    for result in results:
        lines += ["", f"## {result['name']}", "", f"{result['title']}, in {result['unit']}. `{result['command']}`", ""]
        top = max((abs(value) for value in result["medians"].values()), default=1.0) or 1.0
        lines += ["| | median | rounds | |", "|---|---:|---|---|"]
        for who, value in result["medians"].items():
            every = ", ".join(rounded(one) for one in result["values"][who])
            lines.append(f"| {who} | {rounded(value)} | {every} | `{'█' * max(1, round(24 * abs(value) / top))}` |")
        lines += ["", *result["notes"]] if result["notes"] else []
    return "\n".join(lines).rstrip() + "\n"
