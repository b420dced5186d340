"""The jitter buffer, whatever network and sender do: slots without gaps, each packet once, at rest in the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.test_media_time import Buffer
from voicegw.media.delay import LEAST_SLOTS, MOST_SLOTS, DelayEstimate
from voicegw.media.heard import Provenance
from voicegw.media.jitter import LEAST_LIMIT, RESTART_PACKETS, Action

LENGTHS = ([960], [480], [120, 960, 2880], [5760], [960, 0])


def weather(made: Buffer, chance: random.Random, lengths: list[int]) -> float:
    """400 slots with loss, duplicates, reordering, bursts, jumps of the sequence and a process that stands still."""
    now, sequence, number = 10.0, chance.randrange(65536), 0
    for _ in range(400):
        trouble = chance.random()
        if trouble < 0.02:
            sequence += chance.choice((-60, -51, -50, -20, -3, 3, 20, 49, 50, 51, 3000, 32768))
        elif trouble > 0.98:
            now += chance.choice((3, 10, 60, 200, 5000))
        for _ in range(12 if chance.random() < 0.02 else chance.choice((0, 1, 1, 1, 1, 1, 1, 2))):
            sequence, number = sequence + 1, number + 1
            if chance.random() < 0.1:
                continue
            samples = chance.choice(lengths)
            packet = number.to_bytes(8, "big") if samples and chance.random() < 0.95 else b""
            kind = chance.choice((Provenance.RECEIVED,) * 8 + (Provenance.SILENCE,))
            arrived = (kind if packet else Provenance.UNDECRYPTABLE, packet, samples)
            place = (sequence + (chance.randrange(-6, 6) if chance.random() < 0.1 else 0)) & 0xFFFF
            for _ in range(2 if chance.random() < 0.05 else 1):
                made.buffer.insert(place, arrived, now)
                assert len(made.buffer) <= 400
                if len(lengths) == 1:
                    assert len(made.buffer) <= max(LEAST_LIMIT, 50 * 960 // lengths[0]) + RESTART_PACKETS
        now += chance.choice((0.5, 1, 1, 1, 1.5))
        made.until(now)
        assert made.buffer.active or not len(made.buffer)
    return now


@given(seed=st.integers(0, 1_000_000), lengths=st.sampled_from(LENGTHS))
def test_slots_have_no_gaps_and_packets_come_once(seed: int, lengths: list[int]) -> None:
    made = Buffer()
    made.until(weather(made, random.Random(seed), lengths) + 600)
    assert not made.buffer.active
    completed = [turn.slot for turn in made.turns if turn.completes]
    assert completed == sorted(set(completed))
    assert len(completed) == made.stats.slots
    assert len(made.played) == len(set(made.played))
    held = 0  # what a decoder would hold back
    for turn in made.turns:
        if turn.action is Action.END:
            held = 0
            continue
        held += turn.samples if turn.action is not Action.GO_ON else 0
        assert turn.completes == (held >= 960)
        held -= 960 if turn.completes else 0


def test_a_packet_that_cannot_be_decoded_is_as_long_as_its_neighbours() -> None:
    made = Buffer()
    for number in range(20):
        kind, packet, samples = Provenance.RECEIVED, bytes((number + 1,)), 2880
        if number % 4 == 3:
            kind, packet, samples = Provenance.UNDECRYPTABLE, b"", 960
        made.until(10 + 3 * number)
        made.buffer.insert(number, (kind, packet, samples), 10 + 3 * number)
    made.until(200)
    assert {turn.samples for turn in made.turns if turn.provenance is Provenance.UNDECRYPTABLE} == {2880}
    assert made.stats.stretched == made.stats.lost == 0


def test_a_sender_may_begin_anew_a_hundred_times() -> None:
    made, chance, now, number, sequence = Buffer(), random.Random(1), 10.0, 0, 0
    for _ in range(100):
        sequence += chance.randrange(3000, 60_000)
        for _ in range(10):
            number += 1
            made.until(now)
            made.buffer.insert(sequence & 0xFFFF, (Provenance.RECEIVED, number.to_bytes(8, "big"), 960), now)
            sequence, now = sequence + 1, now + 1
        now += 500
        made.until(now)
    assert made.played == list(range(1, 1001))
    assert made.stats.lost == 0


def test_padding_before_the_first_packet_is_nothing() -> None:
    made = Buffer()
    for sequence in (65_535, 0, 1):
        made.buffer.insert(sequence, (Provenance.RECEIVED, b"", 0), 10.0)
    assert not made.buffer.active
    made.run([(20 + n, 65_538 + n) for n in range(5)])
    assert made.played == [65_538 + n for n in range(5)]
    assert made.stats.lost == 0


def test_the_target_stays_where_nothing_is_late_and_within_its_bounds() -> None:
    delay = DelayEstimate()
    delay.restart(0.0)
    for _ in range(1000):
        delay.note(0.0)
    assert delay.target == LEAST_SLOTS
    assert delay.jitter == 0.0
    for number in range(1000):
        delay.note(float(number % 100))
    assert delay.target == MOST_SLOTS


@pytest.mark.parametrize("late", [1.2, 3.7, 8.0])
def test_the_target_covers_what_is_late_and_forgets_it(late: float) -> None:
    delay = DelayEstimate()
    delay.restart(0.0)
    for number in range(500):
        delay.note(late if number % 20 == 0 else 0.0)
    assert late < delay.target < late + 1.5 or delay.target == LEAST_SLOTS > late
    for _ in range(3000):
        delay.note(0.0)
    assert delay.target == LEAST_SLOTS


def test_the_base_follows_a_slow_clock() -> None:
    delay = DelayEstimate()
    delay.restart(0.0)
    for number in range(3000):
        delay.note(number * 0.0005)
    assert delay.base == pytest.approx(1.5, abs=0.3)
