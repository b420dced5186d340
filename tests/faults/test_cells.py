"""The tools of the fault tests: phases are what they are called, and marks are counted."""

from __future__ import annotations

import pytest

from tests.faults.catalogue import FAULTS
from tests.faults.cells import covers
from tests.faults.worlds import PHASES, in_phase, phase_of


def test_the_catalogue_is_whole() -> None:
    assert list(FAULTS) == [f"F{number:02}" for number in range(1, 163)]
    assert sum(len(fault.phases) for fault in FAULTS.values()) == 378
    assert all(set(fault.phases) <= set(PHASES) for fault in FAULTS.values())


@pytest.mark.parametrize("phase", PHASES)
def test_a_world_is_brought_to_a_phase_and_stays_there(phase: str) -> None:
    world = in_phase(phase)
    world.settle()
    assert phase_of(world) == phase


def test_a_fault_is_not_claimed_where_it_does_not_strike() -> None:
    with pytest.raises(ValueError, match="F33 does not strike in BD"):
        covers("F33", "BDR")
