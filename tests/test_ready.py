"""Datagrams that are made ahead: each leaves for the frame it was made of, while nothing has changed, or not at all."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar

import pytest

from tests.faults.calls import Hum
from tests.faults.groups import ALICE, BOB, CAROL, together
from voicegw.effects import ApplyCommit
from voicegw.errors import AudioError, GroupError
from voicegw.events import Event
from voicegw.media.lane import Lane
from voicegw.media.sender import READY_FRAMES, StreamMark, StreamSender
from voicegw.secret import Secret
from voicegw.testing.simulation import Simulation
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import FRAME_TICKS, SILENCE_FRAME, RtpView, parse_rtp

_keys = itertools.count(500_000)


def fresh_cipher() -> TransportCipher:
    return TransportCipher(PREFERRED_MODES[0], Secret(next(_keys).to_bytes(32, "big")))


class Feed:
    """Frames that are there."""

    settled: ClassVar = True
    marks: ClassVar[tuple[()]] = ()

    def __init__(self, frames: int = 60) -> None:
        self.frames = deque(f"frame {number}".encode() for number in range(frames))
        self.low, self.refills = 5, 0
        self.busy = self.ended = False
        self.error: AudioError | None = None

    def passed(self) -> None:
        raise AssertionError("nobody wants to hear of it")

    def refill(self) -> None:
        self.refills += 1

    def relieve(self) -> None:
        pass


class Stage:
    """A stream that plays and has sent its first frame, so that its next ones are ready."""

    def __init__(self) -> None:
        self.cipher = fresh_cipher()
        self.sent: list[bytes] = []
        self.broken = False
        self.worn = 0
        self.sender = StreamSender(self.wear)
        self.sender.configure(self.cipher, 7, self.send)
        self.sender.release(None)
        self.lane = Lane(self.sender, lambda feed: None, lambda: None, lambda feed: None)
        self.feed = Feed()
        self.lane.play(self.feed)
        self.sender.align(10.0)
        self.turn()
        assert len(self.sender.ready) == 2 * READY_FRAMES

    def wear(self) -> None:
        self.worn += 1

    def send(self, data: bytes) -> bool:
        if not self.broken:
            self.sent.append(data)
        return not self.broken

    def turn(self, turns: int = 1) -> None:
        """As the pacer does it."""
        for _ in range(turns):
            self.lane.tick()
        self.lane.prepare()

    def frames(self) -> list[bytes]:
        return [self.cipher.open(data, 12) for data in self.sent]

    def views(self) -> list[RtpView]:
        return [parse_rtp(data) for data in self.sent]

    def numbers(self) -> list[int]:
        """Sequence numbers, from the first."""
        views = self.views()
        return [(view.sequence - views[0].sequence) & 0xFFFF for view in views]

    def ticks(self) -> list[int]:
        """Timestamps in frames, from the first."""
        views = self.views()
        return [((view.timestamp_ticks - views[0].timestamp_ticks) & 0xFFFFFFFF) // FRAME_TICKS for view in views]


def test_what_is_ready_leaves_as_if_it_had_been_made_now() -> None:
    stage = Stage()
    for _ in range(40):
        stage.turn()
    assert stage.frames() == [f"frame {number}".encode() for number in range(41)]
    assert stage.numbers() == stage.ticks() == [*range(41)]
    assert [view.marker for view in stage.views()] == [True] + [False] * 40
    assert len({data[-4:] for data in stage.sent}) == 41
    assert [data[-4:] for data in stage.sent] == [(2**31 + n).to_bytes(4, "little") for n in range(41)]


def test_what_is_ready_is_not_counted_before_it_leaves() -> None:
    stage = Stage()
    for _ in range(3):
        assert (stage.sender.packets, stage.sender.octets) == (len(stage.sent), sum(map(len, stage.sent)))
        stage.lane.tick()
    stage.sender.forget()
    assert (stage.sender.packets, stage.sender.octets) == (4, sum(map(len, stage.sent)))


def test_the_numbers_go_round_in_the_middle_of_what_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.sender.secrets.randbelow", lambda limit: limit - 3)
    stage = Stage()
    stage.lane.tick()
    stage.turn(12)
    stage.sender.forget()
    stage.turn()
    assert stage.views()[0].sequence == 0xFFFD
    assert stage.numbers() == stage.ticks() == [*range(15)]


def hold(stage: Stage) -> None:
    stage.sender.hold()


def drop(stage: Stage) -> None:
    stage.sender.drop()


def disconnect(stage: Stage) -> None:
    stage.sender.connect(None)


def bind(stage: Stage) -> None:
    stage.sender.lease_only(lambda: None)


def let_time_pass(stage: Stage) -> None:
    stage.sender.skip(1)


@pytest.mark.parametrize("close", [hold, drop, disconnect, bind, let_time_pass])
def test_nothing_is_made_of_frames_that_may_not_leave_or_begin_anew(close: Callable[[Stage], None]) -> None:
    stage = Stage()
    close(stage)
    uses = stage.cipher.counter.uses
    where = stage.sender.make_ready([b"next", b"and one more"])
    assert (stage.sender.ready, stage.cipher.counter.uses) == ([], uses)
    assert where == (None if close in (drop, disconnect) else stage.send)


def test_a_frame_that_is_sent_out_of_turn_takes_the_number_of_the_first_that_is_ready() -> None:
    stage = Stage()
    assert stage.sender.send_silence()
    stage.turn()
    assert stage.frames() == [b"frame 0", SILENCE_FRAME, b"frame 1"]
    assert stage.numbers() == stage.ticks() == [0, 1, 2]


@pytest.mark.parametrize("close", [hold, drop, disconnect, bind])
def test_what_is_ready_does_not_leave_any_more(close: Callable[[Stage], None]) -> None:
    stage = Stage()
    close(stage)
    assert stage.sender.ready == []
    stage.turn(3)
    assert len(stage.sent) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda stage: stage.sender.release(None),
        lambda stage: stage.sender.connect(stage.send),
        lambda stage: stage.sender.configure(stage.cipher, 7, stage.send),
        lambda stage: stage.sender.forget(),
        lambda stage: stage.lane.play(stage.feed),
    ],
)
def test_what_is_made_anew_has_the_same_numbers_and_other_nonces(change: Callable[[Stage], None]) -> None:
    stage = Stage()
    stage.lane.tick()
    before = set(stage.sender.ready[::2])
    change(stage)
    stage.turn(12)
    assert stage.frames() == [f"frame {number}".encode() for number in range(14)]
    assert stage.numbers() == stage.ticks() == [*range(14)]
    assert len({data[-4:] for data in (*stage.sent, *before)}) == len(stage.sent) + len(before)


def test_another_group_never_gets_what_was_encrypted_for_the_one_before() -> None:
    stage = Stage()
    stage.sender.release(lambda frame: b"old " + frame)
    stage.turn(2)
    assert len(stage.sender.ready) > 4
    stage.sender.release(lambda frame: b"new " + frame)
    stage.turn(3)
    assert stage.frames()[1:] == [b"old frame 1", b"old frame 2", b"new frame 3", b"new frame 4", b"new frame 5"]


def test_time_that_goes_by_is_in_the_timestamp() -> None:
    stage = Stage()
    stage.lane.tick()
    stage.lane.skip(3)
    stage.turn()
    stage.sender.align(10.0 + 10 * 0.02)
    stage.turn(2)
    assert stage.frames() == [f"frame {number}".encode() for number in range(5)]
    assert stage.numbers() == [*range(5)]
    assert stage.ticks() == [0, 1, 5, 10, 11]
    assert [view.marker for view in stage.views()] == [True, False, True, True, False]


def test_a_datagram_is_sent_for_the_frame_that_it_was_made_of_and_no_other() -> None:
    stage = Stage()
    stage.feed.frames.clear()  # sought
    stage.feed.frames.extend([b"elsewhere", b"and on"])
    stage.turn(2)
    assert stage.frames() == [b"frame 0", b"elsewhere", b"and on"]
    assert stage.numbers() == [0, 1, 2]


def test_frames_that_are_forgotten_leave_nothing_behind() -> None:
    stage = Stage()
    stage.feed.frames.clear()
    stage.turn()
    assert stage.sender.ready == []
    stage.feed.frames.extend(b"%d" % number for number in range(8))
    stage.turn(3)
    assert stage.frames()[-3:] == [b"0", b"1", b"2"]


def test_another_feed_begins_with_its_own_first_frame() -> None:
    stage = Stage()
    stage.lane.tick()
    other = Feed()
    other.frames[0] = b"other"
    stage.lane.play(other)
    stage.turn()
    assert stage.frames() == [b"frame 0", b"frame 1", b"other"]
    stage.lane.silence()
    stage.lane.tick()
    assert len(other.frames) == 59
    assert stage.numbers() == [*range(4)]


def test_what_the_kernel_refuses_is_lost_and_has_no_number() -> None:
    stage = Stage()
    stage.lane.tick()
    stage.broken = True
    stage.lane.tick()
    stage.broken = False
    assert stage.sender.ready == []
    stage.turn(2)
    assert stage.frames() == [b"frame 0", b"frame 1", b"frame 3", b"frame 4"]
    assert stage.numbers() == [*range(4)]
    assert stage.ticks() == [0, 1, 3, 4]
    assert [view.marker for view in stage.views()] == [True, False, True, False]
    assert (stage.sender.errors, stage.sender.packets) == (1, 4)
    assert stage.sender.octets == sum(map(len, stage.sent))


def test_what_cannot_be_encrypted_is_told_when_it_is_due() -> None:
    def refuse(frame: bytes) -> bytes:
        if frame == b"frame 4":
            raise GroupError("no group")
        return frame

    stage = Stage()
    stage.sender.release(refuse)
    stage.turn()
    assert len(stage.sender.ready) == 2 * 2
    stage.turn(2)
    assert (len(stage.sent), stage.sender.held) == (4, 0)
    stage.turn(2)
    assert stage.frames()[-1] == b"frame 5"
    assert (stage.sender.held, stage.numbers()) == (1, [*range(5)])


def test_the_last_frame_of_a_lease_is_not_made_ahead() -> None:
    asked: list[None] = []
    stage = Stage()
    stage.sender.lease_only(lambda: asked.append(None))
    mark = stage.sender.mark()
    stage.sender.lease(StreamMark(mark.nonces + 4, mark.sequence + 4, mark.timestamp_ticks + (1 << 20)))
    stage.sender.send(b"first")  # with the marker
    stage.lane.prepare()
    assert len(stage.sender.ready) == 2 * 2
    for _ in range(8):
        stage.turn()
    assert stage.frames() == [b"frame 0", b"first", b"frame 1", b"frame 2", b"frame 3"]
    assert not stage.sender.open
    assert stage.feed.frames[0] == b"frame 4"  # it waits for the next lease
    assert asked


def test_a_key_that_ends_is_used_up_and_told_once_it_is_worn() -> None:
    stage = Stage()
    counter = stage.cipher.counter
    counter.worn_at, counter.limit, counter._last = 12, 24, 24
    stage.sender._look_at = 12
    for _ in range(30):
        stage.turn()
    assert len({data[-4:] for data in stage.sent}) == 24
    assert stage.numbers() == [*range(24)]
    assert stage.worn == 1 + 7  # when it was worn, and at each frame that found it spent


def test_only_as_many_as_there_are() -> None:
    stage = Stage()
    stage.feed.frames = deque([b"a", b"b", b"c"])
    stage.lane.play(stage.feed)
    stage.turn()
    assert len(stage.sender.ready) == 2 * 2
    assert stage.feed.refills


def test_what_is_called_after_the_next_turn_does_not_wait_for_what_is_ready() -> None:
    stage = Stage()
    heard: list[int] = []
    stage.lane.after_turn = lambda: heard.append(len(stage.sent))
    stage.turn(2)
    assert heard == [2]
    assert stage.frames() == [b"frame 0", b"frame 1", b"frame 2"]


def test_what_was_encrypted_for_a_group_does_not_outlive_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        alice.play(Hum())
        await asyncio.sleep(1.0)
        before: list[int] = []
        after: list[int] = []
        apply, follow = alice._group.apply_commit, alice._hands._follow

        def applied(effect: ApplyCommit) -> list[Event]:
            before.append(len(alice.sender.ready))
            events = apply(effect)
            monkeypatch.setattr(alice._hands, "_follow", followed)
            return events

        def followed(events: Iterable[Event]) -> None:
            after.append(len(alice.sender.ready))
            monkeypatch.setattr(alice._hands, "_follow", follow)
            follow(events)

        monkeypatch.setattr(alice._group, "apply_commit", applied)
        await together(sim, alice, bob, sim.client(CAROL))
        assert any(before)
        assert after
        assert not any(after)

    Simulation(1).run(story)
