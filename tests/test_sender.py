"""The way out of one stream: nothing leaves while it is held, and what leaves is numbered and sealed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from voicegw.errors import GroupError
from voicegw.media import sender as sender_module
from voicegw.media.sender import StreamSender
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import SILENCE_FRAME, parse_rtp

_keys = itertools.count(1000)
SSRC = 12871


def fresh_cipher() -> TransportCipher:
    return TransportCipher(PREFERRED_MODES[0], Secret(next(_keys).to_bytes(32, "big")))


class Wire:
    """Takes datagrams."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.broken = False
        self.worn = 0
        self.cipher = fresh_cipher()
        self.sender = StreamSender(self.wear)
        self.sender.configure(self.cipher, SSRC, self.send)

    def send(self, data: bytes) -> bool:
        if not self.broken:
            self.sent.append(data)
        return not self.broken

    def wear(self) -> None:
        self.worn += 1

    def frames(self) -> list[bytes]:
        return [self.cipher.open(data, 12) for data in self.sent]

    def markers(self) -> list[bool]:
        return [parse_rtp(data).marker for data in self.sent]


def scramble(frame: bytes) -> bytes:
    return bytes(octet ^ 0x55 for octet in frame)


def test_nothing_leaves_while_it_is_held() -> None:
    wire = Wire()
    assert wire.sender.send(b"speech") is False
    assert wire.sender.send_silence() is False
    wire.sender.release(scramble)
    assert wire.sender.send(b"speech") is True
    wire.sender.hold()
    assert wire.sender.send(b"speech") is False
    assert wire.frames() == [scramble(b"speech")]
    assert (wire.sender.packets, wire.sender.held) == (1, 3)


def test_without_key_nothing_leaves() -> None:
    wire = Wire()
    wire.sender.release(scramble)
    wire.sender.drop()
    wire.sender.release(scramble)
    assert wire.sender.send(b"speech") is False
    assert wire.sent == []


def test_a_sender_that_forgot_its_key_is_held_with_the_next_one_too() -> None:
    wire = Wire()
    wire.sender.release(None)
    wire.sender.drop()
    wire.sender.configure(fresh_cipher(), SSRC, wire.send)
    assert wire.sender.send(b"speech") is False
    assert wire.sent == []


def test_every_frame_passes_the_end_to_end_step_or_stays() -> None:
    wire = Wire()

    def refuse(frame: bytes) -> bytes:
        raise GroupError("no group")

    wire.sender.release(refuse)
    assert wire.sender.send(b"speech") is False
    assert (wire.sender.held, wire.sender.errors) == (1, 0)
    wire.sender.release(None)
    assert wire.sender.send(b"speech") is True
    assert wire.frames() == [b"speech"]


def test_another_socket_takes_over_where_the_one_before_stopped() -> None:
    wire = Wire()
    wire.sender.release(None)
    wire.sender.send(b"x")
    wire.sender.connect(None)
    assert wire.sender.send(b"lost") is False
    other = Wire()
    wire.sender.connect(other.send)
    assert wire.sender.send(b"y") is True
    (before,), (after,) = map(parse_rtp, wire.sent), map(parse_rtp, other.sent)
    assert (after.sequence - before.sequence) & 0xFFFF == 1
    assert wire.sender.held == 1


def test_packets_are_numbered_and_time_goes_on() -> None:
    wire = Wire()
    wire.sender.release(None)
    for _ in range(3):
        wire.sender.send(b"x")
    wire.sender.skip(10)
    wire.sender.send_silence()
    views = [parse_rtp(data) for data in wire.sent]
    first = views[0]
    assert [(view.sequence - first.sequence) & 0xFFFF for view in views] == [0, 1, 2, 3]
    ticks = [(view.timestamp_ticks - first.timestamp_ticks) & 0xFFFFFFFF for view in views]
    assert ticks == [0, 960, 1920, 13 * 960]
    assert {(view.ssrc, view.payload_type) for view in views} == {(SSRC, 120)}
    assert not any(view.has_padding or view.has_extension for view in views)
    assert wire.frames()[-1] == SILENCE_FRAME
    assert wire.sender.octets == sum(map(len, wire.sent))


def hold_one(wire: Wire) -> None:
    wire.sender.hold()
    wire.sender.send(b"x")
    wire.sender.release(None)


def refuse_one(wire: Wire) -> None:
    def refuse(frame: bytes) -> bytes:
        raise GroupError("no group")

    wire.sender.release(refuse)
    wire.sender.send(b"x")
    wire.sender.release(None)


def lose_one(wire: Wire) -> None:
    wire.broken = True
    wire.sender.send(b"x")
    wire.broken = False


@pytest.mark.parametrize("gap", [hold_one, refuse_one, lose_one, lambda wire: wire.sender.skip(1)])
def test_only_the_first_packet_after_a_gap_has_the_marker(gap: Callable[[Wire], None]) -> None:
    wire = Wire()
    wire.sender.release(None)
    wire.sender.send(b"x")
    wire.sender.send(b"x")
    gap(wire)
    wire.sender.send(b"x")
    wire.sender.send(b"x")
    assert wire.markers() == [True, False, True, False]


@pytest.mark.parametrize(("late_s", "marked"), [(0.0, False), (0.009, False), (0.01, True), (0.04, True)])
def test_the_clock_of_the_pacer_sets_the_timestamp_and_half_a_frame_is_a_gap(late_s: float, marked: bool) -> None:
    wire = Wire()
    wire.sender.release(None)
    for due in (100.0, 100.02, 100.04 + late_s, 100.06 + late_s):
        wire.sender.align(due)
        wire.sender.send(b"x")
    views = [parse_rtp(data) for data in wire.sent]
    ticks = [(view.timestamp_ticks - views[0].timestamp_ticks) & 0xFFFFFFFF for view in views]
    late = round(late_s * 48_000)
    assert ticks == [0, 960, 1920 + late, 2880 + late]
    assert wire.markers() == [True, False, marked, False]


def test_a_clock_that_comes_a_little_early_is_no_gap() -> None:
    wire = Wire()
    wire.sender.release(None)
    for due in (100.0, 100.02, 100.03):
        wire.sender.align(due)
        wire.sender.send(b"x")
    assert wire.markers() == [True, False, False]


def test_sequence_and_timestamp_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.sender.secrets.randbelow", lambda limit: limit - 1)
    wire = Wire()
    wire.sender.release(None)
    wire.sender.send(b"x")
    wire.sender.send(b"x")
    before, after = (parse_rtp(data) for data in wire.sent)
    assert (before.sequence, after.sequence) == (0xFFFF, 0)
    assert (before.timestamp_ticks, after.timestamp_ticks) == (0xFFFFFFFF, 959)


def test_a_network_that_is_away_is_counted_and_no_error() -> None:
    wire = Wire()
    wire.sender.release(None)
    wire.broken = True
    assert wire.sender.send(b"x") is False
    wire.broken = False
    assert wire.sender.send(b"y") is True
    assert (wire.sender.errors, wire.sender.packets) == (1, 1)
    first_left = parse_rtp(wire.sent[0])
    assert int.from_bytes(wire.sent[0][-4:], "little") == 2**31 + 1  # the nonce of the lost one is spent
    assert first_left.ssrc == SSRC


def test_a_worn_key_is_reported_and_a_spent_one_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "CHECK_WEAR_EVERY", 2)
    wire = Wire()
    counter = wire.cipher.counter
    counter.worn_at, counter.limit, counter._last = 4, 6, 6
    wire.sender.release(None)
    sent = [wire.sender.send(b"x") for _ in range(8)]
    assert sent == [True] * 6 + [False] * 2
    assert wire.worn == 2 + 2  # at the fourth and sixth packet, and when it was spent
    assert len({data[-4:] for data in wire.sent}) == 6
    assert (wire.sender.packets, wire.sender.errors, wire.sender.held) == (6, 2, 0)
