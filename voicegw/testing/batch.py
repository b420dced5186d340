"""Many runs, on as many processes as there are cores, in the order of their seeds."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

CHUNK = 50

Run = TypeVar("Run")
Seed = TypeVar("Seed")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(go: Callable[[Seed], Run], seeds: Sequence[Seed], jobs: int, chunk: int = CHUNK) -> Iterator[Run]:
    """`go(seed)` for each seed. `go` is a module's function; what it returns comes in the order of the seeds."""
    chunks = [seeds[begin : begin + chunk] for begin in range(0, len(seeds), chunk)]
    if jobs <= 1 or len(chunks) < 3:
        for seeds_of_chunk in chunks:
            yield from _chunk(go, seeds_of_chunk)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in pool.map(functools.partial(_chunk, go), chunks):
            yield from done


def _chunk(go: Callable[[Seed], Run], seeds: Iterable[Seed]) -> list[Run]:
    gc.disable()  # what a run makes is gone when it ends; looking for cycles meanwhile costs a tenth
    try:
        return [go(seed) for seed in seeds]
    finally:
        gc.enable()
