"""The core in virtual time: wishes that change, leaves that cannot be said, servers that come alone, hand-overs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sessions import last_error, noticed, ready
from voicegw.effects import (
    CloseSocket,
    Connected,
    CreateGroup,
    Moved,
    MoveFailed,
    OpenSocket,
    Reconnecting,
    SendIdentify,
    SendVoiceState,
)
from voicegw.errors import ConnectionFailed, Kicked, SignallingError
from voicegw.events import (
    Event,
    FrameRejected,
    FreezeRequested,
    JoinRequested,
    KeyExhausted,
    LeaveRequested,
    MainSessionLost,
    MainSessionStarted,
    NoncesMet,
    SignallingFailed,
    SocketClosed,
    SocketFailed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import VoiceSession
from voicegw.signalling import VoiceFlags
from voicegw.testing.world import CHANNEL, ENDPOINT, GUILD, USER, World
from voicegw.wire.payloads import ClientsConnected

ANOTHER = CHANNEL + 1


def backing_off() -> World:
    """A call whose dial has failed."""
    world = World()
    world.unanswered.add("OpenSocket")
    world.join()
    world.server(SocketFailed(ConnectionFailed("refused")), numbered=False)
    assert world.states["call"] == "waiting.backoff"
    return world


def clearing(world: World) -> World:
    """Its join, the first or after a lost session, was not answered; a ghost may be in the way, so it has left."""
    world.unanswered.add("SendVoiceState")
    if world.states["call"] == "connected":
        world.server(SocketClosed(4006), numbered=False)
    else:
        world.join()
    world.until(lambda: world.states["call"] == "joining.clearing", 30)
    return world


def test_the_channel_that_one_is_in_is_joined_already() -> None:
    world = ready()
    asked = len(world.sent(SendVoiceState))
    world.feed(JoinRequested(CHANNEL))
    assert noticed(world, Connected) == [Connected(CHANNEL)] * 2
    assert len(world.sent(SendVoiceState)) == asked


def test_a_wish_during_a_backoff_is_what_is_asked_for_next() -> None:
    world = backing_off()
    world.unanswered.clear()
    world.feed(JoinRequested(ANOTHER))
    world.until(lambda: world.states["call"] == "connected", 10)
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(ANOTHER)
    assert noticed(world, Connected) == [Connected(ANOTHER)]


def test_another_wish_begins_another_pair() -> None:
    """The server that answered the first wish is not dialled with the session of the second."""
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.feed(VoiceServerUpdated(Secret("of the first"), ENDPOINT))
    world.feed(JoinRequested(ANOTHER))
    world.feed(VoiceStateUpdated(ANOTHER, Secret("of the second")))
    assert world.sent(OpenSocket) == []
    world.feed(VoiceServerUpdated(Secret("of the second"), ENDPOINT))
    assert len(world.sent(OpenSocket)) == 1


def connecting() -> World:
    """A call whose first pair is dialled."""
    world = World()
    world.unanswered.add("OpenSocket")
    world.join()
    return world


def announced() -> World:
    """A call that hears of another channel, and of no server there."""
    world = ready()
    known = world.session.call.session_id
    assert known is not None
    world.feed(VoiceStateUpdated(ANOTHER + 1, known))
    return world


def after(event: Event) -> World:
    """A call that was ready when this came from the voice server, or from the main gateway."""
    world = ready()
    world.server(event, numbered=False)
    return world


@pytest.mark.parametrize(
    ("state", "make"),
    [
        ("connecting", connecting),
        ("moving.announced", announced),
        ("waiting.endpoint", lambda: after(VoiceServerUpdated(Secret("gone"), None))),
        ("waiting.verdict", lambda: after(SocketClosed(4014))),
        ("waiting.server", lambda: after(SocketClosed(4011))),
    ],
)
def test_a_wish_for_another_channel_on_the_way_to_one_is_asked_for_at_once(
    state: str, make: Callable[[], World]
) -> None:
    world = make()
    world.unanswered.add("SendVoiceState")
    asked = len(world.sent(SendVoiceState))
    world.feed(JoinRequested(ANOTHER))
    assert world.states["call"] == state
    assert world.sent(SendVoiceState)[asked:] == [SendVoiceState(ANOTHER)]
    assert world.session.shared.channel_id == ANOTHER


def test_a_move_that_cannot_be_asked_for_is_said_and_the_call_goes_on() -> None:
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.feed(JoinRequested(ANOTHER))
    world.feed(SignallingFailed("no connection"))
    assert len(noticed(world, MoveFailed)) == 1
    assert (world.states["call"], world.session.shared.channel_id) == ("connected", CHANNEL)


def test_a_bot_that_leaves_has_no_error_whatever_was_wrong_before() -> None:
    world = backing_off()
    world.feed(LeaveRequested())
    world.until(lambda: world.states["call"] == "closed", 5)
    assert last_error(world) is None


def test_a_call_that_never_began_is_over_when_it_is_frozen() -> None:
    world = World()
    world.feed(FreezeRequested())
    assert (world.states["call"], world.sent(SendVoiceState)) == ("closed", [])
    assert last_error(world) is None


def test_what_the_main_gateway_says_of_a_channel_is_no_answer_to_a_leave() -> None:
    world = ready()
    world.unanswered |= {"SendVoiceState", "CloseSocket"}
    world.feed(LeaveRequested())
    asked = world.states["call"]
    world.feed(VoiceStateUpdated(CHANNEL, Secret("muted by somebody")))
    assert (asked, world.states["call"]) == ("leaving.asked", "leaving.asked")
    world.feed(VoiceStateUpdated(None, Secret("out")))
    assert world.states["call"] == "leaving.closing"


def test_a_channel_is_no_answer_to_a_leave_where_only_that_is_awaited() -> None:
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.feed(LeaveRequested())
    world.settle()
    world.feed(VoiceStateUpdated(CHANNEL, Secret("muted by somebody")))
    assert world.states["call"] == "leaving.departing"
    world.feed(VoiceStateUpdated(None, Secret("out")))
    assert world.states["call"] == "closed"


def test_a_leave_that_cannot_be_said_is_not_waited_for() -> None:
    world = ready()
    world.unanswered |= {"SendVoiceState", "CloseSocket"}
    world.feed(LeaveRequested())
    world.feed(SignallingFailed("no connection"))
    assert world.states["call"] == "leaving.closing"
    world.until(lambda: world.states["call"] == "closed", 2.0)
    assert isinstance(last_error(world), SignallingError)


def test_a_call_that_has_closed_ends_where_its_leave_cannot_be_said() -> None:
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.feed(LeaveRequested())
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("leaving.departing", "closed.down")
    world.feed(SignallingFailed("no connection"))
    assert world.states["call"] == "closed"


def test_one_leave_of_ours_excuses_one_departure() -> None:
    """The ghost of an earlier process is cleared by a leave; a second word of being out is a kick."""
    world = clearing(World())
    world.unanswered.clear()
    world.feed(VoiceStateUpdated(None, Secret("out")))
    world.until(lambda: world.states["call"] == "connected", 10)
    world.feed(VoiceStateUpdated(None, Secret("out again")))
    world.until(lambda: world.states["call"] == "closed", 10)
    assert isinstance(last_error(world), Kicked)
    assert len(world.sent(SendIdentify)) == 1


def test_the_late_answer_to_the_first_join_is_no_sign_that_the_ghost_is_gone() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.until(lambda: world.states["call"] == "joining.clearing", 30)
    asked = len(world.sent(SendVoiceState))
    world.feed(VoiceStateUpdated(CHANNEL, Secret("late")))
    assert (world.states["call"], len(world.sent(SendVoiceState))) == ("joining.clearing", asked)


def test_a_server_that_came_before_the_ghost_was_gone_is_no_half_of_the_next_pair() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.until(lambda: world.states["call"] == "joining.clearing", 30)
    world.feed(VoiceServerUpdated(Secret("of the ghost"), ENDPOINT))
    world.feed(VoiceStateUpdated(None, Secret("of the ghost")))
    assert world.states["call"] == "joining.asking_again"
    world.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    assert (world.states["call"], world.sent(OpenSocket)) == ("joining.asking_again", [])


def test_a_departure_from_before_we_came_is_counted_and_no_kick() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.feed(VoiceStateUpdated(None, Secret("of the call before")))
    assert world.states["call"] == "joining.asking"
    assert world.session.shared.counters["stale departures"] == 1


@pytest.mark.parametrize("answer", [SignallingFailed("no connection"), VoiceStateUpdated(None, Secret("out"))])
def test_a_leave_that_was_answered_or_never_said_excuses_nobody(answer: Event) -> None:
    world = ready()
    world.unanswered |= {"SendVoiceState", "OpenSocket"}
    world.server(SocketClosed(4006), numbered=False)
    world.until(lambda: world.states["call"] == "waiting.backoff", 30)
    leaves = world.sent(SendVoiceState).count(SendVoiceState(None))
    for _ in range(leaves):
        world.feed(answer)
    world.unanswered.remove("SendVoiceState")
    world.until(lambda: world.states["call"] == "connecting", 30)
    world.feed(VoiceStateUpdated(None, Secret("taken out")))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), Kicked)


# -- the bot's own session, while the call waits


def test_a_main_session_that_comes_back_as_it_should_is_no_attempt() -> None:
    world = ready(max_attempts=2)
    world.feed(MainSessionLost())
    world.settle()
    world.feed(MainSessionStarted())
    assert world.states["call"] == "joining.asking"
    world.until(lambda: world.states["call"] == "connected", 10)


def test_a_main_session_that_is_away_tells_nothing_of_us_and_is_lost_once() -> None:
    world = ready()
    world.feed(MainSessionLost())
    world.settle()
    until = world.timers["main_session_timeout"]
    world.advance(1.0)
    left_behind = VoiceStateUpdated(ANOTHER, Secret("new")), VoiceServerUpdated(Secret("new"), ENDPOINT)
    for event in (*left_behind, MainSessionLost()):
        world.feed(event)
        assert (world.states["call"], world.timers["main_session_timeout"]) == ("waiting.main_session", until)
    assert (world.session.shared.channel_id, world.session.call.attempts) == (CHANNEL, 1)
    assert len(world.sent(OpenSocket)) == 1


def test_a_cool_down_is_waited_out_whatever_the_main_session_does() -> None:
    world = ready(rejoin_after_rate_limit=True)
    world.server(SocketClosed(4021), numbered=False)
    over = world.timers["cool_down_over"]
    gone, new = VoiceServerUpdated(Secret("gone"), None), VoiceServerUpdated(Secret("new"), ENDPOINT)
    for event in (gone, new, MainSessionLost(), MainSessionStarted(), MainSessionStarted()):
        world.feed(event)
        assert (world.states["call"], world.timers["cool_down_over"]) == ("waiting.cool_down", over)
    assert world.sent(SendVoiceState) == [SendVoiceState(CHANNEL)]
    world.until(lambda: world.states["call"] == "connected", over - world.now + 5)


def test_flags_that_change_after_4014_are_no_move() -> None:
    world = ready()
    world.server(SocketClosed(4014), numbered=False)
    known = world.session.call.session_id
    assert known is not None
    world.advance(2.0)
    world.feed(VoiceStateUpdated(CHANNEL, known, VoiceFlags(self_mute=True)))
    assert world.states["call"] == "waiting.verdict"
    assert world.until(lambda: world.states["call"] == "closed", 5) == pytest.approx(3.0)
    assert isinstance(last_error(world), Kicked)


def test_a_move_after_4014_never_dials_the_server_that_was_left() -> None:
    world = ready()
    world.server(SocketClosed(4014), numbered=False)
    for channel_id in (99, 98):
        world.feed(VoiceStateUpdated(channel_id, Secret(f"of {channel_id}")))
        world.settle()
        assert (world.states["call"], len(world.sent(OpenSocket))) == ("waiting.endpoint", 1)
    world.feed(VoiceServerUpdated(Secret("of 98"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    assert noticed(world, Moved) == [Moved(98)]


def test_a_move_after_4014_that_was_the_last_attempt_ends_with_a_leave() -> None:
    world = ready(max_attempts=1)
    world.server(SocketClosed(4014), numbered=False)
    world.feed(VoiceStateUpdated(99, Secret("moved")))
    assert world.states["call"] == "closed"
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)
    assert isinstance(last_error(world), ConnectionFailed)


# -- a voice server that comes before the voice state that it belongs to


def test_a_session_that_comes_after_its_server_is_dialled_with_it() -> None:
    for connected_first in (True, False):
        world = ready()
        if not connected_first:
            world.unanswered.add("SendIdentify")
        world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
        world.settle()
        assert world.states["call"] == ("connected" if connected_first else "moving.dialling")
        world.unanswered.clear()
        world.feed(VoiceStateUpdated(99, Secret("new session")))
        assert world.states["call"] == "moving.dialling"
        world.until(lambda world=world: world.states["call"] == "connected", 10)  # type: ignore[misc]
        assert len(world.sent(OpenSocket)) == 3
        credentials = world.session.shared.credentials
        assert credentials is not None
        assert (credentials.session_id, credentials.token) == (Secret("new session"), Secret("new"))
        assert noticed(world, Moved) == [Moved(99)]


@pytest.mark.parametrize(("after_s", "state"), [(10.0, "moving.dialling"), (10.5, "moving.announced")])
def test_a_server_waits_for_its_session_as_long_as_for_a_pair(after_s: float, state: str) -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.advance(after_s)
    world.feed(VoiceStateUpdated(99, Secret("new session")))
    assert world.states["call"] == state


def test_a_channel_that_comes_after_its_server_is_that_of_the_session_in_the_making() -> None:
    world = ready()
    world.unanswered.add("SendSelectProtocol")
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.settle()
    known = world.session.call.session_id
    assert known is not None
    world.feed(VoiceStateUpdated(99, known))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("moving.dialling", 2)
    world.unanswered.clear()
    world.server(world.description())
    world.until(lambda: world.states["call"] == "connected", 10)
    groups = [effect.channel_id for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
    assert groups == [CHANNEL, 99]
    assert noticed(world, Moved) == [Moved(99)]


def test_a_channel_that_comes_too_late_for_its_session_is_joined_anew() -> None:
    """The session was made for the channel before; its pair is used up, so we leave and ask for another."""
    world = ready()
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    known = world.session.call.session_id
    assert known is not None
    world.feed(VoiceStateUpdated(99, known))
    assert world.states["call"] == "joining.clearing"
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)
    assert (world.session.call.attempts, len(world.sent(CloseSocket))) == (1, 1)
    world.until(lambda: world.states["call"] == "connected", 10)
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(99)
    assert len(noticed(world, Reconnecting)) == 1


def test_a_server_that_comes_while_one_waits_is_kept_for_the_session_that_follows() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("gone"), None))
    world.feed(VoiceStateUpdated(99, Secret("new session")))
    assert world.states["call"] == "waiting.endpoint"
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    assert world.states["call"] == "moving.dialling"
    world.until(lambda: world.states["call"] == "connected", 10)
    assert noticed(world, Moved) == [Moved(99)]


# -- what is forgotten, and what is not


def test_who_is_out_is_not_kicked_by_hearing_it_once_more() -> None:
    world = clearing(ready())
    for _ in range(2):
        world.feed(VoiceStateUpdated(None, Secret("out")))
    assert world.states["call"].startswith("joining")
    assert world.session.shared.counters["stale departures"] == 1


def test_each_leave_of_ours_excuses_a_departure_however_late_it_is_answered() -> None:
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.server(SocketClosed(4006), numbered=False)
    world.until(lambda: world.states["call"] == "waiting.backoff", 30)
    assert world.sent(SendVoiceState).count(SendVoiceState(None)) == 2
    for channel_id in (None, CHANNEL, None):
        world.feed(VoiceStateUpdated(channel_id, Secret("late")))
    assert world.states["call"] == "waiting.backoff"


def test_a_leave_from_before_we_were_connected_excuses_nobody() -> None:
    world = clearing(World())
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 10)
    world.feed(VoiceStateUpdated(None, Secret("taken out")))
    world.until(lambda: world.states["call"] == "closed", 10)
    assert isinstance(last_error(world), Kicked)


def joining_in_another_main_session() -> World:
    """A call that was connected in a session of the bot which is dead now; nobody has answered yet."""
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.feed(MainSessionLost())
    world.feed(MainSessionStarted())
    assert world.states["call"] == "joining.asking"
    return world


def test_another_main_session_does_not_know_us_inside_yet() -> None:
    world = joining_in_another_main_session()
    world.feed(VoiceStateUpdated(None, Secret("of the session before")))
    assert world.states["call"] == "joining.asking"
    assert world.session.shared.counters["stale departures"] == 1


def test_a_leave_in_a_main_session_that_died_excuses_nobody() -> None:
    world = clearing(ready())
    world.feed(MainSessionLost())
    world.feed(MainSessionStarted())
    world.feed(VoiceStateUpdated(CHANNEL, Secret("there")))
    world.feed(VoiceStateUpdated(None, Secret("taken out")))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), Kicked)


@pytest.mark.parametrize(
    ("events", "cooling_down"),
    [
        ([MainSessionLost(), MainSessionStarted()], False),
        ([MainSessionStarted()], False),
        ([MainSessionStarted()], True),
        ([MainSessionLost()], True),
    ],
)
def test_the_same_server_is_news_in_another_main_session(events: list[Event], cooling_down: bool) -> None:
    world = ready(rejoin_after_rate_limit=True)
    token, endpoint = world.session.call.token, world.session.call.endpoint
    assert token is not None
    world.unanswered.add("SendVoiceState")
    if cooling_down:
        world.server(SocketClosed(4021), numbered=False)
    for event in events:
        world.feed(event)
    world.until(lambda: world.states["call"] == "joining.asking", 100)
    world.feed(VoiceStateUpdated(CHANNEL, Secret("new session")))
    world.feed(VoiceServerUpdated(token, endpoint))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("connecting", 2)


def test_a_main_session_that_is_lost_takes_the_pair_with_it() -> None:
    world = ready()
    world.feed(MainSessionLost())
    call = world.session.call
    assert (call.session_id, call.token, call.endpoint) == (None, None, None)


def test_a_voice_state_of_before_completes_no_later_server() -> None:
    """It came alone, in another session of the bot; the server of now has its own, and the next one comes alone."""
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.feed(VoiceStateUpdated(CHANNEL, Secret("of before")))
    world.feed(MainSessionLost())
    world.feed(MainSessionStarted())
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.feed(VoiceStateUpdated(CHANNEL, Secret("new session")))
    world.until(lambda: world.states["call"] == "connected", 10)
    world.feed(VoiceServerUpdated(Secret("of the move"), ENDPOINT))
    world.feed(VoiceStateUpdated(99, Secret("moved")))
    assert world.states["call"] == "moving.dialling"


def test_a_server_that_is_gone_is_not_the_one_that_came_alone() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("alone"), ENDPOINT))
    world.feed(VoiceServerUpdated(Secret("gone"), None))
    world.feed(VoiceStateUpdated(99, Secret("moved")))
    world.feed(VoiceServerUpdated(Secret("of 99"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    dialled = len(world.sent(OpenSocket))
    world.feed(VoiceStateUpdated(98, Secret("moved again")))
    assert (world.states["call"], len(world.sent(OpenSocket))) == ("moving.announced", dialled)


def test_a_new_session_knows_nothing_of_the_one_before() -> None:
    world = ready()
    world.server(ClientsConnected((7,)))
    world.server(FrameRejected(None), numbered=False)
    world.feed(KeyExhausted())
    world.feed(NoncesMet())
    world.unanswered |= {"SendVoiceState", "SendIdentify"}
    world.server(SocketClosed(4006), numbered=False)
    world.feed(VoiceStateUpdated(CHANNEL, Secret("new session")))
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.settle()
    assert world.states["gateway"] == "identifying.awaiting_ready"
    begun, new = world.session, VoiceSession(USER, GUILD)
    for name in ("address", "key", "met", "mode", "rejected_in_row", "renewing", "selected", "turn_s"):
        assert getattr(begun.gateway, name) == getattr(new.gateway, name), name
    assert (begun.shared.ssrc, begun.shared.users) == (new.shared.ssrc, new.shared.users)
    assert (begun.shared.sequence.last, begun.shared.sequence.applied) == (-1, {})
