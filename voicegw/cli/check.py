"""`voicegw check`: prove the tables."""

from __future__ import annotations

import argparse
from collections import Counter

from voicegw.cli.console import Commands, Console

CHECKS = tuple(f"T{number:02d}" for number in range(1, 12))
KINDS, ALL_KINDS, RUNS = 250, 20_000, 150
SHOWN = 20


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "check", help="prove the state tables", description="Prove the state tables."
    )
    command.add_argument(
        "--product",
        action="store_true",
        help=f"follow all six machines together to the end, not only the first {KINDS} kinds of calls (half a minute)",
    )
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Count, find, say."""
    from voicegw.session import ALL_SESSIONS, Options
    from voicegw.tables.check import check_all
    from voicegw.testing.prove import prove

    report = check_all(ALL_SESSIONS, Options().max_attempts)
    proof = prove(ALL_KINDS if arguments.product else KINDS, RUNS)
    violations = (*report.violations, *proof.violations)
    for violation in violations[:SHOWN]:
        console.say(f"wrong: {violation}")
    if len(violations) > SHOWN:
        console.say(f"wrong: {len(violations) - SHOWN} more")
    unfinished = arguments.product and not proof.complete
    if unfinished:
        console.say(f"wrong: T07 all: together: there are more than {ALL_KINDS} kinds of calls")
    console.say(f"{report.states} states, {report.rows} rows, {report.pairs} (state, event) pairs, all decided")
    console.say(f"{proof.pairs} pairs and rows put to the engine, {proof.runs} calls simulated")
    console.say(f"{proof.kinds} kinds of calls followed in {proof.steps} steps{'' if proof.complete else ', not all'}")
    console.say(f"a join is decided within {report.bound_s:g} s; {len(violations)} violations")
    by_check = Counter(violation.check for violation in violations)
    console.result(
        {
            "states": report.states,
            "rows": report.rows,
            "pairs": report.pairs,
            "bound_s": report.bound_s,
            "violations": len(violations) + unfinished,
            "kinds": proof.kinds,
            "steps": proof.steps,
            "complete": proof.complete,
            "by_check": {check: by_check[check] for check in CHECKS},
        }
    )
    return 1 if violations or unfinished else 0
