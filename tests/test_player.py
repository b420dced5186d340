"""The pacer, on a clock of its own: frame n leaves at n x 20 ms, nothing drifts, nothing bursts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

import pytest

from voicegw.errors import AudioError, NotAudio
from voicegw.media.pacer import CATCH_UP_FRAMES, FRAME_S
from voicegw.media.player import Player
from voicegw.media.sender import StreamSender
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import SILENCE_FRAME, parse_rtp

_keys = itertools.count(3000)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting; `stall` lets time pass unused."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 1000.0

    def time(self) -> float:
        return self._virtual

    def stall(self, seconds: float) -> None:
        self._virtual += seconds

    def _run_once(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if scheduled and not self._ready:  # type: ignore[attr-defined]
            self._virtual = max(self._virtual, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


class Frames:
    """A source of counted frames."""

    is_opus = True

    def __init__(self, count: int, on_read: Callable[[int], None] = lambda number: None) -> None:
        self._left = iter(range(count))
        self._on_read = on_read
        self.closed = False

    def read(self) -> bytes:
        number = next(self._left, None)
        if number is None:
            return b""
        self._on_read(number)
        return b"\x78" + number.to_bytes(3, "big")

    def close(self) -> None:
        self.closed = True


def open_sender(send: Callable[[bytes], None]) -> StreamSender:
    """A sender whose frames arrive at `send` as they were."""
    cipher = TransportCipher(PREFERRED_MODES[0], Secret(next(_keys).to_bytes(32, "big")))

    def arrive(data: bytes) -> bool:
        send(cipher.open(data, 12))
        return True

    sender = StreamSender(lambda: None)
    sender.configure(cipher, 1, arrive)
    sender.release(None)
    return sender


class Stage:
    """A player with an open sender; `sent` has (time, frame, timestamp)."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.start = loop.time()
        self.cipher = TransportCipher(PREFERRED_MODES[0], Secret(next(_keys).to_bytes(32, "big")))
        self.sender = StreamSender(lambda: None)
        self.sender.configure(self.cipher, 1, self.take)
        self.sender.release(None)
        self.said: list[str] = []
        self.underruns = 0
        self.sent: list[tuple[float, bytes, int]] = []
        self.markers: list[bool] = []
        self.player = Player(
            self.sender,
            on_speech_started=lambda: self.said.append("started"),
            on_speech_ended=self.ended,
            on_silence_sent=lambda: self.said.append("silent"),
            on_underrun=self.ran_dry,
        )

    def ended(self) -> None:
        self.said.append("ended")
        self.player.drain()

    def ran_dry(self) -> None:
        self.underruns += 1

    def take(self, data: bytes) -> bool:
        at = round(self.loop.time() - self.start, 6)
        self.sent.append((at, self.cipher.open(data, 12), parse_rtp(data).timestamp_ticks))
        self.markers.append(parse_rtp(data).marker)
        return True

    @property
    def times(self) -> list[float]:
        return [at for at, _, _ in self.sent]


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def on_stage(loop: VirtualLoop, act: Callable[[Stage], object]) -> Stage:
    """Run an act in virtual time."""

    async def perform() -> Stage:
        stage = Stage(loop)
        result = act(stage)
        if asyncio.iscoroutine(result):
            await result
        stage.player.close()
        await asyncio.sleep(0)  # sources are closed by a worker
        return stage

    return loop.run_until_complete(asyncio.wait_for(perform(), 10_000))


def test_frames_leave_at_their_time_and_silence_follows(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        await stage.player.play(Frames(10)).wait()
        await asyncio.sleep(1)

    stage = on_stage(loop, act)
    assert stage.times == [round(n * FRAME_S, 6) for n in range(15)]
    assert [frame for _, frame, _ in stage.sent[10:]] == [SILENCE_FRAME] * 5
    assert stage.said == ["started", "ended", "silent"]


def test_an_hour_does_not_drift(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        await stage.player.play(Frames(180_000)).wait()

    stage = on_stage(loop, act)
    assert stage.times[179_999] == pytest.approx(179_999 * FRAME_S, abs=1e-6)


def test_after_a_stall_a_few_frames_catch_up_and_the_rest_of_the_time_goes(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        loop.call_later(0.21, loop.stall, 1.0)
        await stage.player.play(Frames(30)).wait()

    stage = on_stage(loop, act)
    gaps = [round(after - before, 6) for before, after in itertools.pairwise(stage.times)]
    back_to_back = [len(list(group)) for at, group in itertools.groupby(stage.times)]
    assert max(back_to_back) <= CATCH_UP_FRAMES
    assert max(gaps) <= 1.0 + FRAME_S
    assert sum(1 for frame in stage.sent if frame[1] != SILENCE_FRAME) == 30
    ticks = [stamp for _, _, stamp in stage.sent]
    elapsed = (ticks[29] - ticks[0]) & 0xFFFFFFFF
    assert elapsed / 48_000 == pytest.approx(stage.times[29] - stage.times[0], abs=2 * FRAME_S)


def test_pause_is_followed_by_silence_and_resume_goes_on_where_it_was(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(20))
        await asyncio.sleep(0.19)
        playback.pause()
        assert playback.position_s == pytest.approx(0.2)
        await asyncio.sleep(5)
        playback.resume()
        await playback.wait()

    stage = on_stage(loop, act)
    frames = [frame for _, frame, _ in stage.sent]
    numbers = [int.from_bytes(frame[1:], "big") for frame in frames if frame != SILENCE_FRAME]
    assert numbers == list(range(20))
    assert frames[10:15] == [SILENCE_FRAME] * 5
    assert stage.times[15] == pytest.approx(5.19)
    assert (stage.sent[15][2] - stage.sent[0][2]) & 0xFFFFFFFF == pytest.approx(5.19 * 48_000, abs=960 * 2)
    assert stage.said[:5] == ["started", "ended", "silent", "started", "ended"]


def test_what_goes_by_unheard_ends_in_its_time_and_the_next_begins(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        stage.sender.hold()
        stage.player.real_time = True
        first, second = stage.player.play(Frames(50)), stage.player.queue(Frames(25))
        await first.wait()
        assert loop.time() - stage.start == pytest.approx(1.0, abs=2 * FRAME_S)
        await second.wait()
        assert loop.time() - stage.start == pytest.approx(1.5, abs=4 * FRAME_S)
        await asyncio.sleep(1)

    stage = on_stage(loop, act)
    assert stage.sent == []
    assert stage.said == ["started", "ended", "silent"]


def test_a_held_sender_holds_the_source(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        stage.sender.hold()
        playback = stage.player.play(Frames(5))
        await asyncio.sleep(3)
        assert (playback.position_s, stage.sent) == (0, [])
        stage.sender.release(None)
        stage.player.wake()
        await playback.wait()

    stage = on_stage(loop, act)
    assert 3.0 <= stage.times[0] <= 3.0 + FRAME_S
    assert stage.times[:5] == [round(stage.times[0] + n * FRAME_S, 6) for n in range(5)]


def test_what_was_held_goes_on_at_once_and_its_timestamp_follows_the_clock(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(50))
        await asyncio.sleep(0.21)
        stage.sender.hold()
        await asyncio.sleep(0.1)
        stage.sender.release(None)
        stage.player.wake()
        await playback.wait()

    stage = on_stage(loop, act)
    (at, _, before), (then, _, after) = stage.sent[10], stage.sent[11]
    assert (at, then) == pytest.approx((0.2, 0.311), abs=1e-3)
    assert after - before == pytest.approx((then - at) * 48_000, abs=2)
    assert stage.sent[12][0] - then == pytest.approx(FRAME_S)


def test_a_turn_is_over_when_a_frame_has_left(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        await stage.player.turn_over()  # nothing is played: at once
        assert loop.time() == stage.start
        stage.player.play(Frames(50))
        await asyncio.sleep(0.107)
        await stage.player.turn_over()
        assert stage.times[-1] == pytest.approx(loop.time() - stage.start) == pytest.approx(0.12)

    on_stage(loop, act)


def test_a_new_source_replaces_the_old_one(loop: VirtualLoop) -> None:
    first, second = Frames(100), Frames(3)

    async def act(stage: Stage) -> None:
        before = stage.player.play(first)
        await asyncio.sleep(0.05)
        after = stage.player.play(second)
        assert before.done
        await before.wait()
        assert stage.player.playing is after
        before.pause()
        before.resume()
        before.stop()
        await after.wait()
        assert stage.player.playing is None

    stage = on_stage(loop, act)
    assert first.closed
    assert second.closed
    gaps = [after - before for before, after in itertools.pairwise(stage.times)]
    assert gaps == pytest.approx([FRAME_S] * len(gaps))
    assert "silent" not in stage.said


def test_a_damaged_source_is_said_and_not_played_on(loop: VirtualLoop) -> None:
    def damage(number: int) -> None:
        if number == 3:
            raise NotAudio("the file is damaged")

    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(10, damage))
        with pytest.raises(AudioError, match="damaged"):
            await playback.wait()
        assert playback.position_s == pytest.approx(0.06)

    assert on_stage(loop, act).said[:2] == ["started", "ended"]


def test_an_empty_source_ends_at_once(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        await stage.player.play(Frames(0)).wait()

    assert on_stage(loop, act).said == ["started", "ended"]


def test_a_cancelled_wait_does_not_stop_the_playback(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(playback.wait(), 0.05)
        assert not playback.done
        await playback.wait()

    assert len(on_stage(loop, act).sent) >= 10


def test_close_ends_without_a_word(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(10))
        await asyncio.sleep(0.03)
        stage.player.close()
        assert playback.done
        await asyncio.sleep(1)

    stage = on_stage(loop, act)
    assert (len(stage.sent), stage.said) == (2, ["started"])


def test_what_cannot_be_played_is_refused_at_once(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        with pytest.raises(TypeError, match="open_source makes one"):
            stage.player.play("song.mp3")  # type: ignore[arg-type]
        for volume in (-0.1, 17.0):
            with pytest.raises(ValueError, match="a volume is 0 to 16"):
                stage.player.play(Frames(5), volume=volume)
        assert stage.player.playing is None

    assert on_stage(loop, act).sent == []
