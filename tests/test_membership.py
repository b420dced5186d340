"""Our membership, way by way: how each loss goes on, how each end ends, and what is kept or forgotten in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.signalling import (
    ELSEWHERE,
    OTHER_ENDPOINT,
    Watch,
    asked,
    end,
    is_ready,
    noticed,
    present_session,
    voice_server,
    voice_state,
)
from tests.faults.worlds import in_phase
from voicegw.effects import Connected, Moved, MoveFailed, Reconnecting, SendVoiceState
from voicegw.errors import ConnectionClosed, ConnectionFailed, Kicked, SignallingError, VoiceError, VoiceTimeout
from voicegw.events import (
    JoinAbandoned,
    JoinRequested,
    LeaveRequested,
    MainSessionLost,
    MainSessionStarted,
    SignallingFailed,
    SocketClosed,
)
from voicegw.session import Options
from voicegw.testing.world import CHANNEL, World

Happening = Callable[[World], object]


def close(code: int | None) -> Happening:
    return lambda world: world.server(SocketClosed(code), numbered=False)


def silent_resume(world: World) -> None:
    world.unanswered.add("SendResume")
    world.server(SocketClosed(1006), numbered=False)
    world.advance(5.0)


# -- the end

ONE = Options(max_attempts=1, rejoin_after_rate_limit=True, deadlines={"dial_timeout": 1000.0})
TWO = Options(max_attempts=2, deadlines={"dial_timeout": 1000.0})


def null_and_silence(world: World) -> None:
    world.feed(voice_server("null", None))
    world.advance(30.0)


def moved_and_silence(world: World) -> None:
    world.feed(voice_state(ELSEWHERE))
    world.advance(5.0)


def server_gone_and_silence(world: World) -> None:
    close(4011)(world)
    world.advance(5.0)


def put_out_and_moved(world: World) -> None:
    close(4014)(world)
    world.feed(voice_state(ELSEWHERE))


def put_out_and_handed_over(world: World) -> None:
    close(4014)(world)
    world.feed(voice_server("another"))


def dial_and_silence(world: World) -> None:
    world.advance(30.0)


ENDS: dict[str, tuple[str, Options, Happening, type[VoiceError], str]] = {
    "a dial that hangs": ("D", ONE, dial_and_silence, ConnectionFailed, "gave up"),
    "another channel during a dial": ("D", ONE, lambda world: world.feed(voice_state(ELSEWHERE)), ConnectionFailed, ""),
    "another server during a dial": (
        "D",
        ONE,
        lambda world: world.feed(voice_server("b")),
        ConnectionFailed,
        "gave up",
    ),
    "a null endpoint": ("R", ONE, lambda world: world.feed(voice_server("b", None)), ConnectionFailed, "gave up"),
    "no other endpoint": ("R", TWO, null_and_silence, ConnectionFailed, "gave up"),
    "no server in the new channel": ("R", ONE, moved_and_silence, ConnectionFailed, "gave up"),
    "no server after 4011": ("R", ONE, server_gone_and_silence, ConnectionFailed, "gave up after 1"),
    "moved after 4014": ("R", ONE, put_out_and_moved, ConnectionFailed, "disconnected"),
    "another server after 4014": ("R", ONE, put_out_and_handed_over, ConnectionFailed, "disconnected"),
    "4006": ("R", ONE, close(4006), ConnectionClosed, "no longer valid"),
    "4999": ("R", ONE, close(4999), ConnectionClosed, "unknown"),
    "4021": ("R", ONE, close(4021), ConnectionClosed, "rate"),
    "4004": ("R", ONE, close(4004), ConnectionClosed, "authentication"),
    "1002": ("R", ONE, close(1002), ConnectionClosed, "complaint"),
    "4012": ("R", ONE, close(4012), ConnectionClosed, "protocol"),
    "a resume in vain": ("R", ONE, silent_resume, VoiceTimeout, "resumed_timeout"),
    "a lost main session": ("R", ONE, lambda world: world.feed(MainSessionLost()), ConnectionFailed, "gave up"),
    "a replaced main session": ("R", ONE, lambda world: world.feed(MainSessionStarted()), ConnectionFailed, "gave up"),
    "a join that is not sent": ("P", ONE, lambda world: world.feed(SignallingFailed("Away")), SignallingError, "Away"),
}


@pytest.mark.parametrize("way", ENDS)
def test_the_last_attempt_ends_the_call_with_its_reason(way: str) -> None:
    phase, options, happen, error, word = ENDS[way]
    world = in_phase(phase, options)
    happen(world)
    world.settle()
    assert isinstance(end(world), error)
    assert word in str(end(world))
    assert world.timers == {}


def test_a_pair_that_does_not_come_ends_the_call_when_attempts_are_spent() -> None:
    world = in_phase("R", TWO)
    world.unanswered.add("SendVoiceState")
    close(4006)(world)
    assert world.until(lambda: world.states["call"] == "closed", 30) == pytest.approx(10.0)
    assert isinstance(end(world), ConnectionFailed)
    assert asked(world)[-1] is None


# -- the way on


def hang(world: World) -> None:
    world.unanswered.add("OpenSocket")
    world.feed(voice_server("another"))
    world.advance(30.0)
    world.unanswered.discard("OpenSocket")


LOSSES: dict[str, tuple[Happening, str, type[VoiceError] | None]] = {
    "4006": (close(4006), "joining.asking", ConnectionClosed),
    "4999": (close(4999), "waiting.backoff", ConnectionClosed),
    "4004": (close(4004), "waiting.backoff", ConnectionClosed),
    "1002": (close(1002), "waiting.backoff", ConnectionClosed),
    "4016": (close(4016), "waiting.backoff", ConnectionClosed),
    "4021": (close(4021), "waiting.cool_down", ConnectionClosed),
    "4014": (close(4014), "waiting.verdict", ConnectionClosed),
    "4011": (close(4011), "waiting.server", ConnectionClosed),
    "a resume in vain": (silent_resume, "joining.asking", VoiceTimeout),
    "a dial that hangs": (hang, "waiting.backoff", None),
    "a null endpoint": (lambda world: world.feed(voice_server("null", None)), "waiting.endpoint", None),
    "a lost main session": (lambda world: world.feed(MainSessionLost()), "waiting.main_session", None),
    "a replaced main session": (lambda world: world.feed(MainSessionStarted()), "joining.asking", None),
}
GOING_ON = Options(rejoin_after_rate_limit=True, deadlines={"dial_timeout": 1000.0})


def lost(way: str) -> World:
    world = in_phase("R", GOING_ON)
    world.unanswered.add("SendVoiceState")
    LOSSES[way][0](world)
    assert world.states["call"] == LOSSES[way][1]
    return world


@pytest.mark.parametrize("way", LOSSES)
def test_a_loss_is_told_and_its_reason_kept(way: str) -> None:
    world = lost(way)
    error = LOSSES[way][2]
    assert noticed(world, Reconnecting) != []
    assert world.session.call.error is None if error is None else isinstance(world.session.call.error, error)


@pytest.mark.parametrize("way", [way for way, (_, state, _) in LOSSES.items() if state != "waiting.verdict"])
def test_a_new_voice_state_revives_no_token_of_before(way: str) -> None:
    world = lost(way)
    watch = Watch(world)
    world.feed(voice_state(session_id="a new session"))
    world.advance(0.2)
    assert watch.dials == []


def test_a_new_voice_state_after_a_close_waits_for_its_server() -> None:
    world = lost("4014")
    watch = Watch(world)
    for session_id in ("of the move", "of another move"):
        world.feed(voice_state(ELSEWHERE, session_id))
        assert world.states["call"] == "waiting.endpoint"
    world.feed(voice_server("of the move", OTHER_ENDPOINT))
    assert [dial.session_id.reveal() for dial in watch.dials] == ["of another move"]


def test_a_voice_state_of_the_old_channel_after_a_close_says_nothing() -> None:
    world = lost("4014")
    world.feed(voice_state(session_id=present_session(world)))
    assert world.states["call"] == "waiting.verdict"


def announced(world: World) -> None:
    world.feed(voice_state(ELSEWHERE))
    world.advance(5.0)


JOINS: dict[str, tuple[Happening, float]] = {
    "after a loss": (close(4006), 0.0),
    "after the backoff": (close(4999), 1.0),
    "after the cool-down": (close(4021), 60.0),
    "when no server came": (close(4011), 5.0),
    "when no endpoint came": (lambda world: world.feed(voice_server("null", None)), 30.0),
    "when the new channel's server did not come": (lambda world: world.feed(voice_state(ELSEWHERE)), 5.0),
    "when the main session was replaced": (lambda world: world.feed(MainSessionStarted()), 0.0),
}


@pytest.mark.parametrize("way", JOINS)
def test_each_join_has_ten_seconds_and_spends_an_attempt(way: str) -> None:
    happen, wait_s = JOINS[way]
    world = in_phase("R", GOING_ON)
    world.unanswered.add("SendVoiceState")
    known = len(asked(world))
    happen(world)
    world.advance(wait_s)
    assert world.states["call"] == "joining.asking"
    assert world.states["gateway"].startswith("closed")
    assert asked(world)[known:] == [world.session.shared.channel_id]
    attempts = world.session.call.attempts
    assert attempts == (2 if way == "when no endpoint came" else 1)
    assert noticed(world, Reconnecting) != []
    assert world.until(lambda: world.states["call"] == "waiting.backoff", 60) == pytest.approx(10.0)
    assert world.session.call.attempts == attempts + 1
    world.unanswered.clear()
    world.until(lambda: is_ready(world), 60)
    assert world.session.call.attempts == 0


def test_a_main_session_started_again_has_ten_seconds_too() -> None:
    world = in_phase("R")
    world.feed(MainSessionLost())
    world.advance(60.0)
    world.unanswered.add("SendVoiceState")
    world.feed(MainSessionStarted())
    assert world.until(lambda: world.states["call"] == "waiting.backoff", 60) == pytest.approx(10.0)


@pytest.mark.parametrize("event", [MainSessionLost(), voice_server("null", None), voice_state(None)])
def test_nothing_prolongs_or_ends_the_wait_for_the_main_session(event: object) -> None:
    world = in_phase("R")
    world.feed(MainSessionLost())
    world.settle()
    timers, attempts = world.timers, world.session.call.attempts
    world.advance(1.0)
    world.feed(event)  # type: ignore[arg-type]
    assert (world.states["call"], world.session.call.attempts) == ("waiting.main_session", attempts)
    assert world.timers == timers


@pytest.mark.parametrize("event", [MainSessionLost(), MainSessionStarted(), voice_server("b"), voice_server("c", None)])
def test_nothing_shortens_a_cool_down(event: object) -> None:
    world = lost("4021")
    timers = world.timers
    world.feed(event)  # type: ignore[arg-type]
    assert world.states["call"] == "waiting.cool_down"
    assert world.timers == timers
    if isinstance(event, MainSessionLost | MainSessionStarted):
        world.feed(voice_state(None))  # the dead membership's end
        assert world.states["call"] == "waiting.cool_down"


# -- moves


def test_where_we_are_is_not_asked_for() -> None:
    world = in_phase("R")
    world.feed(JoinRequested(CHANNEL))
    assert noticed(world, Connected) == [Connected(CHANNEL)] * 2
    assert len(world.sent(SendVoiceState)) == 1


def test_a_move_that_cannot_be_asked_for_is_said_and_the_call_goes_on() -> None:
    world = in_phase("R")
    world.unanswered.add("SendVoiceState")
    world.feed(JoinRequested(ELSEWHERE))
    world.feed(SignallingFailed("Away"))
    (failed,) = noticed(world, MoveFailed)
    assert isinstance(failed, MoveFailed)
    assert isinstance(failed.error, SignallingError)
    assert is_ready(world)


def test_a_move_forgives_the_attempts_before_it() -> None:
    world = in_phase("R")
    close(4014)(world)
    world.feed(voice_state(ELSEWHERE))
    assert world.session.call.attempts == 1
    world.feed(voice_server("of the move"))
    world.settle()
    assert noticed(world, Moved) == [Moved(ELSEWHERE)]
    assert world.session.call.attempts == 0


def test_a_newer_server_replaces_a_hand_over() -> None:
    world = in_phase("R")
    watch = Watch(world)
    world.unanswered.add("OpenSocket")
    world.feed(voice_server("newer"))
    world.unanswered.clear()
    world.feed(voice_server("newest", OTHER_ENDPOINT))
    world.settle()
    assert [dial.token.reveal() for dial in watch.dials] == ["newer", "newest"]
    assert [identify.token.reveal() for identify in watch.identified] == ["newest"]


def test_a_move_during_a_dial_ends_the_dial() -> None:
    world = in_phase("D")
    watch = Watch(world)
    for session_id in ("moved", "moved again"):
        world.feed(voice_state(ELSEWHERE, session_id))
        assert (world.states["call"], world.states["gateway"]) == ("waiting.endpoint", "closed.down")
    assert watch.dials == []


def test_a_voice_state_long_after_a_hand_over_is_a_move_of_its_own() -> None:
    world = in_phase("R")
    world.feed(voice_server("another region"))
    world.advance(10.1)
    world.feed(voice_state(ELSEWHERE, present_session(world)))
    assert world.states["call"] == "moving.announced"


def test_a_session_made_for_the_old_channel_is_made_anew() -> None:
    world = in_phase("R")
    world.feed(voice_server("of the move"))
    world.advance(1.0)
    assert is_ready(world)
    world.unanswered.add("SendVoiceState")
    known = len(asked(world))
    world.feed(voice_state(ELSEWHERE, present_session(world)))
    assert world.states["call"] == "joining.clearing"
    assert world.states["gateway"].startswith("closed")
    assert world.session.call.attempts == 1
    assert noticed(world, Reconnecting) != []
    world.feed(voice_state(None))
    assert asked(world)[known:] == [None, ELSEWHERE]
    assert world.until(lambda: world.states["call"] == "waiting.backoff", 60) == pytest.approx(10.0)


def test_after_an_announced_move_no_old_token_is_used() -> None:
    world = in_phase("R")
    watch = Watch(world)
    world.feed(voice_state(ELSEWHERE, "moved"))
    close(4006)(world)
    world.feed(voice_state(ELSEWHERE, "moved again"))
    assert watch.dials == []


# -- leaving


def test_a_leave_takes_two_seconds_at_most() -> None:
    world = in_phase("C")
    world.advance(1.5)
    world.server(SocketClosed(1000), numbered=False)
    assert world.states["call"] == "leaving.departing"
    assert world.until(lambda: world.states["call"] == "closed", 5) == pytest.approx(0.5)


def test_a_late_answer_to_the_join_does_not_answer_the_leave() -> None:
    world = in_phase("C")
    world.feed(voice_state())
    assert world.states["call"] == "leaving.asked"
    world.server(SocketClosed(1000), numbered=False)
    world.feed(voice_state())
    assert world.states["call"] == "leaving.departing"
    world.feed(voice_state(None))
    assert world.states["call"] == "closed"


def test_a_leave_after_a_failure_is_no_failure() -> None:
    world = lost("4999")
    world.feed(LeaveRequested())
    world.feed(voice_state(None))
    assert end(world) is None


def test_a_way_back_that_is_waited_for_no_longer_goes_on() -> None:
    for way in LOSSES:
        world = lost(way)
        before = world.states
        world.feed(JoinAbandoned(VoiceTimeout("too late")))
        assert world.states == before


def test_an_answered_leave_makes_room_for_the_second_join_at_once() -> None:
    world = in_phase("P")
    world.advance(2.9)
    world.unanswered.clear()
    assert world.until(lambda: is_ready(world), 5) == pytest.approx(0.1)


def test_what_came_before_the_leave_completes_no_pair_after_it() -> None:
    world = in_phase("P")
    watch = Watch(world)
    world.advance(3.0)
    world.feed(voice_server("before"))
    world.feed(voice_state(None))
    assert world.states["call"] == "joining.asking_again"
    world.feed(voice_state())
    assert watch.dials == []


def test_the_answer_to_our_leave_is_no_kick_though_the_join_before_it_was_answered() -> None:
    world = in_phase("P")
    world.advance(4.0)
    assert world.states["call"] == "joining.asking_again"
    world.feed(voice_state())  # the first join's, late
    world.feed(voice_state(None))  # the leave's
    assert world.states["call"] == "joining.asking_again"
    world.feed(voice_state())
    world.feed(voice_server())
    world.settle()
    assert is_ready(world)


def test_one_leave_has_one_answer() -> None:
    world = in_phase("P")
    world.advance(3.0)
    world.feed(voice_state(None))
    world.feed(voice_state())
    world.feed(voice_state(None))
    assert isinstance(end(world), Kicked)


def test_a_leave_that_was_not_sent_has_no_answer() -> None:
    world = in_phase("R")
    world.unanswered.add("SendVoiceState")
    close(4006)(world)
    world.until(lambda: world.states["call"] == "waiting.backoff", 60)
    for _ in range(2):
        world.feed(SignallingFailed("Away"))
    world.feed(voice_state())
    world.feed(voice_state(None))
    assert isinstance(end(world), Kicked)
