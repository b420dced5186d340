"""Who gets what was heard: sinks, called off the event loop, and streams of frames to iterate over in it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Self

from voicegw.media.heard import HeardFrame
from voicegw.media.sinks import FunctionSink, Sink
from voicegw.media.strand import Strand, finished
from voicegw.media.workers import Workers

QUEUE_FRAMES: Final = 100  # 2 s of a user

_log = logging.getLogger("voicegw")


class Listening:
    """One sink at work, until `stop`.

    The sink is called on a thread of its own turn, never twice at once. A sink that is slower than speech loses the
    oldest sound beyond 2 s (`dropped` slots); one that raises is reported once (`error`) and goes on being called
    (`errors` counts).
    """

    def __init__(
        self, sink: Sink, workers: Workers, warn: Callable[[str], None], release: Callable[[Listening], None]
    ) -> None:
        self.sink = sink
        self.error: Exception | None = None
        self.errors = 0
        self._warn = warn
        self._release = release
        self.strand: Strand[list[HeardFrame]] = Strand(workers, self._write, QUEUE_FRAMES, self._slow)

    @property
    def dropped(self) -> int:
        """Slots of 20 ms that the sink was too slow for."""
        return self.strand.dropped

    async def stop(self) -> None:
        """Give the sink what was decoded so far, then nothing more. It stays the caller's to close."""
        self._release(self)
        await finished(self.strand)

    def _write(self, frames: list[HeardFrame]) -> None:
        sink = self.sink
        write = sink.function if isinstance(sink, FunctionSink) else sink.write
        for frame in frames:
            try:
                write(frame)
            except Exception as error:
                self.errors += 1
                if self.error is None:
                    self.error = error
                    _log.exception("a sink failed; it is called on, further errors are only counted")
                    self._warn(f"a sink failed: {type(error).__name__}: {error}")

    def _slow(self) -> None:
        self._warn("a sink is slower than speech: sound older than 2 s is dropped and counted in Listening.dropped")


class FrameStream(AsyncIterator[HeardFrame]):
    """Frames of some users, or of everybody, for `async for`; ends with the call.

    Frames wait for 2 s a user, then the oldest is dropped, which is counted in `dropped` and warned of once. A stream
    that nobody holds any more gets nothing; `close` ends it at once.
    """

    def __init__(self, users: frozenset[int], warn: Callable[[str], None]) -> None:
        self._users = users
        self._warn = warn
        self._queues: dict[int, deque[HeardFrame]] = {}
        self._order: deque[int] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self.dropped = 0

    def put(self, frames: list[HeardFrame]) -> None:
        """Add what this stream is for."""
        if self._ended:
            return
        for frame in frames:
            user_id = frame.user_id
            if self._users and user_id not in self._users:
                continue
            waiting = self._queues.get(user_id)
            if waiting is None:
                waiting = self._queues[user_id] = deque()
            if len(waiting) >= QUEUE_FRAMES:
                waiting.popleft()
                self.dropped += 1
                if self.dropped == 1:
                    self._warn("frames are read slower than spoken: older ones are dropped, see FrameStream.dropped")
            else:
                self._order.append(user_id)
            waiting.append(frame)
        self._changed.set()

    def end(self) -> None:
        """No more will come; what waits can still be read."""
        self._ended = True
        self._changed.set()

    def close(self) -> None:
        """End now, and forget what waits."""
        self._queues.clear()
        self._order.clear()
        self.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> HeardFrame:
        while not self._order:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        user_id = self._order.popleft()
        waiting = self._queues[user_id]
        frame = waiting.popleft()
        if not waiting:
            del self._queues[user_id]
        return frame
