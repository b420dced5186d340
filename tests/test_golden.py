"""What the machines did in simulated runs when somebody last looked: no row changes without a word.

`python -m tests.test_golden` writes the file anew after a row was changed on purpose; the change of the table says
what it means.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from voicegw.testing.chaos import Chaos

FILE = Path(__file__).parent / "golden" / "simulated_runs.json"
BLOCKS, SEEDS = 24, 25


def block_hash(block: int) -> str:
    """Every step and every effect of a block of seeds."""
    runs = (Chaos(seed).go() for seed in range(block * SEEDS, (block + 1) * SEEDS))
    return hashlib.sha256("".join(run.trace_hash for run in runs).encode()).hexdigest()[:16]


@pytest.mark.parametrize("block", range(BLOCKS))
def test_simulated_runs_are_what_they_were(block: int) -> None:
    known = json.loads(FILE.read_text(encoding="utf-8"))
    assert block_hash(block) == known[block], "was a row changed on purpose? then: python -m tests.test_golden"


if __name__ == "__main__":
    FILE.write_text(json.dumps([block_hash(block) for block in range(BLOCKS)], indent=1) + "\n", encoding="utf-8")
