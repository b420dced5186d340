"""Which test injects which fault in which phase: `covers` marks tests, the coverage table is drawn from the marks."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from tests.faults.catalogue import FAULTS

Test = TypeVar("Test", bound=Callable[..., Any])
Cell = tuple[str, str]

SEEDS = 3
COVERED: dict[Cell, list[str]] = defaultdict(list)


def covers(fault: str, phases: str = "") -> Callable[[Test], Test]:
    """The test injects `fault` in `phases`, in all of the fault's own where none are named.

    A test that takes `phase` is run for each; one that takes `seed` for three seeds of each.
    """
    chosen = phases or FAULTS[fault].phases
    foreign = set(chosen) - set(FAULTS[fault].phases)
    if foreign:
        raise ValueError(f"{fault} does not strike in {''.join(sorted(foreign))}")

    def mark(test: Test) -> Test:
        for phase in chosen:
            COVERED[fault, phase].append(f"{test.__module__.rpartition('.')[2]}.{test.__name__}")
        wanted = inspect.signature(test).parameters
        if "phase" in wanted:
            test = pytest.mark.parametrize("phase", list(chosen))(test)
        if "seed" in wanted:
            test = pytest.mark.parametrize("seed", range(SEEDS))(test)
        return test

    return mark


def missing() -> list[Cell]:
    """The cells that no test covers yet."""
    return [(fault, phase) for fault, row in FAULTS.items() for phase in row.phases if (fault, phase) not in COVERED]
