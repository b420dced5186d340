"""The voice server's half of DAVE: who is proposed, which commit wins, who is told. It never learns a secret.

Sans I/O: messages of users go in, deliveries come out in the order in which they must be sent. Source: DAVE protocol
1.1, "Voice Gateway"; RFC 9420, section 12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from voicegw.errors import GroupError
from voicegw.server.external_sender import ExternalSender
from voicegw.wire.mls import (
    KeyPackage,
    LeafNode,
    join_messages,
    join_refs,
    parse_key_package,
    proposal_ref,
)
from voicegw.wire.mls_messages import Commit, Welcome, filter_welcome, parse_commit_welcome
from voicegw.wire.opcodes import Opcode

PROTOCOL_VERSION = 1
FIRST_EPOCH = 1
IMMEDIATE = 0
APPEND, REVOKE = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one user: bytes are the payload of a binary opcode, a dict is `d` of a text one."""

    user_id: int
    op: int
    payload: bytes | dict[str, object]


@dataclass(frozen=True, slots=True)
class Proposal:
    """An Add (with its key package) or a Remove (with its leaf) that the next commit must carry."""

    user_id: int
    message: bytes
    ref: bytes
    key_package: KeyPackage | None = None
    leaf: int = -1


@dataclass(frozen=True, slots=True)
class Transition:
    """Who is told when it is executed, and who has not said that it is ready."""

    audience: frozenset[int]
    waiting: set[int]


class DeliveryService:
    """One channel's group, from outside.

    Users are pending until a commit adds them. While there is no group (epoch 0) every pending user with a key
    package is told of all others, and the first commit that adds exactly those wins. Afterwards members are told of
    every change; the first commit of the epoch that carries all of it wins, later ones are dropped and counted in
    `rejected`.
    """

    def __init__(self, channel_id: int, external_sender: ExternalSender | None = None) -> None:
        self._group_id = channel_id.to_bytes(8, "big")
        self._sender = external_sender or ExternalSender()
        self._users: set[int] = set()
        self._recovering: set[int] = set()
        self._packages: dict[int, KeyPackage] = {}
        self._proposals: dict[bytes, Proposal] = {}
        self._leaves: list[int | None] = []
        self._keys: dict[int, bytes] = {}
        self._awaited: dict[int, Transition] = {}
        self._welcomed: dict[int, int] = {}
        self._last_transition = 0
        self.epoch = 0
        self.protocol_version = PROTOCOL_VERSION
        self.rejected: Counter[str] = Counter()

    @property
    def members(self) -> frozenset[int]:
        """Users in the group."""
        return frozenset(user for user in self._leaves if user is not None)

    @property
    def pending(self) -> frozenset[int]:
        """Users in the channel that are not in the group."""
        return frozenset(self._users - self.members)

    @property
    def transition_id(self) -> int | None:
        """The newest transition that not everybody is ready for; None where nothing is awaited."""
        return next(reversed(self._awaited), None)

    @property
    def _able(self) -> frozenset[int]:
        """Members that are here and follow the group: they may commit and are told of changes."""
        return (self.members & self._users) - self._recovering

    # -- what happens

    def join(self, user_id: int) -> list[Delivery]:
        """A user is in the channel and has its transport key; one that was here before begins afresh."""
        deliveries = self.leave(user_id) if user_id in self._users else []
        self._users.add(user_id)
        if user_id in self.members:
            self._recovering.add(user_id)  # its Remove is under way, and its new session knows no group
        if self.protocol_version > 0:
            deliveries.append(Delivery(user_id, Opcode.MLS_EXTERNAL_SENDER, self._sender.data))
        return deliveries

    def key_package(self, user_id: int, data: bytes) -> list[Delivery]:
        """Op 26: propose to add the user; what was proposed of it before is revoked.

        Raises:
            GroupError: the key package is not well formed, or another user's.
        """
        package = parse_key_package(data)
        if package.user_id != user_id:
            raise GroupError("the key package is another user's")
        if user_id not in self._users or self.protocol_version == 0:
            return []
        deliveries = self._revoke_add(user_id)
        self._packages[user_id] = package
        if user_id in self.members:
            self._recovering.add(user_id)
            return deliveries + self._stop_waiting_for(user_id, but=self._owed(user_id)) + self._readmit()
        if self.epoch == 0:
            deliveries += self._tell([user_id], list(self._proposals.values()))
        return deliveries + self._propose([self._addition(user_id, package)])

    def commit_welcome(self, user_id: int, data: bytes) -> list[Delivery]:
        """Op 28: the first commit that fits wins; others are dropped and counted."""
        try:
            commit, welcome = parse_commit_welcome(data)
            self._judge(user_id, commit, welcome)
        except GroupError as error:
            self.rejected[str(error)] += 1
            return []
        return self._accept(user_id, commit, welcome)

    def transition_ready(self, user_id: int, transition_id: int) -> list[Delivery]:
        """Op 23: when the last one is ready, the transition is executed."""
        transition = self._awaited.get(transition_id)
        if transition is None:
            return []
        transition.waiting.discard(user_id)
        return ([] if transition.waiting else self._execute(transition_id)) + self._readmit()

    def transition_timeout(self) -> list[Delivery]:
        """Some were not ready in time: the transitions are executed all the same."""
        newest = self.transition_id
        return [] if newest is None else self._execute(newest) + self._readmit()

    def invalid_commit(self, user_id: int, transition_id: int) -> list[Delivery]:
        """Op 31: the user could not follow; its next key package takes it out and in again."""
        if user_id not in self.members:
            return []
        self._recovering.add(user_id)
        self._packages.pop(user_id, None)
        owed = self._owed(user_id)
        return self._stop_waiting_for(user_id, but=None if owed == transition_id else owed)

    def leave(self, user_id: int) -> list[Delivery]:
        """A user left the channel."""
        self._users.discard(user_id)
        self._packages.pop(user_id, None)
        self._recovering.discard(user_id)
        self._welcomed.pop(user_id, None)
        deliveries = self._stop_waiting_for(user_id) + self._revoke_add(user_id)
        if self.epoch == 0:
            return deliveries
        if not self._able:
            return deliveries + self._begin_anew()
        if self._able == self._users and len(self._users) == 1:
            return deliveries + self._leave_alone()
        removed = any(proposal.leaf >= 0 and proposal.user_id == user_id for proposal in self._proposals.values())
        if user_id not in self.members or removed:
            return deliveries
        return deliveries + self._propose([self._removal(user_id)])

    def downgrade(self) -> list[Delivery]:
        """Go on without E2EE."""
        self.protocol_version = 0
        self._forget_group()
        self._packages.clear()
        if not self._users:
            return []
        number = self._await(self._users)
        data = {"protocol_version": 0, "transition_id": number}
        return [Delivery(user, Opcode.DAVE_PREPARE_TRANSITION, dict(data)) for user in sorted(self._users)]

    def upgrade(self) -> list[Delivery]:
        """Begin with E2EE (again): a new group."""
        self.protocol_version = PROTOCOL_VERSION
        self._forget_group()
        self._packages.clear()
        deliveries = []
        for user in sorted(self._users):
            data: dict[str, object] = {"protocol_version": PROTOCOL_VERSION, "epoch": FIRST_EPOCH}
            deliveries.append(Delivery(user, Opcode.DAVE_PREPARE_EPOCH, data))
            deliveries.append(Delivery(user, Opcode.MLS_EXTERNAL_SENDER, self._sender.data))
        return deliveries

    # -- proposals

    def _addition(self, user_id: int, package: KeyPackage) -> Proposal:
        message = self._sender.add(self._group_id, self.epoch, package.data)
        return Proposal(user_id, message, proposal_ref(message), key_package=package)

    def _removal(self, user_id: int) -> Proposal:
        leaf = self._leaves.index(user_id)
        message = self._sender.remove(self._group_id, self.epoch, leaf)
        return Proposal(user_id, message, proposal_ref(message), leaf=leaf)

    def _propose(self, proposals: list[Proposal]) -> list[Delivery]:
        self._proposals.update((proposal.ref, proposal) for proposal in proposals)
        subjects = {proposal.user_id for proposal in proposals}
        return self._tell(self._audience(subjects), proposals)

    def _audience(self, subjects: set[int]) -> list[int]:
        """Who must know of a change to `subjects`: members that can follow; without a group, all that may begin one."""
        able = self._packages.keys() if self.epoch == 0 else self._able
        return sorted((able & self._users) - subjects)

    def _tell(self, audience: Iterable[int], proposals: list[Proposal]) -> list[Delivery]:
        if not proposals:
            return []
        payload = APPEND + join_messages(proposal.message for proposal in proposals)
        return [Delivery(user, Opcode.MLS_PROPOSALS, payload) for user in audience]

    def _revoke_add(self, user_id: int) -> list[Delivery]:
        refs = [
            ref for ref, proposal in self._proposals.items() if proposal.user_id == user_id and proposal.key_package
        ]
        for ref in refs:
            del self._proposals[ref]
        payload = REVOKE + join_refs(refs)
        return [Delivery(user, Opcode.MLS_PROPOSALS, payload) for user in self._audience({user_id})] if refs else []

    # -- commits

    def _judge(self, user_id: int, commit: Commit, welcome: Welcome | None) -> None:
        """Does this commit change the group as it must be changed now?"""
        wanted = {ref for ref, proposal in self._proposals.items() if self.epoch > 0 or proposal.user_id != user_id}
        if commit.group_id != self._group_id or commit.epoch != self.epoch:
            raise GroupError("a commit of another group or epoch")
        if not wanted or set(commit.refs) != wanted or len(commit.refs) != len(wanted):
            raise GroupError("a commit that does not carry all proposals")
        if self.epoch == 0:
            package = self._packages.get(user_id)
            if commit.sender_leaf != 0 or package is None:
                raise GroupError("a first commit from another leaf than its group's first")
            key = package.signature_key
        else:
            leaf = commit.sender_leaf
            if leaf >= len(self._leaves) or self._leaves[leaf] != user_id or user_id not in self._able:
                raise GroupError("a commit from another leaf than its user's")
            key = self._keys[user_id]
        if commit.path_leaf is not None and commit.path_leaf != LeafNode(user_id, key):
            raise GroupError("a commit that changes its user")
        removes = [self._proposals[ref] for ref in wanted if self._proposals[ref].leaf >= 0]
        if removes and not commit.has_path:
            raise GroupError("a commit with a Remove and without a path")
        offers = (self._proposals[ref].key_package for ref in wanted)
        added = {offer.ref for offer in offers if offer is not None}
        if added != (set(welcome.secrets) if welcome is not None else set()):
            raise GroupError("a commit whose Welcome is not for those that it adds")

    def _accept(self, user_id: int, commit: Commit, welcome: Welcome | None) -> list[Delivery]:
        first = self.epoch == 0
        if first:
            self._leaves = [user_id]
            self._keys = {user_id: self._packages.pop(user_id).signature_key}
        carried = [self._proposals[ref] for ref in commit.refs]
        for proposal in carried:
            if proposal.leaf >= 0:
                self._leaves[proposal.leaf] = None
                self._keys.pop(proposal.user_id)
                self._recovering.discard(proposal.user_id)
        told = [user_id] if first else sorted(self._able)
        added: list[KeyPackage] = []
        for proposal in carried:
            package = proposal.key_package
            if package is not None:
                self._seat(proposal.user_id)
                self._keys[proposal.user_id] = package.signature_key
                self._packages.pop(proposal.user_id, None)
                added.append(package)
        while self._leaves and self._leaves[-1] is None:
            self._leaves.pop()
        self._proposals.clear()
        self.epoch += 1
        number = IMMEDIATE if first else self._await(self._able)
        header = number.to_bytes(2, "big")
        announce = Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION
        deliveries = [Delivery(user, announce, header + commit.data) for user in told]
        self._welcomed.update((package.user_id, number) for package in added)
        if welcome is not None:
            deliveries += [
                Delivery(package.user_id, Opcode.MLS_WELCOME, header + filter_welcome(welcome, package.ref))
                for package in added
            ]
        return deliveries

    def _seat(self, user_id: int) -> None:
        """The leftmost free leaf, as RFC 9420, section 7.7 has it."""
        if None in self._leaves:
            self._leaves[self._leaves.index(None)] = user_id
        else:
            self._leaves.append(user_id)

    # -- transitions and new beginnings

    def _await(self, users: Iterable[int]) -> int:
        self._last_transition = self._last_transition % 0xFFFF + 1
        self._awaited[self._last_transition] = Transition(frozenset(users), set(users))
        return self._last_transition

    def _execute(self, transition_id: int) -> list[Delivery]:
        """Also whatever was announced before it, so that nobody falls back to an older one."""
        deliveries = []
        for number in tuple(self._awaited):
            for user in sorted(self._awaited.pop(number).audience & self._users):
                deliveries.append(Delivery(user, Opcode.DAVE_EXECUTE_TRANSITION, {"transition_id": number}))
            if number == transition_id:
                break
        return deliveries

    def _stop_waiting_for(self, user_id: int, but: int | None = None) -> list[Delivery]:
        return [
            delivery
            for transition_id in tuple(self._awaited)
            if transition_id != but
            for delivery in self.transition_ready(user_id, transition_id)
        ]

    def _owed(self, user_id: int) -> int | None:
        """The user's Welcome that it has neither taken nor refused yet."""
        transition = self._awaited.get(self._welcomed.get(user_id, IMMEDIATE))
        return self._welcomed[user_id] if transition is not None and user_id in transition.waiting else None

    def _readmit(self) -> list[Delivery]:
        """Take out and in again who lost the group and has offered a key package since.

        Not while a Welcome for an older key package is under way: the user will refuse it and drop the newer key
        package too, and so on without end. Its answer, or the end of the wait, comes first.
        """
        lost = self._recovering & self.members & self._packages.keys()
        if lost and not self._able:
            return self._begin_anew()
        added = {proposal.user_id for proposal in self._proposals.values() if proposal.key_package is not None}
        removed = {proposal.user_id for proposal in self._proposals.values() if proposal.leaf >= 0}
        proposals: list[Proposal] = []
        for user_id in sorted(lost - added):
            if self._owed(user_id) is None:
                if user_id not in removed:
                    proposals.append(self._removal(user_id))
                proposals.append(self._addition(user_id, self._packages[user_id]))
        return self._propose(proposals)

    def _leave_alone(self) -> list[Delivery]:
        """One member is left: its group ends, and it offers a key package for the next."""
        (sole,) = self._users
        self._forget_group()
        self._packages.pop(sole, None)
        epoch: dict[str, object] = {"protocol_version": PROTOCOL_VERSION, "epoch": FIRST_EPOCH}
        transition: dict[str, object] = {"protocol_version": PROTOCOL_VERSION, "transition_id": IMMEDIATE}
        return [
            Delivery(sole, Opcode.DAVE_PREPARE_EPOCH, epoch),
            Delivery(sole, Opcode.DAVE_PREPARE_TRANSITION, transition),
        ]

    def _forget_group(self) -> None:
        self.epoch = 0
        self._leaves.clear()
        self._keys.clear()
        self._proposals.clear()
        self._recovering.clear()
        self._awaited.clear()
        self._welcomed.clear()

    def _begin_anew(self) -> list[Delivery]:
        """Nobody is left that could commit: all who have offered a key package begin another group."""
        self._forget_group()
        additions = [self._addition(user, package) for user, package in self._packages.items()]
        self._proposals.update((addition.ref, addition) for addition in additions)
        return [
            delivery
            for user in self._packages
            for delivery in self._tell([user], [addition for addition in additions if addition.user_id != user])
        ]
