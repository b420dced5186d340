"""Simulated calls: plans, what a failing one shows, many at once, and plans that must never fail again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voicegw.core.call import CallSession
from voicegw.testing.batch import run_all
from voicegw.testing.chaos import NAMES, Chaos, run_seed
from voicegw.testing.plan import Plan, plan_of
from voicegw.testing.shrink import report, shrink

FAILED_ONCE = Path(__file__).parent / "golden" / "plans_that_failed.jsonl"
PLANS = [json.loads(line) for line in FAILED_ONCE.read_text(encoding="utf-8").splitlines()]
SEEDS_OF_OLD = (3858, 8186)  # what failed in these seeds before plans were kept is in the tests of speech and timers


@pytest.mark.parametrize("entry", PLANS, ids=[entry["why"] for entry in PLANS])
def test_what_failed_once_holds(entry: dict[str, object]) -> None:
    plan = entry["plan"]
    assert isinstance(plan, dict)
    run = Chaos(Plan.from_json(plan)).go()
    assert run.violation is None
    assert run.faults  # its steps are still known


@pytest.mark.parametrize("seed", SEEDS_OF_OLD)
def test_seeds_that_failed_once_hold(seed: int) -> None:
    assert Chaos(seed).go().violation is None


# -- plans


def test_a_plan_is_its_text() -> None:
    for seed in range(20):
        plan = plan_of(seed, NAMES)
        assert Plan.from_json(json.loads(plan.to_text())) == plan
    assert Chaos(plan).go().trace_hash == Chaos(19).go().trace_hash


def test_a_run_is_the_same_under_any_hash_seed() -> None:
    program = "from voicegw.testing.chaos import Chaos; print([Chaos(seed).go().trace_hash for seed in range(25)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(said) == 1


def test_leaving_a_step_out_changes_no_other_step() -> None:
    plan = plan_of(5, NAMES)
    draws = dict(enumerate(plan.steps))
    assert len({draw for _, draw in draws.values()}) == len(draws)
    assert plan_of(5, (*NAMES, "something new")).latency_s == plan.latency_s


# -- what a failing run shows


def test_a_failing_run_is_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallSession, "supersedes_last_attempt", lambda session, event: False)
    failed = next(run for seed in range(11, 3000) if (run := Chaos(seed).go()).kind == "V17")
    short = shrink(failed)
    assert short.kind == "V17"
    assert len(short.plan.steps) < len(failed.plan.steps)
    assert len(short.plan.steps) <= 4
    assert short.events <= failed.events
    assert Chaos(short.plan).go().violation == short.violation  # it fails again, in the same way
    told = "\n".join(report(failed))
    assert f"seed {failed.seed}: V17: " in told
    assert "VoiceStateUpdated(channel_id=" in told
    assert f"plan: {short.plan.to_text()}" in told
    assert "the end of the trace:" in told
    assert len(failed.tail) <= 50


def test_a_failing_run_without_any_step_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: CallSession, event: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(CallSession, "send_join", broken)
    failed = Chaos(0).go()
    assert failed.violation is not None
    assert failed.violation.startswith("V01: the core raises KeyError: 'bug'; after JoinRequested")
    assert len(shrink(failed).plan.steps) == 1


# -- many at once


def test_runs_on_several_processes_are_the_same_in_the_same_order() -> None:
    alone = [run.trace_hash for run in run_all(run_seed, range(40), jobs=1)]
    together = [run.trace_hash for run in run_all(run_seed, range(40), jobs=2, chunk=7)]
    assert alone == together
    assert len(set(alone)) == 40
