"""The core alone: how many calls one processor core simulates, in virtual time, through all that can happen to them."""

from __future__ import annotations

import os
import time

from bench.machine import cores
from bench.results import OURS, Result, Settings
from voicegw.testing.batch import run_all
from voicegw.testing.chaos import run_seed

SEEDS, WARM = 3000, 50
ASKED_FOR = 2000.0


def simulated(seeds: int) -> tuple[int, int]:
    """Voice sessions and events of so many calls; as the command does, each is counted and let go."""
    sessions = events = 0
    for run in run_all(run_seed, range(seeds), jobs=1):
        sessions += run.voice_sessions
        events += run.events
    return sessions, events


def core(settings: Settings) -> Result:
    """`voicegw simulate` on one core: the six machines of a call, the invariants after each event, the trace hash."""
    result = Result("core", "Voice sessions that one core simulates", "sessions a second", {})
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores()[0]})
    try:
        simulated(WARM)
        took = []
        for _ in range(settings.rounds):
            began = time.process_time()
            sessions, events = simulated(SEEDS)
            took.append(time.process_time() - began)
    finally:
        os.sched_setaffinity(0, before)
    result.values = {OURS: [sessions / seconds for seconds in took], "asked for": [ASKED_FOR] * len(took)}
    result.compare("asked for", 1.0, "more")
    best = min(took)
    result.notes.append(
        f"{SEEDS} seeds a round, {events / SEEDS:.0f} events and {sessions / SEEDS:.1f} sessions a seed (Identify or "
        f"Resume), by processor time. In the best round {SEEDS / best:,.0f} runs and {events / best:,.0f} events a "
        f"second, {best / events * 1e6:.1f} µs an event: what the tables do about it, what the world around answers, "
        "the invariants, and the trace that is hashed."
    )
    return result


MEASURES = {"core": core}
