"""The core in virtual time: the MLS group, its transitions and its members."""

from __future__ import annotations

import pytest

from tests.sessions import noticed, ready
from voicegw.core.dave import Verification
from voicegw.effects import (
    ApplyProposals,
    CreateGroup,
    DropGroup,
    DropKey,
    IdentityChanged,
    ReleaseStream,
    SendCommitWelcome,
    SendIdentify,
    SendInvalidCommit,
    SendKeyPackage,
    SendTransitionReady,
    SetPassthrough,
    Warned,
)
from voicegw.events import (
    CommitIgnored,
    CommitMade,
    Event,
    GroupRejected,
    IdentityDiffered,
    ProposalsRejected,
    SocketClosed,
    SpeechStarted,
    Stamped,
    UserVerified,
)
from voicegw.session import E2EEPolicy, Options, VoiceSession
from voicegw.testing.world import GUILD, OTHER, USER, World
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    HeartbeatRequested,
    ProposalsReceived,
    TransitionExecuted,
    TransitionPrepared,
    WelcomeReceived,
)


@pytest.mark.parametrize(("policy", "offered"), [("require", 1), ("allow", 1), ("off", 0)])
def test_e2ee_is_offered_where_the_bot_wants_it(policy: str, offered: int) -> None:
    world = World(Options(policy=E2EEPolicy(policy)))
    world.join()
    assert world.sent(SendIdentify) == [SendIdentify(offered)]


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


def test_an_id_that_is_announced_again_is_the_newest() -> None:
    world = ready()
    world.unanswered.add("SendTransitionReady")
    for transition_id in (7, 8, 7):
        world.server(CommitAnnounced(transition_id, b"commit"))
        world.settle()
    world.server(TransitionExecuted(8))
    assert world.states["dave"] == "changing"
    world.server(TransitionExecuted(7))
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


def test_a_later_epoch_names_the_version_of_a_group_but_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.core.shared.DAVE_PROTOCOL_VERSION", 2)
    world = ready(policy=E2EEPolicy.ALLOW)
    world.server(EpochPrepared(2, 5))
    world.server(EpochPrepared(0, 6))
    assert world.session.dave.version == 2
    world.server(EpochPrepared(1, 7))
    assert world.session.dave.version == 1
    world.server(TransitionPrepared(2, 0))
    assert world.session.dave.version == 2
    world.server(TransitionPrepared(0, 0))
    world.server(EpochPrepared(1, 2))
    assert world.states["dave"] == "clear.only"
    world.server(world.description())  # the server means it
    world.settle()
    assert world.states["dave"] == "active"


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
    assert world.session.shared.counters["commits ignored"] == 1
    assert world.states["dave"] == "waiting.group"
    assert world.sent(SendInvalidCommit) == []


def test_another_external_sender_is_refused() -> None:
    world = ready()
    world.server(ExternalSenderReceived(b"external sender"))
    assert noticed(world, Warned) == []
    world.server(ExternalSenderReceived(b"another"))
    assert len(noticed(world, Warned)) == 1
    assert world.session.shared.counters["external senders refused"] == 1


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


def test_of_proposals_that_nobody_can_judge_yet_the_last_ones_are_kept() -> None:
    world = World()
    world.unanswered |= {"SendSelectProtocol", "SendKeyPackage", "ApplyProposals"}
    world.join()
    early = [ProposalsReceived(revoke=False, data=b"%d" % number) for number in range(20)]
    for proposals in early:
        world.server(proposals)
    assert world.session.dave.rejected == early[-16:]
    world.server(world.description())
    judged = [effect.data for effect in world.sent(ApplyProposals) if isinstance(effect, ApplyProposals)]
    assert judged == [proposals.data for proposals in early[-16:]]
    rejected = [ProposalsRejected(False, data, "nobody known has signed it") for data in judged * 2]
    for event in rejected:
        world.feed(event)
    assert world.session.dave.rejected == rejected[-16:]
    assert world.session.shared.counters["proposals rejected"] == len(rejected)


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


def test_a_key_package_that_may_be_lost_is_sent_again_when_everybody_leaves_before_that_is_known() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.server(SocketClosed(1006), numbered=False)
    world.until(lambda: world.states["dave"] == "waiting.resumed", 5)
    world.server(ClientDisconnected(OTHER))
    assert world.states["dave"] == "waiting.alone"
    assert len(world.sent(SendKeyPackage)) == 2
    world.server(ClientsConnected((OTHER,)))
    world.advance(5)
    assert len(world.sent(SendKeyPackage)) == 2


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


def test_whoever_has_shown_another_identity_is_suspect_in_every_group() -> None:
    world = ready()
    world.feed(UserVerified(OTHER))
    world.feed(IdentityDiffered(OTHER))
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert world.session.dave.verification == {OTHER: Verification.CHANGED}
    assert noticed(world, IdentityChanged) == [IdentityChanged(OTHER)]


def test_what_was_for_the_epoch_before_is_not_said_in_the_next() -> None:
    world = ready()
    world.unanswered.add("ApplyProposals")
    world.feed(CommitMade(b"commit and welcome"))
    world.feed(ProposalsRejected(False, b"of the epoch before", "nobody known has signed it"))
    said = len(world.sent(SendKeyPackage)), len(world.sent(SendCommitWelcome)), len(world.sent(ApplyProposals))
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    world.server(ClientsConnected((7,)))
    world.server(SocketClosed(1006), numbered=False)
    world.advance(2)
    assert world.states["dave"] == "active"
    assert said == (
        len(world.sent(SendKeyPackage)),
        len(world.sent(SendCommitWelcome)),
        len(world.sent(ApplyProposals)),
    )


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


def test_the_end_of_a_session_ends_what_was_announced_in_it() -> None:
    world = ready()
    world.unanswered.add("SendTransitionReady")
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    assert world.session.dave.transitions == {7: 1}
    world.server(SocketClosed(4006), numbered=False)
    assert world.session.dave.transitions == {}


def test_nobody_is_told_that_we_joined() -> None:
    world = ready()
    assert world.session.shared.others == {OTHER}
    world.server(ClientsConnected((USER,)))
    assert world.session.shared.others == {OTHER}
