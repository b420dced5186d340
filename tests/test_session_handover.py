"""The core in virtual time: calls that are frozen in one process and go on in another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.sessions import last_error, noticed, ready
from voicegw.effects import (
    Connected,
    MapSsrc,
    Moved,
    OpenSocket,
    Reconnecting,
    SendIdentify,
    SendResume,
    SendVoiceState,
)
from voicegw.errors import Kicked, VoiceTimeout
from voicegw.events import (
    CallThawed,
    FreezeRequested,
    JoinAbandoned,
    SocketClosed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import VoiceSession
from voicegw.testing.world import CHANNEL, ENDPOINT, GUILD, OTHER, USER, World


def test_a_call_goes_on_where_it_was_without_a_word_to_the_main_gateway() -> None:
    world = ready()
    world.feed(VoiceStateUpdated(99, Secret("moved")))
    world.feed(VoiceServerUpdated(Secret("moved"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    asked, known = len(world.sent(SendVoiceState)), len(world.notices)
    world.hand_over()
    assert world.states["call"] == "thawing"
    world.until(lambda: world.states["call"] == "connected", 10)
    assert (len(world.sent(SendResume)), len(world.sent(SendIdentify))) == (1, 2)
    assert len(world.sent(SendVoiceState)) == asked
    assert Connected(99) in world.notices[known:]
    assert noticed(world, Moved) == [Moved(99)]
    assert world.session.shared.channel_id == 99


def test_a_frozen_call_is_over_at_once_and_waits_for_no_answer() -> None:
    world = ready()
    world.unanswered |= {"SendVoiceState", "CloseSocket"}
    world.feed(FreezeRequested())
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert world.sent(SendVoiceState) == [SendVoiceState(CHANNEL)]


@pytest.mark.parametrize("resumable", [True, False])
def test_a_join_that_is_given_up_does_not_end_a_call_that_was_connected_elsewhere(resumable: bool) -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendVoiceState"}
    snapshot = world.session.snapshot()
    again = World()
    again.unanswered |= {"OpenSocket", "SendVoiceState"}
    again.feed(CallThawed(snapshot if resumable else replace(snapshot, secret_key=None)))
    before = again.states["call"]
    assert before == ("thawing" if resumable else "joining.asking")
    again.feed(JoinAbandoned(VoiceTimeout("not connected in time")))
    assert again.states["call"] == before


def test_a_call_that_is_joined_where_it_goes_on_has_all_the_time_for_its_pair() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.feed(CallThawed(replace(ready().session.snapshot(), secret_key=None)))
    begun = world.now
    world.advance(1.0)
    world.feed(VoiceStateUpdated(CHANNEL, Secret("next")))
    assert world.timers["pair_timeout"] == pytest.approx(begun + 10.0)


def test_a_call_that_was_not_yet_there_is_joined_where_it_goes_on() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.unanswered.clear()
    world.hand_over()
    assert world.states["call"] == "joining.asking"
    assert world.sent(SendVoiceState) == [SendVoiceState(CHANNEL)] * 2
    world.until(lambda: world.states["call"] == "connected", 10)
    assert noticed(world, Connected) == [Connected(CHANNEL)]


@pytest.mark.parametrize(
    "missing",
    [
        {"session_id": None},
        {"token": None},
        {"secret_key": None},
        {"endpoint": None},
        {"endpoint": "voice.example.org:443"},
        {"media": ("10.0.0.1", 50004)},
    ],
    ids=str,
)
def test_a_session_that_may_not_be_resumed_is_joined_anew(missing: dict[str, Any]) -> None:
    snapshot = replace(ready().session.snapshot(), **missing)
    session = VoiceSession(USER, GUILD)
    effects = session.receive(CallThawed(snapshot), 1.0)
    assert session.call.state == "joining.asking"
    assert SendVoiceState(CHANNEL) in effects
    assert not any(isinstance(effect, OpenSocket) for effect in effects)


def test_a_resume_that_is_refused_becomes_an_identify_with_the_same_pair() -> None:
    world = ready()
    world.unanswered.add("SendResume")
    world.hand_over()
    world.settle()
    world.notices.clear()
    world.unanswered.add("SendIdentify")
    world.server(SocketClosed(4006), numbered=False)
    assert (world.states["call"], world.session.call.attempts) == ("connecting", 1)
    assert len(noticed(world, Reconnecting)) == 1
    world.unanswered.clear()
    world.settle()
    assert (len(world.sent(SendIdentify)), len(world.sent(SendVoiceState))) == (2, 1)


def test_whose_streams_are_whose_is_handed_over() -> None:
    snapshot = ready().session.snapshot(ssrcs=[(5, OTHER)])
    assert MapSsrc(5, OTHER) in VoiceSession(USER, GUILD).receive(CallThawed(snapshot), 1.0)


def test_a_kick_is_one_from_the_first_moment_after_a_hand_over() -> None:
    world = ready()
    world.unanswered.add("OpenSocket")
    world.hand_over()
    world.notices.clear()  # the call of the other process is closed, too
    world.feed(VoiceStateUpdated(None, Secret("taken out")))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), Kicked)


def test_the_server_of_before_a_hand_over_is_no_news_after_a_move() -> None:
    world = ready()
    token, endpoint = world.session.call.token, world.session.call.endpoint
    assert token is not None
    world.hand_over()
    world.until(lambda: world.states["call"] == "connected", 10)
    world.feed(VoiceStateUpdated(99, Secret("moved")))
    world.feed(VoiceServerUpdated(token, endpoint))
    assert world.states["call"] == "moving.announced"
