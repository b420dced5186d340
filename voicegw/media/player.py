"""Play one source at its natural pace: frame n leaves at start + n x 20 ms of the monotonic clock, without drift."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voicegw.errors import AudioError
from voicegw.media.opus import OpusEncoder
from voicegw.media.sender import StreamSender
from voicegw.media.sources import Source

FRAME_S = 0.02
CATCH_UP_FRAMES = 3
SILENCE_FRAMES = 5


class Playback:
    """One source on its way out."""

    def __init__(self, player: Player, source: Source) -> None:
        self._player = player
        self._done = asyncio.get_running_loop().create_future()
        self.source = source
        self.frames = 0
        self.paused = False
        self.error: AudioError | None = None

    @property
    def position_s(self) -> float:
        """Seconds played."""
        return self.frames * FRAME_S

    @property
    def done(self) -> bool:
        """Has it ended, in whatever way?"""
        return self._done.done()

    async def wait(self) -> None:
        """Until it has ended or was stopped.

        Raises:
            AudioError: the source could not be read to its end.
        """
        await asyncio.shield(self._done)
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

    def _end(self) -> None:
        self.source.close()
        if not self._done.done():
            self._done.set_result(None)


class Player:
    """The pacer of one sender.

    It tells its owner when speech begins and ends, and plays only while the sender is open: `wake` goes on after it
    was held, and the source has not lost a frame meanwhile. After a stall it sends at most three frames at once and
    lets the rest of the time go.
    """

    def __init__(
        self,
        sender: StreamSender,
        on_speech_started: Callable[[], None],
        on_speech_ended: Callable[[], None],
        on_silence_sent: Callable[[], None],
        bitrate: int = 128_000,
    ) -> None:
        self._sender = sender
        self._started = on_speech_started
        self._ended = on_speech_ended
        self._silence_sent = on_silence_sent
        self._bitrate = bitrate
        self._encoder: OpusEncoder | None = None
        self._playback: Playback | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._silence_left = 0
        self._last_frame_at: float | None = None

    @property
    def playing(self) -> Playback | None:
        """What is being played, paused or held now."""
        return self._playback

    def play(self, source: Source) -> Playback:
        """Begin with `source`; what was played before is stopped."""
        before = self._playback
        playback = Playback(self, source)
        self._playback = playback
        if before is not None:
            before._end()
            self._encoder = None
        self.proceed(playback)
        return playback

    def wake(self) -> None:
        """The sender is open."""
        if self._timer is None and self._playback is not None and not self._playback.paused:
            self._begin()

    def drain(self) -> None:
        """Send five frames of silence at the pace of speech."""
        self._silence_left = SILENCE_FRAMES
        if self._timer is None:
            self._begin()

    def close(self) -> None:
        """End what is played, without a word."""
        self._silence_left = 0
        self._cancel()
        playback, self._playback = self._playback, None
        if playback is not None:
            playback._end()

    # -- for Playback

    def proceed(self, playback: Playback) -> None:
        """`playback` begins or goes on."""
        if playback is self._playback:
            self._silence_left = 0
            self._started()
            self.wake()

    def rest(self, playback: Playback) -> None:
        """`playback` pauses."""
        if playback is self._playback:
            self._cancel()
            self._ended()

    def finish(self, playback: Playback) -> None:
        """`playback` is over."""
        if playback is self._playback:
            self._playback = None
            self._encoder = None
            self._cancel()
            playback._end()
            self._ended()

    # -- the pace

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._last_frame_at is not None and now > self._last_frame_at + FRAME_S:
            self._sender.skip(int((now - self._last_frame_at) / FRAME_S) - 1)
        self._due = now
        self._timer = loop.call_at(self._due, self._tick)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for _ in range(CATCH_UP_FRAMES):
            if not self._frame():
                return
            self._due += FRAME_S
            self._last_frame_at = self._due - FRAME_S
            if self._due > loop.time():
                break
        late_s = loop.time() - self._due
        if late_s >= 0:
            frames = int(late_s / FRAME_S) + 1
            self._sender.skip(frames)
            self._due += frames * FRAME_S
        self._timer = loop.call_at(self._due, self._tick)

    def _frame(self) -> bool:
        """Send one frame; False where there is none to send now."""
        playback = self._playback
        if playback is None or playback.paused:
            return self._silent_frame()
        if not self._sender.open:
            return False
        try:
            frame = playback.source.read()
            if frame and not playback.source.is_opus:
                if self._encoder is None:
                    self._encoder = OpusEncoder(self._bitrate)
                frame = self._encoder.encode(frame)
        except AudioError as error:
            playback.error = error
            frame = b""
        if not frame:
            self.finish(playback)
            return False
        playback.frames += 1
        self._sender.send(frame)
        return True

    def _silent_frame(self) -> bool:
        if self._silence_left == 0:
            return False
        self._sender.send_silence()
        self._silence_left -= 1
        if self._silence_left == 0:
            self._silence_sent()
            return False
        return True
