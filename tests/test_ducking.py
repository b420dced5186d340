"""Music goes down under others' speech: whom it follows, for how long, and what a far listener hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.test_player import VirtualLoop
from voicegw import HeardFrame, ToneSource
from voicegw.media.ducking import Ducking
from voicegw.media.levels import peak
from voicegw.testing.simulation import Simulation


class Levels:
    """A player that notes how it is turned, and when."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop, self.start = loop, loop.time()
        self.turned: list[tuple[float, float, float]] = []

    def duck(self, level: float = 0.3, fade_s: float = 0.1) -> None:
        self.turned.append((round(self.loop.time() - self.start, 3), level, fade_s))


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def test_it_goes_down_with_the_first_and_up_after_the_last(loop: VirtualLoop) -> None:
    async def act() -> None:
        ducking.use(0.2, attack_s=0.05, hold_s=1.0, release_s=2.0, ignored=[9])
        ducking.hear(9, True)
        await asyncio.sleep(1)
        ducking.hear(1, True)
        await asyncio.sleep(1)
        ducking.hear(2, True)
        ducking.hear(1, False)
        await asyncio.sleep(1)
        ducking.hear(2, False)  # at 3; and a word after it, so that it stays down
        await asyncio.sleep(0.9)
        ducking.hear(2, True)
        await asyncio.sleep(0.1)
        ducking.hear(2, False)
        await asyncio.sleep(3)

    player = Levels(loop)
    ducking = Ducking(player)
    loop.run_until_complete(act())
    assert player.turned == [(0, 1.0, 0.1), (1.0, 0.2, 0.05), (5.0, 1.0, 2.0)]


def test_who_speaks_already_is_heard_and_the_end_turns_it_up(loop: VirtualLoop) -> None:
    async def act() -> None:
        ducking.hear(1, True)
        assert player.turned == []
        ducking.use(0.5)
        assert [level for _, level, _ in player.turned] == [1.0, 0.5]
        ducking.use(0.1)  # another level: up from the one before, and down
        assert [level for _, level, _ in player.turned] == [1.0, 0.5, 1.0, 1.0, 0.1]
        ducking.use(None)
        ducking.hear(1, False)
        await asyncio.sleep(5)
        assert [level for _, level, _ in player.turned][5:] == [1.0]

    player = Levels(loop)
    ducking = Ducking(player)
    loop.run_until_complete(act())


@pytest.mark.parametrize(("level", "hold_s"), [(1.0, 0.5), (-0.1, 0.5), (0.3, -1.0)])
def test_what_cannot_be_is_refused(loop: VirtualLoop, level: float, hold_s: float) -> None:
    with pytest.raises(ValueError, match="duck"):
        Ducking(Levels(loop)).use(level, hold_s=hold_s)


def test_a_listener_hears_the_music_go_down_and_come_back(voice_simulation: Simulation) -> None:
    levels: list[tuple[float, int]] = []

    async def story(sim: Simulation) -> None:
        bot, listener = sim.client(1), sim.client(2)
        await bot.connect(channel_id=9)
        await listener.connect(channel_id=9)
        bot.duck_under_speech(0.1)
        start = sim.loop.time()

        def hear(frame: HeardFrame) -> None:
            levels.append((frame.at_s - start, peak(frame.pcm)))

        listener.listen(hear)
        music = bot.play(ToneSource(440, seconds=8))
        await asyncio.sleep(3)
        await listener.play(ToneSource(800, seconds=1)).wait()
        await music.wait()

    voice_simulation.run(story)

    def mean(first: float, last: float) -> float:
        found = [level for at, level in levels if first < at < last]
        return sum(found) / len(found)

    loud = mean(1.5, 2.9)
    assert mean(3.6, 4.3) == pytest.approx(loud * 0.1, rel=0.1)
    assert mean(6.3, 7.8) == pytest.approx(loud, rel=0.1)
