"""Sources that are not files: iterators of PCM or Opus, and live streams that come back when they break."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Final

from voicegw.errors import AudioError, NotAudio, SourceFailed
from voicegw.media.opus import FRAME_BYTES
from voicegw.media.opus_packets import FRAME_SAMPLES, packet_samples
from voicegw.media.sources import Source, SourceDescription, description_of

AHEAD_CHUNKS: Final = 50
BACKOFF_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class IteratorSource:
    """Any iterable: Opus packets of 20 ms, or PCM (16 bit little-endian, stereo, 48 kHz) in pieces of any length.

    Raises, while it is read:
        NotAudio: an Opus packet of another length.
    """

    def __init__(self, pieces: Iterable[bytes], *, is_opus: bool = False) -> None:
        self.is_opus: Final = is_opus
        self._pieces: Iterator[bytes] = iter(pieces)
        self._cutter = _Cutter(is_opus)
        self._over = False

    def read(self) -> bytes:
        """The next 20 ms; b"" at the end."""
        while not self._over:
            frame = self._cutter.take()
            if frame:
                return frame
            piece = next(self._pieces, None)
            if piece is None:
                self._over = True
                return self._cutter.rest()
            self._cutter.put(piece)
        return b""

    def close(self) -> None:
        """Close the iterator where it is a generator."""
        self._over = True
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class AsyncIteratorSource:
    """Any async iterable of the same. It is asked on the event loop that plays it, a second ahead at most."""

    def __init__(self, pieces: AsyncIterable[bytes], *, is_opus: bool = False) -> None:
        self.is_opus: Final = is_opus
        self._pieces = pieces
        self._cutter = _Cutter(is_opus)
        self._frames: deque[bytes] = deque()
        self._error: AudioError | None = None
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_more: Callable[[], None] = lambda: None

    def bind(self, on_more: Callable[[], None]) -> None:
        """Begin; `on_more` is called when `read`, which gave None, has something again."""
        self._on_more = on_more
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._pull())

    def read(self) -> bytes | None:
        """The next 20 ms; None where there is nothing yet, b"" at the end. It never blocks."""
        ended = self._ended
        if self._frames:
            if len(self._frames) == AHEAD_CHUNKS and self._loop is not None:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._room.set)
            return self._frames.popleft()
        if ended and self._error is not None:
            error, self._error = self._error, None
            raise error
        return b"" if ended else None

    def abort(self) -> None:
        """Stop asking."""
        if self._task is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)

    def close(self) -> None:
        """Stop asking, and close the iterator where it is a generator."""
        self._ended = True
        self.abort()
        self._frames.clear()

    async def _pull(self) -> None:
        pieces = aiter(self._pieces)
        try:
            async for piece in pieces:
                self._cutter.put(piece)
                while frame := self._cutter.take():
                    self._frames.append(frame)
                if self._frames:
                    self._on_more()
                while len(self._frames) >= AHEAD_CHUNKS:
                    self._room.clear()
                    await self._room.wait()
            if rest := self._cutter.rest():
                self._frames.append(rest)
        except AudioError as error:
            self._error = error
        except Exception as error:  # whatever a bot's own iterator raises
            self._error = SourceFailed(f"the source raised {type(error).__name__}: {error}")
        finally:
            self._ended = True
            close = getattr(pieces, "aclose", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    await close()
            self._on_more()


class _Cutter:
    """Pieces in, frames of 20 ms out."""

    def __init__(self, is_opus: bool) -> None:
        self._is_opus = is_opus
        self._packets: deque[bytes] = deque()
        self._pcm = bytearray()

    def put(self, piece: bytes) -> None:
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise NotAudio(f"a source gives bytes, not {type(piece).__name__}")
        if not self._is_opus:
            self._pcm += piece
        elif piece:
            if packet_samples(bytes(piece)) != FRAME_SAMPLES:
                raise NotAudio("an Opus packet must be 20 ms long to go out as it is")
            self._packets.append(bytes(piece))

    def take(self) -> bytes:
        if self._is_opus:
            return self._packets.popleft() if self._packets else b""
        if len(self._pcm) < FRAME_BYTES:
            return b""
        frame = bytes(self._pcm[:FRAME_BYTES])
        del self._pcm[:FRAME_BYTES]
        return frame

    def rest(self) -> bytes:
        frame, self._pcm = bytes(self._pcm), bytearray()
        return frame.ljust(FRAME_BYTES, b"\0") if frame else b""


class ReconnectingSource:
    """A live stream: where it ends or breaks, `open` is asked for it again, with growing pauses.

    `open` runs off the event loop and may block; every source it gives must be of one kind. `reconnects` counts,
    `last_error` says why. After `attempts` failures in a row the source has failed.
    """

    def __init__(self, open: Callable[[], Source], *, attempts: int = 6) -> None:
        self._open = open
        self._attempts = attempts
        self._stopped = threading.Event()
        self._source: Source | None = self._open()
        self.is_opus: Final = self._source.is_opus
        self.description = self._described(description_of(self._source))
        self.reconnects = 0
        self.last_error: AudioError | None = None

    def read(self) -> bytes:
        """The next 20 ms; b"" only after `close`.

        Raises:
            SourceFailed: it could not be had again.
        """
        failures = 0
        while not self._stopped.is_set():
            frame: bytes | None = b""
            try:
                if self._source is None:
                    self._source = self._open()
                    if self._source.is_opus != self.is_opus:
                        raise SourceFailed("the stream came back as another kind")
                    self.reconnects += 1
                frame = self._source.read()
            except AudioError as error:
                self.last_error = error
            if frame:
                return frame
            source, self._source = self._source, None
            if source is not None:
                source.close()
            if failures >= self._attempts:
                raise SourceFailed(f"the stream did not come back: {self.last_error or 'it ended at once'}")
            self._stopped.wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
        return b""

    def _described(self, inner: SourceDescription | None) -> SourceDescription | None:
        if inner is None:
            return None
        again = {"kind": inner.kind, "arguments": inner.arguments}
        return SourceDescription("reconnecting", {"source": again, "attempts": self._attempts}, live=True)

    def abort(self) -> None:
        """End a `read` of another thread."""
        self._stopped.set()
        abort = getattr(self._source, "abort", None)
        if abort is not None:
            abort()

    def close(self) -> None:
        """Close for good."""
        self._stopped.set()
        source, self._source = self._source, None
        if source is not None:
            source.close()
