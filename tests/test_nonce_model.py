"""No nonce twice: the real counters with few bits, in every state that they can reach.

A key table of eight bits has 256 nonces a key, so everything that takes 2.7 years of sending can be followed to its
end: sends, resumes, new keys, keys that come back, the last use. With four bits the peer's own nonces are among it.
"""

from __future__ import annotations

import copy
from collections import deque
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from voicegw.errors import KeyExhausted
from voicegw.secret import Secret
from voicegw.wire.encryption import KeyTable, NonceCounter

A, B = b"a" * 32, b"b" * 32
BITS = 8
SPACE = 1 << BITS


class Call:
    """What holds a counter in the real thing: a cipher of the present session. Everything else is the table's."""

    def __init__(self, bits: int = BITS) -> None:
        self.keys = KeyTable(bits)
        self.key = A
        self.counter = self.keys.counter(Secret(A))

    def send(self) -> int | None:
        """One packet; None where the key is spent."""
        try:
            return self.counter.spend()
        except KeyExhausted:
            return None

    def resume(self) -> None:
        """The session lives on, all objects of ours are built anew."""
        self.counter = self.keys.counter(Secret(self.key))

    def rekey(self, key: bytes) -> None:
        """A Session Description brings a key: a new one, the same one, or an old one."""
        self.key = key
        self.resume()

    def reconnect(self) -> None:
        """A new session of another client object in this process, with whatever key the server thinks of."""
        self.counter = NonceCounter(0, BITS)  # what is not from the table is forgotten with the session
        self.resume()


def test_every_state_of_two_keys_hands_out_each_nonce_once() -> None:
    """All 2 x 256 x 256 states, each left by every step: only a send changes a count, and each count is one nonce."""
    handed_out: dict[tuple[bytes, int], int] = {}
    states = 0
    call = Call()
    counters = {A: call.keys.counter(Secret(A)), B: call.keys.counter(Secret(B))}
    for key, used_a, used_b in product((A, B), range(SPACE), range(SPACE)):
        states += 1
        counters[A].uses, counters[B].uses = used_a, used_b
        for rekey_with in (None, key, A, B):
            call.reconnect() if rekey_with is None else call.rekey(rekey_with)
            assert (counters[A].uses, counters[B].uses) == (used_a, used_b)
            assert call.counter is counters[call.key]
        call.rekey(key)
        used = counters[key].uses
        nonce = call.send()
        other = B if key == A else A
        assert counters[other].uses == (used_b if key == A else used_a)
        if used == SPACE - 1:
            assert nonce is None
            assert counters[key].uses == used
        else:
            assert nonce is not None
            assert counters[key].uses == used + 1
            assert handed_out.setdefault((key, used), nonce) == nonce
    assert states == 2 * SPACE * SPACE
    for key in (A, B):
        nonces = [handed_out[key, used] for used in range(SPACE - 1)]
        assert len(set(nonces)) == SPACE - 1
        assert nonces[0] == SPACE // 2  # from the middle, round to the one before


STEPS = ("send", "many", "resume", "reconnect", "same key", "other key", "first key")


def test_every_order_of_seven_steps_uses_no_nonce_twice() -> None:
    """From counts near the end, so that keys wear out and are spent on the way."""
    for order in product(STEPS, repeat=5):
        call = Call()
        seen: set[tuple[bytes, int]] = set()
        for step in order:
            if step in ("send", "many"):
                for _ in range(1 if step == "send" else 100):
                    nonce = call.send()
                    assert (call.key, nonce) not in seen
                    if nonce is not None:
                        seen.add((call.key, nonce))
            elif step == "resume":
                call.resume()
            elif step == "reconnect":
                call.reconnect()
            else:
                call.rekey({"same key": call.key, "other key": B if call.key == A else A, "first key": A}[step])


@pytest.mark.parametrize("uses", [0, 126, 127, 128, 129, 253, 254, 255])
def test_worn_and_spent_at_their_limits(uses: int) -> None:
    counter = Call().counter
    counter.uses = uses
    assert (counter.uses >= counter.worn_at) == (uses >= 128)
    if uses == 255:
        with pytest.raises(KeyExhausted):
            counter.spend()
    else:
        assert counter.spend() == (128 + uses) % 256


def test_with_the_peers_nonces_among_it_every_state_is_followed() -> None:
    """Four bits, and after each step any of the peer's 16 nonces: ours never repeat, and a meeting is always told."""
    first = NonceCounter(8, 4)
    todo: deque[tuple[NonceCounter, frozenset[int]]] = deque([(first, frozenset())])
    known = {(0, frozenset[int]())}
    while todo:
        counter, sent = todo.popleft()
        for theirs in (None, *range(16)):
            branch = twin(counter)
            after = sent
            if theirs is None:
                try:
                    nonce = branch.spend()
                except KeyExhausted:
                    continue
                assert nonce not in sent
                after = sent | {nonce}
            else:
                fine = not branch.may_meet(theirs) or branch.keep_apart(theirs)
                assert fine <= (theirs not in sent)  # used already: it is told
                if fine and branch.uses < branch.limit:
                    assert twin(branch).spend() != theirs  # never run into
            assert branch.uses >= counter.uses
            if (branch.uses, after) not in known:
                known.add((branch.uses, after))
                todo.append((branch, after))
    assert len(known) > 100


def twin(counter: NonceCounter) -> NonceCounter:
    """A counter that goes its own way from here."""
    made = NonceCounter(8, 4)
    made.uses, made._start, made._runs = counter.uses, counter._start, copy.copy(counter._runs)
    return made


def test_the_oldest_keys_are_forgotten_and_those_in_use_are_not() -> None:
    table = KeyTable(BITS, remembered=10)
    in_use = table.counter(Secret(A))
    in_use.spend()
    for number in range(90):
        table.counter(Secret(bytes([number]) * 32)).spend()
        assert table.counter(Secret(A)) is in_use  # looked up again with every session that has it
        assert len(table) <= 10
    assert table.counter(Secret(A)).uses == 1
    assert table.counter(Secret(A), "server") is not in_use


class Sessions(RuleBasedStateMachine):
    """Many keys, many sessions at once in one process."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = KeyTable(BITS)
        self.held = [(A, self.keys.counter(Secret(A)))]
        self.seen: set[tuple[bytes, int]] = set()
        self.refused: set[bytes] = set()

    @rule(key=st.sampled_from([bytes([number]) * 32 for number in range(4)]))
    def join(self, key: bytes) -> None:
        """One more session."""
        self.held.append((key, self.keys.counter(Secret(key))))

    @rule(which=st.integers(0), count=st.sampled_from([1, 2, 30, 127, 128]))
    def send(self, which: int, count: int) -> None:
        """One session sends."""
        key, counter = self.held[which % len(self.held)]
        for _ in range(count):
            try:
                nonce = counter.spend()
            except KeyExhausted:
                self.refused.add(key)
                continue
            assert key not in self.refused
            assert (key, nonce) not in self.seen
            self.seen.add((key, nonce))

    @rule(which=st.integers(0))
    def leave(self, which: int) -> None:
        """One session ends."""
        if len(self.held) > 1:
            del self.held[which % len(self.held)]

    @invariant()
    def spent_keys_have_used_all_but_one(self) -> None:
        """No nonce is lost, either."""
        for key in self.refused:
            assert sum(one == key for one, _ in self.seen) == SPACE - 1


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
