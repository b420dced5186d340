"""RTP media: whose sound it is. Unknown, changed and reused SSRCs, speaking events, leaves, growth, slow consumers."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.listening import ALICE, BOB, TONE, Listening
from tests.members import World as Groups
from tests.test_hearing import Ears, Kept
from voicegw.media.heard import HeardFrame
from voicegw.media.jitter import JitterBuffer
from voicegw.media.listeners import QUEUE_FRAMES
from voicegw.media.opus import OpusDecoder
from voicegw.media.ssrc_map import HELD_PACKETS, MOST_SSRCS, MOST_USERS

CAROL = 33


def marked(user_id: int, number: int) -> bytes:
    """An Opus packet that says whose it is: the mark is in the padding (RFC 6716 section 3.2.5)."""
    mark = user_id.to_bytes(4, "big") + number.to_bytes(4, "big")
    return b"\xff\x41" + bytes((len(mark),)) + TONE[number % len(TONE)][1:] + mark


def speaker(packet: bytes) -> tuple[int, int]:
    """Whose packet it is, and which."""
    return int.from_bytes(packet[-8:-4], "big"), int.from_bytes(packet[-4:], "big")


def attributed(listening: Listening) -> dict[int, list[int]]:
    """Whose packets were credited to whom: numbers by user, for packets of that very user."""
    found: dict[int, list[int]] = {}
    for frame in listening.frames:
        for packet in frame.packets:
            whose, number = speaker(packet)
            assert whose == frame.user_id, f"a packet of {whose} was heard as {frame.user_id}"
            found.setdefault(whose, []).append(number)
    return found


# -- unknown SSRCs


@covers("F97")
def test_a_flood_of_unknown_ssrcs_is_held_within_bounds(seed: int) -> None:
    listening, chance = Listening(), random.Random(seed)
    listening.receiver.map_ssrc(1, ALICE)
    for number in range(100_000):
        listening.receiver.packet(chance.getrandbits(32) | 1 << 31, number & 0xFFFF, TONE[0])
        listening.now += 0.0001
    held = listening.receiver.map._held
    assert len(held) <= 64
    assert all(len(packets) <= 10 for packets in held.values())
    assert listening.receiver.counters["before its user was known"] == 100_000
    assert listening.frames == []
    assert set(listening.receiver.stats) == {ALICE}
    listening.say(1, 2, 3, ssrc=1)
    assert listening.drain() == "..."


@covers("F97")
@pytest.mark.parametrize("late_s", [0.0, 0.02, 0.1, 0.18])
def test_the_first_words_are_heard_when_their_user_becomes_known_in_time(late_s: float) -> None:
    listening = Listening()
    for number in range(40):
        if number == round(late_s / 0.02):
            listening.receiver.map_ssrc(9, BOB)
        listening.take(number, marked(BOB, number), ssrc=9)
        listening.wait(0.02)
    listening.wait(0.5)
    assert attributed(listening) == {BOB: list(range(40))}
    assert listening.heard(BOB).startswith("e" * round(late_s / 0.02) + ".")
    assert listening.receiver.stats[BOB].lost == 0


@covers("F97")
@pytest.mark.parametrize("late_s", [0.3, 0.5, 2.0])
def test_words_of_longer_ago_are_dropped_and_nothing_is_decoded_without_a_user(
    late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def noted(frame: bytes) -> bytes:
        decoded.append(frame)
        return frame

    decode = OpusDecoder.decode
    monkeypatch.setattr(OpusDecoder, "decode", lambda self, frame: decode(self, noted(frame)))
    groups = Groups()
    groups.join(BOB)
    groups.join(ALICE)
    groups.settle()
    listening = Listening()
    listening.receiver.use_decrypt(groups.members[ALICE].group.decrypt)
    first = round(late_s / 0.02)
    for number in range(first + 10):
        if number == first:
            assert decoded == []
            listening.receiver.map_ssrc(9, BOB)
        listening.take(number, groups.members[BOB].group.encrypt(marked(BOB, number)), ssrc=9)
        listening.wait(0.02)
    listening.wait(0.5)
    assert attributed(listening) == {BOB: list(range(first - HELD_PACKETS, first + 10))}


# -- SSRCs that change hands


@covers("F98")
def test_no_packet_is_credited_to_anybody_but_its_owner_at_arrival(seed: int) -> None:
    """Three users swap, reuse and claim each other's SSRCs at random while they speak."""
    listening, chance = Listening(), random.Random(seed)
    owner: dict[int, int] = {}
    numbers: dict[int, int] = {}
    sent: dict[int, int] = {}
    for _ in range(3000):
        if chance.random() < 0.03:
            ssrc, user = chance.randrange(1, 5), chance.choice((ALICE, BOB, CAROL))
            owner[ssrc] = user
            listening.receiver.map_ssrc(ssrc, user)
        if chance.random() < 0.01:
            user = chance.choice((ALICE, BOB, CAROL))
            owner = {ssrc: whose for ssrc, whose in owner.items() if whose != user}
            listening.receiver.forget_user(user)
        for ssrc, user in owner.items():
            numbers[ssrc] = numbers.get(ssrc, 0) + 1
            sent[user] = sent.get(user, 0) + 1
            listening.take(numbers[ssrc] & 0xFFFF, marked(user, sent[user]), ssrc=ssrc)
        listening.now += 0.02
        listening.receiver.tick()
    listening.wait(0.5)
    heard = attributed(listening)
    assert set(heard) == {ALICE, BOB, CAROL}
    for user, found in heard.items():
        assert len(found) == len(set(found))
        assert len(found) > 0.9 * sent[user]


@covers("F98")
def test_a_change_of_owner_begins_with_a_fresh_buffer_and_decoder() -> None:
    listening = Listening()
    listening.receiver.map_ssrc(7, ALICE)
    listening.say(*range(1, 20), ssrc=7)
    before = listening.receiver.map.owners[7][1]
    epoch = listening.receiver.map.epoch
    listening.take(20, marked(ALICE, 20), ssrc=7)
    listening.take(22, marked(ALICE, 22), ssrc=7)
    listening.receiver.map_ssrc(7, BOB)
    after = listening.receiver.map.owners[7][1]
    assert after is not before
    assert after.decoder is not before.decoder
    assert (len(after), listening.receiver.map.epoch > epoch) == (0, True)
    listening.take(50_000, marked(BOB, 1), ssrc=7)
    listening.wait(0.5)
    heard = {frame.user_id: [speaker(p) for p in frame.packets] for frame in listening.frames if frame.packets}
    assert heard[BOB] == [(BOB, 1)]
    assert heard[ALICE] == [(ALICE, 22)]
    assert listening.receiver.stats[BOB].lost == 0


@covers("F98")
def test_a_user_who_comes_back_with_a_new_ssrc_is_heard_and_the_old_one_stays_theirs() -> None:
    listening = Listening()
    listening.receiver.map_ssrc(1, ALICE)
    listening.say(1, 2, 3, ssrc=1)
    listening.receiver.map_ssrc(2, ALICE)
    listening.say(40_000, 40_001, ssrc=2)
    listening.wait(0.5)
    assert listening.receiver.stats[ALICE].packets == 5
    assert set(listening.receiver.map.users[ALICE].streams) == {1, 2}


# -- speaking


@covers("F99")
@pytest.mark.parametrize("event_after_s", [0.0, 30.0, None])
def test_speech_begins_and_ends_by_its_packets_however_the_event_comes(event_after_s: float | None) -> None:
    """Three speeches of 2 s with 10 s between them; op 5 comes once: before, 30 s late, or never."""
    listening = Listening()
    said = [(start, start + 2.0) for start in (1.0, 13.0, 25.0, 37.0)]
    number, mapped = 0, False
    for step in range(50 * 45):
        at = step * 0.02
        if event_after_s is not None and not mapped and at >= event_after_s:
            mapped = True
            listening.receiver.map_ssrc(5, ALICE)
        if any(start <= at < end for start, end in said):
            number += 1
            listening.take(number, ssrc=5)
        listening.wait(0.02)
    changes = [(at, on) for at, user, on in listening.speaking if user == ALICE]
    expected = (
        []
        if event_after_s is None
        else [(at, on) for start, end in said if start >= event_after_s for at, on in ((start, True), (end, False))]
    )
    assert [on for _, on in changes] == [on for _, on in expected]
    assert all(0 <= at - wanted <= 0.2 for (at, _), (wanted, _) in zip(changes, expected, strict=True))


# -- leaving, and growing


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(one) is kind for one in gc.get_objects())


@covers("F100")
def test_a_leave_clears_all_of_a_user_ten_thousand_times() -> None:
    listening = Listening()
    receiver = listening.receiver
    before = alive(JitterBuffer)
    for turn in range(10_000):
        for ssrc in range(5):
            receiver.map_ssrc(100 + ssrc, ALICE)
        if turn % 100 == 0:
            for ssrc in range(5):
                receiver.packet(100 + ssrc, turn, TONE[0])
        receiver.forget_user(ALICE)
        assert not receiver.map.owners
        assert not receiver.map.users
    assert receiver.speaking == frozenset()
    listening.wait(1.0)
    assert not receiver.busy
    assert len(receiver.map._held) == 0
    listening.frames.clear()
    assert alive(JitterBuffer) == before


@covers("F101")
def test_72_hours_of_coming_and_going_leave_nothing_behind() -> None:
    listening, chance = Listening(), random.Random(1)
    listening.receiver._on_turns = lambda turns: None
    for number in range(MOST_SSRCS):  # every cap is reached
        listening.receiver.map_ssrc(number, 1 + number % MOST_USERS)

    def hours(count: int) -> int:
        for _ in range(count * 20):
            user, ssrc = chance.randrange(1, 1 << 40), chance.getrandbits(32)
            listening.receiver.map_ssrc(ssrc, user)
            for sequence in range(3):
                listening.receiver.packet(ssrc, sequence, TONE[sequence])
                listening.receiver.packet(chance.getrandbits(32), sequence, TONE[sequence])
            listening.wait(0.04)
            if chance.random() < 0.9:  # some leaves are never told
                listening.receiver.forget_user(user)
            listening.now += 180
            listening.receiver.tick()
            listening.speaking.clear()
        gc.collect()
        return len(gc.get_objects())

    hours(20)
    warm = hours(1)
    assert hours(72) < warm * 1.01
    receiver = listening.receiver
    assert len(receiver.stats) <= MOST_USERS
    assert len(receiver.map.users) <= MOST_USERS
    assert len(receiver.map.owners) <= MOST_SSRCS
    assert len(receiver.counters) < 10


@covers("F101")
def test_users_and_ssrcs_are_capped_and_the_newest_are_heard() -> None:
    listening = Listening()
    for number in range(MOST_SSRCS + 10):
        listening.receiver.map_ssrc(number, 1 + number % 500)
    assert len(listening.receiver.map.owners) == MOST_SSRCS
    assert sum(len(user.streams) for user in listening.receiver.map.users.values()) == MOST_SSRCS
    for number in range(MOST_USERS + 10):
        listening.receiver.map_ssrc(100_000 + number, 10_000 + number)
    assert len(listening.receiver.map.users) == MOST_USERS
    assert len(listening.receiver.stats) <= MOST_USERS
    last = 10_000 + MOST_USERS + 9
    listening.say(1, 2, 3, ssrc=100_000 + MOST_USERS + 9)
    listening.wait(0.5)
    assert listening.heard(last).startswith("...")


# -- slow consumers


@covers("F107")
async def test_frames_that_are_never_read_are_bounded_and_hurt_nobody() -> None:
    ears = Ears()
    never, bobs = ears.hearing.frames(frozenset((ALICE,))), ears.hearing.frames(frozenset((BOB,)))
    heard: list[HeardFrame] = []
    for first in range(1, 1001, 20):
        ears.say(first, 20)
        await ears.hearing.flush()
        await asyncio.sleep(0)
        while bobs._order:
            heard.append(await anext(bobs))
    assert len(heard) == 1000
    assert never.dropped == 1000 - QUEUE_FRAMES
    assert sum(map(len, never._queues.values())) == len(never._order) == QUEUE_FRAMES
    assert len(ears.warnings) == 1


@covers("F107")
async def test_a_reader_of_every_tenth_frame_gets_the_newest_two_seconds() -> None:
    ears, kept = Ears(), Kept()
    ears.hearing.listen(kept)
    slow = ears.hearing.frames(frozenset((ALICE,)))
    read: list[HeardFrame] = []
    for first in range(1, 1001, 10):
        ears.say(first, 10)
        await ears.hearing.flush()
        await asyncio.sleep(0)
        read.append(await anext(slow))
    assert len(slow._order) <= QUEUE_FRAMES
    assert kept.frames[-1].slot - read[-1].slot <= QUEUE_FRAMES
    assert slow.dropped == 1000 - len(read) - len(slow._order)
    assert len(kept.frames) == 2000
    assert len(ears.warnings) == 1


def test_marks_do_not_disturb_decoding() -> None:
    decoder: Any = OpusDecoder()
    assert len(decoder.decode(marked(ALICE, 3))) == 3840
