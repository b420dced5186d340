"""Where sound that was heard goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from voicegw.media.heard import HeardFrame
from voicegw.media.likeness import pcm_frequency
from voicegw.media.wav import WavWriter

MEASURED_FRAMES: Final = 35


class Sink(Protocol):
    """Takes what was heard, slot by slot. Its methods are called off the event loop, one call at a time.

    A sink with an attribute `needs_pcm = False` does not look at the frames' PCM; where none does, nothing is decoded.
    """

    def write(self, frame: HeardFrame) -> None:
        """20 ms of one user."""

    def close(self) -> None:
        """No more will come; what is held is written. A second call does nothing."""


@dataclass(frozen=True, slots=True)
class FunctionSink:
    """Calls a function with every frame."""

    function: Callable[[HeardFrame], None]

    def write(self, frame: HeardFrame) -> None:
        """Call it."""
        self.function(frame)

    def close(self) -> None:
        """Nothing to close."""


class _Speech:
    """A WAV file of what one user said, packet after packet: covered losses are in it, time that only passed is not."""

    def __init__(self, path: str | Path) -> None:
        self._writer = WavWriter(path)
        self._awaited: list[bytes] = []

    @property
    def seconds(self) -> float:
        return self._writer.seconds

    def write(self, frame: HeardFrame) -> None:
        if frame.awaited:
            self._awaited.append(frame.pcm)
            return
        if self._awaited:
            for pcm in self._awaited[: frame.missed]:
                self._writer.write(pcm)
            self._awaited.clear()
        self._writer.write(frame.whole or frame.pcm)

    def close(self) -> None:
        self._writer.close()


class WavSink:
    """One file `<user_id>.wav` a user in a directory, which is made if need be.

    A file begins with the first sound of its user and replaces an older one. It holds what was said, packet after
    packet: covered losses are in it, pauses are not; `Recording` keeps them. What comes after `close` is dropped.
    OSError where nothing can be written.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._files: dict[int, _Speech] = {}
        self._closed = False

    @property
    def paths(self) -> dict[int, Path]:
        """The file of every user heard so far."""
        return {user_id: self._path(user_id) for user_id in self._files}

    def _path(self, user_id: int) -> Path:
        return self._directory / f"{user_id:d}.wav"

    def write(self, frame: HeardFrame) -> None:
        """Add sound to the user's file."""
        if self._closed:
            return
        file = self._files.get(frame.user_id)
        if file is None:
            file = self._files[frame.user_id] = _Speech(self._path(frame.user_id))
        file.write(frame)

    def close(self) -> None:
        """Finish all files."""
        self._closed = True
        for file in self._files.values():
            file.close()


class SingleWavSink:
    """One file for the first user who is heard, as of `WavSink`; everybody else is left out.

    The file is there from the start, so that a place where nothing can be written shows at once (OSError).
    `user_id` is who is recorded, None before anybody was heard. What comes after `close` is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _Speech(path)
        self._closed = False
        self.user_id: int | None = None

    @property
    def seconds(self) -> float:
        """Length of what was recorded."""
        return self._file.seconds

    def write(self, frame: HeardFrame) -> None:
        """Add sound of the first user."""
        if self._closed:
            return
        if self.user_id is None:
            self.user_id = frame.user_id
        if frame.user_id == self.user_id:
            self._file.write(frame)

    def close(self) -> None:
        """Finish the file."""
        self._closed = True
        self._file.close()


class MeasuringSink:
    """Keeps the last 0.7 s of sound of every user, to tell its frequency, and passes all on to another sink."""

    def __init__(self, onward: Sink | None = None) -> None:
        self._onward = onward
        self._last: dict[int, deque[bytes]] = {}

    def write(self, frame: HeardFrame) -> None:
        """Keep and pass on; silence is not kept."""
        if any(frame.pcm) and not frame.lost:
            self._last.setdefault(frame.user_id, deque(maxlen=MEASURED_FRAMES)).append(frame.pcm)
        if self._onward is not None:
            self._onward.write(frame)

    def frequency(self, user_id: int) -> float:
        """The strongest frequency of the user's last sound in Hz; 0.0 for silence."""
        return pcm_frequency(b"".join(self._last.get(user_id, ())))

    def close(self) -> None:
        """Close the other sink."""
        if self._onward is not None:
            self._onward.close()
