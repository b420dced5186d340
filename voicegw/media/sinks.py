"""Where sound that was heard goes."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final, Protocol

from voicegw.media.likeness import pcm_frequency
from voicegw.media.wav import WavWriter

MEASURED_FRAMES: Final = 35


class Sink(Protocol):
    """Takes what was heard, user by user and in order."""

    def write(self, user_id: int, pcm: bytes, lost: bool) -> None:
        """Some milliseconds of PCM (16 bit little-endian, stereo, 48 kHz) of one user.

        `lost` says that the packet never came and the sound was made up to cover it.
        """

    def close(self) -> None:
        """No more will come; what is held is written. A second call does nothing."""


class WavSink:
    """One file `<user_id>.wav` a user in a directory, which is made if need be.

    A file begins with the first sound of its user and replaces an older one. Covered losses are in it, pauses are
    not. What comes after `close` is dropped. OSError where nothing can be written.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._writers: dict[int, WavWriter] = {}
        self._closed = False

    @property
    def paths(self) -> dict[int, Path]:
        """The file of every user heard so far."""
        return {user_id: self._path(user_id) for user_id in self._writers}

    def _path(self, user_id: int) -> Path:
        return self._directory / f"{user_id:d}.wav"

    def write(self, user_id: int, pcm: bytes, lost: bool) -> None:
        """Add sound to the user's file; NotAudio for half a sample."""
        if self._closed:
            return
        writer = self._writers.get(user_id)
        if writer is None:
            writer = self._writers[user_id] = WavWriter(self._path(user_id))
        writer.write(pcm)

    def close(self) -> None:
        """Finish all files."""
        self._closed = True
        for writer in self._writers.values():
            writer.close()


class SingleWavSink:
    """One file for the first user who is heard; everybody else is left out.

    The file is there from the start, so that a place where nothing can be written shows at once (OSError).
    `user_id` is who is recorded, None before anybody was heard. What comes after `close` is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self._writer = WavWriter(path)
        self._closed = False
        self.user_id: int | None = None

    @property
    def seconds(self) -> float:
        """Length of what was recorded."""
        return self._writer.seconds

    def write(self, user_id: int, pcm: bytes, lost: bool) -> None:
        """Add sound of the first user; NotAudio for half a sample."""
        if self._closed:
            return
        if self.user_id is None:
            self.user_id = user_id
        if user_id == self.user_id:
            self._writer.write(pcm)

    def close(self) -> None:
        """Finish the file."""
        self._closed = True
        self._writer.close()


class MeasuringSink:
    """Keeps the last 0.7 s of sound of every user, to tell its frequency, and passes all on to another sink."""

    def __init__(self, onward: Sink | None = None) -> None:
        self._onward = onward
        self._last: dict[int, deque[bytes]] = {}

    def write(self, user_id: int, pcm: bytes, lost: bool) -> None:
        """Keep and pass on; silence is not kept."""
        if any(pcm):
            self._last.setdefault(user_id, deque(maxlen=MEASURED_FRAMES)).append(pcm)
        if self._onward is not None:
            self._onward.write(user_id, pcm, lost)

    def frequency(self, user_id: int) -> float:
        """The strongest frequency of the user's last sound in Hz; 0.0 for silence."""
        return pcm_frequency(b"".join(self._last.get(user_id, ())))

    def close(self) -> None:
        """Close the other sink."""
        if self._onward is not None:
            self._onward.close()
