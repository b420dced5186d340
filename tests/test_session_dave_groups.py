"""The core in virtual time: what is left of one MLS group where another begins, is refused, or goes on elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.sessions import noticed, ready
from voicegw.effects import (
    ApplyProposals,
    CreateGroup,
    DropGroup,
    EncryptionChanged,
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
    CallThawed,
    CommitMade,
    GroupRejected,
    ProposalsRejected,
    SocketClosed,
    SocketOpened,
    SpeechStarted,
)
from voicegw.session import E2EEPolicy, Options
from voicegw.tables.load import load_table
from voicegw.testing.world import OTHER, USER, World
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    HeartbeatRequested,
    HelloReceived,
    ProposalsReceived,
    TransitionExecuted,
    TransitionPrepared,
    WelcomeReceived,
)

CLEAR, ENCRYPTED = ReleaseStream(encrypted=False), ReleaseStream(encrypted=True)
GROUP_AND_SPEECH = (DropGroup, SetPassthrough, ReleaseStream)
OPEN, CLOSING = SetPassthrough(allowed=True, expiry_s=0), SetPassthrough(allowed=False, expiry_s=10)


def talking(policy: E2EEPolicy = E2EEPolicy.REQUIRE) -> World:
    """A call with a group, which speaks; transitions are not executed by themselves."""
    world = ready(policy=policy)
    world.unanswered |= {"SendTransitionReady", "ApplyProposals"}
    world.feed(SpeechStarted())
    return world


def in_the_clear() -> World:
    """A call that the server has taken out of end-to-end encryption, which its policy allows."""
    world = talking(E2EEPolicy.ALLOW)
    said = world.server(TransitionPrepared(0, 0))
    assert world.states["dave"] == "clear.only"
    assert [effect for effect in said if isinstance(effect, GROUP_AND_SPEECH)] == [DropGroup(), OPEN, CLEAR]
    return world


def upgrading() -> World:
    """A call in the clear with a group under way."""
    world = in_the_clear()
    world.unanswered.add("SendKeyPackage")
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert world.states["dave"] == "clear.upgrading"
    return world


def switching() -> World:
    """A call in the clear whose group waits for its execution."""
    world = upgrading()
    world.server(WelcomeReceived(7, b"welcome"))
    world.settle()
    assert world.states["dave"] == "clear.switching"
    return world


def lose_messages(world: World) -> None:
    """A resume that leaves a gap."""
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    world._seq += 3
    world.server(HeartbeatRequested())


# -- from the clear to a group


def test_a_group_that_comes_to_a_call_in_the_clear_is_used_when_it_is_executed() -> None:
    world = switching()
    assert world.sent(SendTransitionReady)[-1] == SendTransitionReady(7)
    assert len(noticed(world, EncryptionChanged)) == 2
    assert world.sent(ReleaseStream)[-1] == CLEAR
    world.server(TransitionExecuted(7))
    assert (world.states["dave"], world.sent(ReleaseStream)[-1]) == ("active", ENCRYPTED)


def reject(world: World) -> None:
    world.feed(GroupRejected(7, "does not fit"))


def execute_never(world: World) -> None:
    world.until(lambda: world.states["dave"] != "clear.switching", 30)


@pytest.mark.parametrize(("make", "fail"), [(upgrading, reject), (switching, reject), (switching, execute_never)])
def test_a_group_that_fails_in_the_clear_is_begun_anew_and_speech_goes_on(
    make: Callable[[], World], fail: Callable[[World], None]
) -> None:
    world = make()
    groups, packages = len(world.sent(CreateGroup)), len(world.sent(SendKeyPackage))
    world.feed(ProposalsRejected(False, b"of the group before", "nobody known has signed it"))
    fail(world)
    world.settle()
    assert world.states["dave"] == "clear.upgrading"
    assert world.sent(SendInvalidCommit) == [SendInvalidCommit(7)]
    assert (len(world.sent(CreateGroup)), len(world.sent(SendKeyPackage))) == (groups + 1, packages + 1)
    assert len(noticed(world, Warned)) == 1
    assert (world.states["speech"], world.sent(ReleaseStream)[-1]) == ("speaking", CLEAR)
    world.server(ClientsConnected((7,)))
    assert world.sent(ApplyProposals) == []


def test_a_recovery_that_takes_too_long_asks_for_another_session() -> None:
    world = talking()
    world.unanswered.add("SendKeyPackage")
    reject(world)
    waited = world.until(lambda: world.states["dave"] != "recovering", 60)
    assert waited == pytest.approx(load_table("dave").deadlines["recovery_timeout"].seconds)
    assert (world.states["dave"], world.states["speech"]) == ("off", "held.not_ready")
    world.unanswered.clear()
    world.until(lambda: world.states["dave"] == "active", 60)
    assert len(world.sent(SendIdentify)) == 2


@pytest.mark.parametrize("make", [upgrading, talking])
def test_the_fourth_failure_in_a_row_asks_for_another_session_and_holds_all_speech(make: Callable[[], World]) -> None:
    world = make()
    world.unanswered |= {"SendKeyPackage", "OpenSocket"}
    for _ in range(4):
        world.feed(GroupRejected(7, "does not fit"))
    assert len(world.sent(SendInvalidCommit)) == 3
    assert (world.states["dave"], world.states["speech"]) == ("off", "held.not_ready")


# -- one transition after another


def announce_group(world: World, transition_id: int) -> None:
    world.server(CommitAnnounced(transition_id, b"commit %d" % transition_id))
    world.settle()


def test_every_announcement_is_answered_and_before_a_downgrade_both_kinds_of_frames_are_taken() -> None:
    world = talking(E2EEPolicy.ALLOW)
    world.server(TransitionPrepared(0, 7))
    assert (world.states["dave"], world.sent(SetPassthrough)[-1]) == ("changing", OPEN)
    announce_group(world, 8)
    world.server(TransitionPrepared(0, 9))
    assert world.sent(SendTransitionReady) == [SendTransitionReady(number) for number in (7, 8, 9)]
    assert len([effect for effect in world.sent(SetPassthrough) if effect == OPEN]) == 2
    assert world.sent(ReleaseStream)[-1] == ENCRYPTED


@pytest.mark.parametrize("announced", [0, 1])
def test_what_is_in_force_at_once_is_not_answered(announced: int) -> None:
    world = talking()
    for transition_id in range(7, 7 + announced):
        announce_group(world, transition_id)
    world.server(TransitionPrepared(1, 0))
    assert len(world.sent(SendTransitionReady)) == announced


def test_a_downgrade_that_is_executed_drops_the_group() -> None:
    world = talking(E2EEPolicy.ALLOW)
    world.server(TransitionPrepared(0, 7))
    said = world.server(TransitionExecuted(7))
    assert world.states["dave"] == "clear.only"
    assert [effect for effect in said if isinstance(effect, GROUP_AND_SPEECH)] == [DropGroup(), OPEN, CLEAR]


def test_a_downgrade_between_two_groups_takes_frames_without_e2ee_again() -> None:
    world = talking(E2EEPolicy.ALLOW)
    announce_group(world, 6)
    world.server(TransitionPrepared(0, 7))
    announce_group(world, 8)
    steps = []
    for transition_id in (6, 7, 8):
        world.server(TransitionExecuted(transition_id))
        steps.append((world.states["dave"], world.sent(SetPassthrough)[-1], world.sent(ReleaseStream)[-1]))
    assert steps == [
        ("changing", CLOSING, ENCRYPTED),
        ("clear.switching", OPEN, CLEAR),
        ("active", CLOSING, ENCRYPTED),
    ]


@pytest.mark.parametrize("make", [switching, talking])
def test_the_first_of_several_groups_is_used_once_and_the_wait_for_the_last_goes_on(make: Callable[[], World]) -> None:
    world = make()
    if make is talking:
        announce_group(world, 7)
    announce_group(world, 8)
    until = world.timers["execute_timeout"]
    world.advance(1.0)
    for _ in range(2):
        world.server(TransitionExecuted(7))
    assert (world.states["dave"], world.sent(ReleaseStream)[-1]) == ("changing", ENCRYPTED)
    assert world.sent(SetPassthrough)[-1] == CLOSING
    assert world.session.shared.counters["unknown transitions"] == 1
    if make is talking:
        assert world.timers["execute_timeout"] == until
    world.server(TransitionExecuted(8))
    assert world.states["dave"] == "active"


# -- a refusal


@pytest.mark.parametrize("version", [0, 9], ids=["downgrade", "unknown version"])
@pytest.mark.parametrize("message", [TransitionPrepared, EpochPrepared])
def test_what_was_announced_before_a_refusal_is_never_executed(
    message: Callable[[int, int], TransitionPrepared | EpochPrepared], version: int
) -> None:
    world = talking()
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    world.server(message(version, 9))
    assert (world.states["dave"], world.states["speech"]) == ("refused", "held.not_ready")
    world.server(WelcomeReceived(10, b"welcome"))
    world.settle()
    world.server(TransitionExecuted(7))
    assert (world.states["dave"], world.states["speech"]) == ("waiting.execute", "held.not_ready")
    world.server(TransitionExecuted(10))
    assert (world.states["dave"], world.states["speech"]) == ("active", "speaking")


def test_a_downgrade_that_a_group_has_overtaken_is_never_executed() -> None:
    world = talking(E2EEPolicy.ALLOW)
    world.server(TransitionPrepared(0, 7))
    world.server(CommitAnnounced(0, b"commit"))
    world.settle()
    assert world.states["dave"] == "active"
    world.server(TransitionExecuted(7))
    assert (world.states["dave"], world.sent(ReleaseStream)[-1]) == ("active", ENCRYPTED)
    assert world.session.shared.counters["unknown transitions"] == 1


# -- proposals


def last_one_alone(world: World) -> None:
    world.server(ClientDisconnected(OTHER))
    world.server(EpochPrepared(1, 1))


def execution_that_never_comes(world: World) -> None:
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    world.feed(ProposalsRejected(False, b"of the group before", "nobody known has signed it"))
    world.until(lambda: world.states["dave"] != "changing", 30)


@pytest.mark.parametrize(
    ("make", "begin_another"),
    [
        (talking, lambda world: world.server(EpochPrepared(1, 1))),
        (talking, last_one_alone),
        (talking, lambda world: world.feed(GroupRejected(7, "does not fit"))),
        (talking, lose_messages),
        (talking, execution_that_never_comes),
        (upgrading, lambda world: world.server(EpochPrepared(1, 1))),
        (upgrading, lambda world: world.feed(GroupRejected(7, "does not fit"))),
    ],
)
def test_proposals_for_one_group_are_not_judged_in_the_next(
    make: Callable[[], World], begin_another: Callable[[World], object]
) -> None:
    world = make()
    world.unanswered.add("SendKeyPackage")
    world.feed(ProposalsRejected(False, b"of the group before", "nobody known has signed it"))
    groups = len(world.sent(CreateGroup))
    begin_another(world)
    assert len(world.sent(CreateGroup)) == groups + 1
    world.server(ClientsConnected((7,)))
    assert world.sent(ApplyProposals) == []


def test_proposals_for_a_group_of_another_version_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.core.shared.DAVE_PROTOCOL_VERSION", 2)
    world = talking()
    world.unanswered.add("SendKeyPackage")
    world.feed(ProposalsRejected(False, b"of the group before", "nobody known has signed it"))
    world.dave_protocol_version = 2
    world.server(world.description())
    world.server(ClientsConnected((7,)))
    assert (world.states["dave"], world.sent(ApplyProposals)) == ("waiting.group", [])


@pytest.mark.parametrize("make", [talking, upgrading, switching])
def test_proposals_that_were_refused_are_judged_again_when_more_users_are_known(make: Callable[[], World]) -> None:
    world = make()
    world.feed(ProposalsRejected(False, b"adds 7", "7 is not in the call"))
    world.server(ClientsConnected((7,)))
    (judged,) = world.sent(ApplyProposals)
    assert isinstance(judged, ApplyProposals)
    assert (judged.data, judged.known_users) == (b"adds 7", frozenset({USER, OTHER, 7}))
    world.server(ClientsConnected((8,)))
    assert len(world.sent(ApplyProposals)) == 1


def test_whoever_comes_to_one_that_waits_alone_brings_a_group() -> None:
    world = World(others=())
    world.unanswered.add("ApplyProposals")
    world.join()
    world.feed(SpeechStarted())
    world.until(lambda: world.states["dave"] == "waiting.alone", 30)
    assert world.states["speech"] == "held.alone"
    world.feed(ProposalsRejected(False, b"adds 7", "7 is not in the call"))
    world.server(ClientsConnected((7,)))
    assert (world.states["dave"], world.states["speech"]) == ("waiting.group", "held.not_ready")
    assert len(world.sent(ApplyProposals)) == 1


def test_a_key_of_another_version_begins_a_group_and_speech_waits_for_it() -> None:
    world = in_the_clear()
    world.unanswered.add("SendKeyPackage")
    world.server(world.description())
    assert (world.states["dave"], world.states["speech"]) == ("waiting.group", "held.not_ready")


def test_proposals_that_came_before_the_key_are_judged_by_the_group_that_begins_with_it() -> None:
    world = World()
    world.unanswered |= {"SendSelectProtocol", "SendKeyPackage", "ApplyProposals"}
    world.join()
    world.server(ClientsConnected((OTHER,)))
    world.server(ProposalsReceived(revoke=False, data=b"early"))
    world.server(world.description())
    assert world.states["dave"] == "waiting.group"
    kinds = [type(effect) for _, effect in world.effects if isinstance(effect, CreateGroup | ApplyProposals)]
    assert kinds == [CreateGroup, ApplyProposals]


# -- a websocket that was lost


@pytest.mark.parametrize("state", ["waiting.resumed", "active"])
def test_our_commit_is_sent_again_after_a_resume(state: str) -> None:
    world = World()
    if state != "active":
        world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(CommitMade(b"commit and welcome"))
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    assert world.states["dave"] == state
    assert world.sent(SendCommitWelcome) == [SendCommitWelcome(b"commit and welcome")] * 2


def test_key_package_and_commit_are_sent_again_after_a_resume_in_the_clear() -> None:
    world = upgrading()
    world.feed(CommitMade(b"commit and welcome"))
    known = len(world.effects)
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    again = [
        type(effect) for _, effect in world.effects[known:] if isinstance(effect, SendKeyPackage | SendCommitWelcome)
    ]
    assert (world.states["dave"], again) == ("clear.upgrading", [SendKeyPackage, SendCommitWelcome])


@pytest.mark.parametrize("state", ["waiting.group", "waiting.resumed"])
def test_whoever_waits_for_a_group_waits_alone_only_when_the_last_one_leaves(state: str) -> None:
    world = World(others=(OTHER, 7))
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(SpeechStarted())
    if state == "waiting.resumed":
        world.server(SocketClosed(1006), numbered=False)
        world.settle()
    world.server(ClientDisconnected(7))
    assert (world.states["dave"], world.states["speech"]) == (state, "held.not_ready")
    world.server(ClientDisconnected(OTHER))
    assert (world.states["dave"], world.states["speech"]) == ("waiting.alone", "held.alone")


def test_a_recovery_is_asked_for_again_after_a_resume_and_has_no_more_time_for_it() -> None:
    world = talking()
    world.unanswered.add("SendKeyPackage")
    world.feed(GroupRejected(7, "does not fit"))
    world.settle()
    packages, until = len(world.sent(SendKeyPackage)), world.timers["recovery_timeout"]
    world.advance(1.0)
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    assert (world.states["dave"], world.timers["recovery_timeout"]) == ("recovering", until)
    assert len(world.sent(SendInvalidCommit)) == 2
    assert len(world.sent(SendKeyPackage)) == packages + 1


def test_speech_is_held_from_the_moment_that_messages_are_missed() -> None:
    world = talking()
    world.unanswered.add("SendKeyPackage")
    lose_messages(world)
    assert (world.states["dave"], world.states["speech"]) == ("recovering", "held.not_ready")


# -- a call that goes on in another process


@pytest.mark.parametrize(
    ("frozen", "epoch", "state", "said"),
    [
        ("clear.only", 0, "clear.only", CLEAR),
        ("clear.upgrading", 0, "clear.upgrading", CLEAR),
        ("clear.switching", 4, "clear.upgrading", CLEAR),
        ("refused", 4, "refused", None),
        ("waiting.group", 0, "waiting.group", None),
        ("active", 4, "recovering", None),
        ("changing", 4, "recovering", None),
    ],
)
def test_nothing_is_said_before_the_resume_and_then_what_the_call_said_before(
    frozen: str, epoch: int, state: str, said: ReleaseStream | None
) -> None:
    snapshot = replace(
        ready().session.snapshot(),
        dave=frozen,
        epoch=epoch,
        dave_protocol_version=0 if frozen.startswith("clear") else 1,
        last_transition=7,
    )
    world = World(Options(policy=E2EEPolicy.ALLOW))
    world.unanswered |= {"SendKeyPackage", "OpenSocket"}
    world.feed(CallThawed(snapshot))
    world.feed(SpeechStarted())
    world.settle()
    assert (world.states["dave"], world.sent(ReleaseStream)) == ("waiting.thawed", [])
    none = frozen in ("clear.only", "refused")
    assert world.sent(SendInvalidCommit) == ([] if none else [SendInvalidCommit(7)])
    assert len(world.sent(CreateGroup)) == (0 if none else 1)
    world.unanswered.remove("OpenSocket")
    world.server(SocketOpened(), numbered=False)
    world.server(HelloReceived(13.75, 8), numbered=False)
    world.settle()
    assert world.states["dave"] == state
    assert world.sent(ReleaseStream) == ([] if said is None else [said])
    assert (OPEN in world.sent(SetPassthrough)) == (said is CLEAR)


def test_a_call_that_is_alone_when_it_goes_on_waits_for_company() -> None:
    world = ready()
    world.feed(SpeechStarted())
    world.server(ClientDisconnected(OTHER))
    world.others = ()
    world.hand_over()
    world.feed(SpeechStarted())
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("waiting.alone", "held.alone")
