"""No nonce twice from process to process: real senders and counters with eight bits, and a fleet that goes wrong.

A process is what dies: its table of keys, its sender, what it believes. The store is what stays: the last document that
was written. A process that was taken for dead goes on sending when it wakes, as one that was stopped does.
"""

from __future__ import annotations

from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from voicegw.media.sender import StreamMark, StreamSender
from voicegw.secret import Secret
from voicegw.wire.encryption import KeyTable, TransportCipher
from voicegw.wire.rtp import parse_rtp

BITS, LEASE = 8, 4
A, B = b"a" * 32, b"b" * 32
SSRC = 7
Keys = tuple[tuple[bytes, int], ...]


class Document:
    """What a FrozenCall says of the counters."""

    def __init__(self, key: bytes, stream: StreamMark, keys: Keys) -> None:
        self.key = key
        self.stream = stream
        self.keys = keys


class Wire:
    """All that has left, of whichever process."""

    def __init__(self) -> None:
        self.spent: set[tuple[bytes, int]] = set()
        self.numbers: set[tuple[int, int]] = set()
        self.count = 0

    def sends(self, key: bytes, data: bytes) -> bool:
        nonce = int.from_bytes(data[-4:], "little")
        assert (key, nonce) not in self.spent, f"nonce {nonce} twice"
        self.spent.add((key, nonce))
        view = parse_rtp(data)
        assert (view.sequence, view.timestamp_ticks) not in self.numbers, f"number {view.sequence} twice"
        self.numbers.add((view.sequence, view.timestamp_ticks))
        self.count += 1
        return True


class Process:
    """One owner of the call, as `voicegw.portable` makes it of the same parts."""

    def __init__(self, wire: Wire, document: Document | None, key: bytes = A) -> None:
        self.table = KeyTable(BITS)
        self.sender = StreamSender(lambda: None)
        self.sender.lease_only(lambda: None)
        self.wire = wire
        if document is not None:
            counters = {digest: self.table.take_over(digest, uses) for digest, uses in document.keys}
            self.sender.go_on(document.stream, 0.0, counters)
            key = document.key
        self.rekey(key)
        self.sender.release(None)

    def rekey(self, key: bytes) -> None:
        self.key = key
        cipher = TransportCipher("aead_aes256_gcm_rtpsize", Secret(key), keys=self.table)
        self.sender.configure(cipher, SSRC, lambda data: self.wire.sends(key, data))

    def send(self, frames: int) -> None:
        for _ in range(frames):
            if self.sender.ready:
                self.sender.ready.pop()
                self.wire.sends(self.key, self.sender.ready.pop())
            else:
                self.sender.send(b"speech")

    def document(self, ahead: int) -> Document:
        return Document(self.key, self.sender.mark(ahead), self.sender.keys(ahead))

    def freeze(self) -> Document:
        self.sender.hold()
        frozen = self.document(0)
        for digest, _ in frozen.keys:
            self.table.retire(digest)
        return frozen


class Fleet:
    """A call, its owner, and those that were taken for dead."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.owner = Process(self.wire, None)
        self.stale: list[Process] = []
        self.stored = self.owner.document(0)
        self.do("checkpoint")

    def do(self, step: str) -> None:
        owner = self.owner
        if step in ("send", "many"):
            owner.send(1 if step == "send" else 2 * LEASE)
        elif step == "ready":
            owner.sender.make_ready([b"speech"] * 3)
        elif step == "checkpoint":
            document = owner.document(LEASE)
            self.stored = document
            owner.sender.lease(document.stream)
        elif step == "checkpoint lost":  # on its way: it never arrives, and the owner knows nothing of it
            owner.document(LEASE)
        elif step == "answer lost":  # it has arrived, and the owner does not know
            self.stored = owner.document(LEASE)
        elif step == "crash":
            self.stale.append(owner)
            self.owner = Process(self.wire, self.stored)
        elif step == "freeze":
            self.stored = owner.freeze()
            self.stale.append(owner)
            self.owner = Process(self.wire, self.stored)
        elif step == "stale":
            for process in self.stale:
                process.send(LEASE)
        else:
            owner.rekey({"same key": owner.key, "other key": B if owner.key == A else A}[step])


STEPS = ("many", "checkpoint", "checkpoint lost", "answer lost", "crash", "freeze", "stale", "same key", "other key")


def test_every_order_of_five_steps_uses_no_nonce_and_no_number_twice() -> None:
    sent = 0
    for order in product(STEPS, repeat=5):
        fleet = Fleet()
        for step in order:
            fleet.do(step)
        sent += fleet.wire.count
    assert sent > 60_000


def test_what_is_made_ready_is_leased_as_well() -> None:
    sent = 0
    for order in product(("ready", "send", *STEPS[:2], "crash", "freeze", "stale", "same key"), repeat=4):
        fleet = Fleet()
        for step in ("send", "ready", *order):
            fleet.do(step)
        sent += fleet.wire.count
    assert sent > 9_000


def test_what_is_leased_can_be_sent_and_nothing_more() -> None:
    fleet = Fleet()
    fleet.do("many")
    assert fleet.wire.count == LEASE
    assert not fleet.owner.sender.open  # held: the lane keeps what it would play
    fleet.do("checkpoint")
    assert fleet.owner.sender.open
    fleet.do("many")
    assert fleet.wire.count == 2 * LEASE


def test_a_process_that_dies_leaves_its_lease_unused() -> None:
    fleet = Fleet()
    fleet.do("send")
    fleet.do("crash")
    fleet.do("checkpoint")
    fleet.do("send")
    (first, second) = sorted(nonce for _, nonce in fleet.wire.spent)
    assert (first, second) == (128, 128 + LEASE)


def test_a_frozen_call_goes_on_with_the_next_nonce_and_number() -> None:
    fleet = Fleet()
    fleet.do("send")
    fleet.do("freeze")
    fleet.do("checkpoint")
    fleet.do("send")
    assert sorted(nonce for _, nonce in fleet.wire.spent) == [128, 129]
    (one, two) = sorted(fleet.wire.numbers, key=lambda number: number[1])
    assert (two[0] - one[0]) & 0xFFFF == 1


def test_silence_uses_a_lease_up_too() -> None:
    """A timestamp beyond the mark would come again in the next process."""
    fleet = Fleet()
    sender = fleet.owner.sender
    sender.skip(2 * LEASE)
    sender.send(b"speech")
    assert fleet.wire.count == 0
    fleet.do("checkpoint")
    sender.send(b"speech")
    assert fleet.wire.count == 1


def test_without_a_lease_nothing_changes() -> None:
    wire = Wire()
    sender = StreamSender(lambda: None)
    table = KeyTable(BITS)
    cipher = TransportCipher("aead_aes256_gcm_rtpsize", Secret(A), keys=table)
    sender.configure(cipher, SSRC, lambda data: wire.sends(A, data))
    sender.release(None)
    for _ in range(200):
        assert sender.send(b"speech")


class Fleets(RuleBasedStateMachine):
    """Longer orders than can all be tried, to the end of both keys."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()

    @rule(step=st.sampled_from((*STEPS, "ready", "ready", "send", "checkpoint", "many", "freeze")))
    def step(self, step: str) -> None:
        """Anything."""
        self.fleet.do(step)


TestFleets = Fleets.TestCase
TestFleets.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
