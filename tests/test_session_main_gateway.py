"""The core in virtual time: kicks, moves, lost servers, wishes, and the ways to the end."""

from __future__ import annotations

import pytest

from tests.sessions import last_error, noticed, ready
from voicegw.effects import (
    AbortSocket,
    ApplyProposals,
    CloseSocket,
    Connected,
    CreateGroup,
    DropGroup,
    DropKey,
    MapSsrc,
    Moved,
    OpenSocket,
    Reconnecting,
    ReleaseStream,
    SendCommitWelcome,
    SendIdentify,
    SendResume,
    SendVoiceState,
    SetPassthrough,
)
from voicegw.errors import (
    ConnectionFailed,
    EventNotAllowed,
    InvalidEndpoint,
    Kicked,
    VoiceTimeout,
)
from voicegw.events import (
    CommitMade,
    Event,
    JoinAbandoned,
    JoinRequested,
    LeaveRequested,
    MainSessionLost,
    MainSessionStarted,
    SocketClosed,
    SpeechStarted,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy
from voicegw.testing.world import CHANNEL, ENDPOINT, OTHER, USER, World
from voicegw.wire.payloads import (
    ExternalSenderReceived,
    ProposalsReceived,
    SpeakingReceived,
    VideoReceived,
)


def test_a_kick_is_final_in_either_order() -> None:
    for close_first in (True, False):
        world = ready()
        events = [
            lambda world=world: world.server(SocketClosed(4014), numbered=False),
            lambda world=world: world.feed(VoiceStateUpdated(None, Secret("s"))),
        ]
        for happen in events if close_first else reversed(events):
            happen()
        world.until(lambda world=world: world.states["call"] == "closed", 5)  # type: ignore[misc]
        assert isinstance(last_error(world), Kicked)
        assert len(world.sent(SendIdentify)) == 1


def test_4014_without_a_word_ends_after_five_seconds() -> None:
    world = ready()
    world.server(SocketClosed(4014), numbered=False)
    assert world.until(lambda: world.states["call"] == "closed", 30) == pytest.approx(5.0)


def test_a_move_brings_a_fresh_session_in_either_order() -> None:
    for state_first in (True, False):
        world = ready()
        events: list[Event] = [
            VoiceStateUpdated(99, Secret("moved")),
            VoiceServerUpdated(Secret("moved"), ENDPOINT),
        ]
        for event in events if state_first else reversed(events):
            world.feed(event)
        world.until(lambda world=world: world.states["call"] == "connected", 10)  # type: ignore[misc]
        assert noticed(world, Moved) == [Moved(99)]
        assert len(world.sent(SendIdentify)) == 2
        assert world.sent(SendResume) == []
        groups = [effect.channel_id for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
        assert groups == [CHANNEL, 99]


def test_a_region_change_keeps_the_voice_state() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("another"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    assert len(world.sent(SendIdentify)) == 2
    assert noticed(world, Connected) == [Connected(CHANNEL)] * 2
    assert noticed(world, Moved) == []


def test_the_same_server_again_is_ignored() -> None:
    world = ready()
    call = world.session.call
    assert call.token is not None
    world.feed(VoiceServerUpdated(call.token, call.endpoint))
    world.settle()
    assert world.states["gateway"] == "ready"
    assert len(world.sent(OpenSocket)) == 1


def test_a_null_endpoint_is_waited_for_and_given_up() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("t"), None))
    assert (world.states["call"], world.states["speech"]) == ("waiting.endpoint", "silent")
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    world.feed(VoiceServerUpdated(Secret("t"), None))
    world.unanswered.add("SendVoiceState")
    assert world.until(lambda: world.states["call"] != "waiting.endpoint", 60) == pytest.approx(30.0)


def test_null_endpoints_count_as_attempts() -> None:
    world = ready()
    for number in range(12):
        if world.states["call"] in ("leaving", "closed"):
            break
        world.feed(VoiceServerUpdated(Secret(f"t{number}"), None))
        world.unanswered.add("SendIdentify")
        world.feed(VoiceServerUpdated(Secret(f"u{number}"), ENDPOINT))
        world.settle()
    assert world.states["call"] in ("leaving", "closed")


def test_the_bots_session_lost_and_started_again() -> None:
    world = ready()
    world.feed(MainSessionLost())
    assert world.states["call"] == "waiting.main_session"
    assert world.states["gateway"] in ("closed.closing", "closed.down")
    world.settle()
    world.feed(MainSessionStarted())
    world.until(lambda: world.states["call"] == "connected", 10)


def test_a_second_wish_joins_the_first_or_changes_where_it_goes() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    assert world.feed(JoinRequested(CHANNEL)) == []
    assert world.feed(JoinRequested(CHANNEL + 1)) == [SendVoiceState(CHANNEL + 1)]
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 10)
    assert world.session.shared.channel_id == CHANNEL + 1


def test_wishes_that_a_state_forbids_are_refused() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    before = world.states
    world.feed(LeaveRequested())
    with pytest.raises(EventNotAllowed):
        world.feed(JoinRequested(CHANNEL))
    assert world.states != before
    world.until(lambda: world.states["call"] == "closed", 5)
    with pytest.raises(EventNotAllowed):
        world.feed(JoinRequested(CHANNEL))


def test_an_abandoned_join_leaves_and_an_abandoned_move_does_not() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    late = VoiceTimeout("too late")
    world.feed(JoinAbandoned(late))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert last_error(world) is late
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.feed(JoinRequested(99))
    world.feed(JoinAbandoned(late))
    assert world.states["call"] == "connected"


def test_a_call_that_never_began_can_be_left() -> None:
    world = World()
    world.feed(LeaveRequested())
    assert world.states["call"] == "closed"
    assert last_error(world) is None
    assert world.sent(SendVoiceState) == []


def test_a_sender_that_comes_before_the_session_description_is_used() -> None:
    world = World()
    world.unanswered.add("SendSelectProtocol")
    world.join()
    world.server(ExternalSenderReceived(b"early"))
    world.server(world.description())
    groups = [effect.external_sender for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
    assert groups == [b"early"]


def test_a_session_description_can_change_the_version() -> None:
    world = ready(policy=E2EEPolicy.ALLOW)
    world.feed(SpeechStarted())
    world.dave_protocol_version = 0
    dropped = len(world.sent(DropGroup))
    world.server(world.description())
    assert world.states["dave"] == "clear.only"
    assert len(world.sent(DropGroup)) == dropped + 1
    assert world.sent(SetPassthrough)[-1] == SetPassthrough(allowed=True, expiry_s=0)
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=False)
    groups = len(world.sent(CreateGroup))
    world.server(world.description())
    assert (world.states["dave"], len(world.sent(CreateGroup))) == ("clear.only", groups)
    world.dave_protocol_version = 1
    world.server(world.description())
    assert world.states["speech"] == "held.not_ready"
    assert len(world.sent(CreateGroup)) == groups + 1
    world.settle()
    assert world.states["dave"] == "active"
    world.server(world.description())
    assert len(world.sent(CreateGroup)) == groups + 1


def test_a_foreign_endpoint_is_left_without_a_dial() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.feed(VoiceStateUpdated(CHANNEL, Secret("s")))
    world.feed(VoiceServerUpdated(Secret("t"), "example.com"))
    world.settle()
    assert world.states["call"] in ("leaving", "closed")
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), InvalidEndpoint)
    asked = [effect.channel_id for effect in world.sent(SendVoiceState) if isinstance(effect, SendVoiceState)]
    assert asked == [CHANNEL, None]
    assert world.sent(OpenSocket) == []
    world = ready()
    world.feed(VoiceServerUpdated(Secret("t"), "example.com"))
    assert world.states["gateway"] == "closed.closing"


def test_null_endpoints_end_with_a_word_and_a_leave() -> None:
    world = ready(max_attempts=2)
    world.feed(VoiceServerUpdated(Secret("null"), None))
    assert world.states["gateway"] in ("closed.closing", "closed.down")
    assert isinstance(noticed(world, Reconnecting)[-1], Reconnecting)
    world.feed(VoiceServerUpdated(Secret("null again"), None))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), ConnectionFailed)
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)


def test_a_token_from_before_a_null_endpoint_is_never_used_again() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("null"), None))
    world.feed(VoiceStateUpdated(CHANNEL, Secret("another session")))
    world.settle()
    assert world.states["call"] == "waiting.endpoint"
    assert len(world.sent(OpenSocket)) == 1


def test_a_heart_that_dies_while_resuming_ends_the_resume() -> None:
    world = World()
    world.heartbeat_interval_s = 1.0
    world.join()
    world.unanswered |= {"SendHeartbeat", "SendResume", "SendVoiceState"}
    world.server(SocketClosed(1006), numbered=False)
    assert world.until(lambda: world.states["call"] == "joining.asking", 10) == pytest.approx(3.0, abs=1.1)
    assert world.states["gateway"] == "closed.down"
    assert world.sent(AbortSocket) != []
    assert world.sent(DropKey) != []


def test_both_opcodes_that_name_an_ssrc_map_it() -> None:
    world = ready()
    world.server(SpeakingReceived(OTHER, 5, 1))
    world.server(VideoReceived(OTHER, 6))
    world.server(VideoReceived(OTHER, 0))
    assert world.sent(MapSsrc) == [MapSsrc(5, OTHER), MapSsrc(6, OTHER)]


def test_our_commit_is_sent() -> None:
    world = ready()
    world.server(ProposalsReceived(revoke=False, data=b"\0"))
    (proposals,) = world.sent(ApplyProposals)
    assert isinstance(proposals, ApplyProposals)
    assert proposals.known_users == {USER, OTHER}
    world.feed(CommitMade(b"commit and welcome"))
    assert world.sent(SendCommitWelcome) == [SendCommitWelcome(b"commit and welcome")]


@pytest.mark.parametrize("machine_state", ["joining.asking", "connecting", "connected"])
def test_leaving_ends_everything_from_anywhere(machine_state: str) -> None:
    world = World()
    silent = {"joining.asking": "SendVoiceState", "connecting": "SendIdentify", "connected": ""}[machine_state]
    world.unanswered.add(silent)
    world.join()
    assert world.states["call"] == machine_state
    world.feed(LeaveRequested())
    world.until(lambda: world.states["call"] == "closed", 5)
    assert last_error(world) is None
    assert (world.timers, world.states["gateway"], world.states["transport"]) == ({}, "closed.down", "closed")


def test_a_peer_that_does_not_close_is_not_waited_for_long() -> None:
    world = ready()
    world.unanswered.add("CloseSocket")
    world.feed(LeaveRequested())
    assert world.until(lambda: world.states["call"] == "closed", 10) == pytest.approx(2.0)
    assert world.sent(CloseSocket) == [CloseSocket(1000)]
