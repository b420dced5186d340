"""What leaves, when, and what the clock of the audio says meanwhile (E and G of the catalogue, our own stream)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator

import pytest

from tests.faults.cells import covers
from tests.members import World
from tests.test_player import Frames, Stage, VirtualLoop, on_stage
from voicegw.media.pacer import CATCH_UP_FRAMES, FRAME_S, LEAST_GAP_S
from voicegw.wire.rtp import FRAME_TICKS, SAMPLE_RATE, SILENCE_FRAME

ALICE, BOB = 104694319306248192, 158533742254751744
FIVE = [SILENCE_FRAME] * 5


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def frames_of(stage: Stage) -> list[bytes]:
    return [frame for _, frame, _ in stage.sent]


@covers("F95")
def test_over_a_thousand_pauses_the_timestamp_follows_the_clock(loop: VirtualLoop, seed: int) -> None:
    drawn = random.Random(seed)

    async def act(stage: Stage) -> None:
        for _ in range(1000):
            await stage.player.play(Frames(drawn.randrange(1, 12))).wait()
            await asyncio.sleep(drawn.uniform(0.0, 6.8))
        assert loop.time() - stage.start > 3000

    stage = on_stage(loop, act)
    first_at, _, first_ticks = stage.sent[0]
    ticks, wraps = first_ticks, 0
    for (before_at, _, before), (at, _, now) in itertools.pairwise(stage.sent):
        step = (now - before) & 0xFFFFFFFF
        wraps += now < before
        ticks += step
        drift_s = (ticks - first_ticks) / SAMPLE_RATE - (at - first_at)
        assert abs(drift_s) < 0.02
        assert abs(step / SAMPLE_RATE - (at - before_at)) < 0.02
    gaps = [True] + [after - before > 1.5 * FRAME_S for before, after in itertools.pairwise(stage.times)]
    assert stage.markers == gaps  # the first packet after a gap, and no other, says that speech begins


@covers("F104")
@pytest.mark.parametrize("how", ["end", "stop", "pause", "underrun", "damage"])
def test_five_frames_of_silence_follow_all_speech(loop: VirtualLoop, how: str) -> None:
    async def act(stage: Stage) -> None:
        if how == "underrun":
            stage.player.play(Hanging(10))
        elif how == "damage":
            stage.player.play(Frames(10, break_at_nine))
        else:
            playback = stage.player.play(Frames(10 if how == "end" else 1000))
            await asyncio.sleep(0.19)
            if how != "end":
                getattr(playback, how)()
        await asyncio.sleep(3)

    stage = on_stage(loop, act)
    frames = frames_of(stage)
    count = 9 if how == "damage" else 10
    assert frames[count:] == FIVE
    assert SILENCE_FRAME not in frames[:count]
    gaps = [after - before for before, after in itertools.pairwise(stage.times)]
    assert gaps == pytest.approx([FRAME_S] * len(gaps))
    assert stage.underruns == (1 if how == "underrun" else 0)


def break_at_nine(number: int) -> None:
    if number == 9:
        raise KeyError("a bot's own source")


class Hanging(Frames):
    """Has nothing more after its frames, and does not end."""

    def read(self) -> bytes:
        return super().read() or None  # type: ignore[return-value]


@covers("F104")
def test_a_resume_within_the_silence_is_speech_at_once(loop: VirtualLoop) -> None:
    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(20))
        await asyncio.sleep(0.19)
        playback.pause()
        await asyncio.sleep(0.05)
        playback.resume()
        await playback.wait()
        await asyncio.sleep(1)

    frames = frames_of(on_stage(loop, act))
    numbers = [int.from_bytes(frame[1:], "big") for frame in frames if frame != SILENCE_FRAME]
    assert numbers == list(range(20))
    assert 1 <= frames[10:16].count(SILENCE_FRAME) < 5
    assert frames[-5:] == FIVE


@covers("F104")
def test_silence_of_an_encrypted_call_is_heard_as_what_it_is() -> None:
    world = World()
    for user in (ALICE, BOB):
        world.join(user)
    world.settle()
    alice, bob = (world.members[user].group for user in (ALICE, BOB))
    assert alice.ready
    for _ in range(5):
        assert bob.decrypt(ALICE, alice.encrypt(SILENCE_FRAME)) == SILENCE_FRAME
    assert alice.encrypt(b"\x78speech and more") != b"\x78speech and more"


@covers("F138")
@pytest.mark.parametrize("delay_s", [0.05, 0.061, 0.0749, 0.2, 1.0, 5.0])
def test_a_sender_that_was_delayed_does_not_burst(loop: VirtualLoop, delay_s: float, seed: int) -> None:
    drawn = random.Random(seed)

    async def act(stage: Stage) -> None:
        playback = stage.player.play(Frames(400))
        for number in range(1, 4):
            loop.call_later(number * 1.5 + drawn.uniform(0, FRAME_S), loop.stall, delay_s)
        await playback.wait()

    stage = on_stage(loop, act)
    assert [int.from_bytes(frame[1:], "big") for frame in frames_of(stage)[:400]] == list(range(400))
    in_a_row = 1
    for (before_at, _, before), (at, _, ticks) in itertools.pairwise(stage.sent):
        in_a_row = in_a_row + 1 if at - before_at < LEAST_GAP_S else 1
        assert in_a_row <= CATCH_UP_FRAMES
        assert (ticks - before) & 0xFFFFFFFF >= FRAME_TICKS
    first_at, _, first = stage.sent[0]
    last_at, _, last = stage.sent[399]
    assert ((last - first) & 0xFFFFFFFF) / SAMPLE_RATE == pytest.approx(last_at - first_at, abs=1.5 * FRAME_S)
