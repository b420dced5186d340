"""The core in virtual time: the UDP path, the group, and what our stream may say."""

from __future__ import annotations

import pytest

from tests.sessions import noticed, ready
from voicegw.core.dave import Verification
from voicegw.effects import (
    ApplyProposals,
    CreateGroup,
    DropGroup,
    DropKey,
    EncryptionChanged,
    MediaLost,
    MediaRestored,
    OpenUdp,
    ReleaseStream,
    SendDiscovery,
    SendIdentify,
    SendInvalidCommit,
    SendKeepalive,
    SendKeyPackage,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
    SetPassthrough,
    Warned,
)
from voicegw.events import (
    CommitIgnored,
    CommitMade,
    Event,
    GroupRejected,
    IpDiscovered,
    PathHeard,
    PathLost,
    PathMoved,
    ProposalsRejected,
    SocketClosed,
    SocketOpened,
    SpeechEnded,
    SpeechStarted,
    Stamped,
    UserVerified,
)
from voicegw.session import E2EEPolicy, Options, VoiceSession
from voicegw.testing.world import GUILD, OTHER, USER, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    HeartbeatRequested,
    HelloReceived,
    ProposalsReceived,
    TransitionExecuted,
    TransitionPrepared,
    WelcomeReceived,
)

# -- the path


def test_sudden_silence_is_looked_into_at_once_and_long_silence_every_third_time() -> None:
    world = ready()
    world.advance(6)  # the first keepalive; something was heard
    world.unanswered.add("SendKeepalive")
    world.advance(5)
    assert world.times(SendKeepalive) == pytest.approx([5, 10])
    assert world.times(SendDiscovery) == pytest.approx([0, 10])
    world.advance(30)
    assert world.times(SendDiscovery) == pytest.approx([0, 10, 25, 40])
    assert world.states["transport"] == "open"
    assert len(world.sent(SendSelectProtocol)) == 1


def test_another_address_after_a_silence_is_selected() -> None:
    world = ready()
    world.advance(6)
    world.unanswered |= {"SendKeepalive", "SendDiscovery"}
    world.advance(5)
    assert world.states["transport"] == "checking"
    world.udp(IpDiscovered("203.0.113.7", 50005))
    assert world.states["transport"] == "open"
    assert world.sent(SendSelectProtocol)[1:] == [SendSelectProtocol("203.0.113.7", 50005, PREFERRED_MODES[0])]


def test_a_path_that_does_not_answer_is_unconfirmed_and_used_on() -> None:
    world = ready()
    world.unanswered |= {"SendKeepalive", "SendDiscovery"}
    world.advance(15)
    assert world.times(SendDiscovery) == pytest.approx([0, 15])
    world.advance(1.61)
    assert world.times(SendDiscovery) == pytest.approx([0, 15, 15.2, 15.4, 15.8])
    assert world.states["transport"] == "silent"
    assert world.states["gateway"] == "ready"
    world.advance(3600)
    assert len(noticed(world, Warned)) == 1
    assert world.states["gateway"] == "ready"
    world.unanswered.remove("SendDiscovery")
    world.advance(5)
    assert world.states["transport"] == "open"
    assert len(noticed(world, Warned)) == 2


def test_anything_that_is_heard_ends_the_doubt_about_the_path() -> None:
    world = ready()
    world.unanswered |= {"SendKeepalive", "SendDiscovery"}
    world.until(lambda: world.states["transport"] == "checking", 30)
    asked = len(world.sent(SendDiscovery))
    world.udp(PathHeard())
    assert world.states["transport"] == "open"
    world.advance(4)
    assert len(world.sent(SendDiscovery)) == asked
    world.until(lambda: world.states["transport"] == "silent", 60)
    known = len(noticed(world, Warned))
    world.udp(PathHeard())
    assert world.states["transport"] == "open"
    assert len(noticed(world, Warned)) == known + 1


def test_a_resume_is_followed_by_a_look_at_the_path() -> None:
    world = ready()
    world.server(SocketClosed(4015), numbered=False)
    world.settle()
    assert world.way("transport")[-2:] == ["confirming", "open"]
    world.unanswered.add("SendDiscovery")
    world.server(SocketClosed(4015), numbered=False)
    world.settle()
    assert world.states["transport"] == "confirming"
    world.advance(1.61)
    assert world.states["transport"].startswith("discovering")
    assert noticed(world, MediaLost) != []
    world.unanswered.remove("SendDiscovery")
    world.advance(1)
    assert world.states["transport"] == "open"
    assert noticed(world, MediaRestored) != []
    world.unanswered.add("SendDiscovery")
    world.server(SocketClosed(4015), numbered=False)
    assert world.until(lambda: world.states["call"] != "connected", 10) == pytest.approx(6.55)
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 30)


def test_another_network_is_found_while_the_websocket_resumes() -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendDiscovery"}
    world.server(SocketClosed(1006), numbered=False)
    world.udp(PathMoved())
    assert world.states["transport"].startswith("discovering")
    world.udp(IpDiscovered("198.51.100.9", 7))
    assert len(world.sent(SendSelectProtocol)) == 1
    world.server(SocketOpened(), numbered=False)
    world.server(HelloReceived(13.75, 8), numbered=False)
    world.settle()
    assert world.states["gateway"] == "ready"
    assert world.sent(SendSelectProtocol)[1:] == [SendSelectProtocol("198.51.100.9", 7, PREFERRED_MODES[0])]


def test_a_host_that_sends_nothing_brings_a_new_socket() -> None:
    world = ready()
    world.udp(PathLost("ENETUNREACH"))
    assert noticed(world, MediaLost) == [MediaLost("this host sends no datagram (ENETUNREACH)")]
    world.settle()
    assert world.states["transport"] == "open"
    assert noticed(world, MediaRestored) != []
    assert len(world.sent(OpenUdp)) == 2


# -- E2EE and speech


def test_speech_is_held_until_the_group_works() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(SpeechStarted())
    assert (world.states["dave"], world.states["speech"]) == ("waiting.group", "held.not_ready")
    assert world.sent(ReleaseStream) == []
    world.server(WelcomeReceived(0, b"welcome"))
    world.settle()
    assert world.states["speech"] == "speaking"
    assert world.sent(ReleaseStream) == [ReleaseStream(encrypted=True)]
    assert noticed(world, EncryptionChanged) == [EncryptionChanged(1, f"{1:030d}")]


def test_a_group_that_is_long_in_coming_is_said() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.advance(61)
    warnings = [notice for notice in noticed(world, Warned) if "E2EE is not ready" in notice.text]  # type: ignore[union-attr]
    assert len(warnings) == 2


def test_speech_ends_with_silence_and_a_player_that_died_does_not_keep_us_speaking() -> None:
    for answered in (True, False):
        world = ready()
        if not answered:
            world.unanswered.add("DrainStream")
        world.feed(SpeechStarted())
        world.feed(SpeechEnded())
        waited = world.until(lambda world=world: world.states["speech"] == "silent", 5)  # type: ignore[misc]
        assert waited == pytest.approx(0.0 if answered else 1.0)
        flags = [effect.flags for effect in world.sent(SendSpeaking) if isinstance(effect, SendSpeaking)]
        assert flags == [0, 1, 0]


def test_speech_that_begins_again_while_it_drains_goes_on() -> None:
    world = ready()
    world.unanswered.add("DrainStream")
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    world.feed(SpeechStarted())
    assert world.states["speech"] == "speaking"
    world.advance(5)
    flags = [effect.flags for effect in world.sent(SendSpeaking) if isinstance(effect, SendSpeaking)]
    assert flags == [0, 1]


def test_a_group_that_ends_while_speech_drains_holds_the_stream() -> None:
    world = ready()
    world.unanswered |= {"DrainStream", "SendKeyPackage"}
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    world.server(EpochPrepared(1, 1))
    assert world.states["speech"] == "silent"
    world.feed(SpeechStarted())
    assert world.states["speech"] == "held.not_ready"


def test_the_silence_after_a_speech_is_encrypted_when_the_group_comes_meanwhile() -> None:
    world = World(Options(policy=E2EEPolicy.ALLOW))
    world.dave_protocol_version = 0
    world.join()
    world.unanswered.add("DrainStream")
    world.feed(SpeechStarted())
    world.server(EpochPrepared(1, 1))
    world.feed(SpeechEnded())
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("active", "draining")
    assert world.sent(ReleaseStream) == [ReleaseStream(encrypted=False), ReleaseStream(encrypted=True)]


def test_what_was_held_can_end_unsaid() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    assert world.states["speech"] == "silent"
    world.server(WelcomeReceived(0, b"welcome"))
    world.settle()
    assert world.states["speech"] == "silent"
    assert world.sent(ReleaseStream) == []


def test_what_is_allowed_stays_allowed_for_the_next_speech() -> None:
    for policy, version in ((E2EEPolicy.REQUIRE, 1), (E2EEPolicy.ALLOW, 0)):
        world = World(Options(policy=policy))
        world.dave_protocol_version = version
        world.unanswered |= {"SendKeyPackage"} if version else set()
        world.join()
        world.feed(SpeechStarted())
        if version:
            world.server(WelcomeReceived(0, b"welcome"))
            world.settle()
        for _ in range(2):
            world.feed(SpeechEnded())
            world.settle()
            world.feed(SpeechStarted())
            assert world.states["speech"] == "speaking"
            assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=version == 1)


def test_what_is_forbidden_stays_forbidden_for_the_next_speech() -> None:
    world = ready()
    world.unanswered.add("SendKeyPackage")
    world.feed(SpeechStarted())
    world.server(EpochPrepared(1, 1))
    assert world.states["speech"] == "held.not_ready"
    world.feed(SpeechEnded())
    world.feed(SpeechStarted())
    assert world.states["speech"] == "held.not_ready"


def test_a_later_group_waits_for_its_execution() -> None:
    world = ready()
    world.unanswered.add("SendTransitionReady")
    world.feed(SpeechStarted())
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    assert world.sent(SendTransitionReady) == [SendTransitionReady(7)]
    assert world.states["speech"] == "speaking"
    world.server(TransitionExecuted(7))
    world.server(TransitionExecuted(8))
    assert world.states["dave"] == "active"
    assert world.session.shared.counters["unknown transitions"] == 1


def test_the_first_of_two_groups_does_not_end_the_wait_for_the_second() -> None:
    world = ready()
    world.unanswered.add("SendTransitionReady")
    for transition_id in (7, 8):
        world.server(CommitAnnounced(transition_id, b"commit %d" % transition_id))
        world.settle()
    waited_for = world.timers["execute_timeout"]
    world.server(TransitionExecuted(7))
    assert (world.states["dave"], world.timers["execute_timeout"]) == ("changing", waited_for)
    world.server(TransitionExecuted(8))
    assert world.states["dave"] == "active"


def test_a_downgrade_is_refused_under_require_and_undone_by_a_new_group() -> None:
    world = ready()
    world.feed(SpeechStarted())
    world.server(TransitionPrepared(0, 9))
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("refused", "held.not_ready")
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("active", "speaking")
    assert all(effect == ReleaseStream(encrypted=True) for effect in world.sent(ReleaseStream))


def test_a_downgrade_is_followed_under_allow() -> None:
    world = ready(policy=E2EEPolicy.ALLOW)
    world.feed(SpeechStarted())
    world.unanswered.add("SendTransitionReady")
    world.server(TransitionPrepared(0, 9))
    assert world.sent(SetPassthrough)[-1] == SetPassthrough(allowed=True, expiry_s=0)
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=True)
    world.server(TransitionExecuted(9))
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=False)
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=True)
    last = world.sent(SetPassthrough)[-1]
    assert isinstance(last, SetPassthrough)
    assert (last.allowed, last.expiry_s) == (False, 10)


def test_a_later_epoch_begins_no_group() -> None:
    world = ready(policy=E2EEPolicy.ALLOW)
    world.server(TransitionPrepared(0, 0))
    world.settle()
    assert world.states["dave"] == "clear.only"
    groups = len(world.sent(CreateGroup))
    for message in (EpochPrepared(1, 2), EpochPrepared(0, 1)):
        world.server(message)
        assert (world.states["dave"], len(world.sent(CreateGroup))) == ("clear.only", groups)


def test_an_invalid_commit_is_reported_with_a_new_key_package() -> None:
    world = ready()
    packages = len(world.sent(SendKeyPackage))
    world.unanswered |= {"ApplyCommit", "SendKeyPackage"}
    world.server(CommitAnnounced(7, b"commit"))
    world.feed(GroupRejected(7, "does not fit"))
    world.settle()
    assert world.sent(SendInvalidCommit) == [SendInvalidCommit(7)]
    assert len(world.sent(SendKeyPackage)) == packages + 1
    assert world.states["dave"] == "recovering"
    world.server(WelcomeReceived(8, b"welcome"))
    world.settle()
    assert world.states["dave"] in ("active", "changing")


def test_recovery_that_fails_too_often_asks_for_a_new_session() -> None:
    world = ready()
    world.unanswered |= {"ApplyCommit", "ApplyWelcome"}
    for number in range(1, 5):
        if len(world.sent(SendIdentify)) > 1 or world.states["gateway"] != "ready":
            break
        world.feed(GroupRejected(number, "does not fit"))
        world.settle()
    assert len(world.sent(SendInvalidCommit)) == 3
    world.unanswered.clear()
    world.until(lambda: world.states["dave"] == "active", 60)
    assert len(world.sent(SendIdentify)) == 2


@pytest.mark.parametrize(("ago_s", "spent"), [(10.0, True), (10.5, False)])
def test_recoveries_count_for_ten_seconds(ago_s: float, spent: bool) -> None:
    dave = ready().session.dave
    dave.recoveries = [dave.shared.now - ago_s] * 3
    assert dave.recoveries_spent(None) == spent


def test_messages_that_are_lost_again_and_again_ask_for_a_new_session() -> None:
    world = ready()
    for lost in range(1, 5):
        world.server(SocketClosed(1006), numbered=False)
        world.settle()
        world._seq += 3
        world.server(HeartbeatRequested())
        world.settle()
        assert len(world.sent(SendInvalidCommit)) == min(lost, 3)
    world.until(lambda: world.states["dave"] == "active", 60)
    assert len(world.sent(SendIdentify)) == 2


def test_another_members_first_commit_is_none_of_our_business() -> None:
    world = World()
    world.unanswered |= {"SendKeyPackage", "ApplyCommit"}
    world.join()
    world.server(CommitAnnounced(0, b"commit"))
    world.feed(CommitIgnored(0))
    assert world.states["dave"] == "waiting.group"
    assert world.sent(SendInvalidCommit) == []


def test_another_external_sender_is_refused() -> None:
    world = ready()
    world.server(ExternalSenderReceived(b"external sender"))
    assert noticed(world, Warned) == []
    world.server(ExternalSenderReceived(b"another"))
    assert len(noticed(world, Warned)) == 1


def test_proposals_that_came_before_their_sender_are_judged_again() -> None:
    world = World()
    world.unanswered |= {"SendKeyPackage", "ApplyProposals"}
    world.join()
    world.server(ProposalsReceived(revoke=False, data=b"early"))
    world.feed(ProposalsRejected(False, b"early", "nobody known has signed it"))
    assert len(world.sent(ApplyProposals)) == 1
    world.server(ExternalSenderReceived(b"another sender"))
    assert [effect.data for effect in world.sent(ApplyProposals) if isinstance(effect, ApplyProposals)] == [
        b"early"
    ] * 2
    world.server(ExternalSenderReceived(b"another sender"))
    assert len(world.sent(ApplyProposals)) == 2


def test_a_key_package_that_a_broken_websocket_may_have_lost_is_sent_again_when_no_welcome_was_replayed() -> None:
    for welcomed in (False, True):
        world = World()
        world.unanswered.add("SendKeyPackage")
        world.join()
        assert len(world.sent(SendKeyPackage)) == 1
        world.server(SocketClosed(1006), numbered=False)
        world.until(lambda world=world: world.states["dave"] == "waiting.resumed", 5)  # type: ignore[misc]
        if welcomed:
            world.server(WelcomeReceived(0, b"welcome"))
        world.advance(2)
        assert len(world.sent(SendKeyPackage)) == (1 if welcomed else 2)
        assert world.states["dave"] == ("active" if welcomed else "waiting.group")


def test_a_key_package_of_a_group_that_was_replaced_is_not_sent_again() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.unanswered.add("CreateGroup")
    world.server(EpochPrepared(1, 1))
    world.server(SocketClosed(1006), numbered=False)
    world.advance(2)
    assert world.states["dave"] == "waiting.group"
    assert len(world.sent(SendKeyPackage)) == 1


@pytest.mark.parametrize("end", [EpochPrepared(1, 1), SocketClosed(4006)], ids=lambda event: event.name)
def test_whoever_was_verified_is_not_in_another_group(end: Event) -> None:
    world = ready()
    world.unanswered |= {"SendKeyPackage", "SendVoiceState"}
    world.feed(UserVerified(OTHER))
    assert world.session.dave.verification == {OTHER: Verification.VERIFIED}
    world.server(end, numbered=False)
    assert world.session.dave.verification == {}


def test_a_sender_that_came_too_late_is_not_the_next_sessions() -> None:
    world = ready()
    world.server(SocketClosed(4006), numbered=False)
    world.feed(Stamped("websocket", 1, ExternalSenderReceived(b"late")))
    world.until(lambda: world.states["dave"] == "active", 60)
    groups = [effect.external_sender for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
    assert groups == [None, None]
    assert noticed(world, Warned) == []


def test_the_last_one_waits_alone() -> None:
    world = ready()
    world.feed(SpeechStarted())
    world.server(ClientDisconnected(OTHER))
    world.server(EpochPrepared(1, 1))
    assert (world.states["dave"], world.states["speech"]) == ("waiting.alone", "held.alone")
    world.settle()


def test_whoever_is_left_alone_before_there_is_a_group_waits_alone() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(SpeechStarted())
    assert (world.states["dave"], world.states["speech"]) == ("waiting.group", "held.not_ready")
    world.server(ClientDisconnected(OTHER))
    assert (world.states["dave"], world.states["speech"]) == ("waiting.alone", "held.alone")


def test_the_end_of_a_session_forgets_its_secrets() -> None:
    world = ready()
    known = len(world.effects)
    world.server(SocketClosed(4006), numbered=False)
    forgotten = [type(effect) for _, effect in world.effects[known:] if isinstance(effect, DropKey | DropGroup)]
    assert forgotten == [DropKey, DropGroup]
    assert world.session.dave.privacy_code == ""


def test_the_end_of_a_session_forgets_all_of_its_group() -> None:
    world = ready()
    world.unanswered |= {"SendTransitionReady", "SendVoiceState", "SendKeyPackage", "ApplyProposals"}
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    world.server(ProposalsReceived(revoke=False, data=b"early"))
    world.feed(CommitMade(b"commit and welcome"))
    world.feed(ProposalsRejected(False, b"early", "nobody known has signed it"))
    world.feed(GroupRejected(8, "does not fit"))
    world.settle()
    dave, new = world.session.dave, VoiceSession(USER, GUILD).dave
    assert dave.in_recovery
    world.server(SocketClosed(4006), numbered=False)
    assert world.states["dave"] == "off"
    for name in (
        "commit",
        "epoch",
        "frozen_as",
        "in_recovery",
        "key_package",
        "privacy_code",
        "rejected",
        "transitions",
        "version",
    ):
        assert getattr(dave, name) == getattr(new, name), name


def test_nobody_is_told_that_we_joined() -> None:
    world = ready()
    assert world.session.shared.others == {OTHER}
    world.server(ClientsConnected((USER,)))
    assert world.session.shared.others == {OTHER}
