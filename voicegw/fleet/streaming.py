"""Sound that only the bot can read: the worker asks for it, a second at a time, so it never gets more than it plays.

The bot keeps the last seconds, so that another worker can go on where listeners were.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from voicegw.errors import AudioError, FleetError, SourceFailed
from voicegw.fleet.bus import NoAnswer, Nobody
from voicegw.fleet.notices import error_from, error_to
from voicegw.media.pacer import FRAME_S
from voicegw.media.readahead import ReadAhead
from voicegw.media.sources import Source
from voicegw.media.workers import readers_of

PIECE_FRAMES: Final = 50
AHEAD_FRAMES: Final = 100
KEPT_FRAMES: Final = 1000  # 20 s
PATIENCE_S: Final = 1.0  # the bot's, with a source that has nothing yet
ABSENCE_S: Final = 60.0  # so long a worker waits for a bot that is away
RETRY_S: Final = 0.2

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class StreamedSource:
    """At the worker: what `ask` gets from the bot. Nothing yet is None."""

    def __init__(self, ask: Ask, playback_id: str, *, is_opus: bool) -> None:
        self.is_opus: Final = is_opus
        self._ask = ask
        self._playback_id = playback_id
        self._frames: deque[bytes] = deque()
        self._next = 0
        self._ended = False
        self._error: AudioError | None = None
        self._room = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._on_more: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def bind(self, on_more: Callable[[], None]) -> None:
        """Begin to ask."""
        self._on_more = on_more
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._pull())

    def read(self) -> bytes | None:
        """The next 20 ms; None where nothing has come yet, b"" at the end."""
        with self._lock:
            frame = self._frames.popleft() if self._frames else None
            if frame is None and self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return b""
        self._wake()
        return frame

    def seek(self, seconds: float) -> None:
        """Ask from there on. The bot has the last 20 s, and more of what it can seek itself."""
        with self._lock:
            self._frames.clear()
            self._next = round(seconds / FRAME_S)
            self._ended = False
        self._wake()

    def abort(self) -> None:
        """Ask no more."""
        if self._task is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)

    def close(self) -> None:
        """Ask no more, and be at the end."""
        self.abort()
        with self._lock:
            self._ended = True
            self._frames.clear()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._room.set)

    async def _pull(self) -> None:
        away_s = 0.0
        while True:
            self._room.clear()
            if self._ended or len(self._frames) > AHEAD_FRAMES - PIECE_FRAMES:
                await self._room.wait()
                continue
            begin = self._next
            asked = {"do": "frames", "playback": self._playback_id, "from": begin, "count": PIECE_FRAMES}
            try:
                answer = await self._ask(asked)
            except (Nobody, NoAnswer):
                away_s += RETRY_S
                if away_s >= ABSENCE_S:
                    self._end(SourceFailed("the bot that streams this is away"))
                await asyncio.sleep(RETRY_S)
                continue
            except FleetError as error:
                self._end(SourceFailed(str(error)))
                continue
            away_s = 0.0
            self._take(answer, begin)

    def _take(self, answer: dict[str, Any], begin: int) -> None:
        data, at = answer.get("frames", b""), 0
        with self._lock:
            if self._next != begin:  # sought meanwhile
                return
            for length in answer.get("lengths", ()):
                self._frames.append(data[at : at + length])
                at += length
            self._next += len(answer.get("lengths", ()))
            if answer.get("ended"):
                error = error_from(answer.get("failed"))
                self._error = error if isinstance(error, AudioError) else None
                self._ended = True
        self._on_more()

    def _end(self, error: AudioError) -> None:
        with self._lock:
            self._error, self._ended = error, True
        self._on_more()


class StreamedAway:
    """At the bot: one source, read ahead, given away in pieces."""

    def __init__(self, source: Source, loop: asyncio.AbstractEventLoop) -> None:
        self.source = source
        self._loop = loop
        self._more = asyncio.Event()
        self._kept: deque[bytes] = deque(maxlen=KEPT_FRAMES)
        self._begin = 0  # the number of the first that is kept
        self._reader = ReadAhead(source, readers_of(loop), self._tell)
        self._reader.bind()

    async def piece(self, begin: int, count: int) -> dict[str, Any]:
        """Frames from number `begin` on, as many as there are within a second, at most `count`.

        Raises:
            SourceFailed: they are not kept any more, and the source cannot be sought.
        """
        if not self._begin <= begin <= self._begin + len(self._kept):
            if getattr(self.source, "seek", None) is None:
                raise SourceFailed("what was played is not kept any more, and this source cannot be sought")
            self._kept.clear()
            self._begin = begin
            self._reader.seek(begin * FRAME_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not self._gather(begin + count) and begin == self._begin + len(self._kept):
                    self._more.clear()
                    if self._reader.frames or self._reader.ended:
                        continue
                    await self._more.wait()
        first = begin - self._begin
        frames = [self._kept[at] for at in range(first, min(first + count, len(self._kept)))]
        ended = self._reader.ended and not self._reader.frames and begin + len(frames) >= self._begin + len(self._kept)
        return {
            "frames": b"".join(frames),
            "lengths": [len(frame) for frame in frames],
            "ended": ended,
            "failed": error_to(self._reader.error) if ended else None,
        }

    def close(self) -> None:
        """Let go of the source."""
        self._reader.close()

    def _gather(self, until: int) -> bool:
        """Take what was read, up to frame number `until`; is that the end?"""
        reader = self._reader
        while self._begin + len(self._kept) < until and reader.frames:
            if len(self._kept) == KEPT_FRAMES:
                self._begin += 1
            self._kept.append(reader.frames.popleft())
        if not reader.busy and len(reader.frames) <= reader.low:
            reader.refill()
        return reader.ended and not reader.frames

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._more.set)
