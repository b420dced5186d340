"""A deadline lasts as long as the table says, or as the bot does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.signalling import ELSEWHERE, voice_server, voice_state
from tests.faults.worlds import in_phase
from voicegw.core.call import BACKOFF_BASE_S
from voicegw.core.lease import LeaseSession
from voicegw.core.shared import Shared
from voicegw.effects import ArmTimer
from voicegw.errors import InvalidDeadline
from voicegw.events import (
    DialPostponed,
    JoinRequested,
    LeaveRequested,
    MainSessionLost,
    SocketClosed,
    VoiceServerUpdated,
)
from voicegw.secret import Secret
from voicegw.session import ALL_SESSIONS, Options
from voicegw.tables.load import load_table, table_names
from voicegw.testing.world import CHANNEL, GUILD, USER, World


def test_a_bot_can_choose_other_seconds() -> None:
    world = World(Options(deadlines={"endpoint_timeout": 2.0}))
    world.join()
    world.feed(VoiceServerUpdated(Secret("gone"), None))
    world.settle()
    world.unanswered.add("SendVoiceState")
    assert world.until(lambda: world.states["call"] == "joining.asking", 60) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("deadline", "seconds", "state", "waited_s"),
    [
        ("pair_timeout", 5.0, "closed", 5.0),
        ("pair_timeout", 20.0, "closed", 20.0),
        ("join_unanswered", 1.0, "joining.clearing", 1.0),
    ],
)
def test_what_is_counted_from_the_first_join_is_chosen_alike(
    deadline: str, seconds: float, state: str, waited_s: float
) -> None:
    world = World(Options(deadlines={deadline: seconds}))
    world.unanswered.add("SendVoiceState")
    world.feed(JoinRequested(CHANNEL))
    assert world.until(lambda: world.states["call"] == state, 60) == pytest.approx(waited_s)


def test_the_backoff_and_the_heart_take_it_as_their_bound() -> None:
    world = World(Options(deadlines={"backoff_over": 0.75, "beat_due": 1.5, "resume_backoff_over": 0.1}))
    world.session.call.attempts = 9
    assert world.session.call.backoff() == 0.75
    assert world.session.heartbeat.interval_s == 1.5
    assert world.session.gateway.bound("resume_backoff_over") == 0.1


def test_the_backoff_stops_doubling_whatever_its_bound_is() -> None:
    call = World(Options(deadlines={"backoff_over": 1e9}, max_attempts=100_000)).session.call
    call.attempts = 99_999  # two to this power is no float
    assert call.backoff() == BACKOFF_BASE_S * 65_536


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidDeadline, match="hello_timeout"):
        Options(deadlines={"hello_timeout": seconds})


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidDeadline, match="hello_timeot") as caught:
        Options(deadlines={"hello_timeot": 1.0})
    assert "hello_timeout" in str(caught.value)


def test_no_two_tables_share_a_name() -> None:
    names = [name for machine in table_names() for name in load_table(machine).deadlines]
    assert len(names) == len(set(names))


# -- every deadline of the call's table: not a moment before it, and not a moment after it

UNHURRIED = Options(rejoin_after_rate_limit=True, deadlines={"dial_timeout": 1000.0, "closing_timeout": 1000.0})


def asking_again(world: World) -> None:
    world.advance(4.0)


def dialling_anew(world: World) -> None:
    world.unanswered.add("OpenSocket")
    world.feed(voice_server("another"))


def departing(world: World) -> None:
    world.server(SocketClosed(1000), numbered=False)


def far_turn(world: World) -> None:
    world.server(DialPostponed(10_000.0), numbered=False)


def thawing(world: World) -> None:
    world.unanswered.add("OpenSocket")
    world.hand_over()


WAITS: dict[str, tuple[str, Callable[[World], object], float]] = {
    "joining.asking": ("P", lambda world: None, 3.0),
    "joining.halved": ("P", lambda world: world.feed(voice_state()), 10.0),
    "joining.clearing": ("P", lambda world: world.advance(3.0), 1.0),
    "joining.asking_again": ("P", asking_again, 6.0),
    "thawing": ("R", thawing, 30.0),
    "connecting": ("D", lambda world: None, 30.0),
    "moving.announced": ("R", lambda world: world.feed(voice_state(ELSEWHERE)), 5.0),
    "moving.dialling": ("R", dialling_anew, 30.0),
    "waiting.endpoint": ("E", lambda world: None, 30.0),
    "waiting.verdict": ("R", lambda world: world.server(SocketClosed(4014), numbered=False), 5.0),
    "waiting.server": ("R", lambda world: world.server(SocketClosed(4011), numbered=False), 5.0),
    "waiting.backoff": ("B", lambda world: None, 1.0),
    "waiting.turn": ("D", far_turn, 660.0),
    "waiting.cool_down": ("R", lambda world: world.server(SocketClosed(4021), numbered=False), 60.0),
    "waiting.main_session": ("R", lambda world: world.feed(MainSessionLost()), 120.0),
    "leaving.asked": ("C", lambda world: None, 2.0),
    "leaving.departing": ("C", departing, 2.0),
    "leaving.closing": ("C", lambda world: world.feed(voice_state(None)), 2.0),
}


def test_every_wait_of_the_call_is_tried() -> None:
    table = load_table("call")
    assert set(WAITS) == {name for name, state in table.states.items() if state.deadline is not None}
    for name, (_, _, seconds) in WAITS.items():
        assert seconds <= table.deadlines[str(table.states[name].deadline)].seconds


@pytest.mark.parametrize("state", WAITS)
@pytest.mark.parametrize("off_s", [-0.001, 0.0, 0.001])
def test_a_wait_ends_at_its_deadline(state: str, off_s: float) -> None:
    phase, bring, seconds = WAITS[state]
    world = in_phase(phase, UNHURRIED)
    bring(world)
    assert world.states["call"] == state
    deadline = str(load_table("call").states[state].deadline)
    known = len(world.trace)
    world.advance(seconds + off_s)
    passed = [step for step in world.trace[known:] if step.event == deadline and step.machine == "call"]
    assert [step.before for step in passed[:1]] == ([] if off_s < 0 else [state])
    if off_s < 0:
        assert world.states["call"] == state
    else:
        assert passed[0].at - (world.now - off_s) == pytest.approx(0.0, abs=1e-6)
        assert passed[0].after != state


@pytest.mark.parametrize("state", [state for state in WAITS if state != "waiting.backoff"])
def test_a_chosen_deadline_ends_the_wait_instead(state: str) -> None:
    phase, bring, _ = WAITS[state]
    deadline = str(load_table("call").states[state].deadline)
    world = in_phase(phase, replace(UNHURRIED, deadlines={**UNHURRIED.deadlines, deadline: 200.0}))
    bring(world)
    assert world.states["call"] == state
    world.advance(190.0)
    assert world.states["call"] == state


# -- every deadline of every table, as a state that is entered arms it

PROMISED = {
    "gateway": {
        "dial_timeout": 10.0,
        "dial_turn": 60.0,
        "hello_timeout": 5.0,
        "call_awaited": 10.0,
        "ready_timeout": 5.0,
        "discovery_timeout": 5.0,
        "session_description_timeout": 5.0,
        "resume_backoff_over": 1.0,
        "resumed_timeout": 5.0,
        "closing_timeout": 2.0,
    },
    "heartbeat": {"beat_due": 5.0, "last_look_over": 0.5, "probe_unanswered": 3.0},
    "transport": {
        "resend_after_200_ms": 0.2,
        "resend_after_400_ms": 0.4,
        "resend_after_800_ms": 0.8,
        "resend_after_500_ms": 0.5,
        "discovery_unanswered": 0.35,
        "probe_resend": 0.8,
        "keepalive_due": 5.0,
    },
    "dave": {
        "group_delayed": 30.0,
        "company_timeout": 0.25,
        "replay_settled": 1.0,
        "execute_timeout": 10.0,
        "recovery_timeout": 10.0,
    },
    "speech": {"drain_timeout": 1.0},
    "call": {
        "join_unanswered": 3.0,
        "ghost_cleared": 1.0,
        "pair_timeout": 10.0,
        "connect_timeout": 30.0,
        "move_timeout": 5.0,
        "endpoint_timeout": 30.0,
        "verdict_timeout": 5.0,
        "server_timeout": 5.0,
        "backoff_over": 30.0,
        "far_turn_over": 660.0,
        "cool_down_over": 60.0,
        "main_session_timeout": 120.0,
        "leave_timeout": 2.0,
    },
    "main_gateway": {
        "login_dial_timeout": 10.0,
        "login_hello_timeout": 5.0,
        "login_timeout": 10.0,
        "login_resumed_timeout": 10.0,
        "login_backoff_over": 30.0,
    },
    "lease": {"join_timeout": 30.0, "renewal_due": 20.0, "lease_ended": 60.0, "lapse_timeout": 300.0},
    "ownership": {
        "turn_came": 10.0,
        "promise_over": 10.0,
        "claim_timeout": 5.0,
        "open_timeout": 60.0,
        "announce_timeout": 2.0,
        "freeze_timeout": 5.0,
        "nobody_came": 10.0,
    },
}
# What a session that has just begun waits less than its bound.
SOONER = {"backoff_over": 0.5, "login_backoff_over": 1.0}
DRAWN_EVENLY = {"resume_backoff_over", "backoff_over", "login_backoff_over"}
WAITING = [
    (machine, state.name)
    for machine in table_names()
    for state in load_table(machine).states.values()
    if state.deadline is not None
]


@pytest.mark.parametrize(("machine", "state"), WAITING)
def test_a_state_that_is_entered_waits_as_long_as_is_promised(machine: str, state: str) -> None:
    shared = Shared(USER, GUILD, Options())
    session = LeaseSession(shared, 60.0) if machine == "lease" else ALL_SESSIONS[machine](shared)
    entered: Any = session.engine.machine.states[state]
    entered.come(session)
    (armed,) = shared.effects
    assert isinstance(armed, ArmTimer)
    bound = PROMISED[machine][armed.name]
    assert session.bound(armed.name) == bound
    assert 0 <= armed.after_s <= bound
    if armed.name in SOONER:
        assert armed.after_s == SOONER[armed.name]
    assert armed.jitter == (armed.name in DRAWN_EVENLY)


@pytest.mark.parametrize(("later_s", "state"), [(0.0, "connecting.queued"), (0.1, "closed.down")])
def test_a_turn_to_dial_is_waited_for_up_to_its_bound(later_s: float, state: str) -> None:
    world = World()
    world.unanswered.add("OpenSocket")
    world.join()
    world.server(DialPostponed(load_table("gateway").deadlines["dial_turn"].seconds + later_s), numbered=False)
    assert world.states["gateway"] == state


def test_every_deadline_is_promised() -> None:
    assert {machine: set(names) for machine, names in PROMISED.items()} == {
        machine: set(load_table(machine).deadlines) for machine in table_names()
    }


def test_the_time_to_leave_is_counted_from_the_wish() -> None:
    world = World(UNHURRIED)
    world.join()
    world.unanswered |= {"SendVoiceState", "CloseSocket"}
    world.feed(LeaveRequested())
    world.advance(1.5)
    world.feed(voice_state(None))
    assert world.states["call"] == "leaving.closing"
    assert world.until(lambda: world.states["call"] == "closed", 5) == pytest.approx(0.5)
