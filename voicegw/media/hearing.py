"""Hearing: what one call receives, played by the loop's clock, decoded off the loop, given to whoever listens."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable
from typing import Final

from voicegw.media.heard import SLOT_S, HeardFrame
from voicegw.media.jitter import Turn
from voicegw.media.listeners import QUEUE_FRAMES, FrameStream, Listening
from voicegw.media.opus import load_opus
from voicegw.media.receiver import StreamReceiver
from voicegw.media.sinks import FunctionSink, Sink
from voicegw.media.strand import Strand, call_soon, finished
from voicegw.media.workers import listeners_of

CLOSE_S: Final = 2.0


class Hearing:
    """The receiver of one call and its listeners.

    Nothing is decoded while nobody listens. `on_speaking(user_id, speaking)`, `on_warning(text)` and `on_tick()` are
    called on the loop.
    """

    def __init__(
        self,
        now: Callable[[], float],
        on_speaking: Callable[[int, bool], None],
        on_warning: Callable[[str], None],
        on_tick: Callable[[], None],
        on_nonces_meet: Callable[[], None] = lambda: None,
    ) -> None:
        self._now = now
        self._on_warning = on_warning
        self._on_tick = on_tick
        self.receiver = StreamReceiver(now, self._take, on_speaking, self._begin_ticking, on_nonces_meet)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._decoding: Strand[list[Turn]] | None = None
        self._listenings: tuple[Listening, ...] = ()
        self._streams: weakref.WeakSet[FrameStream] = weakref.WeakSet()
        self._wanted = False
        self._wants_pcm = False
        self._wants_streams = False

    def listen(self, sink: Sink | Callable[[HeardFrame], None]) -> Listening:
        """Give everything that is heard from now on to `sink`, beside those that listen already."""
        loop = self._begin_decoding()
        taker = FunctionSink(sink) if callable(sink) else sink
        if not hasattr(taker, "write"):
            raise TypeError(
                f"{taker!r} is no sink; WavSink(directory) or Recording(directory) make files, a function will do"
            )
        for listening in self._listenings:
            if listening.sink == taker:
                return listening
        listening = Listening(taker, listeners_of(loop), self._warn_from_anywhere, self._release)
        self._listenings = (*self._listenings, listening)
        self._weigh()
        return listening

    def frames(self, users: frozenset[int]) -> FrameStream:
        """A stream of what these users say from now on; of everybody where none are named."""
        self._begin_decoding()
        stream = FrameStream(users, self._warn_from_anywhere)
        self._streams.add(stream)
        self._weigh()
        return stream

    async def flush(self) -> None:
        """Play what waits for its turn and wait until every listener has it."""
        self.receiver.flush()
        if self._decoding is not None:
            await finished(self._decoding)
        for listening in self._listenings:
            await finished(listening.strand)

    def end(self) -> None:
        """The call is over: what was received is still given to the listeners, then streams end."""
        self.receiver.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = self._loop
        if loop is not None and self._decoding is not None:
            self._decoding.after(lambda: call_soon(loop, self._end_streams))

    async def close(self) -> None:
        """Wait until the listeners have everything, 2 s at most, and let them go."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        except TimeoutError:
            self._on_warning("a sink did not take the last sound within 2 s after the call's end")
        self._end_streams()
        self._listenings = ()
        self._weigh()

    # -- the clock

    def _begin_ticking(self) -> None:
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._next_tick()

    def _next_tick(self) -> None:
        assert self._loop is not None
        at = (math.floor(self._now() / SLOT_S) + 1) * SLOT_S
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.receiver.tick()
        self._on_tick()
        if self.receiver.busy and self._timer is None:
            self._next_tick()

    # -- decoding

    def _begin_decoding(self) -> asyncio.AbstractEventLoop:
        load_opus()
        self._loop = loop = asyncio.get_running_loop()
        if self._decoding is None:
            self._decoding = Strand(listeners_of(loop), self._decode, QUEUE_FRAMES, self._decoding_slow)
        return loop

    def _take(self, turns: list[Turn]) -> None:
        if self._wanted and self._decoding is not None:
            self._decoding.put(turns)

    def _decode(self, turns: list[Turn]) -> list[Strand[list[HeardFrame]]]:
        """On a worker's thread; the sinks' strands that must run now."""
        frames = []
        wants_pcm = self._wants_pcm
        for turn in turns:
            frame = turn.decoder.turn(turn, wants_pcm)
            if frame is not None:
                frames.append(frame)
        if self._wants_streams and self._loop is not None:
            call_soon(self._loop, lambda: self._distribute(frames))
        return [listening.strand for listening in self._listenings if listening.strand.offer(frames)]

    def _distribute(self, frames: list[HeardFrame]) -> None:
        for stream in self._streams:
            stream.put(frames)
        if not self._streams:
            self._weigh()

    # -- the listeners

    def _weigh(self) -> None:
        self._wants_streams = bool(self._streams)
        self._wanted = bool(self._listenings) or self._wants_streams
        self._wants_pcm = self._wants_streams or any(
            getattr(listening.sink, "needs_pcm", True) for listening in self._listenings
        )

    def _release(self, listening: Listening) -> None:
        self._listenings = tuple(one for one in self._listenings if one is not listening)
        self._weigh()

    def _end_streams(self) -> None:
        for stream in self._streams:
            stream.end()

    def _decoding_slow(self) -> None:
        self._warn_from_anywhere("decoding is slower than speech: sound older than 2 s is dropped")

    def _warn_from_anywhere(self, text: str) -> None:
        if self._loop is not None:
            call_soon(self._loop, lambda: self._on_warning(text))
