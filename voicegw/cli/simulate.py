"""`voicegw simulate`: calls in virtual time through seeded faults, the machines alone or whole clients."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from voicegw.cli.console import Commands, Console, count

if TYPE_CHECKING:
    from voicegw.testing.run import Run
    from voicegw.testing.storm import StormRun

    AnyRun = TypeVar("AnyRun", Run, StormRun)

CAMPAIGNS = ("S01", "S02", "S03", "S04", "S05", "S06", "S07", "S08", "S09", "S10", "S11", "S12", "S13")


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "simulate",
        help="run the machines through seeded faults",
        description="Run the six machines of a call through seeded faults in virtual time, invariants checked after "
        "every event. The same seeds give the same trace hash. With --full not the machines alone: whole clients and "
        "the local voice server, with real encryption, on a simulated network, hosts and clocks.",
    )
    command.add_argument("--seeds", type=count, metavar="N", help="how many runs (1000; of a campaign 1)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--full", action="store_true", help="whole clients against the local server")
    kind.add_argument("--campaign", choices=(*CAMPAIGNS, "all"), help="a composed scenario, or all of them")
    command.add_argument("--seed", type=int, default=0, metavar="K", help="the first seed (0)")
    command.add_argument("--jobs", type=count, metavar="N", help="processes (as many as there are cores)")
    command.add_argument("--every-row", action="store_true", help="fail, too, where a row of the tables is never taken")
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """All seeds; the first that fails is made short and shown."""
    from voicegw.testing.batch import cores, run_all

    seeds = range(arguments.seed, arguments.seed + (arguments.seeds or (1 if arguments.campaign else 1000)))
    jobs = arguments.jobs or cores()
    if arguments.campaign:
        from voicegw.testing.campaigns import run_campaign

        names = CAMPAIGNS if arguments.campaign == "all" else (arguments.campaign,)
        work = [(campaign, seed) for campaign in names for seed in seeds]
        return _campaigns(run_all(run_campaign, work, jobs, chunk=1), console)
    if arguments.full:
        from voicegw.testing.storm import run_seed as run_storm
        from voicegw.testing.storm import shrink

        def shown(run: StormRun) -> list[str]:
            return shrink(run.seed, run.plan).report().splitlines()

        return _end(_summed_up(run_all(run_storm, seeds, jobs, chunk=5), console, shown), console)
    from voicegw.testing.chaos import run_seed
    from voicegw.testing.prove import never_taken, not_in_the_tables
    from voicegw.testing.shrink import report

    taken: set[tuple[str, int, str, str]] = set()
    voice_sessions = 0
    begin = time.perf_counter()

    def runs() -> Iterator[Run]:
        nonlocal voice_sessions
        for run in run_all(run_seed, seeds, jobs):
            taken.update(run.rows)
            voice_sessions += run.voice_sessions
            yield run

    result = _summed_up(runs(), console, report)
    wrong = [f"T10: {violation}" for violation in not_in_the_tables(taken)]
    missed = never_taken(taken)
    if arguments.every_row:
        wrong += [f"T10: never taken: {row}" for row in missed]
    for line in wrong:
        console.say(f"wrong: {line}")
    result["violations"] += len(wrong)
    rows = len({(machine, row) for machine, row, _, _ in taken})
    console.say(f"rows taken: {rows} of {rows + len(missed)}")
    seconds = time.perf_counter() - begin
    console.say(f"{voice_sessions} voice sessions in {seconds:.1f} s, {voice_sessions / seconds:.0f} a second")
    figures = {"voice_sessions": voice_sessions, "rows_taken": rows, "rows": rows + len(missed)}
    return _end({**result, **figures}, console)


def _summed_up(runs: Iterable[AnyRun], console: Console, shown: Callable[[AnyRun], list[str]]) -> dict[str, Any]:
    faults: Counter[str] = Counter()
    trace = hashlib.sha256()
    seeds, events, virtual_s, violations = 0, 0, 0.0, 0
    for done in runs:
        seeds += 1
        events += done.events
        virtual_s += done.virtual_s
        faults.update(done.faults)
        trace.update(done.trace_hash.encode())
        if done.violation is not None:
            violations += 1
            console.say(f"seed {done.seed}: {done.violation}")
            if violations == 1:
                for line in shown(done):
                    console.say(f"  {line}")
    for name, number in sorted(faults.items()):
        console.say(f"  {name:16} {number}")
    return {
        "seeds": seeds,
        "virtual_hours": round(virtual_s / 3600, 3),
        "events": events,
        "faults": dict(sorted(faults.items())),
        "violations": violations,
        "trace_hash": trace.hexdigest(),
    }


def _campaigns(runs: Iterable[Any], console: Console) -> int:
    figures: dict[str, dict[str, float]] = {}

    def noted() -> Iterator[Any]:
        for run in runs:
            figures[f"{run.campaign} {run.seed}"] = run.figures
            told = ", ".join(f"{name} {value:g}" for name, value in run.figures.items())
            console.say(f"{run.campaign} seed {run.seed}, {run.virtual_s / 3600:.1f} virtual hours: {told}")
            yield run

    result = _summed_up(noted(), console, lambda run: run.tail)
    return _end({**result, "figures": figures}, console)


def _end(result: dict[str, Any], console: Console) -> int:
    console.say(
        f"{result['seeds']} runs, {result['virtual_hours']:.1f} virtual hours, {result['events']} events, "
        f"{result['violations']} violations"
    )
    console.say(f"trace hash {result['trace_hash']}")
    console.result(result)
    return 1 if result["violations"] else 0
