"""Queue, mix, fade, duck, seek, loop, level: what a far listener would hear, in virtual time."""

from __future__ import annotations

import array
import asyncio
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_player import Frames, Stage, VirtualLoop, on_stage
from voicegw.errors import SourceFailed
from voicegw.media.levels import LoudnessMeter, added, gain_for, scaled
from voicegw.media.likeness import pcm_frequency
from voicegw.media.mixer import Mixer
from voicegw.media.ogg import OggOpusWriter
from voicegw.media.opus import OpusDecoder, OpusEncoder
from voicegw.media.opus_files import OggOpusSource
from voicegw.media.pacer import FRAME_S
from voicegw.media.playback import Playback
from voicegw.media.readahead import ReadAhead
from voicegw.media.sources import ToneSource
from voicegw.media.track import Track
from voicegw.wire.rtp import SILENCE_FRAME

TONE_DBFS = -15.0  # peaks at -12


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def song(place: Path, hz: float, seconds: float) -> OggOpusSource:
    """A tone as an Ogg Opus file."""
    encoder, path = OpusEncoder(), place / f"{hz:g}.ogg"
    with OggOpusWriter(path) as writer:
        for frame in iter(ToneSource(hz, seconds).read, b""):
            writer.write(encoder.encode(frame))
    return OggOpusSource(path)


def heard(stage: Stage) -> list[bytes]:
    """What left, decoded, frame by frame."""
    decoder = OpusDecoder()
    return [decoder.decode(frame) for _, frame, _ in stage.sent]


def dbfs(frames: list[bytes]) -> float:
    samples = array.array("h", b"".join(frames))
    return 10 * math.log10(sum(s * s for s in samples) / len(samples) / 32768**2 + 1e-12)


def level_of(frames: list[bytes], hz: float) -> float:
    """How much of one pitch there is, in dBFS of its amplitude's mean square."""
    samples = array.array("h", b"".join(frames))[::2]
    turn = 2 * math.pi * hz / 48_000
    real = sum(s * math.cos(turn * n) for n, s in enumerate(samples))
    imaginary = sum(s * math.sin(turn * n) for n, s in enumerate(samples))
    amplitude = 2 * math.hypot(real, imaginary) / len(samples) / 32768
    return 20 * math.log10(amplitude / math.sqrt(2) + 1e-9)


def no_gap(stage: Stage, frames: int) -> None:
    """So many frames left at the pace of speech, none of them silence."""
    gaps = [after - before for before, after in itertools.pairwise(stage.times[:frames])]
    assert gaps == pytest.approx([FRAME_S] * (frames - 1))
    assert SILENCE_FRAME not in [frame for _, frame, _ in stage.sent[:frames]]


# -- many at once


def test_streams_that_begin_together_are_not_all_encoded_together() -> None:
    class Waiting:
        """Workers that do nothing before they are told."""

        def __init__(self) -> None:
            self.jobs: list[Callable[[], None]] = []

        def submit(self, job: Callable[[], None]) -> None:
            self.jobs.append(job)

        def relieve(self) -> None:
            pass

        def work(self) -> int:
            done, self.jobs = self.jobs, []
            for job in done:
                job()
            return len(done)

    encoders, readers, mixers = Waiting(), Waiting(), []
    for _ in range(20):
        reader = ReadAhead(ToneSource(440), readers)
        reader.refill()
        readers.work()
        mixer = Mixer(encoders, 128_000, lambda track: None, lambda track, following: None, lambda: 0.0)
        mixer.begin([Track(None, reader)])
        mixers.append(mixer)
    runs = []
    for _ in range(60):  # frames leave
        runs.append(encoders.work())
        readers.work()
        for mixer in mixers:
            mixer.frames.popleft()
            if not mixer.busy and len(mixer.frames) <= mixer.low:
                mixer.refill()
    assert max(runs[1:]) <= 4
    assert sum(runs[-10:]) == 20, "every one once in ten frames"


# -- one after the other


def test_tracks_follow_each_other_without_a_gap_and_unchanged(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        first, second = stage.player.play(Frames(30)), stage.player.queue(Frames(20))
        third = stage.player.queue(Frames(10))
        assert stage.player.queued == (second, third)
        await first.wait()
        assert stage.player.playing is second
        assert not second.done
        second_wait = asyncio.ensure_future(second.wait())
        await third.wait()
        assert second_wait.done()

    stage = on_stage(loop, act)
    no_gap(stage, 60)
    numbers = [int.from_bytes(frame[1:], "big") for _, frame, _ in stage.sent[:60]]
    assert numbers == [*range(30), *range(20), *range(10)]
    assert stage.said[:2] == ["started", "ended"]


@pytest.mark.parametrize("kinds", ["oo", "op", "po", "pp", "opo", "pop"])
def test_what_passes_through_and_what_is_encoded_follow_without_a_gap(
    loop: VirtualLoop, tmp_path: Path, kinds: str
) -> None:
    pitches = (400.0, 700.0, 1100.0)
    ended: list[float] = []

    async def act(stage: Stage) -> None:
        playbacks: list[Playback] = []
        for kind, hz in zip(kinds, pitches, strict=False):
            source = song(tmp_path, hz, 1.4) if kind == "o" else ToneSource(hz, 1.4)
            playbacks.append(stage.player.queue(source))
        for playback in playbacks:
            await playback.wait()
            assert playback.position_s == pytest.approx(1.4)
            ended.append(loop.time() - stage.start)

    stage = on_stage(loop, act)
    no_gap(stage, 70 * len(kinds))
    sound = heard(stage)
    for number, hz in enumerate(pitches[: len(kinds)]):
        assert pcm_frequency(b"".join(sound[number * 70 + 5 : number * 70 + 65])) == pytest.approx(hz, abs=2)
    assert ended == pytest.approx([1.4 * (number + 1) for number in range(len(kinds))], abs=2 * FRAME_S)


def test_what_waits_can_be_taken_out_and_stop_goes_to_the_next(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        first = stage.player.play(Frames(100))
        second, third = stage.player.queue(Frames(100)), stage.player.queue(Frames(5))
        await asyncio.sleep(0.1)
        second.stop()
        first.stop()
        await second.wait()
        assert stage.player.playing is third
        await third.wait()

    stage = on_stage(loop, act)
    numbers = [int.from_bytes(frame[1:], "big") for _, frame, _ in stage.sent if frame != SILENCE_FRAME]
    assert numbers in ([*range(6), *range(5)], [*range(5), *range(5)])


# -- levels


def test_a_volume_is_heard_and_until_then_packets_pass_unchanged(loop: VirtualLoop, tmp_path: Path) -> None:
    packets = list(iter(song(tmp_path, 440, 3.0).read, b""))

    async def act(stage: Stage) -> None:
        playback = stage.player.play(song(tmp_path, 440, 3.0))
        await asyncio.sleep(1.0)
        assert playback.position_s == pytest.approx(1.0, abs=0.021)
        assert playback.volume == 1.0
        playback.volume = 0.1
        await asyncio.sleep(1.0)
        playback.fade_to(1.0, 0.5)
        await playback.wait()

    stage = on_stage(loop, act)
    no_gap(stage, 150)
    assert [frame for _, frame, _ in stage.sent[:50]] == packets[:50]
    sound = heard(stage)
    assert dbfs(sound[20:45]) == pytest.approx(TONE_DBFS, abs=0.5)
    assert dbfs(sound[72:95]) == pytest.approx(TONE_DBFS - 20, abs=0.7)
    assert TONE_DBFS - 18 < dbfs(sound[118:122]) < TONE_DBFS - 1
    assert dbfs(sound[140:149]) == pytest.approx(TONE_DBFS, abs=0.7)


def test_stop_with_a_fade(loop: VirtualLoop, tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(song(tmp_path, 440, 10.0), fade_in_s=0.5)
        await asyncio.sleep(1.0)
        playback.stop(fade_s=0.5)
        await playback.wait()
        assert stage.player.playing is None

    stage = on_stage(loop, act)
    assert 1.5 <= stage.times[-1] <= 2.0
    sound = heard(stage)
    assert dbfs(sound[:5]) < TONE_DBFS - 10
    assert dbfs(sound[30:45]) == pytest.approx(TONE_DBFS, abs=0.5)
    assert dbfs(sound[-12:-8]) < TONE_DBFS - 6


@pytest.mark.parametrize("target", [-30.0, -20.0])
def test_a_loudness_target_is_reached(loop: VirtualLoop, target: float) -> None:
    stage = on_stage(loop, lambda stage: stage.player.play(ToneSource(1000, 8.0), loudness=target).wait())
    meter = LoudnessMeter()
    for frame in heard(stage)[300:395]:
        meter.hear(frame)
    assert meter.lufs == pytest.approx(target, abs=0.5)


def test_the_meter_measures_as_the_standard_says() -> None:
    """BS.1770: a sine of 997 Hz at 0 dBFS on one channel is -3.01 LUFS, on both 0; silence has no loudness."""
    meter = LoudnessMeter()
    turn = 2 * math.pi * 997 / 48_000
    for start in range(0, 48_000 * 2, 960):
        wave = [round(3276.7 * math.sin(turn * n)) for n in range(start, start + 960)]
        meter.hear(array.array("h", [v for sample in wave for v in (sample, 0)]).tobytes())
    assert meter.lufs == pytest.approx(-23.01, abs=0.1)
    for _ in range(400):
        meter.hear(bytes(3840))
    assert meter.lufs == pytest.approx(-23.01, abs=0.1)
    assert LoudnessMeter().lufs is None
    assert gain_for(-10.0, -40.0, 100) == pytest.approx(10 ** (12 / 20))
    assert gain_for(-10.0, -16.0, 32767) == pytest.approx(1.0)


def test_sums_and_gains_are_cut_at_the_loudest_there_is() -> None:
    loud, soft = array.array("h", [30_000, -30_000] * 960).tobytes(), array.array("h", [5_000, -5_000] * 960).tobytes()
    assert array.array("h", added(loud, soft))[:2].tolist() == [32767, -32768]
    assert scaled(loud, 1.0, 1.0) is loud
    assert array.array("h", scaled(loud, 2.0, 2.0))[:2].tolist() == [32767, -32768]
    ramp = array.array("h", scaled(soft, 0.0, 1.0))
    assert len(ramp) == 1920
    assert ramp[0] < ramp[960] < ramp[1918] == 5_000


# -- several at once


def test_speech_over_music_which_is_ducked(loop: VirtualLoop, tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        music = stage.player.play(song(tmp_path, 440, 4.0))
        await asyncio.sleep(1.0)
        speech = stage.player.play_over(ToneSource(1500, 1.0), duck=0.1)
        await speech.wait()
        assert not music.done
        assert loop.time() - stage.start == pytest.approx(2.1, abs=0.15)
        await music.wait()

    stage = on_stage(loop, act)
    no_gap(stage, 200)
    sound = heard(stage)
    assert level_of(sound[20:45], 440) == pytest.approx(TONE_DBFS, abs=0.5)
    assert level_of(sound[72:95], 1500) == pytest.approx(TONE_DBFS, abs=0.7)
    assert level_of(sound[72:95], 440) == pytest.approx(TONE_DBFS - 20, abs=1)
    assert level_of(sound[150:195], 440) == pytest.approx(TONE_DBFS, abs=0.7)
    assert level_of(sound[150:195], 1500) < -60


def test_several_at_once_go_on_when_the_first_ends(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        first = stage.player.play(ToneSource(440, 0.5))
        others = [stage.player.play_over(ToneSource(hz, 1.5), duck=None) for hz in (800, 1300)]
        await first.wait()
        assert stage.player.playing is None
        assert not any(other.done for other in others)
        assert stage.said == ["started"]
        for other in others:
            await other.wait()
        await asyncio.sleep(1)

    stage = on_stage(loop, act)
    sound = heard(stage)
    for hz in (800, 1300):
        assert level_of(sound[10:24], hz) == pytest.approx(TONE_DBFS, abs=1)
        assert level_of(sound[40:70], hz) == pytest.approx(TONE_DBFS, abs=1)
    assert stage.said == ["started", "ended", "silent"]


def test_ducking_under_others_speech(loop: VirtualLoop, tmp_path: Path) -> None:
    async def act(stage: Stage) -> None:
        music = stage.player.play(song(tmp_path, 440, 3.0))
        await asyncio.sleep(1.0)
        stage.player.duck(0.1)
        await asyncio.sleep(1.0)
        stage.player.duck(1.0)
        await music.wait()

    sound = heard(on_stage(loop, act))
    assert dbfs(sound[75:95]) == pytest.approx(TONE_DBFS - 20, abs=1)
    assert dbfs(sound[135:149]) == pytest.approx(TONE_DBFS, abs=1)


def test_a_duck_may_take_its_time_and_leaves_what_is_played_over_alone(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        stage.player.duck(1.0)
        music = stage.player.play(ToneSource(440, 4.0))
        over = stage.player.play_over(ToneSource(1500, 3.5), duck=None)
        announced = stage.player.play_over(ToneSource(3000, 3.5), duck=1.0)
        await asyncio.sleep(1.0)
        stage.player.duck(0.2, fade_s=1.0)
        await music.wait()
        assert over.done
        assert announced.done

    sound = heard(on_stage(loop, act))
    levels = [level_of(sound[at : at + 5], 440) for at in range(30, 130, 5)]
    assert levels[0] == pytest.approx(TONE_DBFS, abs=0.7)
    assert levels[-1] == pytest.approx(TONE_DBFS - 14, abs=0.7)
    assert all(after < before + 0.5 for before, after in itertools.pairwise(levels))
    assert -3.0 < min(after - before for before, after in itertools.pairwise(levels)) < -0.5
    assert level_of(sound[120:150], 1500) == pytest.approx(TONE_DBFS - 14, abs=0.7)
    assert level_of(sound[120:150], 3000) == pytest.approx(TONE_DBFS, abs=0.7)


def test_pause_among_several(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        music = stage.player.play(ToneSource(440, 5.0))
        await asyncio.sleep(0.5)
        over = stage.player.play_over(ToneSource(1500, 2.0), duck=None)
        await asyncio.sleep(0.5)
        music.pause()
        await asyncio.sleep(0.5)
        music.resume()
        await over.wait()
        over = stage.player.play_over(ToneSource(1500, 1.0), duck=None)
        music.pause()
        await over.wait()
        await asyncio.sleep(1.0)
        assert "ended" in stage.said
        music.resume()
        await music.wait()
        assert music.position_s == pytest.approx(5.0, abs=0.03)

    sound = heard(on_stage(loop, act))
    assert level_of(sound[73:83], 440) < -60
    assert level_of(sound[73:83], 1500) == pytest.approx(TONE_DBFS, abs=1)
    assert level_of(sound[97:104], 440) == pytest.approx(TONE_DBFS, abs=1)


# -- crossfades


@pytest.mark.parametrize("how", ["play", "queue"])
def test_a_crossfade(loop: VirtualLoop, tmp_path: Path, how: str) -> None:
    async def act(stage: Stage) -> None:
        first = stage.player.play(song(tmp_path, 440, 10.0 if how == "play" else 3.0))
        if how == "queue":
            second = stage.player.queue(song(tmp_path, 1500, 3.0), crossfade_s=1.0)
        await asyncio.sleep(1.9)
        if how == "play":
            second = stage.player.play(song(tmp_path, 1500, 3.0), crossfade_s=1.0)
        await first.wait()
        assert 2.9 <= loop.time() - stage.start <= 3.3
        assert stage.player.playing is second
        await second.wait()

    stage = on_stage(loop, act)
    no_gap(stage, 235)
    sound = heard(stage)
    assert level_of(sound[20:90], 440) == pytest.approx(TONE_DBFS, abs=0.7)
    assert level_of(sound[20:90], 1500) < -50
    for hz in (440, 1500):
        assert TONE_DBFS - 12 < level_of(sound[122:130], hz) < TONE_DBFS - 3
    assert level_of(sound[175:230], 440) < -50
    assert level_of(sound[175:230], 1500) == pytest.approx(TONE_DBFS, abs=0.7)


# -- places


@pytest.mark.parametrize("kind", ["passed", "encoded"])
def test_seek(loop: VirtualLoop, tmp_path: Path, kind: str) -> None:
    async def act(stage: Stage) -> None:
        source = song(tmp_path, 440, 10.0) if kind == "passed" else ToneSource(440, 10.0)
        playback = stage.player.play(source)
        await asyncio.sleep(0.5)
        playback.seek(9.0)
        await asyncio.sleep(0.1)
        assert playback.position_s == pytest.approx(9.1, abs=0.05)
        assert [round(at, 1) async for at in playback.progress(0.3)] == [9.1, 9.4, 9.7, 10.0]
        with pytest.raises(ValueError, match="before its start"):
            playback.seek(-1)

    stage = on_stage(loop, act)
    assert sum(frame != SILENCE_FRAME for _, frame, _ in stage.sent) == pytest.approx(75, abs=2)


def test_what_cannot_be_sought_says_so(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(100))
        await asyncio.sleep(0.1)
        playback.seek(1.0)
        with pytest.raises(SourceFailed, match="Frames cannot be sought"):
            await playback.wait()

    on_stage(loop, act)


@pytest.mark.parametrize("kind", ["passed", "encoded"])
def test_a_loop_has_no_seam_and_ends_when_told(loop: VirtualLoop, tmp_path: Path, kind: str) -> None:
    async def act(stage: Stage) -> None:
        source = song(tmp_path, 440, 0.6) if kind == "passed" else ToneSource(440, 0.6)
        playback = stage.player.play(source, loop=True)
        await asyncio.sleep(3.0)
        assert playback.loop
        playback.loop = False
        await playback.wait()

    stage = on_stage(loop, act)
    played = sum(frame != SILENCE_FRAME for _, frame, _ in stage.sent)
    assert played >= 150
    assert played % 30 == 0
    no_gap(stage, played)


def test_an_empty_source_in_a_loop_ends(loop: VirtualLoop) -> None:
    on_stage(loop, lambda stage: stage.player.play(ToneSource(440, 0.0), loop=True).wait())


# -- the encoder


def test_bitrate_and_loss_reach_the_encoder(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, float]] = []
    adapt: Callable[[OpusEncoder, int, float], None] = OpusEncoder.adapt

    def note(encoder: OpusEncoder, bitrate: int, loss: float) -> None:
        told.append((bitrate, loss))
        adapt(encoder, bitrate, loss)

    monkeypatch.setattr(OpusEncoder, "adapt", note)
    losses = [0.0]

    async def act(stage: Stage) -> None:
        stage.player._loss = lambda: losses[0]
        playback = stage.player.play(ToneSource(440, 4.0))
        await asyncio.sleep(1.0)
        stage.player.bitrate = 32_000
        losses[0] = 0.1
        await playback.wait()
        with pytest.raises(ValueError, match="bitrate"):
            stage.player.bitrate = 1

    stage = on_stage(loop, act)
    sizes = [len(frame) for _, frame, _ in stage.sent]
    assert sum(sizes[10:40]) > 2.5 * sum(sizes[100:130])
    assert told[0] == (128_000, 0.0)
    assert (32_000, 0.1) in told
