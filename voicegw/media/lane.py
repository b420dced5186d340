"""What the pacer serves: the next frame of one stream, silence at its end, nothing while it is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sized
from typing import ClassVar, Final, Protocol

from voicegw.errors import AudioError
from voicegw.media.sender import StreamSender

SILENCE_FRAMES: Final = 5
REBUFFER_FRAMES: Final = 5
_NOT_BEGUN: Final = -1


def _nowhere(data: bytes) -> bool:
    return False


class Feed(Protocol):
    """Frames that somebody prepares ahead; `low` of them and less call for `refill`.

    Where they are `settled`, those that are there will leave as they are, and nobody waits to hear that one has.
    """

    settled: ClassVar[bool]
    frames: deque[bytes]
    low: int
    busy: bool
    ended: bool
    error: AudioError | None

    @property
    def marks(self) -> Sized:
        """Places in the stream that somebody wants to hear of: while there are any, `passed` is called."""

    def passed(self) -> None:
        """A frame has left."""

    def refill(self) -> None:
        """Prepare more."""

    def relieve(self) -> None:
        """There are none: look whether those who prepare them hang."""


class Lane:
    """One stream in the pacer. What it tells comes from the pacer's thread and must not block.

    A feed that runs dry is covered by five frames of silence, once; it goes on when a few frames are there again, and
    the time between is gone for the timestamp, too. `rested` says that its last turn was held; `after_turn` is called
    once, after the next turn.

    The next frames of a settled feed are made datagrams ahead, several at once: in a turn of such a frame nothing is
    touched but what takes it to the socket. The frames stay in the feed until they leave; whatever else becomes of them
    there, the datagram of another frame is not sent.
    """

    __slots__ = (
        "_dry",
        "_feed",
        "_frames",
        "_on_dry",
        "_on_over",
        "_on_silent",
        "_ready",
        "_send",
        "after_turn",
        "real_time",
        "rested",
        "sender",
        "silence_left",
    )

    def __init__(
        self,
        sender: StreamSender,
        on_over: Callable[[Feed], Feed | None],
        on_silent: Callable[[], None],
        on_dry: Callable[[Feed], None],
    ) -> None:
        self.sender = sender
        self._ready = sender.ready
        self._send: Callable[[bytes], bool] = _nowhere
        self._feed: Feed | None = None
        self._frames: deque[bytes] = deque()
        self.silence_left = 0
        self.real_time = self.rested = False
        self.after_turn: Callable[[], None] | None = None
        self._dry = _NOT_BEGUN
        self._on_over = on_over
        self._on_silent = on_silent
        self._on_dry = on_dry

    @property
    def feed(self) -> Feed | None:
        """What is sent."""
        return self._feed

    @feed.setter
    def feed(self, feed: Feed | None) -> None:
        self.sender.forget()
        self._feed = feed
        self._frames = deque() if feed is None else feed.frames

    def play(self, feed: Feed) -> None:
        """Send what `feed` has from the next frame on."""
        self.feed, self.silence_left, self._dry = feed, 0, _NOT_BEGUN

    def silence(self) -> None:
        """Send five frames of silence, then leave."""
        self.feed, self.silence_left = None, SILENCE_FRAMES

    # -- for the pacer

    def begin(self, due: float) -> None:
        self.sender.align(due)

    def skip(self, frames: int) -> None:
        self.sender.skip(frames)
        feed = self._feed
        if self.real_time and feed is not None:
            for _ in range(min(frames, len(feed.frames))):
                feed.frames.popleft()
            if feed.marks:
                feed.passed()

    def prepare(self) -> None:
        feed = self._feed
        if feed is None or not feed.settled or self._dry:
            return
        if not feed.busy and len(feed.frames) <= feed.low:
            feed.refill()
        self._send = self.sender.make_ready(feed.frames) or _nowhere

    def tick(self) -> bool:
        ready = self._ready
        if ready and self.after_turn is None:
            try:
                frame = self._frames.popleft()
            except IndexError:  # they were forgotten just now
                self.sender.forget()
            else:
                if ready.pop() is frame:
                    datagram, send = ready.pop(), self._send
                    if not send(datagram):
                        self.sender.refused(datagram)
                    return True
                ready.append(frame)
                self._frames.appendleft(frame)
                self.sender.forget()
        if self.after_turn is not None:
            after, self.after_turn = self.after_turn, None
            goes_on = self.tick()
            after()
            return goes_on
        feed = self._feed
        if feed is None:
            return self._silent_frame()
        self.rested = not self.sender.open
        if self.rested:
            return self._held(feed)
        frames = feed.frames
        if not frames or (self._dry > 0 and len(frames) < REBUFFER_FRAMES and not feed.ended):
            return self._without(feed)
        frame = frames.popleft()
        self._dry = 0
        if not feed.busy and len(frames) <= feed.low:
            feed.refill()
        self.sender.send(frame)
        if feed.marks:
            feed.passed()
        return True

    def _held(self, feed: Feed) -> bool:
        if self.real_time:
            if feed.ended and not feed.frames:
                return self._without(feed)
            self.skip(1)
            if not feed.busy and len(feed.frames) <= feed.low:
                feed.refill()
        else:
            self.sender.skip(1)
        return True

    def _without(self, feed: Feed) -> bool:
        if feed.ended and not feed.frames:
            if feed.marks:
                feed.passed()
            following = self._on_over(feed)
            if following is None:
                self.silence()
                return self._silent_frame()
            self.play(following)
            return self.tick()
        if not feed.busy:
            feed.refill()
        feed.relieve()
        if self._dry == _NOT_BEGUN:
            self.sender.skip(1)
            return True
        self._dry += 1
        if self._dry <= SILENCE_FRAMES:
            self.sender.send_silence()
        else:
            self.sender.skip(1)
        if self._dry == SILENCE_FRAMES:
            self._on_dry(feed)
        return True

    def _silent_frame(self) -> bool:
        if self.silence_left == 0:
            return False
        if self.sender.open:
            self.sender.send_silence()
        else:
            self.sender.skip(1)
        self.silence_left -= 1
        if self.silence_left == 0:
            self._on_silent()
            return False
        return True
