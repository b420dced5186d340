"""Finds the benchmarks and runs them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench
from bench.page import write
from bench.results import Result, Settings

Measure = Callable[[Settings], Result]


FIRST = (
    "streams",
    "streams-dave",
    "packet",
    "lateness",
    "pcm",
    "encode",
    "encode-threads",
    "receive",
    "memory",
    "connect",
    "handover",
)


def measures() -> dict[str, Measure]:
    """All that the modules here have, by name; what people ask for first comes first."""
    found: dict[str, Measure] = {}
    for module in sorted(pkgutil.iter_modules(bench.__path__), key=lambda module: module.name):
        if not module.ispkg:
            found |= getattr(importlib.import_module(f"bench.{module.name}"), "MEASURES", {})
    return {name: found[name] for name in (*FIRST, *found) if name in found}


def run(
    names: Sequence[str], settings: Settings, say: Callable[[str], None], page: Path | None = None
) -> list[dict[str, Any]]:
    """Run some, one after the other; each is told, and put on `page`, as it ends. Results of others stay there."""
    known, results = measures(), []
    for name in names:
        say(f"{name}: {(known[name].__doc__ or '').strip()}")
        result = known[name](settings)
        results.append(result.as_json())
        for who, value in result.medians().items():
            say(f"    {who:<40} {value:12,.2f} {result.unit}")
        for ratio in result.ratios:
            sign = ">=" if ratio.better == "more" else "<="
            say(f"    {ratio.of:<40} {ratio.value:12.2f} {sign} {ratio.target:.3g}  {'met' if ratio.met else 'MISSED'}")
        if page is not None:
            write(page, results[-1:], list(known), settings)
    return results
