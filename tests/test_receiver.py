"""The way in: what is authentic is credited, ordered, covered and decoded; nothing else changes anything."""

from __future__ import annotations

import random
import wave
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.listening import ALICE, BOB, SSRC, TONE, Listening
from voicegw.errors import GroupError
from voicegw.media.opener import OLD_KEY_S
from voicegw.media.sinks import WavSink
from voicegw.media.ssrc_map import HELD_PACKETS, HELD_SSRCS, SsrcMap
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import SILENCE_FRAME, pack_header

DAVE_FRAME = bytes.fromhex(
    "8a6cb52af8217814ed82e58c7805a14febd1dec04c10af88250ac69cf28ffb0e467b49064a24223c18a05b48bae0a1f3ddd582a66865c923"
    "fbb08080010ffafa"
)


@pytest.fixture
def listening() -> Listening:
    made = Listening()
    made.receiver.map_ssrc(SSRC, ALICE)
    return made


def test_packets_in_order_are_played_as_they_come(listening: Listening) -> None:
    listening.say(*range(65530, 65530 + 10))
    assert listening.drain() == "." * 10
    stats = listening.receiver.stats[ALICE]
    assert (stats.packets, stats.lost, stats.late, stats.errors, stats.stretched) == (10, 0, 0, 0, 0)
    assert stats.seconds == pytest.approx(0.2 + 10 * 0.02)


def test_a_packet_is_played_two_to_three_slots_after_it_came(listening: Listening) -> None:
    listening.take(1)
    listening.wait(0.04)
    assert listening.heard() == ""
    listening.wait(0.02)
    assert listening.heard() == "."


def test_a_gap_is_covered_when_its_turn_comes(listening: Listening) -> None:
    listening.say(1, 2, 0, 4, 5, 6)
    assert listening.drain() == "..x..."
    listening.take(3)
    stats = listening.receiver.stats[ALICE]
    assert (stats.lost, stats.concealed, stats.late, stats.packets) == (1, 1, 1, 5)


def test_late_packets_in_time_are_put_in_order(listening: Listening) -> None:
    listening.say(1, 3, 2, 5, 4, 6)
    assert listening.drain() == "......"
    assert listening.receiver.stats[ALICE].lost == 0


def test_duplicates_are_heard_once(listening: Listening) -> None:
    for sequence in (1, 1, 3, 3, 2, 2, 1):
        listening.take(sequence)
    assert listening.drain() == "..."
    assert listening.receiver.counters["replayed"] == 4


def test_a_long_gap_is_covered_only_at_its_beginning(listening: Listening) -> None:
    listening.say(1, 2, *[0] * 20, 23, 24)
    assert listening.drain() == ".." + "x" * 10 + ".."
    slots = [frame.slot for frame in listening.frames]
    assert slots[12] - slots[0] == 22, "what comes after the pause keeps its distance"
    assert listening.receiver.stats[ALICE].lost == 20


def test_a_burst_of_losses_with_packets_behind_it_fades_after_100_ms(listening: Listening) -> None:
    listening.say(1, 2)
    for sequence in range(16, 20):
        listening.take(sequence)
    listening.wait(0.2)
    assert listening.drain() == ".." + "x" * 13 + "...."
    loud = [max(abs(sample) for sample in memoryview(frame.pcm).cast("h")) for frame in listening.frames]
    assert all(loud[2:7])
    assert loud[12:15] == [0, 0, 0]
    assert loud[16] > 1000


def test_waiting_is_told_from_loss_afterwards(listening: Listening) -> None:
    listening.say(1, 2, 0, 0, 0, 0, 0, 0, 5, 6)  # 3 and 4 never come, and two slots more than that were waited for
    listening.drain()
    marks = [(frame.awaited, frame.missed) for frame in listening.frames]
    assert marks[1:8] == [(False, 0), *[(True, 0)] * 4, (False, 2), (False, 0)]
    assert listening.receiver.stats[ALICE].lost == 2


def test_a_recording_holds_every_packet_while_the_delay_changes(listening: Listening, tmp_path: Path) -> None:
    sink = WavSink(tmp_path)
    listening.say(*range(1, 30), 0, 0, 0, 0, 0, 0)  # 120 ms late, then all at once
    for sequence in range(30, 36):
        listening.take(sequence)
    listening.say(*range(36, 1500))
    for sequence in range(1500, 1505):
        listening.take(sequence, SILENCE_FRAME)
        listening.wait(0.02)
    listening.drain()
    stats = listening.receiver.stats[ALICE]
    assert (stats.packets, stats.lost) == (1504, 0)
    assert stats.stretched > 1
    assert stats.shortened > 1
    for frame in listening.frames:
        sink.write(frame)
    sink.close()
    with wave.open(str(tmp_path / f"{ALICE}.wav")) as file:
        assert file.getnframes() == 1504 * 960


def test_flush_delivers_what_waits(listening: Listening) -> None:
    for sequence in (1, 3, 4):
        listening.take(sequence)
    listening.receiver.flush()
    assert listening.heard() == ".x.."


def test_silence_is_counted_and_ends_speech_without_a_guess(listening: Listening) -> None:
    listening.say(1)
    for sequence in range(2, 7):
        listening.take(sequence, SILENCE_FRAME)
        listening.wait(0.02)
    assert listening.drain() == ".sssss"
    assert listening.receiver.stats[ALICE].silence == 5


def test_frames_that_cannot_be_decrypted_never_reach_the_decoder(listening: Listening) -> None:
    def decrypt(user_id: int, frame: bytes) -> bytes:
        assert user_id == ALICE
        if frame == b"bad":
            raise GroupError("no key")
        return frame

    listening.receiver.use_decrypt(decrypt)
    listening.say(1)
    listening.take(2, b"bad")
    listening.take(3, DAVE_FRAME)
    listening.say(4)
    assert listening.drain() == ".??."
    stats = listening.receiver.stats[ALICE]
    assert (stats.undecryptable, stats.undecodable, stats.errors, stats.lost) == (2, 0, 2, 0)


@pytest.mark.parametrize("frame", [b"\xff", b"\x03", TONE[0] + bytes(1000)], ids=lambda frame: f"{len(frame)} bytes")
def test_broken_frames_are_counted_and_the_stream_goes_on(listening: Listening, frame: bytes) -> None:
    listening.say(1)
    listening.take(2, frame)
    listening.say(3)
    assert listening.drain() == ".x."
    assert listening.receiver.stats[ALICE].misshapen == 1


def test_padding_alone_has_a_place_but_no_sound(listening: Listening) -> None:
    listening.say(1, 2)
    listening.take(3, b"")
    listening.say(4)
    assert listening.drain() == "..."
    for sequence in (5, 6, 7):
        listening.take(sequence, b"")
    listening.say(8)
    assert listening.drain() == "..." + "x" * 10 + "."
    assert listening.receiver.stats[ALICE].lost == 0


def test_packets_before_their_user_is_known_wait_a_little(listening: Listening) -> None:
    listening.say(*range(1, HELD_PACKETS), ssrc=7)
    assert listening.heard(BOB) == ""
    listening.receiver.map_ssrc(7, BOB)
    listening.say(HELD_PACKETS, ssrc=7)
    assert listening.heard(BOB) == "e" * (HELD_PACKETS - 2), "at the pace in which they came"
    listening.drain()
    assert listening.heard(BOB) == "e" * (HELD_PACKETS - 1) + "." + "x" * 10
    listening.take(1, ssrc=8)
    listening.now += 0.3
    listening.receiver.map_ssrc(8, BOB)
    assert listening.receiver.stats[BOB].early == HELD_PACKETS - 1


def test_unknown_ssrcs_are_bounded_in_number_and_time(listening: Listening) -> None:
    for ssrc in range(1000, 1000 + HELD_SSRCS + 5):
        listening.take(1, ssrc=ssrc)
    assert listening.receiver.map.held_ssrcs == HELD_SSRCS
    listening.now += 0.3
    listening.take(1, ssrc=1)
    assert listening.receiver.map.held_ssrcs == 1


def test_a_user_that_left_is_forgotten_and_what_came_before_is_played(listening: Listening) -> None:
    listening.take(1)
    listening.take(3)
    listening.receiver.forget_user(ALICE)
    assert listening.drain() == ".x."
    listening.take(4)
    assert listening.receiver.counters["before its user was known"] == 1
    assert listening.receiver.stats[ALICE].packets == 2


def test_an_ssrc_can_become_another_users(listening: Listening) -> None:
    listening.take(1)
    listening.receiver.map_ssrc(SSRC, BOB)
    listening.take(2)
    listening.drain()
    assert (listening.heard(ALICE)[0], listening.heard(BOB)[0]) == (".", ".")
    assert listening.receiver.stats[ALICE].packets == listening.receiver.stats[BOB].packets == 1


def test_speech_begins_and_ends_with_its_packets(listening: Listening) -> None:
    listening.say(*range(1, 11))
    assert listening.receiver.speaking == {ALICE}
    listening.wait(0.3)
    assert listening.speaking == [(0.0, ALICE, True), (0.32, ALICE, False)]
    assert listening.receiver.speaking == frozenset()


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
    assert listening.drain() == ".."
    assert listening.receiver.stats[ALICE].packets == 2
    assert listening.receiver.counters["rejected"] == 2


def test_rtcp_and_other_streams_are_not_sound(listening: Listening) -> None:
    report = bytes.fromhex("81c9000700003247000000630c00002200011234000000111122334400010000")
    listening.receiver.datagram(listening.sealer.seal(report[:8], report[8:]))
    video = bytes((0x80, 101)) + pack_header(1, 1, SSRC)[2:]
    listening.receiver.datagram(listening.sealer.seal(video, b"video"))
    listening.receiver.datagram(bytes(8))
    assert listening.drain() == ""
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
    arrivals = sorted(
        (place + 2 * chance.random(), place) for place in range(100) if place == 0 or chance.random() >= loss
    )
    for at, place in arrivals:
        while listening.now < 100.005 + at * 0.02:
            listening.wait(0.02)
        for _ in range(2 if chance.random() < 0.1 else 1):
            listening.take(65_500 + place & 0xFFFF)
    listening.drain()
    stats = listening.receiver.stats[ALICE]
    heard = listening.heard()
    assert heard.count(".") == stats.packets - stats.shortened
    assert stats.packets + stats.lost == max(place for _, place in arrivals) + 1 or stats.restarts
    assert len(heard) == stats.slots


@given(st.binary(max_size=300))
def test_any_datagram_is_taken_without_a_word(data: bytes) -> None:
    listening = Listening()
    listening.receiver.datagram(data)
    assert listening.receiver.stats == {}


def test_the_statistics_of_who_is_here_are_kept_before_those_of_who_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.ssrc_map.MOST_USERS", 3)
    users = SsrcMap(lambda turn: None)
    for user_id in (1, 2, 3):
        users.assign(user_id, user_id)
    here = users.stats[1]
    users.forget(2)
    users.forget(3)
    users.assign(4, 4)
    assert list(users.stats) == [1, 3, 4]
    assert users.stats[1] is here
