"""`voicegw simulate`: run the core through seeded faults in virtual time."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from voicegw.cli.console import Commands, Console

if TYPE_CHECKING:
    from voicegw.testing.chaos import Run
    from voicegw.testing.storm import StormRun

    AnyRun = TypeVar("AnyRun", Run, StormRun)

SHOWN_LINES = 20


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "simulate",
        help="run the machines through seeded faults",
        description="Run the six machines of a call through seeded faults in virtual time, invariants checked after "
        "every event. The same seeds give the same trace hash. With --full not the machines alone: whole clients and "
        "the local voice server, with real encryption, on a simulated network, hosts and clocks.",
    )
    command.add_argument("--seeds", type=count, default=1000, metavar="N", help="how many runs (1000)")
    command.add_argument(
        "--full", action="store_true", help="whole clients against the local server on a simulated network"
    )
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
    if arguments.full:
        return run_storms(arguments, console)
    from voicegw.testing.chaos import Chaos

    return _tell((Chaos(seed).go() for seed in _seeds(arguments)), console, lambda run: run.tail[-SHOWN_LINES:])


def run_storms(arguments: argparse.Namespace, console: Console) -> int:
    """The same with whole clients; the first that fails is shrunk and shown."""
    from voicegw.testing.storm import Storm, shrink

    def shown(run: StormRun) -> list[str]:
        return shrink(run.seed, run.plan).report().splitlines()

    return _tell((Storm(seed).go() for seed in _seeds(arguments)), console, shown)


def _seeds(arguments: argparse.Namespace) -> range:
    return range(arguments.seed, arguments.seed + arguments.seeds)


def _tell(runs: Iterator[AnyRun], console: Console, shown: Callable[[AnyRun], list[str]]) -> int:
    faults: Counter[str] = Counter()
    trace = hashlib.sha256()
    seeds, events, virtual_s, violations = 0, 0, 0.0, 0
    for done in runs:
        seeds += 1
        events += done.events
        virtual_s += done.virtual_s
        faults += done.faults
        trace.update(done.trace_hash.encode())
        if done.violation is not None:
            violations += 1
            console.say(f"seed {done.seed}: {done.violation}")
            if violations == 1:
                for line in shown(done):
                    console.say(f"  {line}")
    console.say(f"{seeds} runs, {virtual_s / 3600:.1f} virtual hours, {events} events, {violations} violations")
    for name, number in sorted(faults.items()):
        console.say(f"  {name:16} {number}")
    console.say(f"trace hash {trace.hexdigest()}")
    console.result(
        {
            "seeds": seeds,
            "virtual_hours": round(virtual_s / 3600, 3),
            "events": events,
            "faults": dict(sorted(faults.items())),
            "violations": violations,
            "trace_hash": trace.hexdigest(),
        }
    )
    return 1 if violations else 0
