"""`voicegw check`: prove the tables."""

from __future__ import annotations

import argparse

from voicegw.cli.console import Commands, Console


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "check", help="prove the state tables", description="Prove the state tables."
    )
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Count, find, say."""
    from voicegw.session import SESSIONS, Options
    from voicegw.tables.check import check_all

    report = check_all(SESSIONS, Options().max_attempts)
    for violation in report.violations:
        console.say(f"wrong: {violation}")
    console.say(f"{report.states} states, {report.rows} rows, {report.pairs} (state, event) pairs, all decided")
    console.say(f"a join is decided within {report.bound_s:g} s; {len(report.violations)} violations")
    console.result(
        {
            "states": report.states,
            "rows": report.rows,
            "pairs": report.pairs,
            "bound_s": report.bound_s,
            "violations": len(report.violations),
        }
    )
    return 1 if report.violations else 0
