"""Finds the benchmarks and runs them."""

from __future__ import annotations

import importlib
import json
import pkgutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench
from bench.results import Result, Settings, page

Measure = Callable[[Settings], Result]


def measures() -> dict[str, Measure]:
    """All that the modules here have, by name."""
    found: dict[str, Measure] = {}
    for module in sorted(pkgutil.iter_modules(bench.__path__), key=lambda module: module.name):
        if not module.ispkg:
            found |= getattr(importlib.import_module(f"bench.{module.name}"), "MEASURES", {})
    return found


def run(names: Sequence[str], settings: Settings, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run some, one after the other; each is told as it ends."""
    known, results = measures(), []
    for name in names:
        say(f"{name}: {(known[name].__doc__ or '').strip()}")
        result = known[name](settings)
        results.append(result.as_json())
        for who, value in result.medians().items():
            say(f"    {who:<20} {value:12,.2f} {result.unit}")
        for ratio in result.ratios:
            sign = ">=" if ratio.better == "more" else "<="
            say(f"    {ratio.of:<32} {ratio.value:8.2f}  {sign} {ratio.target:.3g}  {'met' if ratio.met else 'MISSED'}")
    return results


def write_page(path: Path, results: Sequence[dict[str, Any]], settings: Settings) -> None:
    """The results page and, beside it, the JSON it is made of. Results of other benchmarks stay."""
    data = path.with_suffix(".json")
    kept: dict[str, Any] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    kept |= {result["name"]: result for result in results}
    ordered = [kept[name] for name in measures() if name in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, text in (
        (data, json.dumps({result["name"]: result for result in ordered}, indent=1) + "\n"),
        (path, page(ordered, settings)),
    ):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(place)
