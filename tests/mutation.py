"""Change the tables one thing at a time and see whether anything notices: `python -m tests.mutation [TABLE ...]`.

A mutant drops a row, drops or turns a guard, drops an effect, or doubles or halves a deadline. It is killed by the
checks of the table, by simulated calls that do something else than the golden answers say, or by a test of the core.
What survives is printed, with a count of who killed the others.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.test_golden import BLOCKS, FILE, block_hash
from voicegw.errors import TableError
from voicegw.session import ALL_SESSIONS
from voicegw.tables.check import check_table
from voicegw.tables.load import flattened, load_table
from voicegw.tables.machine import Engine
from voicegw.tables.model import Table

TESTS = (
    "tests/test_session.py",
    "tests/test_session_main_gateway.py",
    "tests/test_session_media.py",
    "tests/test_museum.py",
    "tests/faults",
)
KILLERS = ("nobody", "the checks", "simulated calls", "tests")
QUICK = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1", "-W", "ignore")
AT_ONCE = 2


@dataclass(frozen=True)
class Mutant:
    """One changed table and what was changed."""

    name: str
    table: Table


def mutants(table: Table) -> Iterator[Mutant]:
    """All mutants of a table."""
    for index, row in enumerate(table.rows):
        others = (*table.rows[:index], *table.rows[index + 1 :])
        yield Mutant(f"{table.machine} {row}: row dropped", flattened(replace(table, rows=others)))
        changes = []
        if row.guard is not None:
            turned = row.guard[1:] if row.guard.startswith("!") else f"!{row.guard}"
            changes += [("guard dropped", replace(row, guard=None)), ("guard turned", replace(row, guard=turned))]
        for effect in row.effects:
            kept = tuple(other for other in row.effects if other != effect)
            changes.append((f"{effect} dropped", replace(row, effects=kept)))
        for what, changed in changes:
            rows = (*table.rows[:index], changed, *table.rows[index + 1 :])
            yield Mutant(f"{table.machine} {row}: {what}", flattened(replace(table, rows=rows)))
    for name, deadline in table.deadlines.items():
        for factor in (0.5, 2.0):
            changed_deadline = replace(deadline, seconds=deadline.seconds * factor)
            deadlines = {**table.deadlines, name: changed_deadline}
            yield Mutant(f"{table.machine} {name}: {factor:g} times as long", replace(table, deadlines=deadlines))


def killer(mutant: Mutant) -> int:
    """Who notices it, as an index of `KILLERS`. Called in a process of its own."""
    try:
        if check_table(mutant.table):
            return 1
        session = ALL_SESSIONS[mutant.table.machine]
        session.table, session.engine = mutant.table, Engine(mutant.table)
    except TableError:
        return 1
    known = json.loads(FILE.read_text(encoding="utf-8"))
    if any(block_hash(block) != known[block] for block in range(BLOCKS)):
        return 2
    with contextlib.redirect_stdout(io.StringIO()):
        return 0 if pytest.main([*QUICK, *TESTS]) == pytest.ExitCode.OK else 3


def main(names: list[str]) -> int:
    """Try the named tables, or all."""
    waiting = [mutant for name in names or ALL_SESSIONS for mutant in mutants(load_table(name))]
    total, killed = len(waiting), Counter[str]()
    running: dict[int, Mutant] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            mutant = waiting.pop(0)
            child = os.fork()
            if child == 0:
                with open(os.devnull, "w", encoding="utf-8") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
                    os._exit(killer(mutant))
            running[child] = mutant
        child, status = os.wait()
        mutant = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        who = KILLERS[code] if 0 <= code < len(KILLERS) else "tests"
        killed[who] += 1
        if who == "nobody":
            print(f"survives: {mutant.name}", flush=True)
    print(f"{total} mutants, killed by: {', '.join(f'{who} {killed[who]}' for who in KILLERS[1:])}")
    print(f"{killed['nobody']} survive")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
