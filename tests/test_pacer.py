"""The pacer on a clock of its own: slots, stalls, load; and the threads that drive and feed it."""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
from collections import Counter

import pytest

from voicegw.errors import TooManyStreams
from voicegw.media.pacer import (
    CATCH_UP_FRAMES,
    FRAME_S,
    FULL_SLOT,
    LEAST_GAP_S,
    PORTION,
    SLOTS,
    Pacer,
    PacerThread,
    ask_for_short_turns,
)
from voicegw.media.sender import READY_FRAMES
from voicegw.media.workers import ThreadWorkers


class Clock:
    """Time that a test lets pass, and work that costs it."""

    def __init__(self) -> None:
        self.now = 50.0
        self.worked = 0.0
        self.shared_by, self.shared_until = 1, math.inf  # how many work on this core, each for the same time

    def __call__(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.worked


class Stream:
    """Notes when its frames left; each takes `cost_s`."""

    def __init__(self, clock: Clock, frames: int = 1 << 30, cost_s: float = 0.0) -> None:
        self.clock = clock
        self.left = frames
        self.cost_s = cost_s
        self.began: list[float] = []
        self.sent: list[float] = []
        self.skipped = 0
        self.prepared: list[float] = []
        self.rested = False

    def begin(self, due: float) -> None:
        self.began.append(due)

    def tick(self) -> bool:
        self.sent.append(self.clock.now)
        self.clock.now += self.cost_s * (self.clock.shared_by if self.clock.now < self.clock.shared_until else 1)
        self.clock.worked += self.cost_s
        self.left -= 1
        return self.left > 0

    def skip(self, frames: int) -> None:
        self.skipped += frames

    def prepare(self) -> None:
        self.prepared.append(self.clock.now)


def drive(pacer: Pacer, clock: Clock, until: float) -> None:
    """Call `run` exactly when it asks for it."""
    while (due := pacer.run()) is not None and due <= until:
        clock.now = max(clock.now, due)
    clock.now = max(clock.now, until)


def made(clock: Clock) -> Pacer:
    return Pacer(clock, lambda: None, clock.cpu)


def test_streams_share_the_slots_and_none_drifts() -> None:
    clock = Clock()
    pacer = made(clock)
    each = FULL_SLOT + 3
    streams = [Stream(clock) for _ in range(SLOTS * each)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 50.0 + 20.0)
    for stream in streams:
        assert stream.sent == pytest.approx([stream.began[0] + n * FRAME_S for n in range(len(stream.sent))], abs=1e-6)
        assert len(stream.sent) in (1000, 1001)
    assert set(Counter(round((stream.began[0] - 50.0) * 1000) for stream in streams).values()) == {each}
    assert pacer.stats.lateness["<= 0.25 ms"] == pacer.stats.frames
    assert pacer.stats.skipped == 0


def test_few_streams_need_few_wake_ups() -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock) for _ in range(100)]
    for stream in streams:
        pacer.add(stream)
    assert len({stream.began[0] for stream in streams}) == math.ceil(100 / FULL_SLOT)
    assert all(stream.began[0] - 50.0 <= FRAME_S for stream in streams)


def test_a_stream_begins_within_a_frame() -> None:
    clock = Clock()
    pacer = made(clock)
    first, second = Stream(clock), Stream(clock)
    pacer.add(first)
    drive(pacer, clock, 50.0 + 1.0055)
    pacer.add(second)
    assert first.began == [50.0]
    assert second.began == [pytest.approx(51.02)]
    drive(pacer, clock, 51.995)
    assert second.sent[0] == pytest.approx(51.02)
    assert first.sent == pytest.approx([50.0 + n * FRAME_S for n in range(100)])


def test_what_the_next_frames_need_is_done_when_all_of_the_slot_have_left() -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock, cost_s=1e-5) for _ in range(3)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 50.0 + 1.99)
    for stream in streams:
        assert [round((at - 50.0) / FRAME_S) for at in stream.prepared] == [*range(0, 100, READY_FRAMES)]
        assert all(at in {sent + 1e-5 for sent in streams[-1].sent} for at in stream.prepared)


def test_a_full_slot_prepares_its_streams_in_portions() -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock) for _ in range(FULL_SLOT)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 50.0 + READY_FRAMES * FRAME_S - 1e-4)
    assert {len(stream.prepared) for stream in streams} == {1}
    assert max(Counter(stream.prepared[0] for stream in streams).values()) <= PORTION


def test_the_more_streams_a_slot_has_the_less_it_prepares_at_once() -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock) for _ in range(SLOTS * READY_FRAMES * PORTION)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 50.0 + READY_FRAMES * FRAME_S - 1e-4)
    assert {len(stream.prepared) for stream in streams} == {1}
    assert set(Counter(stream.prepared[0] for stream in streams).values()) == {PORTION}


def test_slots_that_are_served_are_apart() -> None:
    """What is prepared behind one does not delay the next."""
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock) for _ in range(4 * FULL_SLOT)]
    for stream in streams:
        pacer.add(stream)
    assert sorted({round((stream.began[0] - 50.0) * 1000) for stream in streams}) == [0, 5, 10, 15]


def test_a_stream_that_cannot_be_prepared_leaves_alone(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    pacer = made(clock)
    bad, good = Stream(clock), Stream(clock)
    bad.prepare = lambda: 1 // 0  # type: ignore[method-assign, assignment]
    pacer.add(bad)
    pacer.add(good)
    drive(pacer, clock, 50.5)
    assert len(bad.sent) == 1
    assert len(good.sent) > 20
    assert "paced no longer" in caplog.text


@pytest.mark.parametrize(("since_s", "soon_s"), [(0.0015, 0.002), (0.0055, 0.006), (0.0165, 0.02)])
def test_a_stream_that_was_held_goes_on_within_5_ms(since_s: float, soon_s: float) -> None:
    """In a slot that is served anyway where one comes so soon."""
    clock = Clock()
    pacer = made(clock)
    held, other = Stream(clock), Stream(clock)
    pacer.add(held)
    pacer.add(other)
    drive(pacer, clock, 51.0 + since_s)
    held.rested = True
    pacer.hasten(held)
    drive(pacer, clock, 51.1)
    assert held.began[-1] == pytest.approx(51.0 + soon_s, abs=1e-6)
    after = [at for at in held.sent if at > 51.0 + since_s]
    assert after[:2] == pytest.approx([51.0 + soon_s, 51.02 + soon_s], abs=1e-6)
    assert other.sent == pytest.approx([50.0 + n * FRAME_S for n in range(len(other.sent))], abs=1e-6)


def test_only_a_stream_that_rested_is_hastened() -> None:
    clock = Clock()
    pacer = made(clock)
    stream, stranger = Stream(clock), Stream(clock)
    pacer.add(stream)
    drive(pacer, clock, 50.005)
    pacer.hasten(stream)
    stranger.rested = True
    pacer.hasten(stranger)
    drive(pacer, clock, 50.05)
    assert stream.sent == pytest.approx([50.0, 50.02, 50.04])
    assert stranger.began == []


def test_no_slot_is_served_twice_at_one_instant() -> None:
    clock = Clock()
    pacer = made(clock)
    stream, late = Stream(clock), Stream(clock)
    pacer.add(stream)
    pacer.run()
    pacer.add(late)  # at the very time of the slot that was just served
    drive(pacer, clock, 50.03)
    assert stream.sent == pytest.approx([50.0, 50.02])


@pytest.mark.parametrize("stall_s", [0.03, 0.05, 0.055, 0.06, 0.5, 5.0])
def test_after_a_stall_three_frames_catch_up_and_the_rest_of_the_time_goes(stall_s: float) -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock) for _ in range(40)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 50.5)
    clock.now += stall_s
    resumed = clock.now
    drive(pacer, clock, resumed + 0.5)
    for stream in streams:
        after = [at for at in stream.sent if at >= resumed]
        at_once = sum(at == resumed for at in after)
        assert at_once <= CATCH_UP_FRAMES
        if at_once == CATCH_UP_FRAMES:
            assert after[CATCH_UP_FRAMES] - resumed >= LEAST_GAP_S
        assert all(b - a >= LEAST_GAP_S for a, b in itertools.pairwise(after[at_once:]))
        elapsed = round((stream.sent[-1] - stream.began[0]) / FRAME_S) + 1
        assert len(stream.sent) + stream.skipped == elapsed  # no frame of time is lost or counted twice
    assert pacer.stats.skipped == pytest.approx(sum(stream.skipped for stream in streams), abs=len(streams))


@pytest.mark.parametrize("stall_s", [0.0, 0.07, 30.0])
def test_who_may_not_speak_any_more_sends_nothing_though_it_wakes_late(stall_s: float) -> None:
    clock = Clock()
    pacer = made(clock)
    until = 51.0
    pacer.may_speak = lambda: clock.now < until
    streams = [Stream(clock) for _ in range(40)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, until - 0.01)
    clock.now += stall_s  # the process stood still, and the right to speak ended meanwhile
    drive(pacer, clock, clock.now + 1.0)
    assert all(max(stream.sent) < until for stream in streams)
    until = math.inf
    drive(pacer, clock, clock.now + 1.0)
    for stream in streams:
        assert len(stream.sent) + stream.skipped == pytest.approx((clock.now - stream.began[0]) / FRAME_S, abs=2)
        again = [at for at in stream.sent if at > 51.0]
        assert min(later - at for at, later in itertools.pairwise(again)) > LEAST_GAP_S  # no burst


def test_a_stream_that_is_over_or_fails_leaves_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    pacer = made(clock)
    short, good, bad = Stream(clock, frames=3), Stream(clock, frames=10), Stream(clock)
    bad.tick = lambda: 1 // 0 > 0  # type: ignore[method-assign]
    for stream in (short, bad, good):
        pacer.add(stream)
    drive(pacer, clock, 51.0)
    assert (len(short.sent), len(good.sent), pacer.stats.streams) == (3, 10, 0)
    assert pacer.run() is None
    assert "a stream failed" in caplog.text


def test_a_process_that_is_full_says_so_and_takes_no_more(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock, cost_s=FRAME_S / 100) for _ in range(97)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 50.0 + 3.0)
    assert pacer.stats.load == pytest.approx(0.97, abs=0.02)
    assert caplog.text.count("pacing 97 streams") == 1
    with pytest.raises(TooManyStreams, match="97 streams"):
        pacer.add(Stream(clock))
    for stream in streams[:50]:
        pacer.remove(stream)
    drive(pacer, clock, clock.now + 3.0)
    pacer.add(Stream(clock))
    assert pacer.stats.lateness["<= 20 ms"] < pacer.stats.frames


def test_a_process_that_falls_behind_says_so_and_knows_what_it_would_need(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    pacer = made(clock)
    streams = [Stream(clock, cost_s=FRAME_S / 100) for _ in range(40)]
    for stream in streams:
        pacer.add(stream)
    drive(pacer, clock, 52.5)
    clock.now += 0.9  # one stall is no reason
    drive(pacer, clock, 56.0)
    assert pacer.stats.skipped > 1000
    assert caplog.text == ""
    clock.shared_by, clock.shared_until = 5, 63.9  # 40 streams need 0.4 of a core, and get a fifth
    drive(pacer, clock, 64.0)
    assert caplog.text.count("pacing falls behind: 50 % of the frames of 40 streams") == 1
    assert pacer.stats.load == pytest.approx(0.4, abs=0.03)
    pacer.add(Stream(clock))
    for stream in streams:
        stream.cost_s = FRAME_S / 41.5
    clock.shared_by, clock.shared_until = 2, 70.0
    drive(pacer, clock, 70.0)
    with pytest.raises(TooManyStreams, match=r"41 streams take 9[67]% of a core"):
        pacer.add(Stream(clock))


def test_the_right_not_to_speak_is_no_falling_behind(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    pacer = made(clock)
    pacer.add(Stream(clock))
    pacer.may_speak = lambda: False
    drive(pacer, clock, 60.0)
    assert pacer.stats.skipped > 400
    assert caplog.text == ""


class Countdown(Stream):
    """Says when it is over."""

    def __init__(self, clock: Clock, frames: int) -> None:
        super().__init__(clock, frames)
        self.over = threading.Event()

    def tick(self) -> bool:
        going = super().tick()
        if not going:
            self.over.set()
        return going


def test_the_thread_serves_streams_that_come_and_go() -> None:
    pacer = PacerThread().pacer
    for _ in range(3):  # it ends with the last stream, and comes back with the next
        streams = [Countdown(Clock(), frames) for frames in (1, 3, 5)]
        for stream in streams:
            pacer.add(stream)
        for stream in streams:
            assert stream.over.wait(30)
        assert [len(stream.sent) for stream in streams] == [1, 3, 5]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it does nothing")
def test_who_asks_for_short_turns_stays_as_nice_as_it_was() -> None:
    found: list[int] = []

    def ask() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 7)  # of this thread
        ask_for_short_turns()
        found.append(os.getpriority(os.PRIO_PROCESS, 0))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [7]


def test_a_job_that_hangs_costs_one_thread_and_nobody_waits_for_it() -> None:
    workers = ThreadWorkers("test", 1)
    hanging, release, done = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        release.wait(60)

    workers.submit(hang)
    assert hanging.wait(30)
    workers.submit(done.set)
    while not done.wait(0.05):
        workers.relieve()
        assert workers.threads <= 2
    assert workers.threads == 2
    release.set()


def test_a_job_that_raises_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    workers = ThreadWorkers("test", 1)
    done = threading.Event()
    workers.submit(lambda: print(1 // 0))
    workers.submit(done.set)
    assert done.wait(30)
    assert "a job of the media path failed" in caplog.text
    assert workers.threads == 1
