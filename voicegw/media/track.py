"""One source on its way through the mixer: decoded, at its level, fading, leaving."""

from __future__ import annotations

from typing import Final

from voicegw.media.levels import LoudnessMeter, gain_for, peak, scaled
from voicegw.media.opus import OpusDecoder
from voicegw.media.readahead import ReadAhead

FRAMES_PER_S: Final = 50
SETTLING: Final = 0.02


class Track:
    """`level` is its volume now, `goal` where it goes. One that is `leaving` is over when it has got there.

    With `ducks` the others are turned down to so much while it sounds. `loudness` in LUFS is a target that its own
    level is brought to, slowly. What it gives belongs to the mixer's worker; wishes come from the event loop.
    """

    __slots__ = (
        "_applied",
        "_decoder",
        "_loudest",
        "_loudness_gain",
        "_meter",
        "_step",
        "ducks",
        "goal",
        "leaving",
        "level",
        "loudness",
        "overlap",
        "owner",
        "reader",
    )

    def __init__(self, owner: object, reader: ReadAhead, volume: float = 1.0, loudness: float | None = None) -> None:
        self.owner = owner
        self.reader = reader
        self.overlap = 0  # frames before its end in which the next one begins
        self.level = self.goal = volume
        self.leaving = False
        self.ducks: float | None = None
        self.loudness = loudness
        self._step = 0.0
        self._applied: float | None = None
        self._decoder: OpusDecoder | None = None
        self._meter: LoudnessMeter | None = None
        self._loudness_gain = 1.0
        self._loudest = 0

    @property
    def plain(self) -> bool:
        """Could it go out as it is?"""
        alone = not (self.leaving or self.overlap) and self.ducks is None and self.loudness is None
        return self.reader.is_opus and alone and self.level == self.goal == 1.0

    @property
    def over(self) -> bool:
        """Is there nothing more to come?"""
        ended = self.reader.ended
        return (ended and not self.reader.frames) or (self.leaving and self.level == self.goal)

    @property
    def ready(self) -> bool:
        """Is there a frame?"""
        return bool(self.reader.frames)

    @property
    def hands_over(self) -> bool:
        """Is it time for the next one to begin?"""
        return bool(self.overlap) and self.reader.ended and len(self.reader.frames) <= self.overlap

    def fade(self, volume: float, seconds: float) -> None:
        """Go to `volume` in so many seconds."""
        self.goal = volume
        frames = max(1, round(seconds * FRAMES_PER_S))
        self._step = abs(volume - self.level) / frames

    def next(self, others: float) -> bytes:
        """The next 20 ms of a track that is ready, at its level and the one that the `others` leave it."""
        reader = self.reader
        frame = reader.frames.popleft()
        if not reader.busy and len(reader.frames) <= reader.low:
            reader.refill()
        if reader.is_opus:
            if self._decoder is None:
                self._decoder = OpusDecoder()
            frame = self._decoder.decode(frame)
        if self.level != self.goal:
            self.level = (
                min(self.goal, self.level + self._step)
                if self.goal > self.level
                else max(self.goal, self.level - self._step)
            )
        gain = self.level * others * (self._levelled(frame) if self.loudness is not None else 1.0)
        before, self._applied = gain if self._applied is None else self._applied, gain
        return scaled(frame, before, gain)

    def _levelled(self, frame: bytes) -> float:
        assert self.loudness is not None
        if self._meter is None:
            self._meter = LoudnessMeter()
        self._meter.hear(frame)
        self._loudest = max(self._loudest, peak(frame))
        measured = self._meter.lufs
        if measured is not None:
            wanted = gain_for(self.loudness, measured, self._loudest)
            self._loudness_gain += (wanted - self._loudness_gain) * SETTLING
        return self._loudness_gain
