"""`docs/mutation.md`: what the last whole run found, and why what survived may."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mutation.harness import KILLERS, NOBODY, Verdict

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "mutation.md"
FIGURES = HERE / "figures.json"
ARGUED = HERE / "argued.toml"
GUARDS = HERE / "guards.toml"

HEAD = """# What notices a change

A mutant is one change that somebody could make by mistake: a row less, another target, no guard, an effect left out, a
deadline twice as long; in Python another comparison, number, result, or a statement less. Where a test fails, the
mutant is killed. One that nobody kills is either not worth noticing, which is argued below, or a test is missing.

    python -m tests.mutation                # all, then this page is drawn anew; fails where a survivor is not argued
    python -m tests.mutation call.toml      # one table or module; --kind row guard: some kinds
    python -m tests.mutation --guards       # the guards of ten faults, against the tests of the fault
    python -m tests.mutation --page         # this page, out of what the last runs found

The tests run once to see which test comes by which row and line. Then each mutant gets a process of its own and is
shown to those tests, the quick ones first, a second of each kind and five of those left, until one fails. The kinds
come in this order, so "golden runs" says that no story did:

| killed by | what that is |
|---|---|
| loading | the checks that every table must pass to be loaded at all (T01 to T06, T08, T09) |
| stories | tests that tell what should happen, one case each |
| faults | the tests of [the catalogue](faults.md), stories too |
| golden runs | runs that are not as they were: something has changed, and nobody says that it is wrong |
| proofs | all pairs of state and event, and the machines together (T07, T10, T11) |

Tests with real sockets are not asked: a busy machine must not kill a mutant. Nor is anything that compares drawings.
The figures are those of the last run of each kind in each table and module; what had survived or was only killed by
golden runs was shown again to the tests that were written for it. Those of the modules, but for `sender.py` and
`encryption.py`, are from when golden runs were asked before faults. `.ci/nightly` holds the tables and the modules
below to them. Not done: what is refused or ignored where no row is, and close codes that are left to the range around
them.
"""
KIND_TEXTS = {
    "row": "a row removed",
    "to": "another target, or none",
    "guard": "a guard removed or turned round",
    "effect": "an effect left out",
    "order": "two effects that depend on each other change places",
    "deadline": "half or twice as long, its jitter, or a state that rests instead",
    "otherwise": "an event ignored instead of refused, or the reverse",
    "close code": "a code left to the range around it",
    "comparison": "`<` for `<=`, `==` for `!=`, ...",
    "condition": "`and` for `or`, a condition turned round",
    "arithmetic": "`-` for `+`, ...",
    "constant": "a number one higher, True for False",
    "result": "nothing returned, or always True or False",
    "statement": "a statement removed",
}

Figures = dict[str, dict[str, dict[str, int]]]


def read_figures() -> Figures:
    """Table or module, kind of mutant, killer: how many."""
    figures: Figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures


def note(verdicts: Iterable[Verdict]) -> None:
    """What a run found takes the place of what was known of the same kinds in the same tables and modules."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for verdict in verdicts:
        kinds = found.setdefault(verdict.mutant.where, {})
        kinds.setdefault(verdict.mutant.kind, Counter())[verdict.killer] += 1
    figures = read_figures() if FIGURES.exists() else {}
    for where, kinds in found.items():
        figures.setdefault(where, {}).update({kind: dict(killers) for kind, killers in kinds.items()})
    text = json.dumps(figures, indent=1, sort_keys=True)
    FIGURES.write_text(text + "\n", encoding="utf-8")


def argued() -> dict[str, str]:
    """Mutants that may survive, and why."""
    entries = tomllib.loads(ARGUED.read_text(encoding="utf-8")).get("argued", [])
    return {mutant: entry["why"] for entry in entries for mutant in entry["mutants"]}


def guards() -> list[dict[str, Any]]:
    """Of ten faults, what is removed."""
    entries: list[dict[str, Any]] = tomllib.loads(GUARDS.read_text(encoding="utf-8"))["guard"]
    return entries


def page() -> str:
    """The whole page."""
    figures = read_figures()
    wheres = sorted(figures, key=lambda where: (where.endswith(".py"), where))
    kinds = [kind for kind in KIND_TEXTS if any(kind in figures[where] for where in wheres)]
    lines = [HEAD, "## Tables and modules", ""]
    lines += [f"| | mutants | {' | '.join(KILLERS)} | survive |", f"|---|{'---|' * (len(KILLERS) + 2)}"]
    lines += [_row(f"`{where}`", _sum(figures[where].values())) for where in wheres]
    lines += [_row("all", _sum(killers for where in wheres for killers in figures[where].values()))]
    lines += ["", "## Kinds", ""]
    lines += [f"| | | mutants | {' | '.join(KILLERS)} | survive |", f"|---|---|{'---|' * (len(KILLERS) + 2)}"]
    lines += [
        _row(f"{kind} | {KIND_TEXTS[kind]}", _sum(figures[where].get(kind, {}) for where in wheres)) for kind in kinds
    ]
    lines += ["", "## The guards of ten faults", "", "Without the guard the tests of the fault fail.", ""]
    lines += ["| | guard | the mutant |", "|---|---|---|"]
    lines += [f"| {guard['fault']} | {guard['guard']} | `{guard['mutant']}` |" for guard in guards()]
    if argued():
        lines += ["", "## What survives, and may", ""]
    reasons: dict[str, list[str]] = {}
    for mutant, why in argued().items():
        reasons.setdefault(why, []).append(mutant)
    for why, mutants in reasons.items():
        lines += [why, "", *(f"- `{mutant}`" for mutant in mutants), ""]
    return "\n".join(lines).rstrip() + "\n"


def draw() -> None:
    """Write it."""
    PAGE.write_text(page(), encoding="utf-8")


def _row(name: str, counts: Counter[str]) -> str:
    cells = [str(counts.total()), *(str(counts[killer] or "") for killer in (*KILLERS, NOBODY))]
    return f"| {name} | {' | '.join(cells)} |"


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    return sum((Counter(one) for one in counts), Counter())
