"""The core in virtual time: what spends an attempt, what the next one asks for, and how a call without one ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sessions import last_error, noticed, ready
from voicegw.effects import Moved, OpenSocket, Reconnecting, SendVoiceState
from voicegw.errors import ConnectionFailed, SignallingError
from voicegw.events import (
    DialPostponed,
    GroupRejected,
    MainSessionLost,
    MainSessionStarted,
    SignallingFailed,
    SocketClosed,
    SocketRefused,
    Stamped,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.testing.world import CHANNEL, ENDPOINT, World

ELSEWHERE = CHANNEL + 1


def call_state(world: World, *names: str) -> None:
    """Let time pass until the call is there."""
    world.until(lambda: world.states["call"].startswith(names), 700)


def in_call(**options: Any) -> World:
    """Ready for some time."""
    world = ready(**options)
    world.advance(20.0)
    return world


def closed(code: int, **options: Any) -> World:
    """A call that was ready when its voice server closed the websocket; nobody answers what it asks for then."""
    world = in_call(**options)
    world.unanswered.add("SendVoiceState")
    world.server(SocketClosed(code), numbered=False)
    return world


def moved(**options: Any) -> World:
    """The main gateway has us in another channel and names no voice server."""
    world = in_call(**options)
    world.unanswered.add("SendVoiceState")
    session_id = world.session.call.session_id
    assert session_id is not None
    world.feed(VoiceStateUpdated(ELSEWHERE, session_id))
    return world


def without_a_server(**options: Any) -> World:
    """The voice server went away."""
    world = in_call(**options)
    world.unanswered.add("SendVoiceState")
    world.feed(VoiceServerUpdated(Secret("gone"), None))
    return world


def without_a_turn(**options: Any) -> World:
    """Too many calls of the process dial; ours is far away."""
    world = in_call(**options)
    world.unanswered.add("SendVoiceState")
    world.instead["OpenSocket"] = lambda effect: [Stamped("websocket", effect.generation, DialPostponed(600.0))]
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    return world


def without_a_main_session(*, replaced: bool, **options: Any) -> World:
    """The bot's own session has died; another is there at once, or later."""
    world = in_call(**options)
    world.unanswered.add("SendVoiceState")
    if not replaced:
        world.feed(MainSessionLost())
        world.settle()
    world.feed(MainSessionStarted())
    return world


def dialling(**options: Any) -> World:
    """The pair is dialled and nobody answers the Identify."""
    world = World(Options(**options))
    world.unanswered.add("SendIdentify")
    world.join()
    world.unanswered.add("SendVoiceState")
    assert world.states["call"] == "connecting"
    return world


def half_a_pair(**options: Any) -> World:
    """It worked before, and the next pair never comes whole."""
    world = closed(4006, **options)
    world.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    return world


# -- the next attempt

# How many attempts are spent until it asks again.
ASKS_AGAIN: dict[str, tuple[int, Callable[[], World]]] = {
    "a session that is not valid any more": (1, lambda: closed(4006)),
    "a close that nobody knows": (1, lambda: closed(4999)),
    "a server that does not know us": (1, lambda: closed(4011)),
    "a cool-down": (1, lambda: closed(4021, rejoin_after_rate_limit=True)),
    "a move without a server": (1, moved),
    "a server that went away, and no other": (2, without_a_server),
    "a turn that is far away": (1, without_a_turn),
    "a main session that died": (1, lambda: without_a_main_session(replaced=False)),
    "a main session that was replaced": (1, lambda: without_a_main_session(replaced=True)),
}


@pytest.fixture(params=ASKS_AGAIN)
def name(request: pytest.FixtureRequest) -> str:
    """How it was lost."""
    return str(request.param)


@pytest.fixture
def asking(name: str) -> World:
    """A call that was connected and asks for another pair; nobody has answered yet."""
    _, make = ASKS_AGAIN[name]
    world = make()
    call_state(world, "joining")
    return world


def test_the_next_attempt_asks_for_the_channel_once_and_is_counted(name: str, asking: World) -> None:
    assert asking.states["call"] == "joining.asking"
    first, *again = asking.sent(SendVoiceState)
    assert (first, again) == (SendVoiceState(CHANNEL), [SendVoiceState(asking.session.shared.channel_id)])
    assert asking.session.call.attempts == ASKS_AGAIN[name][0]
    assert len(noticed(asking, Reconnecting)) == 1


def test_the_next_attempt_has_no_voice_session_beside_it(asking: World) -> None:
    asking.settle()
    assert asking.states["gateway"] == "closed.down"
    assert asking.states["transport"] == "closed"


def test_the_next_pair_has_all_of_its_time(asking: World) -> None:
    begun = asking.now
    asking.advance(1.0)
    asking.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    assert asking.states["call"] == "joining.halved"
    assert asking.timers["pair_timeout"] == pytest.approx(begun + 10.0)


def test_the_pair_of_a_channel_that_came_too_late_for_its_server_has_all_of_its_time() -> None:
    world = in_call()
    world.feed(VoiceServerUpdated(Secret("of the channel"), ENDPOINT))
    call_state(world, "connected")
    world.unanswered.add("SendVoiceState")
    session_id = world.session.call.session_id
    assert session_id is not None
    world.feed(VoiceStateUpdated(ELSEWHERE, session_id))
    begun = world.now
    call_state(world, "joining.asking_again")
    assert world.timers["pair_timeout"] == pytest.approx(begun + 10.0)


@pytest.mark.parametrize("half", ["state", "server"])
def test_no_half_of_the_pair_before_completes_the_next(asking: World, half: str) -> None:
    dialled = len(asking.sent(OpenSocket))
    state, server = VoiceStateUpdated(CHANNEL, Secret("next")), VoiceServerUpdated(Secret("next"), ENDPOINT)
    asking.feed(state if half == "state" else server)
    asking.settle()
    assert (asking.states["call"], len(asking.sent(OpenSocket))) == ("joining.halved", dialled)


def test_half_a_pair_is_given_up_with_a_leave_and_completes_none_that_comes_later() -> None:
    world = half_a_pair()
    call_state(world, "waiting.backoff")
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)
    world.feed(VoiceServerUpdated(Secret("late"), ENDPOINT))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("waiting.backoff", 1)


# -- none left


def superseded(**options: Any) -> World:
    """Another channel and session while one is dialled."""
    world = dialling(**options)
    world.feed(VoiceStateUpdated(ELSEWHERE, Secret("newer")))
    return world


def another_server(**options: Any) -> World:
    """Another server while one is dialled."""
    world = dialling(**options)
    world.feed(VoiceServerUpdated(Secret("newer"), ENDPOINT))
    return world


def stuck(**options: Any) -> World:
    """No deadline of the websocket ends it."""
    return dialling(deadlines={"ready_timeout": 100.0}, **options)


def without_udp(**options: Any) -> World:
    """No datagram of the server that is dialled comes back."""
    world = in_call(**options)
    world.unanswered |= {"SendVoiceState", "SendDiscovery", "CloseSocket"}
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    return world


# Of how many attempts it is the last, how it fails, and what the bot is told.
GAVE_UP = "gave up after {} attempts"
GIVES_UP: dict[str, tuple[int, Callable[..., World], str]] = {
    "a session that is not valid any more": (1, lambda **options: closed(4006, **options), "4006"),
    "a cool-down": (1, lambda **options: closed(4021, rejoin_after_rate_limit=True, **options), "4021"),
    "a turn that is far away": (1, without_a_turn, "its turn to dial comes in 600 s"),
    "no UDP": (1, without_udp, "UDP"),
    "a server that does not know us": (1, lambda **options: closed(4011, **options), GAVE_UP),
    "a move without a server": (1, moved, GAVE_UP),
    "a server that went away": (1, without_a_server, GAVE_UP),
    "no other server": (2, without_a_server, GAVE_UP),
    "half a pair": (2, half_a_pair, GAVE_UP),
    "another session": (1, superseded, GAVE_UP),
    "another server": (1, another_server, GAVE_UP),
    "a dial that does not end": (1, stuck, GAVE_UP),
    "a main session that was replaced": (
        1,
        lambda **options: without_a_main_session(replaced=True, **options),
        GAVE_UP,
    ),
}


@pytest.mark.parametrize("last", GIVES_UP)
def test_a_call_without_attempts_leaves_and_ends_without_waiting_for_the_answer(last: str) -> None:
    attempts, make, told = GIVES_UP[last]
    world = make(max_attempts=attempts)
    dialled = len(world.sent(OpenSocket))
    call_state(world, "leaving", "closed")
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert len(world.sent(OpenSocket)) == dialled
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)
    assert world.sent(SendVoiceState).count(SendVoiceState(None)) == 1
    assert told.format(attempts) in str(last_error(world))


def test_a_main_session_that_died_takes_the_last_attempt_without_a_leave_that_nobody_would_hear() -> None:
    world = in_call(max_attempts=1)
    world.feed(MainSessionLost())
    world.settle()
    assert world.states["call"] == "closed"
    assert world.sent(SendVoiceState) == [SendVoiceState(CHANNEL)]
    assert str(last_error(world)).startswith("gave up after 1 attempts")


# -- how a voice session is lost


def by_close(code: int) -> Callable[[World], object]:
    """The voice server closes the websocket."""
    return lambda world: world.server(SocketClosed(code), numbered=False)


def by_e2ee(world: World) -> None:
    """The group cannot be recovered."""
    for number in range(1, 5):
        world.feed(GroupRejected(number, "does not fit"))


def by_certificate(world: World) -> None:
    """Whoever answers the next dial cannot prove to be Discord."""
    if world.states["gateway"] == "ready":
        world.server(SocketClosed(1006), numbered=False)
    world.server(SocketRefused(ConnectionFailed("the certificate is wrong")), numbered=False)


def connected(**options: Any) -> World:
    """Ready."""
    world = in_call(**options)
    world.unanswered |= {"SendVoiceState", "OpenSocket", "CloseSocket", "ApplyCommit", "ApplyWelcome"}
    return world


def dialling_again(**options: Any) -> World:
    """It was ready, and another server is dialled."""
    world = connected(**options)
    world.feed(VoiceServerUpdated(Secret("of a move"), ENDPOINT))
    return world


def resuming_elsewhere(**options: Any) -> World:
    """It was ready in another process, and is resumed here."""
    world = connected(**options)
    world.hand_over()
    world.notices.clear()
    return world


LOST: dict[str, Callable[[World], object]] = {
    "4006": by_close(4006),
    "4004": by_close(4004),
    "1002": by_close(1002),
    "4016": by_close(4016),
    "4999": by_close(4999),
    "certificate": by_certificate,
    "E2EE": by_e2ee,
}
WHILE: dict[str, Callable[..., World]] = {
    "connected": connected,
    "dialling": dialling_again,
    "resuming": resuming_elsewhere,
}
NOT_ALL = {"4006": "dialling", "E2EE": "connected"}
LOSSES = [(at, how) for at in WHILE for how in LOST if NOT_ALL.get(how, at) == at]


@pytest.mark.parametrize(("at", "how"), LOSSES)
def test_a_loss_is_said_and_counted_once_and_waits_before_the_next_attempt(at: str, how: str) -> None:
    world = WHILE[at]()
    known = len(noticed(world, Reconnecting))
    LOST[how](world)
    assert world.states["call"] == "waiting.backoff"
    resumed = at == "connected" and how == "certificate"  # the websocket is resumed first, which is said, too
    assert len(noticed(world, Reconnecting)) == known + 1 + resumed
    assert world.session.call.attempts == 1


@pytest.mark.parametrize(("at", "how"), LOSSES)
def test_no_half_of_a_pair_that_was_lost_completes_another(at: str, how: str) -> None:
    world = WHILE[at]()
    LOST[how](world)
    dialled = len(world.sent(OpenSocket))
    world.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("waiting.backoff", dialled)


@pytest.mark.parametrize(("at", "how"), LOSSES)
def test_the_last_loss_ends_the_call_with_its_own_error(at: str, how: str) -> None:
    world = WHILE[at](max_attempts=1)
    LOST[how](world)
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)
    told = "end-to-end encryption" if how == "E2EE" else how
    assert told in str(last_error(world))


@pytest.mark.parametrize(("state", "make"), [("waiting.turn", without_a_turn), ("waiting.backoff", without_udp)])
def test_no_half_of_a_pair_that_could_not_be_dialled_completes_another(state: str, make: Callable[[], World]) -> None:
    world = make()
    call_state(world, "waiting")
    dialled = len(world.sent(OpenSocket))
    world.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    assert (world.states["call"], len(world.sent(OpenSocket))) == (state, dialled)


@pytest.mark.parametrize("code", [4004, 1002, 4016])
def test_what_is_forgiven_once_ends_the_call_at_once_the_second_time(code: int) -> None:
    world = in_call()
    world.unanswered.add("SendSelectProtocol")
    world.server(SocketClosed(code), numbered=False)
    call_state(world, "connecting")
    world.settle()
    world.unanswered.add("SendVoiceState")
    world.server(SocketClosed(code), numbered=False)
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)
    assert str(code) in str(last_error(world))


@pytest.mark.parametrize("lost", ["UDP", "certificate"])
def test_a_first_join_that_cannot_come_to_be_ends_at_once(lost: str) -> None:
    world = World()
    world.unanswered |= {"SendDiscovery", "CloseSocket", *(["OpenSocket"] if lost == "certificate" else [])}
    world.join()
    world.unanswered.add("SendVoiceState")
    if lost == "certificate":
        by_certificate(world)
    call_state(world, "leaving", "closed")
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert world.sent(SendVoiceState) == [SendVoiceState(CHANNEL), SendVoiceState(None)]
    assert lost in str(last_error(world))


def test_a_join_that_cannot_be_sent_and_was_the_last_says_so() -> None:
    world = World(Options(max_attempts=1))
    world.unanswered.add("SendVoiceState")
    world.join()
    world.feed(SignallingFailed("no connection"))
    assert world.states["call"] == "closed"
    assert isinstance(last_error(world), SignallingError)


@pytest.mark.parametrize("code", [4014, 4022, 4011])
def test_a_close_after_which_the_main_gateway_is_waited_for_is_said_once(code: int) -> None:
    world = closed(code)
    assert len(noticed(world, Reconnecting)) == 1


def test_a_kick_that_the_main_gateway_does_not_tell_of_waits_for_no_answer_to_the_leave() -> None:
    world = closed(4014)
    call_state(world, "leaving", "closed")
    assert world.states["call"] == "closed"
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)


def test_a_server_that_was_left_in_a_move_is_no_half_of_another_pair() -> None:
    world = moved()
    world.server(SocketClosed(4999), numbered=False)
    assert world.states["call"] == "waiting.endpoint"
    world.feed(VoiceStateUpdated(ELSEWHERE, Secret("newer")))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("waiting.endpoint", 1)


def test_a_move_that_is_done_is_told_once_and_begins_to_count_anew() -> None:
    world = moved()
    world.unanswered.clear()
    call_state(world, "joining")
    call_state(world, "connected")
    assert (noticed(world, Moved), world.session.call.attempts) == ([Moved(ELSEWHERE)], 0)
    world.server(SocketClosed(4006), numbered=False)
    call_state(world, "joining")
    call_state(world, "connected")
    assert noticed(world, Moved) == [Moved(ELSEWHERE)]


# -- while a pair is dialled


def test_another_session_while_one_is_dialled_waits_for_its_own_server() -> None:
    world = superseded()
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("waiting.endpoint", "closed.down")
    world.feed(VoiceStateUpdated(ELSEWHERE, Secret("newest")))
    assert world.states["call"] == "waiting.endpoint"  # the server of before is no half of that pair
    world.feed(VoiceServerUpdated(Secret("newest"), ENDPOINT))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("moving.dialling", 2)
    assert world.session.call.attempts == 1
    credentials = world.session.shared.credentials
    assert credentials is not None
    assert (credentials.channel_id, credentials.session_id, credentials.token) == (
        ELSEWHERE,
        Secret("newest"),
        Secret("newest"),
    )


@pytest.mark.parametrize(("state", "make"), [("connecting", dialling), ("moving.dialling", dialling_again)])
def test_another_server_while_one_is_dialled_is_dialled_instead_in_a_time_of_its_own(
    state: str, make: Callable[[], World]
) -> None:
    world = make()
    before, dialled = world.timers["connect_timeout"], len(world.sent(OpenSocket))
    world.advance(1.0)
    for number in (1, 2):
        world.feed(VoiceServerUpdated(Secret(f"newer {number}"), ENDPOINT))
        assert world.session.call.attempts == number
        assert world.timers["connect_timeout"] == pytest.approx(before + 1.0)
        credentials = world.session.shared.credentials
        assert credentials is not None
        assert credentials.token == Secret(f"newer {number}")
    assert (world.states["call"], len(world.sent(OpenSocket))) == (state, dialled + 2)


def test_a_session_whose_server_came_first_is_dialled_in_a_time_of_its_own() -> None:
    world = another_server()
    world.advance(1.0)
    world.feed(VoiceStateUpdated(ELSEWHERE, Secret("of that server")))
    assert (world.states["call"], world.session.call.attempts) == ("moving.dialling", 2)
    assert world.timers["connect_timeout"] == pytest.approx(world.now + 30.0)


def test_a_pair_that_comes_by_itself_during_a_wait_is_dialled_in_a_time_of_its_own() -> None:
    world = connected()
    by_close(4999)(world)
    dialled = len(world.sent(OpenSocket))
    world.feed(VoiceServerUpdated(Secret("next"), ENDPOINT))
    assert world.states["call"] == "waiting.backoff"
    world.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("moving.dialling", dialled + 1)
    assert world.timers["connect_timeout"] == pytest.approx(world.now + 30.0)


def test_a_dial_that_does_not_end_is_ended_and_its_pair_not_used_again() -> None:
    world = stuck()
    assert world.until(lambda: world.states["call"] == "waiting.backoff", 60) == pytest.approx(30.0)
    world.settle()
    assert world.states["gateway"] == "closed.down"
    assert len(noticed(world, Reconnecting)) == 1
    world.feed(VoiceStateUpdated(CHANNEL, Secret("newer")))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("waiting.backoff", 1)
