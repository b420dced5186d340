"""What has come once does not come again, however the server counts and whatever order packets arrive in."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegw.wire.replay import (
    COUNTED_ANEW_AFTER,
    NONCE_WINDOW,
    RECENT_TICKS,
    SEQUENCE_WINDOW,
    STREAMS_WATCHED,
    NonceWindow,
    StreamWindow,
    StreamWindows,
    Window,
)

SSRC = 7


@given(st.lists(st.integers(0, 255), max_size=300), st.integers(1, 100))
def test_a_window_never_calls_a_number_new_twice(numbers: list[int], size: int) -> None:
    window = Window(size, 8)
    newest: int | None = None
    noted: list[int] = []
    for number in numbers:
        age = window.take(number)
        if age == "new":
            assert number not in noted[-size:] or newest is None or (number - newest) & 0xFF < 128
            if newest is None or 0 < (number - newest) & 0xFF < 128:
                newest = number
            noted = [one for one in noted if (newest - one) & 0xFF < size and one != number] + [number]
        elif age == "seen":
            assert number in noted
        else:
            assert newest is not None
            assert size <= (newest - number) & 0xFF <= 128


def test_a_window_at_its_limits() -> None:
    for bits, size in ((32, NONCE_WINDOW), (16, SEQUENCE_WINDOW)):
        top = 1 << bits
        window = Window(size, bits)
        assert window.take(5) == "new"
        assert window.take((5 - size + 1) % top) == "new"  # the last place in the window
        assert window.take((5 - size + 1) % top) == "seen"
        assert window.take((5 - size) % top) == "old"
        assert window.take((5 + top // 2 - 1) % top) == "new"  # the farthest that is ahead
        assert window.take(5) == "old"


@pytest.mark.parametrize("ahead", [1, 2, 99, 100, 101, 5000])
def test_a_window_knows_the_newest_and_nothing_that_was_left_out(ahead: int) -> None:
    window = Window(100, 16)
    window.take(7)
    assert window.take(7 + ahead) == "new"
    assert window.take(7 + ahead) == "seen"
    if ahead > 1:
        assert window.take(7 + ahead - 1) == "new"
    assert window.take(7) == ("seen" if ahead < 100 else "old")


def test_near_is_less_than_a_windows_size_away() -> None:
    window = Window(100, 16)
    assert not any(window.near(number) for number in range(1 << 16))  # to nothing
    window.take(50)
    assert [number for number in range(-200, 300) if window.near(number % (1 << 16))] == list(range(-49, 150))


def test_a_window_remembers_no_more_than_its_size() -> None:
    window = Window(100, 16)
    for number in [*range(1000), *range(1000, 9000, 99)]:
        assert window.take(number) == "new"
        assert window._seen.bit_length() <= 100
    for number in range(1000):
        window.take(8000 - number)
        assert window._seen.bit_length() <= 100


def little(number: int) -> bytes:
    return (number % 2**32).to_bytes(4, "little")


def big(number: int) -> bytes:
    return (number % 2**32).to_bytes(4, "big")


@pytest.mark.parametrize("count", [little, big])
@pytest.mark.parametrize("start", [0, 250, 65_530, 2**31 - 3, 2**32 - 5])
def test_both_byte_orders_are_learnt(count: Callable[[int], bytes], start: int) -> None:
    window = NonceWindow()
    ages = [window.take(count(start + number)) for number in range(2000)]
    assert ages[:3] == ["unknown"] * 3
    assert set(ages[10:]) == {"new"}
    assert window.take(count(start + 1999)) == "seen"
    assert window.take(count(start + 1999 - NONCE_WINDOW + 1)) == "seen"
    assert window.take(count(start + 1999 - NONCE_WINDOW)) == "old"


@pytest.mark.parametrize("count", [little, big])
def test_three_neighbours_in_a_row_show_the_byte_order(count: Callable[[int], bytes]) -> None:
    window = NonceWindow()
    ages = [window.take(count(number)) for number in (1000, 1001, 1002, 700_000, 700_001, 700_002, 700_003, 700_004)]
    assert ages == ["unknown"] * 7 + ["new"]


def test_a_server_counts_anew_after_fifty_old_nonces_in_a_row() -> None:
    window = NonceWindow()
    for begin in (5000, 9000):
        for number in range(begin, begin + 10):
            window.take(little(number))
        for _ in range(49):
            window.note_passed("old", little(1))
        window.note_passed("new", little(begin + 9))
        for number in range(50):
            assert window.take(little(number)) == "old"
            window.note_passed("old", little(number))
        assert window.old_in_row == 0
        assert window.take(little(50)) == "new"


def test_no_nonce_passes_twice_whatever_comes_with_it() -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    assert windows.take(nonces, little(7), SSRC, 1, 960)
    assert not windows.take(nonces, little(7), SSRC, 2, 1920)
    assert not windows.take(nonces, little(7), SSRC + 1, 1, 960)


def test_a_stream_knows_its_numbers_where_they_come_round() -> None:
    stream = StreamWindow(0)
    assert stream.take(65_535, 960, "new")
    assert stream.take(0, 1920, "new")
    assert not stream.take(65_535, 960, "new")


def test_a_stream_that_moved_far_back_is_guarded_there() -> None:
    stream = StreamWindow(0)
    assert stream.take(40_000, 960, "new")
    assert stream.take(39_000, 960, "new")
    assert not stream.take(39_000, 960, "new")


@pytest.mark.parametrize(("ticks", "passes"), [(2**31 - 1, True), (2**31, False)])
def test_half_of_all_timestamps_are_later(ticks: int, passes: bool) -> None:
    assert StreamWindow(0).take(1, ticks, "unknown") == passes


@pytest.mark.parametrize(("lag_ticks", "passes"), [(RECENT_TICKS - 1, True), (RECENT_TICKS, False)])
def test_without_a_new_nonce_a_packet_may_be_a_minute_late(lag_ticks: int, passes: bool) -> None:
    stream = StreamWindow(0)
    assert stream.take(5, RECENT_TICKS, "new")
    assert stream.take(6, RECENT_TICKS - lag_ticks, "unknown") == passes


def test_a_server_that_does_not_count_is_heard() -> None:
    chance = random.Random(1)
    windows, nonces = StreamWindows(), NonceWindow()
    suffixes = [chance.randbytes(4) for _ in range(2000)]
    assert all(windows.take(nonces, suffix, SSRC, n & 0xFFFF, n * 960) for n, suffix in enumerate(suffixes))
    assert not any(windows.take(nonces, suffix, SSRC, n & 0xFFFF, n * 960) for n, suffix in enumerate(suffixes))


@pytest.mark.parametrize("minutes", [0.1, 1, 10, 12, 21.8, 30])
def test_a_packet_of_minutes_ago_does_not_pass(minutes: float) -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    packets = [(little(n), SSRC, n & 0xFFFF, n * 960) for n in range(int(minutes * 3000) + 100)]
    assert all(windows.take(nonces, *packet) for packet in packets)
    assert not any(windows.take(nonces, *packet) for packet in packets)


def test_a_sender_that_begins_anew_passes_at_once() -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    for n in range(2000):
        assert windows.take(nonces, little(n), SSRC, n + 40_000, n * 960)
    for n in range(100):  # back by thousands, timestamps too: only the nonces show that it is no repetition
        assert windows.take(nonces, little(2000 + n), SSRC, n, n * 960)


def test_a_sender_that_moves_back_a_little_passes_at_once() -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    for n in range(2000):
        assert windows.take(nonces, little(n), SSRC, n, n * 960)
    for n in range(100):
        assert windows.take(nonces, little(2000 + n), SSRC, 1950 + n, (2000 + n) * 960)
        assert not windows.take(nonces, little(3000 + n), SSRC, 1950 + n, (2000 + n) * 960)


def test_a_server_that_begins_anew_passes_and_is_guarded_again() -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    for n in range(50_000):
        assert windows.take(nonces, little(n), SSRC, n & 0xFFFF, n * 960)
    again = [(little(n), SSRC, (50_000 + n) & 0xFFFF, (50_000 + n) * 960) for n in range(2 * COUNTED_ANEW_AFTER)]
    assert all(windows.take(nonces, *packet) for packet in again)
    assert nonces.take(little(2 * COUNTED_ANEW_AFTER)) == "new"
    assert not any(windows.take(nonces, *packet) for packet in again)


def test_a_packet_that_comes_twice_under_two_nonces_passes_once() -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    passed = [windows.take(nonces, little(2 * n + twice), SSRC, n, n * 960) for n in range(500) for twice in (0, 1)]
    assert passed == [True, False] * 500


def test_streams_are_bounded_and_can_be_forgotten() -> None:
    windows, nonces = StreamWindows(), NonceWindow()
    for ssrc in range(STREAMS_WATCHED + 5):
        assert windows.take(nonces, little(ssrc), ssrc, 1, 1)
    assert len(windows) == STREAMS_WATCHED
    windows.forget(STREAMS_WATCHED)
    windows.forget(STREAMS_WATCHED)
    assert len(windows) == STREAMS_WATCHED - 1
    assert not windows.take(nonces, little(10), 3, 1, 1)  # forgotten, but its nonce is not new
    windows.clear()
    assert len(windows) == 0
