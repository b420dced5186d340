"""What must be decoded, mixed or encoded on its way out, done ahead by a worker in runs of frames."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

from voicegw.errors import AudioError
from voicegw.media.levels import added
from voicegw.media.opus import OpusEncoder
from voicegw.media.pacer import FRAME_S
from voicegw.media.track import Track
from voicegw.media.workers import Workers

RUN_FRAMES: Final = 10
PROMPT_FRAMES: Final = 5
HURRY_FRAMES: Final = 3
DUCKING_STEP: Final = 0.1

_begun: Final = itertools.count()


class Mixer:
    """Several tracks in, one stream of Opus out; to the lane it looks like one more source that was read ahead.

    `follow(track)` is asked, by the worker, what comes after a track that is over; None ends it. `on_passed(track,
    following)` is called by the pacer when the last frame of a track has left.
    """

    settled: ClassVar = False

    __slots__ = (
        "_bitrate",
        "_duck",
        "_duck_step",
        "_encoder",
        "_follow",
        "_lock",
        "_loss",
        "_on_passed",
        "_produced",
        "_run_frames",
        "_stagger",
        "_tracks",
        "_under",
        "_workers",
        "busy",
        "ducked",
        "ended",
        "error",
        "frames",
        "low",
        "marks",
    )

    def __init__(
        self,
        workers: Workers,
        bitrate: int,
        follow: Callable[[Track], Track | None],
        on_passed: Callable[[Track, Track | None], None],
        loss: Callable[[], float],
    ) -> None:
        self.frames: deque[bytes] = deque()
        self.low = RUN_FRAMES
        self.ended = True
        self.busy = True
        self.error: AudioError | None = None
        self.marks: deque[tuple[int, Track, Track | None]] = deque()
        self._tracks: list[Track] = []
        self._produced = 0
        self._run_frames = RUN_FRAMES
        self._stagger = next(_begun) % RUN_FRAMES  # so that streams which begin together want no next run together
        self.ducked = 1.0  # where everything but what is played over goes
        self._duck = 1.0
        self._duck_step = DUCKING_STEP
        self._under = 1.0  # what the others are turned to by what is played over them
        self._encoder: OpusEncoder | None = None
        self._bitrate = bitrate
        self._lock = threading.Lock()
        self._workers = workers
        self._follow = follow
        self._on_passed = on_passed
        self._loss = loss

    @property
    def taken(self) -> int:
        """How many of its frames were taken."""
        return self._produced - len(self.frames)

    @property
    def tracks(self) -> list[Track]:
        """What sounds."""
        with self._lock:
            return list(self._tracks)

    def begin(self, tracks: list[Track], passed: int = 0) -> None:
        """Mix these from now on; the first `passed` frames of the first one go out as they are."""
        with self._lock:
            self._tracks = list(tracks)
            self._clear()
            self.error = None
            self.ended = self.busy = False
            reader = tracks[0].reader
            for _ in range(min(passed, len(reader.frames))):
                self.frames.append(reader.frames.popleft())
                self._produced += 1
        self.refill()

    def add(self, track: Track) -> None:
        """One more."""
        with self._lock:
            self._tracks.append(track)
            if self.ended:
                self.ended = self.busy = False
        self.refill()

    def replace(self, old: Track, new: Track) -> None:
        """`new` takes the place of `old`, which sounds on while it leaves."""
        with self._lock:
            at = self._tracks.index(old) if old in self._tracks else 0
            self._tracks.insert(at, new)
        self.refill()

    def remove(self, track: Track) -> None:
        """It sounds no more."""
        with self._lock:
            if track in self._tracks:
                self._tracks.remove(track)

    def flush(self) -> None:
        """Forget what has not left yet; with the pacer's lock held."""
        with self._lock:
            self._clear()
        self.refill()

    def set_bitrate(self, bitrate: int) -> None:
        """From the next run on."""
        self._bitrate = bitrate

    def duck(self, level: float, frames: int) -> None:
        """Turn all but what is played over to `level` within so many frames; from then on less is made ahead."""
        self.ducked = level
        self._duck_step = max(abs(level - self._duck) / max(1, frames), 1e-6)
        self._run_frames = self.low = PROMPT_FRAMES

    def refill(self) -> None:
        """Have a worker go on."""
        with self._lock:
            if self.busy or self.ended:
                return
            self.busy = True
        self._workers.submit(self._run)

    def relieve(self) -> None:
        """It has run dry."""
        self._workers.relieve()
        for track in self.tracks:
            track.reader.relieve()

    def passed(self) -> None:
        """The pacer has sent what comes before the first mark."""
        while self.marks and self.marks[0][0] <= self.taken:
            _, track, following = self.marks.popleft()
            self._on_passed(track, following)

    def _clear(self) -> None:
        self._produced = self.taken
        self.frames.clear()
        self.marks.clear()

    # -- the worker's

    def _run(self) -> None:
        frames, over = self.frames, False
        try:
            encoder = self._encoding()
            most = 2 * self._run_frames - self._stagger
            while len(frames) < most:
                pcm = self._mixed()
                if pcm is None:
                    break
                frames.append(encoder.encode(pcm))
                self._produced += 1
            else:
                self._stagger = 0
        except AudioError as error:
            self.error, over = error, True
        with self._lock:
            self.ended = over or not self._tracks
            self.busy = self.ended

    def _encoding(self) -> OpusEncoder:
        if self._encoder is None:
            self._encoder = OpusEncoder(self._bitrate)
        self._encoder.adapt(self._bitrate, self._loss())
        return self._encoder

    def _mixed(self) -> bytes | None:
        """20 ms of everything; None where there is nothing, or not yet."""
        for track in self.tracks:
            if track.over:
                self._leave(track)
            elif track.hands_over:
                self._hand_over(track)
        tracks = self.tracks
        waiting = [track for track in tracks if not track.ready]
        for track in waiting:
            track.reader.refill()
        if waiting and (len(waiting) == len(tracks) or len(self.frames) > HURRY_FRAMES):
            return None  # their next run begins where they are read on
        if not tracks:
            return None
        quietest = min((track.ducks for track in tracks if track.ducks is not None), default=1.0)
        self._under += max(-DUCKING_STEP, min(DUCKING_STEP, quietest - self._under))
        self._duck += max(-self._duck_step, min(self._duck_step, self.ducked - self._duck))
        total = b""
        for track in tracks:
            if track not in waiting:
                pcm = track.next(1.0 if track.ducks is not None else min(self._under, self._duck))
                total = added(total, pcm) if total else pcm
        return total

    def _hand_over(self, track: Track) -> None:
        """The next one begins while this one fades."""
        seconds, track.overlap = track.overlap * FRAME_S, 0
        following = self._follow(track)
        if following is None:
            return
        track.leaving = True
        track.fade(0.0, seconds)
        with self._lock:
            self._tracks.insert(0, following)
        self.marks.append((self._produced, track, following))

    def _leave(self, track: Track) -> None:
        following = self._follow(track)
        with self._lock:
            if track not in self._tracks:
                return
            at = self._tracks.index(track)
            self._tracks[at : at + 1] = [] if following is None else [following]
        self.marks.append((self._produced, track, following))
