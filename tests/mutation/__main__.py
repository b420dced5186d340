"""`python -m tests.mutation [WHERE ...]`: try the named tables and modules, or all."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mutation import of_code, of_tables
from tests.mutation.harness import KILLERS, NOBODY, Harness, Verdict
from tests.mutation.mutant import Mutant
from tests.mutation.of_code import ROOT
from tests.mutation.page import KIND_TEXTS, argued, draw, guards, note
from voicegw.session import ALL_SESSIONS

TABLES = {f"{machine}.toml": machine for machine in ALL_SESSIONS}
MODULES = {
    f"{module.replace('.', '/')}.py": module
    for module in (
        "voicegw.session",
        *(f"voicegw.core.{file.stem}" for file in sorted((ROOT / "voicegw" / "core").glob("[a-z]*.py"))),
        "voicegw.wire.replay",
        "voicegw.wire.encryption",
        "voicegw.media.sender",
    )
}
EVERYTHING = (*TABLES, *MODULES)


def mutants_of(where: str) -> Iterator[Mutant]:
    """All of a table or of a module, by its file."""
    if where.endswith(".toml"):
        return of_tables.mutants(TABLES[where])
    return of_code.mutants(where.removesuffix(".py").replace("/", "."))


def try_all(wheres: list[str], kinds: list[str], at_once: int) -> int:
    """1 where one survives that nobody has argued for."""
    waiting = [mutant for where in wheres for mutant in mutants_of(where) if mutant.kind in kinds]
    allowed, verdicts, killed = argued(), list[Verdict](), Counter[str]()
    wrong = 0

    def told(verdict: Verdict) -> None:
        nonlocal wrong
        verdicts.append(verdict)
        killed[verdict.killer] += 1
        name = verdict.mutant.name
        if verdict.killer == NOBODY and name not in allowed:
            wrong += 1
            print(f"survives: {name}", flush=True)
        elif verdict.killer != NOBODY and name in allowed:
            print(f"need not be argued: {name}: {verdict.test}", flush=True)

    begun = time.monotonic()
    Harness(waiting, MODULES, told, at_once=at_once).run()
    print(f"{len(waiting)} mutants in {time.monotonic() - begun:.0f} s, killed by: ", end="")
    print(", ".join(f"{killer} {killed[killer]}" for killer in KILLERS))
    print(f"{killed[NOBODY]} survive, {wrong} of them not argued")
    note(verdicts)
    draw()
    return 1 if wrong else 0


def try_guards(at_once: int) -> int:
    """1 where the tests of a fault do not notice that its guard is gone."""
    wanted = {entry["mutant"]: entry for entry in guards()}
    files = sorted({where_of(name) for name in wanted})
    known = {mutant.name: mutant for file in files for mutant in mutants_of(file)}
    failed = 0

    def told(verdict: Verdict) -> None:
        nonlocal failed
        failed += not verdict.test
        entry = wanted[verdict.mutant.name]
        print(f"{entry['fault']} without {entry['guard']}: {verdict.test or 'NO TEST FAILS'}", flush=True)

    def injects(fault: str, item: pytest.Item) -> bool:
        from tests.faults.cells import COVERED

        file = item.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
        name = f"{file}.{getattr(item, 'originalname', None) or item.name}"
        return any(name in tests for (covered, _), tests in COVERED.items() if covered == fault)

    Harness(
        [known[name] for name in wanted],
        [file for file in files if file.endswith(".py")],
        told,
        asked=lambda item: any(injects(entry["fault"], item) for entry in wanted.values()),
        chosen=lambda mutant, item: injects(wanted[mutant.name]["fault"], item),
        at_once=at_once,
    ).run(("tests/faults",))
    return 1 if failed else 0


def where_of(name: str) -> str:
    """The table or module of a mutant, by its name."""
    first = name.split(" ", 1)[0]
    return first if first.endswith(".py") else f"{first.removesuffix(':')}.toml"


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("where", nargs="*", choices=[*EVERYTHING, []], metavar="WHERE", help="tables and modules (all)")
    parser.add_argument(
        "--kind", nargs="+", choices=KIND_TEXTS, default=list(KIND_TEXTS), help="kinds of mutants (all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once (1)")
    parser.add_argument("--guards", action="store_true", help="the guards of ten faults instead")
    parser.add_argument("--page", action="store_true", help="only draw the page, out of what the last runs found")
    arguments = parser.parse_args()
    if arguments.page:
        draw()
        return 0
    if arguments.guards:
        return try_guards(arguments.jobs)
    return try_all(arguments.where or list(EVERYTHING), arguments.kind, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
