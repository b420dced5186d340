"""The server half of DAVE with real MLS clients, in memory: whatever the order of things, all end in one group."""

from __future__ import annotations

import itertools

import davey
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.members import CHANNEL, World
from voicegw.adapters.mls import MlsGroup
from voicegw.effects import ApplyProposals, CreateGroup
from voicegw.errors import GroupError
from voicegw.events import CommitMade, KeyPackageMade
from voicegw.server.delivery import DeliveryService
from voicegw.wire.mls import ProposalMessage, join_messages, parse_proposal_messages, parse_proposal_refs
from voicegw.wire.opcodes import Opcode


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_members_join_in_any_order(order: tuple[int, ...]) -> None:
    world = World()
    for user_id in order:
        world.join(user_id)
    world.settle()
    world.check()
    assert world.service.epoch >= 1


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_key_packages_come_in_any_order(order: tuple[int, ...]) -> None:
    world = World()
    for user_id in (1, 2, 3):
        world.join(user_id, key_package=False)
    world.settle()
    for user_id in order:
        world.members[user_id].begin()
    world.settle()
    world.check()


def test_the_first_group_is_in_force_at_once_and_later_ones_wait() -> None:
    world = World()
    first, second = world.join(1), world.join(2)
    world.settle()
    assert first.joined is not None
    assert first.joined.transition_id == 0
    assert (first.executed, world.service.transition_id) == ([], None)
    world.join(3)
    world.settle()
    world.check()
    assert first.ready == second.ready == first.executed == [1]
    assert world.service.epoch == 2


def test_op_29_goes_to_old_members_and_op_30_to_new_ones() -> None:
    world = World()
    world.join(1)
    world.join(2)
    world.settle()
    world.said.clear()
    world.join(3)
    world.settle()
    assert {op: world.told(op) for op in (27, 29, 30)} == {27: {1, 2}, 29: {1, 2}, 30: {3}}
    world.check()


def test_a_member_leaves() -> None:
    world = World()
    for user_id in (1, 2, 3, 4):
        world.join(user_id)
    world.settle()
    world.leave(2)
    world.settle()
    world.check()
    world.join(5)
    world.settle()
    world.check()


def test_two_leave_at_once() -> None:
    world = World()
    for user_id in (1, 2, 3, 4):
        world.join(user_id)
    world.settle()
    world.leave(1)
    world.leave(3)
    world.settle()
    world.check()


def test_one_leaves_while_another_joins() -> None:
    world = World()
    for user_id in (1, 2, 3):
        world.join(user_id)
    world.settle()
    world.join(4)
    world.leave(1)
    world.settle()
    world.check()


def test_one_leaves_while_pending() -> None:
    world = World()
    world.join(1)
    world.join(2)
    world.settle()
    world.join(3)
    world.leave(3)
    world.settle()
    assert world.service.members == {1, 2}
    world.join(4)
    world.settle()
    world.check()


def test_the_sole_member_begins_anew() -> None:
    world = World()
    first = world.join(1)
    world.join(2)
    world.settle()
    world.leave(2)
    world.settle()
    assert world.service.epoch == 0
    assert world.service.pending == {1}
    assert not first.in_group
    world.join(2)
    world.settle()
    world.check()


def test_a_member_that_could_not_follow_is_taken_out_and_in_again() -> None:
    world = World()
    for user_id in (1, 2, 3):
        world.join(user_id)
    world.settle()
    member = world.members[2]
    member.take(Opcode.MLS_WELCOME, b"\0\7 no welcome")
    world.settle()
    world.check()
    assert world.service.epoch == 2


def test_all_members_that_could_not_follow_begin_anew() -> None:
    world = World()
    for user_id in (1, 2):
        world.join(user_id)
    world.settle()
    for member in world.members.values():
        world.say(world.service.invalid_commit(member.user_id, 0))
    for member in world.members.values():
        member.begin()
    world.settle()
    world.check()


def test_downgrade_and_upgrade() -> None:
    world = World()
    for user_id in (1, 2, 3):
        world.join(user_id)
    world.settle()
    world.say(world.service.downgrade())
    world.settle()
    assert {member.version for member in world.members.values()} == {0}
    assert all(member.executed for member in world.members.values())
    assert world.service.join(9) == []
    world.service.leave(9)
    world.say(world.service.upgrade())
    world.settle()
    world.check()


def test_who_is_not_ready_in_time_is_not_waited_for() -> None:
    world = World()
    for user_id in (1, 2):
        world.join(user_id)
    world.settle()
    number = world.service.downgrade()[0].payload
    assert isinstance(number, dict)
    transition_id = number["transition_id"]
    assert isinstance(transition_id, int)
    assert world.service.transition_ready(1, transition_id) == []
    executed = world.service.transition_timeout()
    assert [(delivery.user_id, delivery.op) for delivery in executed] == [(1, 22), (2, 22)]
    assert world.service.transition_timeout() == []


def test_bad_commits_are_dropped_and_counted() -> None:
    world = World()
    for user_id in (1, 2):
        world.join(user_id)
    world.settle()
    before = sum(world.service.rejected.values())
    assert world.service.commit_welcome(1, b"no commit") == []
    assert sum(world.service.rejected.values()) == before + 1
    world.check()


def test_a_key_package_must_be_ones_own() -> None:
    world = World()
    world.join(1)
    other = MlsGroup(2, lambda: 0.0)
    (made,) = other.create(CreateGroup(1, CHANNEL, None))
    assert isinstance(made, KeyPackageMade)
    with pytest.raises(GroupError, match="another user's"):
        world.service.key_package(1, made.data)
    with pytest.raises(GroupError):
        world.service.key_package(1, b"no key package")
    assert world.service.key_package(7, _package_of(7)) == []


def _package_of(user_id: int) -> bytes:
    (made,) = MlsGroup(user_id, lambda: 0.0).create(CreateGroup(1, CHANNEL, None))
    assert isinstance(made, KeyPackageMade)
    return made.data


def test_transition_ids_wrap_without_zero() -> None:
    service = DeliveryService(CHANNEL)
    service.join(1)
    seen = []
    for _ in range(0x10000):
        payload = service.downgrade()[0].payload
        assert isinstance(payload, dict)
        seen.append(payload["transition_id"])
    assert seen[:2] == [1, 2]
    assert seen[-2:] == [0xFFFF, 1]
    assert 0 not in seen


def test_the_adapter_sees_every_add_of_an_epoch() -> None:
    """The library forgets a Welcome when a later append has no Add; the adapter feeds the Adds again."""
    world = World()
    for user_id in (1, 2, 3):
        world.join(user_id)
    world.settle()
    world.join(4, key_package=False)
    world.settle()
    world.members[4].begin()
    world.leave(3)
    world.settle()
    world.check()


def messages_of(payload: bytes) -> list[ProposalMessage]:
    return parse_proposal_messages(payload)


def test_proposals_are_joined_as_they_were_read() -> None:
    service = DeliveryService(CHANNEL)
    service.join(1)
    service.join(2)
    service.key_package(1, _package_of(1))
    deliveries = service.key_package(2, _package_of(2))
    for delivery in deliveries:
        assert isinstance(delivery.payload, bytes)
        assert delivery.payload[0] == 0
        read = messages_of(delivery.payload[1:])
        assert join_messages(message.data for message in read) == delivery.payload[1:]
    assert [delivery.user_id for delivery in deliveries] == [2, 1]


def group_of(count: int) -> World:
    world = World()
    for user_id in range(1, count + 1):
        world.join(user_id)
    world.settle()
    world.check()
    world.said.clear()
    return world


def begins_anew(world: World, sole: int) -> bool:
    """Has the group ended, and was its last member told in the right order?"""
    texts = [(delivery.op, delivery.payload) for delivery in world.said if isinstance(delivery.payload, dict)]
    return (
        world.service.epoch == 0
        and world.service.pending == {sole}
        and texts[-2:]
        == [
            (Opcode.DAVE_PREPARE_EPOCH, {"protocol_version": 1, "epoch": 1}),
            (Opcode.DAVE_PREPARE_TRANSITION, {"protocol_version": 1, "transition_id": 0}),
        ]
    )


def test_all_but_one_leave_at_once() -> None:
    world = group_of(3)
    world.leave(2)
    world.leave(3)
    assert begins_anew(world, 1)
    world.settle()
    world.join(4)
    world.settle()
    world.check()


def test_a_member_and_a_pending_user_leave_at_once() -> None:
    world = group_of(2)
    world.join(3)
    world.leave(2)
    world.leave(3)
    world.settle()
    assert begins_anew(world, 1)


def test_who_lost_the_group_is_not_left_alone_in_it() -> None:
    world = group_of(3)
    lost = world.members[3]
    world.say(world.service.invalid_commit(3, 0))
    world.leave(2)
    world.leave(1)
    world.join(4)
    lost.begin()
    world.settle()
    world.check()


def test_who_comes_back_before_its_remove_is_committed_is_told_nothing_of_the_old_group() -> None:
    world = group_of(3)
    world.leave(2)
    back = world.join(2, key_package=False)
    world.said.clear()
    world.join(4)
    assert world.told(Opcode.MLS_PROPOSALS) == {1, 3}
    world.settle()
    back.begin()
    world.settle()
    world.check()


def test_who_joins_again_without_a_leave_begins_afresh() -> None:
    world = group_of(3)
    world.join(2)
    world.settle()
    world.check()


def test_who_lost_the_group_is_neither_told_of_commits_nor_waited_for() -> None:
    world = group_of(3)
    world.say(world.service.invalid_commit(2, 0))
    world.members[2].in_group = False
    world.join(4)
    world.settle()
    assert world.told(Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION) == {1, 3}
    assert world.told(Opcode.DAVE_EXECUTE_TRANSITION) == {1, 3, 4}
    assert world.service.transition_id is None
    world.members[2].begin()
    world.settle()
    world.check()


def test_pending_users_are_not_told_to_execute() -> None:
    world = group_of(2)
    world.join(5, key_package=False)
    world.join(3)
    world.settle()
    assert world.told(Opcode.DAVE_EXECUTE_TRANSITION) == {1, 2, 3}


def test_a_new_key_package_that_crosses_an_old_welcome_ends_in_one_group() -> None:
    """Each Welcome refused drops the key package that the next one is for; the service waits for the answer."""
    world = group_of(2)
    slow = world.members[2]
    world.leave(1)  # a new epoch is on its way to the slow member...
    slow.begin()  # ...whose key package crosses it
    world.join(1)
    world.settle()
    world.check()
    assert world.service.epoch < 8


def test_a_held_key_package_is_proposed_when_the_wait_ends() -> None:
    world = group_of(2)
    world.join(3)
    while not any(delivery.op == Opcode.MLS_WELCOME for delivery in world.under_way.get(3, ())):
        assert world.step()
    world.under_way.clear()  # its Welcome is late
    world.said.clear()
    world.members[3].begin()
    assert world.told(Opcode.MLS_PROPOSALS) == set()
    world.said.clear()
    world.say(world.service.transition_timeout())
    assert world.told(Opcode.MLS_PROPOSALS) == {1, 2}


def test_transitions_are_executed_in_the_order_of_their_announcement() -> None:
    world = group_of(2)
    world.join(3)
    while world.service.epoch == 1:
        assert world.step()
    commits = {user: [d for d in queue if d.op == 29] for user, queue in world.under_way.items()}
    assert all(commits[user] for user in (1, 2))
    world.say(world.service.transition_ready(1, 1))
    world.say(world.service.transition_ready(2, 1))
    assert world.service.transition_id == 1
    done = world.service.transition_timeout()
    assert [(delivery.user_id, delivery.payload) for delivery in done] == [
        (user, {"transition_id": 1}) for user in (1, 2, 3)
    ]


def test_one_alone_waits_and_a_new_key_package_replaces_the_old_one() -> None:
    service = DeliveryService(CHANNEL)
    for user_id in (1, 2):
        service.join(user_id)
    assert service.key_package(1, _package_of(1)) == []
    (to_2, to_1) = service.key_package(2, _package_of(2))
    again = service.key_package(2, _package_of(2))
    assert [(delivery.user_id, delivery.payload[:1]) for delivery in again if isinstance(delivery.payload, bytes)] == [
        (1, b"\1"),
        (2, b"\0"),
        (1, b"\0"),
    ]
    assert isinstance(to_1.payload, bytes)
    assert isinstance(again[0].payload, bytes)
    assert parse_proposal_refs(again[0].payload[1:]) == [messages_of(to_1.payload[1:])[0].ref]
    assert again[1].payload == to_2.payload
    (left,) = service.leave(2)
    assert isinstance(left.payload, bytes)
    assert (left.user_id, left.payload[:1]) == (1, b"\1")


def test_nobody_to_downgrade() -> None:
    service = DeliveryService(CHANNEL)
    assert service.downgrade() == []
    assert service.transition_id is None


def test_the_second_first_commit_is_dropped_and_counted() -> None:
    world = World()
    for user_id in (1, 2, 3):
        world.join(user_id)
    world.settle()
    assert world.told(Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION) == {1}
    assert world.told(Opcode.MLS_WELCOME) == {2, 3}
    assert world.service.rejected["a commit of another group or epoch"] >= 1


def first_commits() -> tuple[DeliveryService, bytes, bytes]:
    """A service with two pending users, the first one's commit and its Welcome."""
    service, first = DeliveryService(CHANNEL), davey.DaveSession(1, 1, CHANNEL)
    external = service.join(1)[0].payload
    assert isinstance(external, bytes)
    first.set_external_sender(external)
    service.join(2)
    service.key_package(1, first.get_serialized_key_package())
    proposals = service.key_package(2, _package_of(2))[-1].payload
    assert isinstance(proposals, bytes)
    made = first.process_proposals(davey.ProposalsOperationType.append, proposals[1:], [1, 2])
    assert made is not None
    assert made.welcome is not None
    return service, made.commit, made.welcome


def test_a_first_commit_is_taken_from_its_maker_with_its_welcome_once() -> None:
    service, commit, welcome = first_commits()
    reasons = [
        (1, commit, "a commit whose Welcome is not for those that it adds"),
        (2, commit + welcome, "a commit that does not carry all proposals"),
        (7, commit + welcome, "a commit that does not carry all proposals"),
        (1, commit + welcome + b"\0", "an MLS message with more behind it"),
        (1, commit[:-1], "an MLS message that ends too early"),
    ]
    for user_id, data, reason in reasons:
        before = service.rejected[reason]
        assert service.commit_welcome(user_id, data) == []
        assert service.rejected[reason] == before + 1
    assert [(d.user_id, d.op) for d in service.commit_welcome(1, commit + welcome)] == [(1, 29), (2, 30)]
    assert service.commit_welcome(1, commit + welcome) == []
    assert service.rejected["a commit of another group or epoch"] == 1


def test_a_commit_that_misses_a_later_proposal_is_dropped() -> None:
    service, commit, welcome = first_commits()
    service.join(3)
    service.key_package(3, _package_of(3))
    assert service.commit_welcome(1, commit + welcome) == []
    assert service.rejected == {"a commit that does not carry all proposals": 1}
    service.leave(3)
    assert service.commit_welcome(1, commit + welcome) != []


def test_a_members_commit_from_another_connection_is_dropped() -> None:
    world = group_of(2)
    world.join(3, key_package=False)
    world.settle()
    (to_1, _) = world.service.key_package(3, _package_of(3))
    assert isinstance(to_1.payload, bytes)
    (made,) = world.members[1].group.apply_proposals(ApplyProposals(False, to_1.payload[1:], frozenset((1, 2, 3))))
    assert isinstance(made, CommitMade)
    for user_id in (2, 3):
        assert world.service.commit_welcome(user_id, made.data) == []
    assert world.service.rejected["a commit from another leaf than its user's"] == 2
    assert [d.op for d in world.service.commit_welcome(1, made.data)] == [29, 29, 30]


def test_two_of_four_leave_before_there_is_a_group() -> None:
    world = World()
    for user_id in (1, 2, 3, 4):
        world.join(user_id)
    world.leave(1)
    world.leave(2)
    world.settle()
    world.check()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "step", "fail"]), st.integers(0, 7)), max_size=30))
def test_whatever_happens_in_whatever_order_ends_in_one_group(happenings: list[tuple[str, int]]) -> None:
    world = World()
    for user_id in (1, 2):
        world.join(user_id)
    number = 3
    for what, choice in happenings:
        if what == "join" and len(world.members) < 5:
            world.join(number)
            number += 1
        elif what == "leave" and len(world.members) > 2:
            world.leave(sorted(world.members)[choice % len(world.members)])
        elif what == "step":
            world.step(choice)
        elif what == "fail":
            member = world.members[sorted(world.members)[choice % len(world.members)]]
            if member.in_group:
                world.say(world.service.invalid_commit(member.user_id, 0))
                member.begin()
    world.settle()
    world.check()
