"""One source that plays, waits in the queue or sounds over others, in the hands of the bot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypedDict

from voicegw.errors import AudioError
from voicegw.media.pacer import FRAME_S
from voicegw.media.readahead import ReadAhead
from voicegw.media.sources import Source
from voicegw.media.track import Track
from voicegw.media.workers import readers_of

STEP_S = 0.05


class HowToPlay(TypedDict, total=False):
    """`volume` is 1 for as it is, `loudness` a target in LUFS (-16 is usual for music), `loop` begins it again at its
    end, `fade_in_s` lets it come, `crossfade_s` lets it come while the one before goes."""

    volume: float
    loudness: float | None
    loop: bool
    fade_in_s: float
    crossfade_s: float


class Owner(Protocol):
    """What a playback asks its player for."""

    def finish(self, playback: Playback) -> None:
        """End it."""

    def rest(self, playback: Playback) -> None:
        """Pause it."""

    def proceed(self, playback: Playback) -> None:
        """Go on."""

    def change(self, playback: Playback) -> None:
        """Its level is about to change."""

    def moved(self, playback: Playback) -> None:
        """It has gone to another place."""

    def read(self, playback: Playback) -> None:
        """More of it was read ahead, or all; by a worker."""

    def waiting(self, playback: Playback) -> int:
        """Frames of it that are mixed, but have not left."""

    def tell(self, what: Callable[..., None], *arguments: object) -> None:
        """Have the event loop do it."""


class Playback:
    """One source on its way out. All of it belongs to the event loop that plays it.

    Attributes:
        source (Source): What is played, as it was given.
        paused (bool): Is it silent until `resume`?
        error (AudioError | None): Why it ended, where that was not its own end or a stop.
    """

    def __init__(
        self,
        player: Owner,
        source: Source,
        loop: asyncio.AbstractEventLoop,
        volume: float = 1.0,
        loudness: float | None = None,
        loop_source: bool = False,
    ) -> None:
        check_volume(volume)
        if not hasattr(source, "read"):
            raise TypeError(f"{source!r} is no source; open_source makes one of a file, open_url of a URL")
        self._player = player
        self._closed = loop.create_future()
        self._over = False
        self._begun_s = 0.0
        self.source = source
        self.paused = False
        self.error: AudioError | None = None
        self._reader = ReadAhead(source, readers_of(loop), self._read)
        self._reader.looped = loop_source
        self._track = Track(self, self._reader, volume, loudness)
        self._reader.bind()

    # -- what there is to know

    @property
    def position_s(self) -> float:
        """Seconds of the source that have left; over the ends of a loop it counts on."""
        return self._begun_s + max(0, self._reader.taken - self._player.waiting(self)) * FRAME_S

    @property
    def source_position_s(self) -> float:
        """Where that is in the source: it falls back at the end of each round of a loop."""
        taken = max(0, self._reader.taken - self._player.waiting(self))
        place = self._reader.in_source(taken)
        return place * FRAME_S + (self._begun_s if place == taken else 0.0)

    @property
    def duration_s(self) -> float | None:
        """Seconds of the whole source, where that is known."""
        duration_s: float | None = getattr(self.source, "duration_s", None)
        return duration_s

    @property
    def done(self) -> bool:
        """Has it ended, in whatever way?"""
        return self._over

    async def wait(self) -> None:
        """Until it has ended or was stopped, and its source is closed.

        Raises:
            AudioError: the source could not be read to its end.
        """
        await asyncio.shield(self._closed)
        if self.error is not None:
            raise self.error

    def add_done_callback(self, callback: Callable[[Playback], None]) -> None:
        """Call `callback(playback)` on the event loop as soon as `wait` would return or raise."""
        self._closed.add_done_callback(lambda _: callback(self))

    async def progress(self, every_s: float = 1.0) -> AsyncIterator[float]:
        """The position, now and again until it has ended."""
        while not self._over:
            yield self.position_s
            await asyncio.wait([self._closed], timeout=every_s)

    # -- what can be done with it

    def stop(self, fade_s: float = 0.0) -> None:
        """End it, now or in so many seconds; harmless when it has ended."""
        if self.done:
            return
        if fade_s > 0 and not self.paused:
            self._player.change(self)
            self._track.leaving = True
            self._track.fade(0.0, fade_s)
        else:
            self._player.finish(self)

    def pause(self) -> None:
        """Be silent until `resume`."""
        if not self.done and not self.paused:
            self.paused = True
            self._player.rest(self)

    def resume(self) -> None:
        """Go on where `pause` came."""
        if self.paused:
            self.paused = False
            if not self.done:
                self._player.proceed(self)

    def seek(self, seconds: float) -> None:
        """Go to `seconds` from the start. What cannot be sought ends, and `error` says so."""
        if seconds < 0:
            raise ValueError("a source has nothing before its start")
        if not self.done:
            self._begun_s = 0.0
            self._reader.seek(seconds)
            self._player.moved(self)

    def begun_at(self, seconds: float) -> None:
        """The source was opened there, not at its start."""
        self._begun_s = seconds

    @property
    def volume(self) -> float:
        """1 as it is, 0 silent, 2 twice the amplitude. Set, it goes there within 50 ms."""
        return self._track.goal

    @volume.setter
    def volume(self, value: float) -> None:
        self.fade_to(value, STEP_S)

    def fade_to(self, volume: float, seconds: float) -> None:
        """Go to `volume` in so many seconds."""
        check_volume(volume)
        if not self.done:
            self._player.change(self)
            self._track.fade(volume, seconds)

    @property
    def loudness(self) -> float | None:
        """The target in LUFS."""
        return self._track.loudness

    @property
    def ducks(self) -> float | None:
        """The level that the others have while it sounds."""
        return self._track.ducks

    @property
    def loop(self) -> bool:
        """Does it begin again at its end? Only what can be sought can."""
        return self._reader.looped

    @loop.setter
    def loop(self, value: bool) -> None:
        self._reader.looped = value

    # -- for the player

    def _read(self) -> None:
        self._player.read(self)

    def _end(self, error: AudioError | None = None) -> None:
        if self._over:
            return
        self._over = True
        self.error = self._reader.error or error
        self._reader.close(lambda: self._player.tell(self._source_closed))

    def _source_closed(self) -> None:
        self.error = self.error or self._reader.error
        if not self._closed.done():
            self._closed.set_result(None)


def check_volume(volume: float) -> None:
    """Raises ValueError unless it is 0 to 16."""
    if not 0 <= volume <= 16:
        raise ValueError(f"a volume is 0 to 16, not {volume}")
