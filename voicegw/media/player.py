"""What a bot has in hand of its own voice: play, queue, pause, resume, stop. The pacer sends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from voicegw.errors import AudioError
from voicegw.media.lane import Feed, Lane
from voicegw.media.mixer import Mixer
from voicegw.media.pacer import FRAME_S, Pacer, has_own_clock, pacer_of
from voicegw.media.readahead import ReadAhead
from voicegw.media.sender import StreamSender
from voicegw.media.sources import Source
from voicegw.media.workers import encoders_of, readers_of


class Playback:
    """One source on its way out."""

    def __init__(self, player: Player, source: Source, loop: asyncio.AbstractEventLoop, bitrate: int) -> None:
        self._player = player
        self._closed = loop.create_future()
        self._over = False
        self.source = source
        self.paused = False
        self.error: AudioError | None = None
        self._reader = ReadAhead(source, readers_of(loop), self._read)
        self._mixer = None if source.is_opus else Mixer(self._reader, encoders_of(loop), bitrate)
        self._feed: Feed = self._mixer or self._reader
        self._reader.bind()

    @property
    def position_s(self) -> float:
        """Seconds played."""
        return self._feed.taken * FRAME_S

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

    def stop(self) -> None:
        """End it now; harmless when it has ended."""
        if not self.done:
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

    def _read(self) -> None:
        if self._mixer is not None:
            self._mixer.refill()

    def _end(self) -> None:
        self._over = True
        self.error = self.error or self._feed.error or self._reader.error
        self._reader.close(lambda: self._player.tell(self._source_closed))

    def _source_closed(self) -> None:
        self.error = self.error or self._reader.error
        if not self._closed.done():
            self._closed.set_result(None)


class Player:
    """Plays through one sender, one source after the other.

    It tells its owner when speech begins and ends. While the sender is held the source waits and has not lost a frame;
    with `real_time` its time goes by unheard.
    """

    def __init__(
        self,
        sender: StreamSender,
        on_speech_started: Callable[[], None],
        on_speech_ended: Callable[[], None],
        on_silence_sent: Callable[[], None],
        on_underrun: Callable[[], None] = lambda: None,
        bitrate: int = 128_000,
    ) -> None:
        self._lane = Lane(sender, self._over, self._silent, self._dry)
        self._started = on_speech_started
        self._ended = on_speech_ended
        self._silence_sent = on_silence_sent
        self._underrun = on_underrun
        self._bitrate = bitrate
        self._playback: Playback | None = None
        self._queue: deque[Playback] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pacer: Pacer | None = None
        self._speech = 0
        self._silent_after = -1

    @property
    def playing(self) -> Playback | None:
        """What is being played, paused or held now."""
        return self._playback

    @property
    def real_time(self) -> bool:
        """Does the source go on unheard while it is held?"""
        return self._lane.real_time

    @real_time.setter
    def real_time(self, value: bool) -> None:
        self._lane.real_time = value

    def play(self, source: Source) -> Playback:
        """Begin with `source`; what was played or queued before is stopped.

        Raises:
            TooManyStreams: this process cannot keep another stream at pace.
        """
        playback = self._make(source)
        before, self._playback = self._playback, playback
        waiting = (*self._queue,)
        self._queue.clear()
        self.proceed(playback)
        for old in ((before,) if before is not None else ()) + waiting:
            old._end()
        return playback

    def queue(self, source: Source) -> Playback:
        """Play `source` when everything before it has ended, without a gap."""
        if self._playback is None:
            return self.play(source)
        playback = self._make(source)
        self._queue.append(playback)
        return playback

    def wake(self) -> None:
        """The sender is open."""
        if self._lane.feed is not None:
            self._pace()

    def drain(self) -> None:
        """See that five frames of silence follow the speech that ended."""
        if self._silent_after == self._speech:
            self._silence_sent()
        elif self._lane.feed is None:
            if not self._lane.silence_left:
                self._lane.silence()
            self._pace()

    def close(self) -> None:
        """End what is played, without a word."""
        if self._pacer is not None:
            self._pacer.remove(self._lane)
        self._lane.feed, self._lane.silence_left = None, 0
        playback, self._playback = self._playback, None
        for one in ((playback,) if playback is not None else ()) + (*self._queue,):
            one._end()
        self._queue.clear()

    # -- for Playback

    def proceed(self, playback: Playback) -> None:
        """`playback` begins or goes on."""
        if playback is self._playback:
            self._speech += 1
            self._lane.play(playback._feed)
            self._started()
            self._pace()

    def rest(self, playback: Playback) -> None:
        """`playback` pauses."""
        if playback is self._playback and self._lane.feed is playback._feed:
            self._lane.silence()
            self._ended()

    def finish(self, playback: Playback) -> None:
        """`playback` is over."""
        if playback in self._queue:
            self._queue.remove(playback)
        elif self._is_current(playback):
            if self._queue:
                self._playback = self._queue.popleft()
                self.proceed(self._playback)
            else:
                self._playback = None
                self._lane.silence()
                self._ended()
        playback._end()

    def _is_current(self, playback: Playback) -> bool:
        """False also where the pacer has ended it and gone on already, and will tell."""
        return playback is self._playback and (playback.paused or self._lane.feed is playback._feed)

    # -- from the pacer

    def _over(self, feed: Feed) -> Feed | None:
        following = self._queue.popleft() if self._queue else None
        self.tell(self._changed, feed, following)
        return None if following is None else following._feed

    def _silent(self) -> None:
        self.tell(self._became_silent, self._speech)

    def _dry(self, feed: Feed) -> None:
        self.tell(self._underrun)

    def tell(self, what: Callable[..., None], *arguments: object) -> None:
        """Have the event loop do it, from whatever thread."""
        loop = self._loop
        assert loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if has_own_clock(loop):
                loop.call_soon(what, *arguments)
            else:
                loop.call_soon_threadsafe(what, *arguments)

    def _changed(self, feed: Feed, following: Playback | None) -> None:
        playback = self._playback
        if playback is None or playback._feed is not feed:
            if following is not None and following is not self._playback:
                following._end()
            return
        self._playback = following
        playback._end()
        if following is None:
            self._ended()

    def _became_silent(self, speech: int) -> None:
        self._silent_after = speech
        if speech == self._speech:
            self._silence_sent()

    # -- inside

    def _make(self, source: Source) -> Playback:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._pacer = loop, pacer_of(loop)
        return Playback(self, source, loop, self._bitrate)

    def _pace(self) -> None:
        if self._pacer is None:
            self._loop = asyncio.get_running_loop()
            self._pacer = pacer_of(self._loop)
        self._pacer.add(self._lane)
