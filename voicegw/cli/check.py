"""`voicegw check`: prove the tables."""

from __future__ import annotations

import argparse

from voicegw.cli.console import Commands, Console


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "check", help="prove the state tables", description="Prove the state tables."
    )
    command.add_argument("--product", action="store_true", help="follow all six machines together, too (half a minute)")
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Count, find, say."""
    from voicegw.session import SESSIONS, E2EEPolicy, Options
    from voicegw.tables.check import check_all
    from voicegw.testing.product import explore

    report = check_all(SESSIONS, Options().max_attempts)
    for violation in report.violations:
        console.say(f"wrong: {violation}")
    console.say(f"{report.states} states, {report.rows} rows, {report.pairs} (state, event) pairs, all decided")
    console.say(f"a join is decided within {report.bound_s:g} s; {len(report.violations)} violations")
    violations = len(report.violations)
    product: dict[str, object] = {}
    if arguments.product:
        found = [explore(policy) for policy in (E2EEPolicy.REQUIRE, E2EEPolicy.ALLOW)]
        counterexamples = [example for exploration in found for example in exploration.counterexamples]
        for example in counterexamples:
            console.say(f"wrong: {example}")
        violations += len(counterexamples) + sum(not exploration.complete for exploration in found)
        product = {"kinds": sum(one.kinds for one in found), "steps": sum(one.steps for one in found)}
        console.say(
            f"{product['kinds']} kinds of calls followed in {product['steps']} steps, {len(counterexamples)} fail"
        )
    console.result(
        {
            "states": report.states,
            "rows": report.rows,
            "pairs": report.pairs,
            "bound_s": report.bound_s,
            "violations": violations,
            **product,
        }
    )
    return 1 if violations else 0
