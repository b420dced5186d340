"""What must be decoded, mixed or encoded on its way out, done ahead by a worker in runs of frames."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from voicegw.errors import AudioError
from voicegw.media.opus import OpusEncoder
from voicegw.media.readahead import ReadAhead
from voicegw.media.workers import Workers

RUN_FRAMES: Final = 10


class Mixer:
    """Encodes one track; to the lane it looks like a source that was read ahead."""

    __slots__ = (
        "_bitrate",
        "_encoder",
        "_lock",
        "_on_frames",
        "_workers",
        "busy",
        "ended",
        "error",
        "frames",
        "low",
        "taken",
        "track",
    )

    def __init__(
        self, track: ReadAhead, workers: Workers, bitrate: int, on_frames: Callable[[], None] = lambda: None
    ) -> None:
        self.track = track
        self.frames: deque[bytes] = deque()
        self.taken = 0
        self.low = RUN_FRAMES
        self.ended = False
        self.busy = False
        self.error: AudioError | None = None
        self._encoder: OpusEncoder | None = None
        self._bitrate = bitrate
        self._lock = threading.Lock()
        self._workers = workers
        self._on_frames = on_frames

    def refill(self) -> None:
        """Have a worker encode on."""
        with self._lock:
            if self.busy or self.ended:
                return
            self.busy = True
        self._workers.submit(self._run)

    def relieve(self) -> None:
        """It has run dry."""
        self._workers.relieve()
        self.track.relieve()

    def _run(self) -> None:
        frames, track = self.frames, self.track
        over = False
        try:
            if self._encoder is None:
                self._encoder = OpusEncoder(self._bitrate)
            encode = self._encoder.encode
            while len(frames) < 2 * RUN_FRAMES:
                ended = track.ended
                try:
                    pcm = track.frames.popleft()
                except IndexError:
                    over = ended
                    break
                frames.append(encode(pcm))
        except AudioError as error:
            self.error, over = error, True
        if not track.busy and len(track.frames) < track.low:
            track.refill()
        with self._lock:
            self.ended = over
            self.busy = over
        self._on_frames()
