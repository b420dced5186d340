"""What a bot has in hand of a source that a worker plays: as `Playback`, but from afar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from voicegw.errors import VoiceError
from voicegw.fleet.sources import Named
from voicegw.fleet.streaming import StreamedAway
from voicegw.media.playback import STEP_S
from voicegw.media.sources import Source


class Commands(Protocol):
    """Where a playback's wishes go."""

    def command(self, do: str, **what: Any) -> None:
        """Have the worker do it, after what was asked before."""


class FleetPlayback:
    """One source on its way out. `position_s` is the worker's last word, and the time since."""

    def __init__(
        self,
        playback_id: str,
        source: Source | Named,
        to: Commands,
        now: Callable[[], float],
        volume: float,
        loop: bool,
    ) -> None:
        self.playback_id = playback_id
        self.source = source
        self.paused = False
        self.error: VoiceError | None = None
        self.streamed: StreamedAway | None = None
        self.begun = False
        self._to = to
        self._now = now
        self._volume = volume
        self._loop = loop
        self._position_s = 0.0
        self._at = now()
        self._runs = False
        self._ended = asyncio.get_running_loop().create_future()

    @property
    def position_s(self) -> float:
        """Seconds of the source that have left."""
        return self._position_s + (self._now() - self._at if self._runs and not self.done else 0.0)

    @property
    def done(self) -> bool:
        """Has it ended, in whatever way?"""
        return self._ended.done()

    async def wait(self) -> None:
        """Until it has ended or was stopped.

        Raises:
            AudioError: the source could not be read to its end.
            VoiceError: it was never begun.
        """
        await asyncio.shield(self._ended)
        if self.error is not None:
            raise self.error

    async def progress(self, every_s: float = 1.0) -> AsyncIterator[float]:
        """The position, now and again until it has ended."""
        while not self.done:
            yield self.position_s
            await asyncio.wait([self._ended], timeout=every_s)

    def stop(self, fade_s: float = 0.0) -> None:
        """End it, now or in so many seconds; harmless when it has ended."""
        self._ask("stop", fade_s=fade_s)

    def pause(self) -> None:
        """Be silent until `resume`."""
        if not self.paused:
            self.paused = True
            self._ask("pause")

    def resume(self) -> None:
        """Go on where `pause` came."""
        if self.paused:
            self.paused = False
            self._ask("resume")

    def seek(self, seconds: float) -> None:
        """Go to `seconds` from the start. What cannot be sought ends, and `error` says so."""
        if seconds < 0:
            raise ValueError("a source has nothing before its start")
        self._ask("seek", seconds=seconds)

    @property
    def volume(self) -> float:
        """1 as it is, 0 silent, 2 twice the amplitude. Set, it goes there within 50 ms."""
        return self._volume

    @volume.setter
    def volume(self, value: float) -> None:
        self.fade_to(value, STEP_S)

    def fade_to(self, volume: float, seconds: float) -> None:
        """Go to `volume` in so many seconds."""
        if not 0 <= volume <= 16:
            raise ValueError("a volume is 0 to 16")
        self._volume = volume
        self._ask("fade", volume=volume, seconds=seconds)

    @property
    def loop(self) -> bool:
        """Does it begin again at its end? Only what can be sought can."""
        return self._loop

    @loop.setter
    def loop(self, value: bool) -> None:
        self._loop = value
        self._ask("loop", value=value)

    # -- for the client

    def heard(self, position_s: float, paused: bool) -> None:
        """The worker says where it is."""
        self.begun = True
        self._position_s, self._at, self._runs = position_s, self._now(), not paused

    def end(self, error: VoiceError | None = None, position_s: float | None = None) -> None:
        """It is over; a second time changes nothing."""
        if self.done:
            return
        if position_s is None:
            position_s = self.position_s
        self._position_s, self._runs = position_s, False
        self.error = error
        self._ended.set_result(None)
        if self.streamed is not None:
            self.streamed.close()

    def _ask(self, what: str, **how: Any) -> None:
        if not self.done:
            self._to.command("playback", playback=self.playback_id, what=what, **how)
