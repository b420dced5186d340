"""A stream that goes from process to process: each sends what was leased to it, and the next goes on behind that."""

from __future__ import annotations

import itertools

import pytest

from voicegw.media.sender import KEYS_NAMED, StreamMark, StreamSender
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, KeyTable, TransportCipher
from voicegw.wire.rtp import RtpView, parse_rtp

SSRC = 12871
FAR = 1 << 20  # ticks, more than any of these streams comes to


class Stream:
    """A stream of one process: held, and not yet bound to leases."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.asked = 0
        self.keys = KeyTable()
        self.numbers = itertools.count(1)
        self.sender = StreamSender(lambda: None)
        self.key = self.rekey()

    def rekey(self, number: int | None = None) -> TransportCipher:
        secret = Secret((number or next(self.numbers)).to_bytes(32, "big"))
        self.key = TransportCipher(PREFERRED_MODES[0], secret, keys=self.keys)
        self.sender.configure(self.key, SSRC, self.send)
        return self.key

    def send(self, data: bytes) -> bool:
        self.sent.append(data)
        return True

    def ask(self) -> None:
        self.asked += 1

    def lease(self, frames: int, ticks: int = FAR) -> None:
        """So many frames from here, or so many ticks."""
        mark = self.sender.mark()
        self.sender.lease(StreamMark(mark.nonces + frames, mark.sequence, (mark.timestamp_ticks + ticks) & 0xFFFFFFFF))

    def play(self, frames: int) -> int:
        """How many left."""
        return sum(self.sender.send(b"speech") for _ in range(frames))

    def named(self) -> list[bytes]:
        return [key for key, _ in self.sender.keys(0)]

    def views(self) -> list[RtpView]:
        return [parse_rtp(data) for data in self.sent]


@pytest.fixture
def leased() -> Stream:
    """Released, and it may send only what it is leased."""
    made = Stream()
    made.sender.release(None)
    made.sender.lease_only(made.ask)
    made.asked = 0
    return made


# -- the lease


def test_nothing_leaves_before_the_first_lease(leased: Stream) -> None:
    assert leased.play(3) == 0
    assert (leased.sender.open, leased.sender.held) == (False, 3)


def test_a_sender_that_already_sends_stops_where_leases_begin_and_asks_for_one() -> None:
    free = Stream()
    free.sender.release(None)
    assert free.play(3) == 3
    free.sender.lease_only(free.ask)
    assert (free.sender.open, free.asked) == (False, 1)
    assert free.play(1) == 0


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_as_much_leaves_as_was_leased_and_the_rest_waits(leased: Stream, frames: int) -> None:
    leased.lease(frames)
    assert leased.play(frames) == frames
    assert not leased.sender.open  # closed with the last frame, so that the lane keeps the next one
    assert leased.play(2) == 0
    leased.lease(2)
    assert leased.sender.open
    assert leased.play(2) == 2
    assert [view.marker for view in leased.views()] == [True, *[False] * (frames - 1), True, False]


def test_the_lease_should_be_renewed_at_half_and_when_it_has_ended(leased: Stream) -> None:
    leased.lease(10)
    asked = []
    for _ in range(10):
        leased.play(1)
        asked.append(leased.asked)
    assert asked == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]


def test_a_lease_of_no_frames_opens_nothing(leased: Stream) -> None:
    leased.lease(0)
    assert not leased.sender.open
    assert leased.play(1) == 0


def test_a_lease_opens_nothing_that_is_held(leased: Stream) -> None:
    leased.sender.hold()
    leased.lease(10)
    assert not leased.sender.open
    assert leased.play(1) == 0
    leased.sender.release(None)
    assert leased.play(1) == 1


def test_a_sender_that_was_never_released_stays_held_with_a_lease() -> None:
    free = Stream()
    free.sender.lease_only(free.ask)
    free.lease(10)
    assert not free.sender.open
    assert free.play(1) == 0


def test_release_asks_for_a_lease_only_where_none_is_left(leased: Stream) -> None:
    leased.sender.hold()
    leased.sender.release(None)
    assert (leased.sender.open, leased.asked) == (False, 1)
    leased.sender.hold()
    leased.lease(1)
    asked = leased.asked
    leased.sender.release(None)
    assert (leased.sender.open, leased.asked) == (True, asked)


def test_without_a_key_there_is_nothing_to_lease(leased: Stream) -> None:
    leased.lease(10)
    leased.sender.drop()
    leased.lease(10)
    leased.sender.release(None)
    assert not leased.sender.open
    leased.sender.skip(1)
    assert leased.play(1) == 0


def test_another_key_needs_a_lease_of_its_own_and_asks_for_it(leased: Stream) -> None:
    leased.lease(10)
    assert leased.play(1) == 1
    leased.rekey()
    assert (leased.sender.open, leased.asked) == (False, 1)
    leased.sender.release(None)
    assert leased.play(1) == 0
    leased.sender.skip(1)
    leased.sender.release(None)
    assert leased.play(1) == 0
    leased.lease(1)
    assert leased.play(1) == 1


def test_a_mark_from_before_leases_were_asked_for_allows_nothing() -> None:
    free = Stream()
    free.sender.release(None)
    free.lease(10)
    free.sender.lease_only(free.ask)
    free.sender.skip(1)
    free.sender.release(None)
    assert free.play(1) == 0


def test_a_key_that_another_process_took_over_closes_the_sender_until_the_next(leased: Stream) -> None:
    leased.lease(10)
    assert leased.play(1) == 1
    leased.keys.retire(leased.key.key_digest)
    assert leased.sender.send(b"speech") is False
    assert (leased.sender.open, leased.sender.held, leased.sender.errors) == (False, 1, 0)
    assert (leased.asked, len(leased.sent)) == (1, 1)
    leased.rekey()
    leased.lease(10)
    assert leased.play(1) == 1
    assert [view.marker for view in leased.views()] == [True, True]


# -- time that goes by in silence


@pytest.mark.parametrize("by", ["skip", "align"])
def test_silence_shortens_a_lease_to_what_its_timestamps_allow(leased: Stream, by: str) -> None:
    leased.sender.align(100.0)
    leased.lease(10, ticks=6 * 960)
    if by == "skip":
        leased.sender.skip(4)
    else:
        leased.sender.align(100.08)
    assert leased.play(3) == 2


@pytest.mark.parametrize("frames", [6, 7])
def test_silence_to_the_end_of_a_lease_and_beyond_uses_it_up(leased: Stream, frames: int) -> None:
    leased.lease(10, ticks=6 * 960)
    leased.sender.skip(5)
    assert (leased.sender.open, leased.asked) == (True, 0)
    leased.sender.skip(frames - 5)
    assert (leased.sender.open, leased.asked) == (False, 1)
    assert leased.play(1) == 0


# -- marks


def test_a_mark_says_what_comes_next(leased: Stream) -> None:
    leased.lease(10)
    leased.play(2)
    last, mark = leased.views()[-1], leased.sender.mark()
    assert mark == StreamMark(2, (last.sequence + 1) & 0xFFFF, (last.timestamp_ticks + 960) & 0xFFFFFFFF)


def test_a_mark_ahead_leaves_as_much_silence_as_speech(leased: Stream) -> None:
    here, ahead = leased.sender.mark(), leased.sender.mark(3)
    assert ahead.nonces == here.nonces + 3
    assert (ahead.sequence - here.sequence) & 0xFFFF == 3
    assert (ahead.timestamp_ticks - here.timestamp_ticks) & 0xFFFFFFFF == 6 * 960


def test_a_sender_without_a_key_has_used_no_nonce() -> None:
    assert StreamSender(lambda: None).mark().nonces == 0


@pytest.mark.parametrize("first", [1000, 1 << 30, (1 << 32) - 1000])
def test_a_mark_reaches_to_now_and_never_back(first: int) -> None:
    sender = StreamSender(lambda: None)
    sender.go_on(StreamMark(0, 0, first), 100.0)
    sender.align(100.0)
    assert sender.mark(now=100.5).timestamp_ticks == (first + 24_000) & 0xFFFFFFFF
    assert sender.mark(now=99.5).timestamp_ticks == first
    assert sender.mark().timestamp_ticks == first


def test_before_the_first_packet_there_is_no_time_to_reach_to() -> None:
    sender = StreamSender(lambda: None)
    assert sender.mark(now=100.0) == sender.mark()


def test_the_next_process_goes_on_with_number_and_time(leased: Stream) -> None:
    leased.sender.go_on(StreamMark(7, 0xFFFF, 5000), 50.0)
    leased.lease(10)
    for due in (50.02, 50.04):
        leased.sender.align(due)
        leased.play(1)
    assert [(view.sequence, view.timestamp_ticks) for view in leased.views()] == [(0xFFFF, 5960), (0, 6920)]


# -- keys


def test_every_key_is_named_with_its_uses_and_the_present_one_ahead(leased: Stream) -> None:
    first = leased.key
    leased.lease(10)
    leased.play(2)
    second = leased.rekey()
    leased.lease(10)
    leased.play(1)
    assert leased.sender.keys(5) == ((first.key_digest, 2), (second.key_digest, 6))


def test_a_key_that_was_dropped_is_still_named(leased: Stream) -> None:
    leased.lease(10)
    leased.play(2)
    leased.sender.drop()
    assert leased.sender.keys(5) == ((leased.key.key_digest, 2),)


def test_the_keys_that_were_used_last_are_named_longest(leased: Stream) -> None:
    again = leased.key.key_digest
    keys = [leased.rekey().key_digest for _ in range(KEYS_NAMED - 1)]
    assert leased.named() == [again, *keys]
    leased.rekey(1)
    last = leased.rekey(1000).key_digest
    assert leased.named() == [*keys[1:], again, last]


def test_the_keys_of_the_process_before_are_named_too(leased: Stream) -> None:
    before = KeyTable().take_over(b"a" * 32, 9)
    leased.sender.go_on(StreamMark(0, 0, 0), 0.0, {b"a" * 32: before})
    assert leased.sender.keys() == ((b"a" * 32, 9), (leased.key.key_digest, 0))
