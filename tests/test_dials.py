"""The dial budget of a process."""

from __future__ import annotations

import random

from voicegw.adapters.dials import DialBudget


def test_a_thousand_dials_at_once_keep_both_budgets() -> None:
    budget = DialBudget(random.Random(1))
    turns = [budget.reserve(0.0, 1e9) for _ in range(1000)]
    assert turns == sorted(turns)
    assert turns[:10] == [0.0] * 10
    for most, window_s in ((10, 1.0), (300, 600.0)):
        assert all(late - early >= window_s for early, late in zip(turns, turns[most:], strict=False))
    assert turns[-1] < 1900


def test_jitter_spreads_those_that_wait() -> None:
    def turns(seed: int) -> list[float]:
        budget = DialBudget(random.Random(seed))
        return [budget.reserve(0.0, 60.0) for _ in range(40)]

    assert turns(1) == turns(1)
    assert turns(1) != turns(2)


def test_a_turn_that_is_too_far_away_is_not_taken_and_told_with_some_spread() -> None:
    budget = DialBudget(random.Random(1))
    for _ in range(300):
        assert budget.reserve(0.0, 60.0) <= 60.0
    told = [budget.reserve(0.0, 60.0) for _ in range(100)]
    assert 600.0 <= min(told) < 610.0
    assert 650.0 < max(told) <= 660.0 + 0.1
    assert budget.reserve(560.0, 60.0) <= 60.0
