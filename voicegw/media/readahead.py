"""Sources, read ahead by a worker: what blocks there blocks nobody else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

from voicegw.errors import AudioError, SourceFailed
from voicegw.media.sources import Source, seek_in
from voicegw.media.workers import Workers

AHEAD_FRAMES: Final = 50
FRAMES_PER_S: Final = 50
FIRST_FRAMES: Final = 5


class ReadAhead:
    """The next second of a source.

    `frames` is filled by a worker and emptied by one reader, `ended` is set behind the last frame, and `error` says
    what ended the source before its time. `on_frames` is called by the worker when there is more, or the end.
    """

    __slots__ = (
        "_begun",
        "_closed",
        "_filling",
        "_lock",
        "_on_closed",
        "_on_frames",
        "_read",
        "_seek_to",
        "_workers",
        "ahead",
        "busy",
        "ended",
        "error",
        "frames",
        "is_opus",
        "looped",
        "low",
        "source",
    )

    marks: ClassVar[tuple[()]] = ()
    settled: ClassVar = True

    def __init__(self, source: Source, workers: Workers, on_frames: Callable[[], None] = lambda: None) -> None:
        self.source = source
        self.is_opus = source.is_opus
        self.frames: deque[bytes] = deque()
        self._read = 0  # frames of the source, up to the last that is here
        self.ahead = AHEAD_FRAMES
        self.low = AHEAD_FRAMES // 2
        self.ended = False
        self.error: AudioError | None = None
        self.busy = False
        self._begun = (0, 0)  # where the last two rounds of a loop began, in frames
        self._closed = False
        self._filling = False
        self._seek_to: float | None = None
        self.looped = False
        self._lock = threading.Lock()
        self._workers = workers
        self._on_frames = on_frames
        self._on_closed: Callable[[], None] = lambda: None

    @property
    def taken(self) -> int:
        """How many frames of the source are behind the one that comes next."""
        return self._read - len(self.frames)

    def bind(self) -> None:
        """Begin to read; on the event loop."""
        bind = getattr(self.source, "bind", None)
        if bind is not None:
            bind(self.refill)
        self.refill()

    def refill(self) -> None:
        """Have a worker read on; nothing where one does already, or where there is no more."""
        with self._lock:
            if self.busy or self.ended or self._closed:
                return
            self.busy = self._filling = True
        self._workers.submit(self._fill)

    def seek(self, seconds: float) -> None:
        """Go there; what was read ahead is forgotten. What prevents it ends the source, in `error`."""
        with self._lock:
            if self._closed:
                return
            self._seek_to = seconds
            self.ended = False
            self.frames.clear()
            self._read = round(seconds * FRAMES_PER_S)
            self._begun = (0, 0)
            if self._filling:
                return
            self.busy = self._filling = True
        self._workers.submit(self._fill)

    def in_source(self, taken: int) -> int:
        """Where so many frames are in the source, which may have begun again since."""
        before, last = self._begun
        return taken - (last if last <= taken else before)

    def passed(self) -> None:
        """Nobody wants to hear of it."""

    def relieve(self) -> None:
        """It has run dry."""
        self._workers.relieve()

    def close(self, on_closed: Callable[[], None] = lambda: None) -> None:
        """Let go of the source, by a worker; one that reads just now does so when it is done.

        `on_closed` is called by the worker afterwards.
        """
        with self._lock:
            if self._closed:
                return
            self._on_closed = on_closed
            self._closed = self.ended = True
            self.busy = True
        self._read = self.taken
        self.frames.clear()
        if not self._filling:
            self._workers.submit(self._let_go)
            return
        abort = getattr(self.source, "abort", None)
        if abort is not None:
            abort()

    def _fill(self) -> None:
        over = False
        try:
            over = self._read_on()
        except AudioError as error:
            self.error, over = error, True
        except Exception as error:  # whatever a bot's own source raises
            self.error, over = SourceFailed(f"the source raised {type(error).__name__}: {error}"), True
        with self._lock:
            again = self._seek_to is not None and not self._closed and self.error is None
            if not again:
                self.ended = self.ended or over
                self.busy = self.ended  # where there is no more, nobody need ask again
                self._filling = False
            closed = self._closed
        if again:
            self._workers.submit(self._fill)
        elif closed:
            self._let_go()
        else:
            self._on_frames()

    def _read_on(self) -> bool:
        """Fill up; True at the end of the source."""
        frames, read, first, since_start = self.frames, self.source.read, not self.taken, 1
        while len(frames) < self.ahead and not self._closed:
            if self._seek_to is not None:
                self._go(self._seek_to)
            frame = read()
            if self._seek_to is not None:  # what was read is of the place before
                continue
            if frame is None:
                return False
            if not frame:
                if not self.looped or not since_start:
                    return True
                seek_in(self.source, 0.0)
                since_start = 0
                self._begun = (self._begun[1], self._read)
                continue
            since_start += 1
            frames.append(frame)
            self._read += 1
            if first and len(frames) == FIRST_FRAMES:
                first = False
                self._on_frames()
        return False

    def _go(self, seconds: float) -> None:
        with self._lock:
            self._seek_to = None
            self.frames.clear()
            self._read = round(seconds * FRAMES_PER_S)
        seek_in(self.source, seconds)

    def _let_go(self) -> None:
        try:
            self.source.close()
        except Exception as error:  # whatever a bot's own source raises
            self.error = self.error or SourceFailed(f"closing the source raised {type(error).__name__}: {error}")
        finally:
            self._on_closed()
