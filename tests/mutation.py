"""Change the tables one thing at a time and see whether the tests notice: `python -m tests.mutation [TABLE ...]`.

A mutant drops a row, drops or turns a guard, drops an effect, or doubles or halves a deadline. It is killed by the
check of the tables, or by a test of the core. What survives is printed; `docs/mutation.md` says why each of them may.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from voicegw.errors import TableError
from voicegw.session import ALL_SESSIONS
from voicegw.tables.check import check_table
from voicegw.tables.load import flattened, load_table, table_names
from voicegw.tables.machine import Engine
from voicegw.tables.model import Table

TESTS = ("tests/test_session.py", "tests/test_golden.py")
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


def survives(mutant: Mutant) -> bool:
    """Does no check and no test notice it? Called in a process of its own."""
    try:
        if check_table(mutant.table):
            return False
        session = ALL_SESSIONS[mutant.table.machine]
        session.table, session.engine = mutant.table, Engine(mutant.table)
    except TableError:
        return False
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.main([*QUICK, *TESTS]) == pytest.ExitCode.OK


def main(names: list[str]) -> int:
    """Try all; the number of survivors is printed last."""
    waiting = [mutant for name in names or table_names() for mutant in mutants(load_table(name))]
    total, survivors = len(waiting), 0
    running: dict[int, Mutant] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            mutant = waiting.pop(0)
            child = os.fork()
            if child == 0:
                with open(os.devnull, "w", encoding="utf-8") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
                    os._exit(1 if survives(mutant) else 0)
            running[child] = mutant
        child, status = os.wait()
        mutant = running.pop(child)
        if os.waitstatus_to_exitcode(status) == 1:
            survivors += 1
            print(f"survives: {mutant.name}", flush=True)
    print(f"{total} mutants, {total - survivors} killed, {survivors} survive")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
