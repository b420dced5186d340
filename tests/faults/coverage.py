"""The coverage table: every fault in each of its phases, and the tests that inject it.

`python -m tests.faults.coverage` draws it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import tests.faults
from tests.faults.catalogue import FAULTS
from tests.faults.cells import COVERED, missing
from tests.faults.worlds import PHASES

PAGE = Path(__file__).parent.parent.parent / "docs" / "faults.md"
HEAD = """# What a call survives

Each row is a fault, each mark a phase of a call in which a test injects it, with the invariants of every call checked
after every event. `python -m pytest tests/faults` runs them all; `python -m tests.faults.coverage` draws this page.

Phases: I idle, P asking for a pair, D dialling, H handshake, R ready, U resuming, E waiting for an endpoint, B backing
off, C closing, X over.
"""


def load_tests() -> None:
    """Import every test of the faults, so that its marks are counted."""
    for module in pkgutil.iter_modules(tests.faults.__path__):
        importlib.import_module(f"tests.faults.{module.name}")


def page() -> str:
    """The whole page."""
    load_tests()
    total = sum(len(fault.phases) for fault in FAULTS.values())
    lines = [HEAD, f"{total - len(missing())} of {total} cells are covered.", ""]
    lines += [f"| | fault | {' | '.join(PHASES)} | tests |", f"|---|---|{'---|' * len(PHASES)}---|"]
    for name, fault in FAULTS.items():
        marks = [("x" if COVERED[name, phase] else "**open**") if phase in fault.phases else "" for phase in PHASES]
        named = sorted({test for phase in fault.phases for test in COVERED[name, phase]})
        lines.append(f"| {name} | {fault.title} | {' | '.join(marks)} | {'<br>'.join(f'`{test}`' for test in named)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page; 1 where a cell is open."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    for fault, phase in missing():
        print(f"open: {fault} in {phase}")
    return 1 if missing() else 0


if __name__ == "__main__":
    sys.exit(main())
