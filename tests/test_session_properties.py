"""Whatever happens in whatever order, the core decides it, keeps its invariants, and comes to ready or to its end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicegw.effects import Effect, ReleaseStream
from voicegw.events import Event, LeaveRequested, Stamped
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy
from voicegw.testing.chaos import ANSWERS, HAPPENINGS, Chaos
from voicegw.testing.world import CANARY, World


@settings(max_examples=300)
@given(st.integers(0, 1 << 32))
def test_any_run_keeps_the_invariants(seed: int) -> None:
    run = Chaos(seed).go()
    assert run.violation is None, "\n".join([run.violation or "", *run.tail])


@given(st.integers(0, 1 << 32))
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    first, second = Chaos(seed).go(), Chaos(seed).go()
    assert (first.trace_hash, first.events, first.virtual_s) == (second.trace_hash, second.events, second.virtual_s)
    assert first.trace_hash != Chaos(seed + 1).go().trace_hash


@settings(max_examples=100)
@given(st.integers(0, 1 << 32))
def test_a_call_can_be_left_at_any_moment(seed: int) -> None:
    chaos = Chaos(seed)
    for name, draw in chaos.plan.steps:
        chaos.happen(name, draw)
    world = chaos.world
    if world.states["call"] == "closed":
        return
    world.feed(LeaveRequested())
    world.unanswered |= set(ANSWERS)
    assert world.until(lambda: world.states["call"] == "closed", 10) <= 4.0
    world.advance(100)
    assert world.timers == {}
    ended = len(world.effects)
    for name in HAPPENINGS:
        chaos.happen(name, seed)
    world.advance(100)
    assert len(world.effects) == ended


@given(st.integers(0, 1 << 32))
def test_no_effect_or_event_shows_a_secret(seed: int) -> None:
    chaos = Chaos(seed)
    secrets: list[object] = []
    shown: list[str] = []

    def note(event: Event | Stamped) -> None:
        shown.append(repr(event))
        secrets.append(getattr(event, "token", None))

    chaos.world.on_event = note
    run = chaos.go()
    assert run.violation is None
    text = "\n".join([*shown, *map(repr, chaos.world.notices)])
    assert CANARY not in text
    told = [secret for secret in secrets if isinstance(secret, Secret)]
    assert all(CANARY in secret.reveal() for secret in told)
    assert told or run.events < 30  # a call that was over before anybody answered


def test_speech_in_the_clear_is_only_ever_allowed_by_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    clear = dict.fromkeys(E2EEPolicy, 0)
    carry_out = World._carry_out

    def count(world: World, effect: Effect) -> None:
        clear[world.options.policy] += effect == ReleaseStream(encrypted=False)
        carry_out(world, effect)

    monkeypatch.setattr(World, "_carry_out", count)
    for seed in range(300):
        Chaos(seed).go()
    assert clear[E2EEPolicy.REQUIRE] == 0
    assert clear[E2EEPolicy.ALLOW] > 0


def test_every_happening_happens_and_every_state_is_visited() -> None:
    happened: set[str] = set()
    visited: set[tuple[str, str]] = set()
    for seed in range(4000):
        run = Chaos(seed).go()
        happened |= set(run.faults)
        visited |= {(machine, after) for machine, _, _, after in run.rows}
    assert happened >= set(HAPPENINGS)
    states = {(machine.machine, state) for machine in World().session.machines for state in machine.table.states}
    assert states - visited <= {("call", "idle")}


def test_a_broken_invariant_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from voicegw.core.machine_session import MachineSession

    monkeypatch.setattr(MachineSession, "cancel", lambda session, deadline: None)
    runs = [Chaos(seed).go() for seed in range(5)]
    assert all(run.violation is not None and run.violation.startswith("V02: armed") for run in runs)
