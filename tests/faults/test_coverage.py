"""No cell is open, and the page that says so is current."""

from __future__ import annotations

from tests.faults.cells import missing
from tests.faults.coverage import PAGE, load_tests, page


def test_every_fault_is_injected_in_each_of_its_phases() -> None:
    load_tests()
    assert missing() == []


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.faults.coverage"
