"""Our hold on the MLS library: groups follow each other, frames under way are heard, nothing passes in the clear."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import VECTORS
from tests.members import CHANNEL, World
from voicegw.adapters.mls import OLD_GROUP_S, MlsGroup
from voicegw.effects import ApplyCommit, ApplyProposals, ApplyWelcome, CreateGroup, SetPassthrough
from voicegw.errors import GroupError
from voicegw.events import CommitIgnored, GroupRejected, KeyPackageMade, ProposalsRejected
from voicegw.server.external_sender import ExternalSender
from voicegw.wire.mls import join_messages, join_refs, parse_key_package
from voicegw.wire.rtp import SILENCE_FRAME

FRAME = bytes((0x78, *range(60)))


def two() -> World:
    world = World()
    world.join(1)
    world.join(2)
    world.settle()
    return world


def test_without_a_group_no_frame_leaves_and_none_is_believed() -> None:
    group = MlsGroup(1, lambda: 0.0)
    assert (group.ready, group.epoch, group.members) == (False, 0, frozenset())
    with pytest.raises(GroupError):
        group.encrypt(FRAME)
    with pytest.raises(GroupError):
        group.decrypt(2, FRAME)
    assert group.decrypt(2, SILENCE_FRAME) == SILENCE_FRAME
    group.create(CreateGroup(1, CHANNEL, None))
    with pytest.raises(GroupError):
        group.encrypt(FRAME)


def test_a_frame_under_way_is_heard_after_the_epoch_changed() -> None:
    world = two()
    alice, bob = (world.members[user].group for user in (1, 2))
    under_way = alice.encrypt(FRAME)
    world.join(3)
    world.settle()
    assert alice.epoch == bob.epoch == 2
    assert bob.members == {1, 2, 3}
    assert bob.decrypt(1, under_way) == FRAME
    assert bob.decrypt(1, alice.encrypt(FRAME)) == FRAME


def test_a_frame_of_the_group_before_is_heard_for_ten_seconds() -> None:
    world = two()
    now = [100.0]
    bob = world.members[2].group
    bob._now = lambda: now[0]
    frames = [world.members[1].group.encrypt(FRAME) for _ in range(3)]
    bob.create(CreateGroup(1, CHANNEL, world.members[2].external_sender))
    assert bob.decrypt(1, frames[0]) == FRAME
    now[0] += OLD_GROUP_S - 0.01
    assert bob.decrypt(1, frames[1]) == FRAME
    now[0] += 0.02
    with pytest.raises(GroupError):
        bob.decrypt(1, frames[2])


def test_clear_frames_are_taken_only_where_that_is_allowed() -> None:
    world = two()
    bob = world.members[2].group
    with pytest.raises(GroupError):
        bob.decrypt(1, FRAME)
    bob.set_passthrough(SetPassthrough(allowed=True, expiry_s=0))
    assert bob.decrypt(1, FRAME) == FRAME
    assert bob.decrypt(1, world.members[1].group.encrypt(FRAME)) == FRAME
    bob.drop()
    with pytest.raises(GroupError):
        bob.decrypt(1, FRAME)
    bob.set_passthrough(SetPassthrough(allowed=True, expiry_s=0))
    assert bob.decrypt(1, FRAME) == FRAME
    with pytest.raises(GroupError):
        bob.decrypt(1, world.members[1].group.encrypt(FRAME))


def test_silence_leaves_as_it_is() -> None:
    assert two().members[1].group.encrypt(SILENCE_FRAME) == SILENCE_FRAME


def test_what_does_not_fit_comes_back_as_an_event() -> None:
    nobody, known = MlsGroup(1, lambda: 0.0), frozenset({1, 2})
    assert nobody.apply_proposals(ApplyProposals(False, b"", known)) == [ProposalsRejected(False, b"", "no group")]
    assert nobody.apply_commit(ApplyCommit(3, b"", known, member=True)) == [CommitIgnored(3)]
    assert nobody.apply_welcome(ApplyWelcome(3, b"", known)) == [GroupRejected(3, "no group")]
    group = two().members[1].group
    for revoke, data in ((False, b"no vector"), (True, join_refs([bytes(32)]))):
        (rejected,) = group.apply_proposals(ApplyProposals(revoke, data, known))
        assert isinstance(rejected, ProposalsRejected)
        assert (rejected.revoke, rejected.data) == (revoke, data)
    assert isinstance(group.apply_commit(ApplyCommit(3, b"none", known, member=True))[0], GroupRejected)
    assert group.apply_commit(ApplyCommit(3, b"none", known, member=False)) == [CommitIgnored(3)]
    assert isinstance(group.apply_welcome(ApplyWelcome(3, b"none", known))[0], GroupRejected)


def test_each_group_has_a_signing_key_of_its_own_and_its_key_package_is_signed_with_it() -> None:
    group, keys = MlsGroup(1, lambda: 0.0), set[bytes]()
    for _ in range(50):
        (made,) = group.create(CreateGroup(1, CHANNEL, None))
        assert isinstance(made, KeyPackageMade)
        package = parse_key_package(made.data)  # checks the signatures
        assert package.user_id == 1
        assert package.signature_key == group._our_key
        keys.add(package.signature_key)
    assert len(keys) == 50


def test_an_unexpected_user_is_not_added() -> None:
    sender, group, stranger = ExternalSender(), MlsGroup(1, lambda: 0.0), MlsGroup(9, lambda: 0.0)
    group.create(CreateGroup(1, CHANNEL, sender.data))
    (made,) = stranger.create(CreateGroup(1, CHANNEL, sender.data))
    assert isinstance(made, KeyPackageMade)
    add = join_messages([sender.add(CHANNEL.to_bytes(8, "big"), 0, made.data)])
    (rejected,) = group.apply_proposals(ApplyProposals(False, add, frozenset({1, 2})))
    assert isinstance(rejected, ProposalsRejected)


def test_an_external_sender_that_is_none_leaves_the_group_without() -> None:
    group = MlsGroup(1, lambda: 0.0)
    group.set_external_sender(b"before any group")
    group.create(CreateGroup(1, CHANNEL, b"no external sender"))
    assert group.ready is False


@pytest.mark.parametrize("case", VECTORS["dave_nonce_tracking"]["replay"], ids=lambda case: str(case["received"][:4]))
def test_a_frame_is_taken_once_in_whatever_order(case: dict[str, Any]) -> None:
    """The numbers are the nonces as the sender counts them; ours begins with 1."""
    world = two()
    alice, bob = (world.members[user].group for user in (1, 2))
    first = 1 if 0 in case["received"] else 0
    frames = [b""] + [alice.encrypt(FRAME) for _ in range(max(case["received"]) + first)]

    def taken(number: int) -> bool:
        try:
            return bob.decrypt(1, frames[number + first]) == FRAME
        except GroupError:
            return False

    assert [taken(number) for number in case["received"]] == case.get("accepted_davey", case["accepted"])
