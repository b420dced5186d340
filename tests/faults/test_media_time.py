"""RTP media: order and time. Sequence numbers and timestamps that wrap, stand still or jump; jitter, bursts, drift."""

from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.listening import ALICE, BOB, SSRC, TONE, Listening
from voicegw.media.decoding import StreamDecoder
from voicegw.media.heard import SLOT_S, Provenance, UserStats
from voicegw.media.jitter import Action, JitterBuffer, Turn
from voicegw.media.sender import StreamSender
from voicegw.wire.rtp import parse_rtp

HOUR = 3600


class Buffer:
    """A jitter buffer whose packets are numbers, on a clock in slots of 20 ms."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.stats = UserStats()
        self.buffer = JitterBuffer(StreamDecoder(ALICE, self.stats), self.stats, self.turns.append)

    def insert(self, number: int, now: float) -> None:
        arrived = (Provenance.RECEIVED, number.to_bytes(8, "big"), 960)
        self.buffer.insert(number & 0xFFFF, arrived, now)

    def until(self, now: float) -> None:
        buffer = self.buffer
        while buffer.active and buffer.slot <= now:
            buffer.play()

    def run(self, arrivals: list[tuple[float, int]]) -> None:
        """Packets with their arrival times, then a second of nothing."""
        for now, number in sorted(arrivals):
            self.until(now)
            self.insert(number, now)
        self.until(max(arrivals)[0] + 50)

    @property
    def played(self) -> list[int]:
        """The numbers of the packets that were decoded, in the order in which they were."""
        packets = [packet for turn in self.turns for packet in (turn.packet, turn.following) if packet]
        return [int.from_bytes(packet, "big") for packet in packets]


@covers("F92")
def test_a_sequence_that_wraps_five_times_is_played_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    numbers = range(65_500, 65_500 + 5 * 65_536 + 100)
    kept = [n for n in numbers if n == numbers[0] or not (chance.random() < 0.5 and (n + 60) & 0xFFFF < 120)]
    made = Buffer()
    made.run([(number + 0.3, number) for number in kept])
    assert made.played == kept
    assert made.stats.lost == len(numbers) - len(kept) - (numbers[-1] - kept[-1])
    assert made.stats.late == made.stats.restarts == made.stats.shortened == 0


class Wire:
    """A cipher and a socket that keep only the headers."""

    worn = False

    def __init__(self) -> None:
        self.headers: list[bytes] = []

    def seal(self, header: bytes, frame: bytes) -> bytes:
        self.headers.append(header)
        return header


def sending() -> tuple[StreamSender, Wire]:
    wire: Any = Wire()
    sender = StreamSender(lambda: None)
    sender.configure(wire, SSRC, lambda data: True)
    sender.release(None)
    return sender, wire


@covers("F93")
def test_two_hours_of_sending_number_every_packet_without_a_gap() -> None:
    sender, wire = sending()
    for _ in range(2 * HOUR * 50):
        assert sender.send(b"frame")
    sequences = [int.from_bytes(header[2:4], "big") for header in wire.headers]
    assert all((after - before) & 0xFFFF == 1 for before, after in itertools.pairwise(sequences))
    assert len(set(sequences)) == 1 << 16


@covers("F94")
def test_26_hours_of_sending_keep_the_timestamp_on_the_audio_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.sender.secrets.randbelow", lambda limit: limit - 1)
    sender, wire = sending()
    for _ in range(26 * HOUR):
        sender.send(b"frame")
        sender.skip(49)
    for _ in range(100):
        sender.send(b"frame")
    ticks = [parse_rtp(header).timestamp_ticks for header in wire.headers]
    steps = [(after - before) & 0xFFFFFFFF for before, after in itertools.pairwise(ticks)]
    assert set(steps[: 26 * HOUR]) == {48_000}
    assert set(steps[26 * HOUR :]) == {960}
    assert sum(before > after for before, after in itertools.pairwise(ticks)) == 2


@covers("F94")
def test_a_timestamp_that_wraps_or_restarts_at_zero_is_not_heard() -> None:
    for step_over in (0, 960 * 7):  # modulo 2**32, and set to 0 as some clients do
        listening = Listening()
        listening.receiver.map_ssrc(SSRC, ALICE)
        for sequence in range(1, 31):
            ticks = ((1 << 32) - 15 * 960 + sequence * 960 + (step_over if sequence > 15 else 0)) & 0xFFFFFFFF
            listening.receiver.datagram(listening.packet(sequence, TONE[sequence % len(TONE)], ticks=ticks))
            listening.wait(SLOT_S)
        assert listening.drain() == "." * 30
        assert listening.receiver.stats[ALICE].late == 0


JUMPS = [sign * size for size in (50, 51, 500, 20_000, 32_767, 32_768) for sign in (1, -1)]
TICK_JUMPS = [sign * size for size in (50, 960 * 50, 960 * 3000, 2**31 - 1, 2**31) for sign in (1, -1)]


@covers("F96")
@pytest.mark.parametrize(
    ("jump", "ticks"),
    [(jump, 0) for jump in JUMPS] + [(0, jump) for jump in TICK_JUMPS] + [(20_000, 99)],
)
def test_after_a_jump_sound_is_back_within_250_ms(jump: int, ticks: int) -> None:
    listening = Listening()
    listening.receiver.map_ssrc(SSRC, ALICE)
    sequence, timestamp = 40_000, 1_000_000
    jumped_at = back_at = 0.0
    for place in range(150):
        if place == 75:
            sequence, timestamp, jumped_at = sequence + jump, timestamp + ticks, listening.now
        before = len(listening.frames)
        packet = TONE[place % len(TONE)]
        data = listening.packet(sequence & 0xFFFF, packet, ticks=timestamp & 0xFFFFFFFF)
        listening.receiver.datagram(data)
        listening.wait(SLOT_S)
        new = [frame for frame in listening.frames[before:] if frame.packets in {(TONE[75 % len(TONE)],), (packet,)}]
        if jumped_at and not back_at and (new or _plays(listening, 75)):
            back_at = listening.now
        sequence, timestamp = sequence + 1, timestamp + 960
    assert back_at
    assert back_at - jumped_at < 0.25
    heard = listening.drain()
    assert heard.count(".") >= 150 - 5, "nothing but the packets of the jump itself is lost"
    assert heard.endswith("." * 60)


def _plays(listening: Listening, place: int) -> bool:
    return any(TONE[place % len(TONE)] in frame.packets for frame in listening.frames[-3:])


@covers("F102")
def test_jitter_of_100_ms_loses_less_than_one_in_a_hundred(seed: int) -> None:
    chance = random.Random(seed)
    count = 10 * 60 * 50
    made = Buffer()
    delays: list[float] = []
    arrivals = sorted((number + 5 * chance.random(), number) for number in range(100_000, 100_000 + count))
    for now, number in arrivals:
        made.until(now)
        made.insert(number, now)
        delays.append(made.stats.delay_s)
    made.until(arrivals[-1][0] + 50)
    assert made.stats.late < count / 100
    assert statistics.median(delays) < 0.2
    assert made.played == sorted(set(made.played))


@covers("F102")
def test_the_delay_grows_for_packets_that_others_overtake() -> None:
    made = Buffer()
    count = 10 * 60 * 50
    made.run([(n + (5.3 if n % 10 == 0 else 0.3), n) for n in range(70_001, 70_001 + count)])
    assert made.stats.late < count / 100
    assert made.played == sorted(made.played)
    assert made.stats.delay_s < 0.2


@covers("F102")
def test_a_spike_of_delay_is_waited_out_and_the_delay_comes_down_again(seed: int) -> None:
    chance = random.Random(seed)
    made = Buffer()
    count = 3 * 60 * 50
    arrivals, free_at = [], 0.0
    for number in range(count):
        spike = 20.0 if number % 1500 == 1499 else 0.0  # 400 ms, and what follows queues behind it
        free_at = max(free_at, number + chance.random() * 0.5 + spike)
        arrivals.append((free_at, 70_000 + number))
    made.run(arrivals)
    assert made.stats.late < count / 100
    assert len(made.played) >= count - made.stats.late - made.stats.shortened
    slots = {int.from_bytes(turn.packet, "big"): turn.slot for turn in made.turns if turn.packet}
    waits = [slots[number] - at for at, number in arrivals if number in slots]
    assert statistics.median(waits) * SLOT_S < 0.2


@covers("F102")
@pytest.mark.parametrize("ppm", [500, -500])
def test_an_hour_of_a_senders_clock_that_is_off_is_followed(ppm: int) -> None:
    made = Buffer()
    pace = 1 + ppm / 1_000_000
    arrivals = [(10 + number * pace + 0.2, 65_600 + number) for number in range(HOUR * 50)]
    made.run(arrivals)
    stats = made.stats
    corrections = stats.stretched if ppm > 0 else stats.shortened
    assert corrections == pytest.approx(HOUR * 50 * 500 / 1_000_000, abs=5)
    assert stats.late == stats.lost == 0
    slots = {int.from_bytes(turn.packet, "big"): turn.slot for turn in made.turns if turn.packet}
    waits = [slots[number] - at for at, number in arrivals if number in slots]
    assert min(waits) > 0
    assert max(waits) < 6
    assert not any(turn.action is Action.MUTE for turn in made.turns)


@covers("F102")
def test_what_waits_is_bounded_by_a_second_whatever_comes() -> None:
    made = Buffer()
    for number in range(100_000, 100_500):
        made.insert(number, 10.0)
        assert len(made.buffer) <= 50
    listening = Listening()
    for user, ssrc in ((ALICE, 1), (BOB, 2)):
        listening.receiver.map_ssrc(ssrc, user)
    listening.say(1, 2, 3, ssrc=1)
    listening.now += 3.0  # the process stood still; the socket kept everything
    for sequence in range(4, 4 + 150):
        listening.take(sequence, ssrc=1)
        listening.take(sequence, ssrc=2)
    listening.wait(2.0)
    assert listening.heard(ALICE).count(".") == 153, "nothing is lost by our own standing still"
    assert listening.heard(ALICE).rstrip("x").count("x") <= 6
