"""The way in: what is authentic is credited, ordered, covered and decoded; nothing else changes anything."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegw.errors import GroupError
from voicegw.media.opener import OLD_KEY_S
from voicegw.media.opus import OpusEncoder
from voicegw.media.receiver import HELD_PACKETS, HELD_SSRCS, StreamReceiver
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import SILENCE_FRAME, pack_header

_keys = itertools.count(2000)
ALICE, BOB = 11, 22
SSRC = 9001
TONE = [OpusEncoder(64_000).encode(frame) for frame in iter(ToneSource(440, 0.5).read, b"")]
DAVE_FRAME = bytes.fromhex(
    "8a6cb52af8217814ed82e58c7805a14febd1dec04c10af88250ac69cf28ffb0e467b49064a24223c18a05b48bae0a1f3ddd582a66865c923"
    "fbb08080010ffafa"
)


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, bool]] = []

    def write(self, user_id: int, pcm: bytes, lost: bool) -> None:
        self.writes.append((user_id, len(pcm), lost))

    def close(self) -> None:
        """Nothing to close."""


class Listening:
    """A receiver with a sender at its other end."""

    def __init__(self) -> None:
        self.now = 100.0
        self.key = Secret(next(_keys).to_bytes(32, "big"))
        self.sealer = TransportCipher(PREFERRED_MODES[0], self.key, "server")
        self.receiver = StreamReceiver(lambda: self.now)
        self.receiver.use_key(TransportCipher(PREFERRED_MODES[0], self.key))
        self.sink = Heard()
        self.receiver.sink = self.sink

    def packet(self, sequence: int, frame: bytes, ssrc: int = SSRC) -> bytes:
        return self.sealer.seal(pack_header(sequence, sequence * 960, ssrc), frame)

    def take(self, sequence: int, frame: bytes | None = None, ssrc: int = SSRC) -> None:
        self.receiver.datagram(self.packet(sequence, TONE[sequence % len(TONE)] if frame is None else frame, ssrc))

    def heard(self) -> str:
        """One letter a 20 ms slot: `.` as it came, `x` covered."""
        assert all(size == 3840 for _, size, _ in self.sink.writes)
        return "".join("x" if lost else "." for _, _, lost in self.sink.writes)


@pytest.fixture
def listening() -> Listening:
    made = Listening()
    made.receiver.map_ssrc(SSRC, ALICE)
    return made


def test_packets_in_order_are_played_as_they_come(listening: Listening) -> None:
    for sequence in range(65530, 65530 + 10):
        listening.take(sequence & 0xFFFF)
    assert listening.heard() == "." * 10
    stats = listening.receiver.stats[ALICE]
    assert (stats.packets, stats.lost, stats.late, stats.errors) == (10, 0, 0, 0)
    assert stats.seconds == pytest.approx(0.2)


def test_a_gap_is_awaited_for_three_packets_and_then_covered(listening: Listening) -> None:
    listening.take(1)
    for sequence in (3, 4, 5):
        listening.take(sequence)
        assert listening.heard() == "."
    listening.take(6)
    assert listening.heard() == ".x...."
    assert listening.receiver.stats[ALICE].lost == listening.receiver.stats[ALICE].concealed == 1
    listening.take(2)
    assert listening.receiver.stats[ALICE].late == 1
    assert listening.heard() == ".x...."


def test_late_packets_in_time_are_put_in_order(listening: Listening) -> None:
    for sequence in (1, 3, 2, 5, 4, 6):
        listening.take(sequence)
    assert listening.heard() == "......"
    assert listening.receiver.stats[ALICE].lost == 0


def test_duplicates_are_heard_once(listening: Listening) -> None:
    for sequence in (1, 1, 3, 3, 2, 2, 1):
        listening.take(sequence)
    assert listening.heard() == "..."
    assert listening.receiver.counters["replayed"] == 4


def test_a_long_gap_is_covered_only_at_its_beginning(listening: Listening) -> None:
    listening.take(1)
    for sequence in range(101, 105):
        listening.take(sequence)
    assert listening.heard() == "." + "x" * 5 + "...."
    assert listening.receiver.stats[ALICE].lost == 99


def test_a_sender_that_begins_anew_is_followed(listening: Listening) -> None:
    for sequence in (1, 2, 30_000, 30_001, 5):
        listening.take(sequence)
    assert listening.heard() == "....."
    assert listening.receiver.stats[ALICE].lost == 0


def test_flush_delivers_what_waits(listening: Listening) -> None:
    for sequence in (1, 3, 4):
        listening.take(sequence)
    listening.receiver.flush()
    assert listening.heard() == ".x.."


def test_silence_is_counted(listening: Listening) -> None:
    listening.take(1)
    listening.take(2, SILENCE_FRAME)
    assert listening.receiver.stats[ALICE].silence == 1
    assert listening.heard() == ".."


def test_frames_that_cannot_be_decrypted_never_reach_the_decoder(listening: Listening) -> None:
    def decrypt(user_id: int, frame: bytes) -> bytes:
        assert user_id == ALICE
        if frame == b"bad":
            raise GroupError("no key")
        return frame

    listening.receiver.use_decrypt(decrypt)
    listening.take(1)
    listening.take(2, b"bad")
    listening.take(3, DAVE_FRAME)
    listening.take(4)
    assert listening.heard() == ".."
    assert listening.receiver.stats[ALICE].errors == 2
    assert listening.receiver.stats[ALICE].lost == 0


def test_without_e2ee_an_encrypted_frame_is_not_taken_for_sound(listening: Listening) -> None:
    listening.take(1, DAVE_FRAME)
    assert listening.heard() == ""
    assert listening.receiver.stats[ALICE].errors == 1


@pytest.mark.parametrize("frame", [b"", b"\xff", b"\x03"], ids=repr)
def test_broken_frames_are_counted_and_the_stream_goes_on(listening: Listening, frame: bytes) -> None:
    listening.take(1)
    listening.take(2, frame)
    listening.take(3)
    assert listening.heard().count(".") >= 2
    assert listening.receiver.stats[ALICE].packets == 3


def test_packets_before_their_user_is_known_wait_a_little(listening: Listening) -> None:
    for sequence in range(1, HELD_PACKETS + 3):
        listening.take(sequence, ssrc=7)
    assert listening.heard() == ""
    listening.receiver.map_ssrc(7, BOB)
    assert listening.receiver.stats[BOB].packets == HELD_PACKETS
    listening.take(1, ssrc=8)
    listening.now += 0.3
    listening.receiver.map_ssrc(8, BOB)
    assert listening.receiver.stats[BOB].packets == HELD_PACKETS
    for ssrc in range(1000, 1000 + HELD_SSRCS + 5):
        listening.take(1, ssrc=ssrc)
    assert len(listening.receiver._held) == HELD_SSRCS


def test_a_user_that_left_is_forgotten(listening: Listening) -> None:
    listening.take(1)
    listening.take(3)
    listening.receiver.forget_user(ALICE)
    assert listening.heard() == ".x."
    listening.take(4)
    assert listening.receiver.counters["before its user was known"] == 1
    assert listening.receiver.stats[ALICE].packets == 2


def test_an_ssrc_can_become_another_users(listening: Listening) -> None:
    listening.take(1)
    listening.receiver.map_ssrc(SSRC, BOB)
    listening.take(2)
    assert listening.receiver.stats[ALICE].packets == listening.receiver.stats[BOB].packets == 1


def test_the_old_key_serves_for_ten_seconds(listening: Listening) -> None:
    late, too_late = listening.packet(2, TONE[2]), listening.packet(3, TONE[3])
    listening.take(1)
    listening.receiver.use_key(TransportCipher(PREFERRED_MODES[0], Secret(bytes(32))))
    listening.receiver.datagram(late)
    assert listening.receiver.stats[ALICE].packets == 2
    listening.now += OLD_KEY_S
    listening.receiver.datagram(too_late)
    assert listening.receiver.stats[ALICE].packets == 2
    assert listening.receiver.counters["rejected"] == 1


def test_forged_packets_change_nothing(listening: Listening) -> None:
    listening.take(1)
    forged = bytearray(listening.packet(2, TONE[2]))
    forged[20] ^= 1
    listening.receiver.datagram(bytes(forged))
    listening.receiver.datagram(bytes(forged[:12]) + bytes(200))
    listening.take(2)
    assert listening.heard() == ".."
    assert listening.receiver.stats[ALICE].packets == 2
    assert listening.receiver.counters["rejected"] == 2


def test_rtcp_and_other_streams_are_not_sound(listening: Listening) -> None:
    report = bytes.fromhex("81c9000700003247000000630c00002200011234000000111122334400010000")
    listening.receiver.datagram(listening.sealer.seal(report[:8], report[8:]))
    video = bytes((0x80, 101)) + pack_header(1, 1, SSRC)[2:]
    listening.receiver.datagram(listening.sealer.seal(video, b"video"))
    listening.receiver.datagram(bytes(8))
    assert listening.heard() == ""
    assert listening.receiver.reports[0x63].fraction_lost == 12 / 256
    counters = listening.receiver.counters
    assert (counters["rtcp"], counters["other payload types"], counters["control"]) == (1, 1, 1)


def test_after_the_session_nothing_is_taken(listening: Listening) -> None:
    listening.take(1)
    packet = listening.packet(2, TONE[2])
    listening.receiver.drop_key()
    listening.receiver.datagram(packet)
    assert listening.receiver.stats[ALICE].packets == 1


@given(seed=st.integers(0, 10_000), loss=st.floats(0, 0.5))
def test_every_slot_is_played_or_covered_once_whatever_the_network_does(seed: int, loss: float) -> None:
    listening = Listening()
    listening.receiver.map_ssrc(SSRC, ALICE)
    chance = random.Random(seed)
    sequences = [sequence for sequence in range(60_000, 60_100) if sequence == 60_000 or chance.random() >= loss]
    sent = sorted(sequences, key=lambda sequence: sequence + (chance.random() * 3 if sequence > 60_000 else 0))
    for sequence in sent:
        listening.take(sequence)
        if chance.random() < 0.1:
            listening.take(sequence)
    listening.receiver.flush()
    stats = listening.receiver.stats[ALICE]
    assert stats.packets == len(sequences)
    assert stats.packets + stats.lost == sequences[-1] - 60_000 + 1
    assert listening.heard().count(".") == stats.packets
    assert listening.heard().count("x") == stats.concealed <= stats.lost


@given(st.binary(max_size=300))
def test_any_datagram_is_taken_without_a_word(data: bytes) -> None:
    listening = Listening()
    listening.receiver.datagram(data)
    assert listening.receiver.stats == {}
