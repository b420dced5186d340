"""A group's members and the service between them, in memory: real MLS clients through our adapter."""

from __future__ import annotations

import itertools
from collections import deque

from voicegw.adapters.mls import MlsGroup
from voicegw.effects import ApplyCommit, ApplyProposals, ApplyWelcome, CreateGroup
from voicegw.events import CommitMade, Event, GroupJoined, GroupRejected, KeyPackageMade
from voicegw.server.delivery import Delivery, DeliveryService
from voicegw.wire.opcodes import Opcode

CHANNEL = 927310423890473011


class Member:
    """A client as far as DAVE goes: davey through our adapter."""

    def __init__(self, world: World, user_id: int) -> None:
        self.world = world
        self.user_id = user_id
        self.group = MlsGroup(user_id, lambda: 0.0)
        self.external_sender: bytes | None = None
        self.joined: GroupJoined | None = None
        self.ready: list[int] = []
        self.executed: list[int] = []
        self.version = 1
        self.in_group = False

    def begin(self) -> None:
        """A new pending group and a key package."""
        self.in_group = False
        self.follow(self.group.create(CreateGroup(1, CHANNEL, self.external_sender)))

    def take(self, op: int, payload: bytes | dict[str, object]) -> None:
        """One delivery."""
        if isinstance(payload, dict):
            self.take_text(op, payload)
        elif op == Opcode.MLS_EXTERNAL_SENDER:
            self.external_sender = payload
            self.group.set_external_sender(payload)
        elif op == Opcode.MLS_PROPOSALS:
            known = frozenset(self.world.seen)
            self.follow(self.group.apply_proposals(ApplyProposals(payload[0] == 1, payload[1:], known)))
        elif op == Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION:
            number = int.from_bytes(payload[:2], "big")
            self.follow(
                self.group.apply_commit(ApplyCommit(number, payload[2:], frozenset(self.world.seen), self.in_group))
            )
        else:
            number, known = int.from_bytes(payload[:2], "big"), frozenset(self.world.seen)
            self.follow(self.group.apply_welcome(ApplyWelcome(number, payload[2:], known)))

    def take_text(self, op: int, payload: dict[str, object]) -> None:
        number = payload.get("transition_id")
        if op == Opcode.DAVE_PREPARE_EPOCH and payload["epoch"] == 1:
            self.version = 1
            self.begin()
        elif op == Opcode.DAVE_EXECUTE_TRANSITION:
            assert isinstance(number, int)
            self.executed.append(number)
        elif op == Opcode.DAVE_PREPARE_TRANSITION and number != 0:
            assert isinstance(number, int)
            assert isinstance(payload["protocol_version"], int)
            self.version = payload["protocol_version"]
            self.world.say(self.world.service.transition_ready(self.user_id, number))

    def follow(self, events: list[Event]) -> None:
        """What the library said goes to the server."""
        service, say = self.world.service, self.world.say
        for event in events:
            if isinstance(event, KeyPackageMade):
                say(service.key_package(self.user_id, event.data))
            elif isinstance(event, CommitMade):
                say(service.commit_welcome(self.user_id, event.data))
            elif isinstance(event, GroupJoined):
                self.joined, self.in_group = event, True
                if event.transition_id:
                    self.ready.append(event.transition_id)
                    say(service.transition_ready(self.user_id, event.transition_id))
            elif isinstance(event, GroupRejected):
                say(service.invalid_commit(self.user_id, event.transition_id))
                self.begin()


class World:
    """The service, its members, and what is under way; `order` may deliver messages of different users in any order."""

    def __init__(self) -> None:
        self.service = DeliveryService(CHANNEL)
        self.members: dict[int, Member] = {}
        self.seen: set[int] = set()  # a client hears of a leave in order, so after the proposals sent before it
        self.under_way: dict[int, deque[Delivery]] = {}
        self.said: list[Delivery] = []

    def told(self, op: int) -> set[int]:
        """Who was sent that opcode since `said` was cleared."""
        return {delivery.user_id for delivery in self.said if delivery.op == op}

    def say(self, deliveries: list[Delivery]) -> None:
        self.said += deliveries
        for delivery in deliveries:
            self.under_way.setdefault(delivery.user_id, deque()).append(delivery)

    def step(self, choice: int = 0) -> bool:
        """Deliver the next message of one user; False where none is under way."""
        waiting = [user for user, queue in sorted(self.under_way.items()) if queue]
        if not waiting:
            return False
        delivery = self.under_way[waiting[choice % len(waiting)]].popleft()
        member = self.members.get(delivery.user_id)
        if member is not None:
            member.take(delivery.op, delivery.payload)
        return True

    def settle(self) -> None:
        for _ in range(2000):
            if not self.step():
                return
        raise AssertionError("messages without end")

    def join(self, user_id: int, *, key_package: bool = True) -> Member:
        member = self.members[user_id] = Member(self, user_id)
        self.seen.add(user_id)
        self.say(self.service.join(user_id))
        if key_package:
            member.begin()
        return member

    def leave(self, user_id: int) -> None:
        del self.members[user_id]
        self.under_way.pop(user_id, None)
        self.say(self.service.leave(user_id))

    def check(self) -> None:
        """All are in one group and hear each other."""
        codes = {member.joined and member.joined.privacy_code for member in self.members.values()} - {None, ""}
        assert len(codes) == 1, self.service.rejected
        assert self.service.members == set(self.members)
        assert self.service.pending == frozenset()
        for speaker, listener in itertools.permutations(self.members.values(), 2):
            frame = bytes((0x78, speaker.user_id, *range(60)))
            assert listener.group.decrypt(speaker.user_id, speaker.group.encrypt(frame)) == frame
