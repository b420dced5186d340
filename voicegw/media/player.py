"""What a bot has in hand of its own voice: play, queue, mix, stop. The pacer sends it.

Opus goes out as it is for as long as nothing asks for its sound: one track, at its own level. Everything else passes
the mixer. The event loop decides; the pacer's thread goes from one track to the next, so that no gap comes of it, and
tells the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from voicegw.errors import AudioError
from voicegw.media.lane import Feed, Lane
from voicegw.media.mixer import Mixer
from voicegw.media.opus import check_bitrate
from voicegw.media.pacer import FRAME_S, Pacer, has_own_clock, pacer_of
from voicegw.media.playback import Playback
from voicegw.media.sender import StreamSender
from voicegw.media.sources import Source
from voicegw.media.track import Track
from voicegw.media.workers import encoders_of

PASSED_FRAMES = 5
SPARE_FRAMES = 25


class Player:
    """Plays through one sender.

    It tells its owner when speech begins and ends. While the sender is held the sources wait and have not lost a frame;
    with `real_time` their time goes by unheard.
    """

    def __init__(
        self,
        sender: StreamSender,
        on_speech_started: Callable[[], None],
        on_speech_ended: Callable[[], None],
        on_silence_sent: Callable[[], None],
        on_underrun: Callable[[], None] = lambda: None,
        on_playback_ended: Callable[[Playback], None] = lambda playback: None,
        loss: Callable[[], float] = lambda: 0.0,
        bitrate: int = 128_000,
    ) -> None:
        self._lane = Lane(sender, self._over, self._silent, self._dry)
        self._started = on_speech_started
        self._ended = on_speech_ended
        self._silence_sent = on_silence_sent
        self._underrun = on_underrun
        self._playback_ended = on_playback_ended
        self._loss = loss
        self._bitrate = bitrate
        self._playback: Playback | None = None
        self._queue: deque[Playback] = deque()
        self._over_it: list[Playback] = []
        self._mixer: Mixer | None = None
        self._main: Track | None = None  # the mixer's, as far as it has got
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pacer: Pacer | None = None
        self._speech = 0
        self._silent_after = -1

    # -- what a bot does

    @property
    def playing(self) -> Playback | None:
        """What is being played, paused or held now."""
        return self._playback

    @property
    def queued(self) -> tuple[Playback, ...]:
        """What comes after it."""
        return tuple(self._queue)

    @property
    def over(self) -> tuple[Playback, ...]:
        """What sounds over it."""
        return tuple(self._over_it)

    @property
    def ducked(self) -> float:
        """The level that `duck` has turned all down to."""
        return self._mixer.ducked if self._mixer is not None else 1.0

    def play(
        self,
        source: Source,
        *,
        volume: float = 1.0,
        loudness: float | None = None,
        loop: bool = False,
        fade_in_s: float = 0.0,
        crossfade_s: float = 0.0,
    ) -> Playback:
        """Begin with `source`; what was played or queued before is stopped, within `crossfade_s` where that is given.

        `HowToPlay` says what the options are.

        Raises:
            TooManyStreams: this process cannot keep another stream at pace.
        """
        playback = self._make(source, volume, loudness, loop, fade_in_s or crossfade_s)
        before, waiting = self._playback, (*self._queue, *self._over_it)
        self._queue.clear()
        if before is not None and crossfade_s > 0 and self._sounds(before):
            self._mix(before)
            assert self._mixer is not None
            before._track.leaving = True
            before._track.fade(0.0, crossfade_s)
            self._over_it = [before]
            self._main = playback._track
            self._mixer.replace(before._track, playback._track)
            self._playback = playback
        else:
            self._over_it = []
            self._playback = playback
            self._begin(playback)
            waiting = ((before,) if before is not None else ()) + waiting
        for old in waiting:
            self._finish(old)
        return playback

    def queue(
        self,
        source: Source,
        *,
        volume: float = 1.0,
        loudness: float | None = None,
        loop: bool = False,
        crossfade_s: float = 0.0,
    ) -> Playback:
        """Play `source` when everything before it has ended, without a gap, or so many seconds before that."""
        if self._playback is None:
            return self.play(source, volume=volume, loudness=loudness, loop=loop)
        playback = self._make(source, volume, loudness, loop, crossfade_s)
        before = self._queue[-1] if self._queue else self._playback
        self._queue.append(playback)
        if crossfade_s > 0:
            before._track.overlap = round(crossfade_s / FRAME_S)
            before._reader.ahead = max(before._reader.ahead, before._track.overlap + SPARE_FRAMES)
            if before is self._playback:
                self._mix(before)
        self._prepare()
        return playback

    def play_over(
        self, source: Source, *, volume: float = 1.0, duck: float | None = 0.3, fade_in_s: float = 0.0
    ) -> Playback:
        """Mix `source` into what plays, which goes down to `duck` of its level meanwhile; None leaves it as it is."""
        if self._playback is None:
            return self.play(source, volume=volume, fade_in_s=fade_in_s)
        playback = self._make(source, volume, None, False, fade_in_s)
        playback._track.ducks = duck
        self._over_it.append(playback)
        mixer, main = self._mixing(), self._playback
        if self._sounds(main):
            self._mix(main)
            mixer.add(playback._track)
        elif self._lane.feed is mixer:
            mixer.add(playback._track)
        else:
            self._main = None
            mixer.begin([playback._track])
            self._speak(mixer)
        return playback

    def duck(self, level: float = 0.3, fade_s: float = 0.1) -> None:
        """Turn all but what is played over to `level` within `fade_s`, until told otherwise; 1 turns it up again.

        `VoiceClient.duck_under_speech` does so while others speak.
        """
        mixer = self._mixing()
        mixer.duck(level, round(fade_s / FRAME_S))
        if level != 1.0 and self._playback is not None and self._sounds(self._playback):
            self._mix(self._playback)

    @property
    def bitrate(self) -> int:
        """Of what is encoded here, in bit/s; that of the channel."""
        return self._bitrate

    @bitrate.setter
    def bitrate(self, value: int) -> None:
        check_bitrate(value)
        self._bitrate = value
        if self._mixer is not None:
            self._mixer.set_bitrate(value)

    @property
    def real_time(self) -> bool:
        """Does the source go on unheard while it is held?"""
        return self._lane.real_time

    @real_time.setter
    def real_time(self, value: bool) -> None:
        self._lane.real_time = value

    # -- what the call does

    def wake(self) -> None:
        """The sender is open."""
        if self._lane.feed is not None:
            self._pace()
            assert self._pacer is not None
            self._pacer.hasten(self._lane)

    def drain(self) -> None:
        """See that five frames of silence follow the speech that ended."""
        if self._silent_after == self._speech:
            self._silence_sent()
        elif self._lane.feed is None:
            if not self._lane.silence_left:
                self._lane.silence()
            self._pace()

    def clock(self) -> float:
        """The time of the pacer, by which frames leave."""
        self._here()
        assert self._pacer is not None
        return self._pacer.clock()

    async def turn_over(self) -> None:
        """Until a frame has just left, so that the next is 20 ms away; no longer than two frames take."""
        if self._loop is None or self._lane.feed is None:
            return
        over = self._loop.create_future()
        self._lane.after_turn = lambda: self.tell(_settle, over)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * FRAME_S):
                await over
        self._lane.after_turn = None

    def halt(self) -> None:
        """Stop at the edge of a frame: nothing is taken or sent any more, and what plays stays where it is."""
        if self._pacer is not None:
            self._pacer.remove(self._lane)

    def close(self) -> None:
        """End what is played, without a word."""
        if self._pacer is not None:
            self._pacer.remove(self._lane)
        self._lane.feed, self._lane.silence_left = None, 0
        playback, self._playback = self._playback, None
        for one in ((playback,) if playback is not None else ()) + (*self._queue, *self._over_it):
            self._finish(one)
        self._queue.clear()
        self._over_it.clear()

    # -- for Playback

    def proceed(self, playback: Playback) -> None:
        """`playback` goes on."""
        if playback in self._over_it:
            self._mixing().add(playback._track)
        elif playback is not self._playback:
            return
        elif self._lane.feed is not None and self._lane.feed is self._mixer:
            self._main = playback._track
            self._mixer.add(playback._track)
        elif self._mixer is not None and playback._track in self._mixer.tracks:
            self._speak(self._mixer)
        else:
            self._begin(playback)

    def rest(self, playback: Playback) -> None:
        """`playback` pauses."""
        mixer = self._mixer
        if playback in self._over_it or (self._over_it and playback is self._playback and mixer is not None):
            assert mixer is not None
            mixer.remove(playback._track)
        elif playback is self._playback and self._hush(playback):
            self._ended()

    def finish(self, playback: Playback) -> None:
        """`playback` is over."""
        mixer = self._mixer
        if playback in self._queue:
            self._queue.remove(playback)
        elif playback in self._over_it:
            self._over_it.remove(playback)
            if mixer is not None:
                mixer.remove(playback._track)
        elif playback is self._playback and self._over_it and mixer is not None:
            following = self._playback = self._queue.popleft() if self._queue else None
            if following is not None:
                self._main = following._track
                mixer.replace(playback._track, following._track)
            mixer.remove(playback._track)
        elif playback is self._playback:
            hushed = self._hush(playback)
            if hushed or playback.paused:  # else the pacer has come to its end, and will tell
                following = self._playback = self._queue.popleft() if self._queue else None
                if following is not None:
                    self._begin(following)
                elif hushed:
                    self._ended()
        self._finish(playback)

    def _hush(self, playback: Playback) -> bool:
        """Silence instead of `playback`; False where it does not sound."""
        assert self._pacer is not None
        with self._pacer.turn:
            if not self._sounds(playback):
                return False
            self._lane.silence()
            return True

    def change(self, playback: Playback) -> None:
        """Its level is about to change: from now on it is mixed."""
        if playback is self._playback and self._sounds(playback):
            self._mix(playback)

    def moved(self, playback: Playback) -> None:
        """It has gone to another place: what was made of the one before does not leave."""
        mixer = self._mixer
        assert self._pacer is not None
        if mixer is not None and mixer.tracks == [playback._track]:
            with self._pacer.turn:
                mixer.flush()

    def read(self, playback: Playback) -> None:
        """More of it was read ahead, or all; by a worker."""
        if self._mixer is not None:
            self._mixer.refill()
        if playback._reader.ended:
            self.tell(self._prepare)

    def waiting(self, playback: Playback) -> int:
        """Frames of it that are mixed, but have not left."""
        mixer = self._mixer
        return len(mixer.frames) if mixer is not None and playback._track in mixer.tracks else 0

    def tell(self, what: Callable[..., None], *arguments: object) -> None:
        """Have the event loop do it, from whatever thread."""
        loop = self._loop
        assert loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if has_own_clock(loop):
                loop.call_soon(what, *arguments)
            else:
                loop.call_soon_threadsafe(what, *arguments)

    # -- from the pacer and the mixer's worker

    def _over(self, feed: Feed) -> Feed | None:
        """The pacer has sent all of `feed`."""
        paused = self._playback is not None and self._playback.paused
        following = self._queue.popleft() if self._queue and not paused else None
        self.tell(self._changed, feed, following, self._speech)
        return None if following is None else self._feed_of(following)

    def _follow(self, track: Track) -> Track | None:
        """The mixer has come to the end of `track`."""
        if track is not self._main or not self._queue:
            return None
        if self._queue[0]._track.plain and self._mixer is not None and self._mixer.tracks == [track]:
            return None  # it goes out as it is: the pacer takes it when the mixer has nothing more
        following = self._queue.popleft()._track
        self._main = following
        return following

    def _passed(self, track: Track, following: Track | None) -> None:
        self.tell(self._left, track, following)

    def _silent(self) -> None:
        self.tell(self._became_silent, self._speech)

    def _dry(self, feed: Feed) -> None:
        self.tell(self._underrun)

    # -- what they told

    def _changed(self, feed: Feed, following: Playback | None, speech: int) -> None:
        playback = self._playback
        if feed is self._mixer:
            for one in self._over_it:
                self._finish(one)
            self._over_it.clear()
        if speech != self._speech:  # something else has begun meanwhile
            if following is not None and following is not playback:
                self._finish(following)
            return
        if playback is not None and not playback.paused:
            self._playback = following
            self._finish(playback, feed.error)
        elif following is not None:
            self._playback = following
        if following is None:
            self._ended()

    def _left(self, track: Track, following: Track | None) -> None:
        playback = track.owner
        assert isinstance(playback, Playback)
        if following is not None and playback is self._playback:
            assert isinstance(following.owner, Playback)
            self._playback = following.owner
            if track.leaving:  # it sounds on for a while
                self._over_it.append(playback)
                return
        elif playback is self._playback and self._over_it:
            self._playback = None
        if playback is not self._playback:
            if playback in self._over_it:
                self._over_it.remove(playback)
            self._finish(playback)

    def _became_silent(self, speech: int) -> None:
        self._silent_after = speech
        if speech == self._speech:
            self._silence_sent()

    # -- inside

    def _make(
        self, source: Source, volume: float, loudness: float | None, loop_source: bool, fade_in_s: float
    ) -> Playback:
        self._here()
        assert self._loop is not None
        playback = Playback(self, source, self._loop, volume, loudness, loop_source)
        if fade_in_s > 0:
            playback._track.level = 0.0
            playback._track.fade(volume, fade_in_s)
        return playback

    def _finish(self, playback: Playback, error: AudioError | None = None) -> None:
        if not playback.done:
            playback._end(error)
            self._playback_ended(playback)

    def _sounds(self, playback: Playback) -> bool:
        feed = self._lane.feed
        if feed is None:
            return False
        return feed is playback._reader or (self._mixer is not None and playback._track in self._mixer.tracks)

    def _feed_of(self, playback: Playback) -> Feed:
        """Its packets, where they can go out as they are; else the mixer, which begins with it."""
        if playback._track.plain and (self._mixer is None or self._mixer.ducked == 1.0):
            return playback._reader
        mixer = self._mixing()
        self._main = playback._track
        if mixer.tracks != [playback._track]:
            mixer.begin([playback._track])
        return mixer

    def _prepare(self) -> None:
        """What comes next is to be mixed, and what plays now is not: begin before it ends."""
        playback = self._playback
        if playback is None or not self._queue or not playback._reader.ended:
            return
        following = self._queue[0]
        if self._lane.feed is playback._reader and not following._track.plain:
            self._feed_of(following)

    def _mix(self, playback: Playback) -> None:
        """From now on `playback`, which went out as it is, passes the mixer."""
        mixer = self._mixing()
        assert self._pacer is not None
        with self._pacer.turn:
            if self._lane.feed is playback._reader:
                self._main = playback._track
                mixer.begin([playback._track], PASSED_FRAMES)
                self._lane.feed = mixer

    def _mixing(self) -> Mixer:
        if self._mixer is None:
            self._here()
            assert self._loop is not None
            self._mixer = Mixer(encoders_of(self._loop), self._bitrate, self._follow, self._passed, self._loss)
        return self._mixer

    def _begin(self, playback: Playback) -> None:
        self._speak(self._feed_of(playback))

    def _speak(self, feed: Feed) -> None:
        self._here()
        assert self._pacer is not None
        with self._pacer.turn:
            self._speech += 1
            self._lane.play(feed)
        self._started()
        self._pace()

    def _pace(self) -> None:
        self._here()
        assert self._pacer is not None
        self._pacer.add(self._lane)

    def _here(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._pacer = pacer_of(self._loop)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
