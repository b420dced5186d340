"""What waits to leave on a voice session's websockets: in order, bounded, and not faster than a voice server bears.

Nothing leaves on a new websocket before Identify or Resume does; what waits then, because it was said while the
websocket was away, follows a Resume and is forgotten by an Identify. Of heartbeats and of speaking updates only the
last is worth sending. The voice gateway's rate limit is undocumented; exceeding it closes with 4021.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from voicegw.secret import Secret

Frame = str | bytes | Secret[str]

WINDOW_S = 10.5  # 10 s, and a little for what the network brings closer together
FRAMES_A_WINDOW = 60
LIMIT_OF_OTHERS = 55  # the rest is kept free for heartbeats
LIMIT_OF_SPEAKING = 40
MOST_WAITING = 512


class Outbox:
    """One call's; `now` is the loop's clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._opening: Frame | None = None
        self._opened = self._ended = False
        self._heartbeat: Frame | None = None
        self._speaking: Frame | None = None
        self._others: deque[Frame] = deque()
        self._left: deque[float] = deque(maxlen=FRAMES_A_WINDOW)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        waiting = (self._opening, self._heartbeat, self._speaking)
        return len(self._others) + sum(frame is not None for frame in waiting)

    def begin(self) -> None:
        """A new websocket is being dialled: nothing leaves before `identify` or `resume`."""
        self._opened = self._ended = False
        self._opening = self._heartbeat = None

    def end(self) -> None:
        """Our close frame leaves: what waits, and what comes until `begin`, is not sent any more."""
        self.clear()
        self._ended = True

    def identify(self, frame: Frame) -> None:
        """The first frame of a new session; what waited belongs to no session any more."""
        self.clear()
        self.resume(frame)

    def resume(self, frame: Frame) -> None:
        """The first frame of a websocket that goes on with a session."""
        if not self._ended:
            self._opening = frame
            self._opened = True
            self._changed.set()

    def heartbeat(self, frame: Frame) -> None:
        """A heartbeat; one that still waits is replaced."""
        if not self._ended:
            self._heartbeat = frame
            self._changed.set()

    def speaking(self, frame: Frame) -> None:
        """A speaking update; one that still waits is replaced."""
        if not self._ended:
            self._speaking = frame
            self._changed.set()

    def put(self, frame: Frame) -> bool:
        """Any other frame; False, and all that waits is forgotten, where too much waits already."""
        if len(self._others) >= MOST_WAITING:
            self.clear()
            return False
        if not self._ended:
            self._others.append(frame)
            self._changed.set()
        return True

    def clear(self) -> None:
        """Forget what waits."""
        self._opening = self._heartbeat = self._speaking = None
        self._others.clear()

    async def get(self) -> Frame:
        """The next frame, when it may leave."""
        while True:
            ready_in_s = self._ready_in_s()
            if ready_in_s is not None and ready_in_s <= 0.0:
                self._left.append(self._now())
                return self._take()
            self._changed.clear()
            if ready_in_s is None:
                await self._changed.wait()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ready_in_s):
                    await self._changed.wait()

    def _ready_in_s(self) -> float | None:
        """Seconds until the next frame may leave; None while none waits."""
        if not self._opened:
            return None
        if self._opening is not None:
            return 0.0
        if self._heartbeat is not None:
            return self._room_in_s(FRAMES_A_WINDOW)
        if self._others:
            return self._room_in_s(LIMIT_OF_OTHERS)
        return self._room_in_s(LIMIT_OF_SPEAKING) if self._speaking is not None else None

    def _room_in_s(self, limit: int) -> float:
        """Seconds until fewer than `limit` frames have left within the window."""
        if len(self._left) < limit:
            return 0.0
        return self._left[-limit] + WINDOW_S - self._now()

    def _take(self) -> Frame:
        frame: Frame | None
        if self._opening is not None:
            frame, self._opening = self._opening, None
        elif self._heartbeat is not None:
            frame, self._heartbeat = self._heartbeat, None
        elif self._others:
            frame = self._others.popleft()
        else:
            frame, self._speaking = self._speaking, None
        assert frame is not None
        return frame
