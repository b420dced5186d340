"""`voicegw simulate`: run the core through seeded faults in virtual time."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter

from voicegw.cli.console import Commands, Console

SHOWN_LINES = 20


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "simulate",
        help="run the machines through seeded faults",
        description="Run the six machines of a call through seeded faults in virtual time, invariants checked after "
        "every event. The same seeds give the same trace hash. It simulates the core, not the adapters.",
    )
    command.add_argument("--seeds", type=count, default=1000, metavar="N", help="how many runs (1000)")
    command.add_argument("--seed", type=int, default=0, metavar="K", help="the first seed (0)")
    return command


def count(text: str) -> int:
    """An argument that is a positive whole number."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def run(arguments: argparse.Namespace, console: Console) -> int:
    """All seeds; the first that fails is shown with the end of its trace."""
    from voicegw.testing.chaos import Chaos

    faults: Counter[str] = Counter()
    trace = hashlib.sha256()
    events, virtual_s, violations = 0, 0.0, 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        done = Chaos(seed).go()
        events += done.events
        virtual_s += done.virtual_s
        faults += done.faults
        trace.update(done.trace_hash.encode())
        if done.violation is not None:
            violations += 1
            if violations == 1:
                console.say(f"seed {seed}: {done.violation}")
                for line in done.tail[-SHOWN_LINES:]:
                    console.say(f"  {line}")
    console.say(
        f"{arguments.seeds} runs, {virtual_s / 3600:.1f} virtual hours, {events} events, {violations} violations"
    )
    for name, number in sorted(faults.items()):
        console.say(f"  {name:16} {number}")
    console.say(f"trace hash {trace.hexdigest()}")
    console.result(
        {
            "seeds": arguments.seeds,
            "virtual_hours": round(virtual_s / 3600, 3),
            "events": events,
            "faults": dict(sorted(faults.items())),
            "violations": violations,
            "trace_hash": trace.hexdigest(),
        }
    )
    return 1 if violations else 0
