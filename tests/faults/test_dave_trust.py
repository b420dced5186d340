"""F119, F122, F123, F126, F127: who decides about a group, who is in it, and which version it has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.faults.groups import (
    ALICE,
    APPEND,
    BOB,
    CAROL,
    FRAME,
    GROUP_ID,
    ROOM,
    Ears,
    Gate,
    Mallory,
    back,
    in_one_group,
    in_the_gap,
    notices_of,
    reports,
    roster,
    server_says,
    together,
    until,
)
from voicegw.adapters.mls import MlsGroup
from voicegw.effects import (
    ApplyCommit,
    ApplyProposals,
    Closed,
    CreateGroup,
    DowngradeRefused,
    ReleaseStream,
    UseKey,
    Warned,
)
from voicegw.errors import (
    E2EEError,
    E2EERequired,
    GroupError,
    MalformedFrame,
    VoiceTimeout,
    WebSocketProtocolError,
)
from voicegw.events import (
    Event,
    FrameRejected,
    GroupJoined,
    GroupRejected,
    KeyPackageMade,
    ProposalsRejected,
    SpeechStarted,
)
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling
from voicegw.server.external_sender import ExternalSender
from voicegw.session import Options
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.world import World
from voicegw.wire import frames
from voicegw.wire.mls import join_messages
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    EpochPrepared,
    ExternalSenderReceived,
    ProposalsReceived,
    SessionDescriptionReceived,
    TransitionExecuted,
    TransitionPrepared,
)


def remove_of(sender: ExternalSender, client: SimulatedClient, leaf: int) -> ProposalsReceived:
    """Op 27, signed by `sender`, that takes a leaf out of the client's group."""
    return ProposalsReceived(False, join_messages([sender.remove(GROUP_ID, client._group.epoch, leaf)]))


# -- F119


@covers("F119")
@pytest.mark.parametrize("state", ["active", "changing", "waiting.execute"])
def test_another_external_sender_is_refused_in_a_running_group(state: str) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        victim = carol if state == "waiting.execute" else alice
        gate = Gate(victim, *(() if state == "active" else (TransitionExecuted,)))
        await carol.connect(ROOM)
        await until(sim, lambda: victim.states["dave"] == state and len(roster(victim)) == 3)
        seen, other = notices_of(victim), ExternalSender()
        server_says(victim, ExternalSenderReceived(other.data), remove_of(other, victim, 1))
        assert [notice for notice in seen if isinstance(notice, Warned)] != []
        said = len(sim.server.records(victim.user_id, Opcode.MLS_COMMIT_WELCOME, "in"))
        gate.let_in()
        await until(sim, lambda: in_one_group(alice, bob, carol))
        assert roster(victim) == {ALICE, BOB, CAROL}
        assert len(sim.server.records(victim.user_id, Opcode.MLS_COMMIT_WELCOME, "in")) == said

    Simulation(1).run(story)


@covers("F119")
def test_another_external_sender_is_taken_before_there_is_a_group() -> None:
    group, first, second = MlsGroup(ALICE, lambda: 0.0), ExternalSender(), ExternalSender()
    group.create(CreateGroup(1, ROOM, first.data))
    group.set_external_sender(second.data)
    known = frozenset((ALICE, BOB))
    (made,) = MlsGroup(BOB, lambda: 0.0).create(CreateGroup(1, ROOM, second.data))
    assert isinstance(made, KeyPackageMade)
    for sender, accepted in ((first, False), (second, True)):
        add = join_messages([sender.add(GROUP_ID, 0, made.data)])
        (event,) = group.apply_proposals(ApplyProposals(False, add, known))
        assert isinstance(event, ProposalsRejected) != accepted


@covers("F119")
def test_an_external_sender_that_is_none_does_not_break_the_one_that_is() -> None:
    group, sender = MlsGroup(ALICE, lambda: 0.0), ExternalSender()
    group.create(CreateGroup(1, ROOM, sender.data))
    for garbage in (b"", b"garbage", sender.data[:-1], sender.data + b"\0"):
        group.set_external_sender(garbage)
    (made,) = MlsGroup(BOB, lambda: 0.0).create(CreateGroup(1, ROOM, sender.data))
    assert isinstance(made, KeyPackageMade)
    add = join_messages([sender.add(GROUP_ID, 0, made.data)])
    (event,) = group.apply_proposals(ApplyProposals(False, add, frozenset((ALICE, BOB))))
    assert not isinstance(event, ProposalsRejected)


# -- F122


@covers("F122", "H")
def test_a_call_without_e2ee_is_not_joined_under_require() -> None:
    async def story(sim: Simulation) -> None:
        server = sim.voice_server("c-ams02-sim.discord.media", "66.22.196.2", dave=False)
        await sim.start_server(server)
        alice = sim.client(ALICE, signalling=LocalSignalling(server, ALICE))
        seen = notices_of(alice)
        with pytest.raises(E2EERequired, match="'require'"):
            await alice.connect(ROOM)
        assert DowngradeRefused(0) in seen
        assert alice.states["call"] == "closed"
        assert server.session(ALICE).counters["media"] == 0

    Simulation(1).run(story)


@covers("F122", "RU")
@pytest.mark.parametrize("how", ["op 21", "op 21 with id 0", "op 24"])
def test_a_downgrade_in_a_call_mutes_under_require_until_a_group_is_offered(phase: str, how: str) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        alice.play(ToneSource(440))
        await until(sim, lambda: len(ears.times(ALICE)) > 5)
        seen = notices_of(alice)
        if phase == "U":
            await in_the_gap(sim, alice)
        data: dict[str, object] = {"protocol_version": 0, "transition_id": 0 if how.endswith("0") else 7}
        if how == "op 24":
            data = {"protocol_version": 0, "epoch": 1}
        op = Opcode.DAVE_PREPARE_EPOCH if how == "op 24" else Opcode.DAVE_PREPARE_TRANSITION
        sim.server.session(ALICE).send(op, data)
        sim.server.session(ALICE).send(Opcode.DAVE_EXECUTE_TRANSITION, {"transition_id": 7})
        if phase == "U":
            await back(sim, alice)
        await until(sim, lambda: alice.states["dave"] == "refused")
        assert alice.states["speech"] == "held.not_ready"
        assert seen.count(DowngradeRefused(0)) == 1
        sim.server.channel(ROOM).upgrade()
        await until(sim, lambda: in_one_group(alice, bob))
        assert alice.states["speech"] == "speaking"
        assert ears.clear == []

    Simulation(1).run(story)


@covers("F122", "RU")
def test_a_session_description_without_e2ee_ends_the_call_under_require(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        seen = notices_of(alice)
        alice.play(ToneSource(440))
        session = sim.server.session(ALICE)
        if phase == "U":
            await in_the_gap(sim, alice)
        server_says(alice, SessionDescriptionReceived(session.mode, session.secret_key, 0))
        await alice.wait_closed()
        assert DowngradeRefused(0) in seen
        assert isinstance(alice.error, E2EERequired)
        assert ears.clear == []

    Simulation(1).run(story)


# -- F123


@covers("F123")
@pytest.mark.parametrize("version", [2, 3, 255, 65535, 65536, 2**70, -1, 1.0, 1.5, "1", "", True, [1], {}], ids=repr)
def test_a_version_that_we_do_not_know_is_refused(version: object) -> None:
    world = World(Options(max_attempts=1))
    world.unanswered.add("SendSelectProtocol")
    world.join()
    assert world.states["gateway"] == "identifying.awaiting_session_description"
    world.feed(SpeechStarted())
    d = {"mode": world.session.gateway.mode, "secret_key": [7] * 32, "dave_protocol_version": version}
    world.server(decoded(4, d))
    world.until(lambda: world.states["call"] == "closed", 600)
    assert world.sent(UseKey) == []
    assert world.sent(ReleaseStream) == []
    (error,) = [notice.error for notice in world.notices if isinstance(notice, Closed)]
    if isinstance(version, int) and 1 < version < 1 << 16:
        assert isinstance(error, E2EEError)
        assert str(version) in str(error)
    else:
        assert isinstance(error, WebSocketProtocolError | VoiceTimeout)


def decoded(op: int, d: object) -> Any:
    """The event that the gateway feeds for a text frame."""
    try:
        return frames.decode_text(json.dumps({"op": op, "d": d})).payload
    except MalformedFrame as error:
        return FrameRejected(error.op)


@pytest.mark.parametrize("message", [EpochPrepared(2, 1), EpochPrepared(9, 7), TransitionPrepared(2, 5)], ids=repr)
def test_a_version_that_we_do_not_know_mutes_a_call(message: Event) -> None:
    world = World()
    world.join()
    world.feed(SpeechStarted())
    world.server(message)
    assert (world.states["dave"], world.states["speech"]) == ("refused", "held.not_ready")
    assert any(isinstance(notice, Warned) and "not offered" in notice.text for notice in world.notices)
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert world.states["speech"] == "speaking"


# -- F126


@covers("F126")
def test_nothing_of_the_old_group_is_used_in_another_channel(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob, dora = (sim.client(user) for user in (ALICE, BOB, 4))
        await together(sim, alice, bob)
        await dora.connect(ROOM + 1)
        alice.play(ToneSource(440))
        await until(sim, lambda: len(ears.times(ALICE)) > 5)
        old, code = alice._group._session, alice.privacy_code
        moved_from = sim.server.session(ALICE)
        await alice.move_to(ROOM + 1)
        await until(sim, lambda: in_one_group(alice, dora))
        assert alice._group._session is not old
        assert alice._group._previous is None
        assert alice.privacy_code != code
        count = len(ears.frames)
        await until(sim, lambda: len(ears.times(ALICE)) > count + 20)
        assert sim.server.session(ALICE) is not moved_from
        later = [frame for _, user, frame in ears.frames[count:] if user == ALICE]
        for frame in later:
            with pytest.raises(GroupError):
                bob._group.decrypt(ALICE, frame)
        assert ears.clear == []

    Simulation(seed).run(story)


# -- F127


@covers("F127")
def test_nobody_is_in_the_group_twice() -> None:
    mallory, alice = Mallory(), MlsGroup(ALICE, lambda: 0.0)
    (joined,) = alice.apply_welcome(mallory.join(alice))
    assert isinstance(joined, GroupJoined)
    known = frozenset((ALICE, BOB, CAROL))
    for owner in (CAROL, BOB, ALICE):
        again = mallory.add(*(mallory.member(owner).get_serialized_key_package() for _ in range(2)))
        events = alice.apply_proposals(ApplyProposals(False, again, known))
        assert isinstance(events[-1], ProposalsRejected)
        assert alice.members == {ALICE, BOB}
    twice = mallory.add(*(mallory.member(CAROL).get_serialized_key_package() for _ in range(2)))
    alice._who_twice = lambda messages: None  # type: ignore[method-assign]  # as if she had not looked
    alice.apply_proposals(ApplyProposals(False, twice, known))
    commit, _ = mallory.commit(twice)
    (refused,) = alice.apply_commit(ApplyCommit(3, commit, known, member=True))
    assert isinstance(refused, GroupRejected)
    assert "twice" in refused.reason
    with pytest.raises(GroupError):
        alice.encrypt(FRAME)


@covers("F127")
@pytest.mark.parametrize("door", ["proposal", "commit", "welcome"])
def test_nobody_whom_the_server_has_not_named_is_in_the_group(door: str) -> None:
    mallory, alice = Mallory(), MlsGroup(ALICE, lambda: 0.0)
    stranger = mallory.member(CAROL).get_serialized_key_package()
    known = frozenset((ALICE, BOB))
    if door == "welcome":
        mallory.commit(mallory.add(stranger))
        (event,) = alice.apply_welcome(mallory.join(alice))
    else:
        alice.apply_welcome(mallory.join(alice))
        add = mallory.add(stranger)
        if door == "proposal":
            (event,) = alice.apply_proposals(ApplyProposals(False, add, known))
            assert isinstance(event, ProposalsRejected)
            assert alice.members == {ALICE, BOB}
            return
        alice.apply_proposals(ApplyProposals(False, add, known | {CAROL}))  # she has left since
        commit, _ = mallory.commit(add)
        (event,) = alice.apply_commit(ApplyCommit(3, commit, known, member=True))
    assert isinstance(event, GroupRejected)
    assert "not named" in event.reason
    with pytest.raises(GroupError):
        alice.encrypt(FRAME)


@covers("F127")
def test_a_group_with_a_stranger_is_reported_and_the_bot_alarmed() -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        alice.play(ToneSource(440))
        await until(sim, lambda: alice.states["speech"] == "speaking")
        seen = notices_of(alice)
        delivery = sim.server.channel(ROOM).delivery
        assert delivery is not None
        package = MlsGroup(CAROL, lambda: 0.0).create(CreateGroup(1, ROOM, delivery._sender.data))[0]
        assert isinstance(package, KeyPackageMade)
        delivery._users.add(CAROL)  # in the group, but in nobody's list of users
        sim.server.channel(ROOM).deliver(delivery.key_package(CAROL, package.data))
        await until(sim, lambda: roster(bob) == {ALICE, BOB} and in_one_group(alice, bob))
        assert CAROL not in roster(alice) | roster(bob)
        gate = Gate(alice)
        add = join_messages([delivery._sender.add(GROUP_ID, alice._group.epoch, package.data)])
        commit = bob._group._session.process_proposals(APPEND, add, [1, 2, 3])  # type: ignore[union-attr]
        assert commit is not None
        sim.server.session(ALICE).send(Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION, (9).to_bytes(2, "big") + commit.commit)
        await until(sim, lambda: reports(sim.server, ALICE) == 1)
        assert any(isinstance(notice, Warned) and "recovered" in notice.text for notice in seen)
        assert CAROL not in roster(alice)
        gate.let_in()
        assert ears.clear == []

    Simulation(1).run(story)
