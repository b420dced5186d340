"""Recordings of a call: one file a user and one of all together, every one of them on the same clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from voicegw.errors import AudioError
from voicegw.media.heard import HeardFrame
from voicegw.media.pcm import mix
from voicegw.media.tracks import FlacTrack, OggTrack, Track, WavTrack

Format = Literal["wav", "ogg", "flac"]

TRACKS: Final[dict[str, Callable[[Path], Track]]] = {"wav": WavTrack, "ogg": OggTrack, "flac": FlacTrack}
MIXED_NAME: Final = "mixed"

_WINDOW_SLOTS: Final = 25  # sound of up to 0.5 s ago still finds its place in the mix


class Recording:
    """A sink that keeps who spoke when: `<user id>.<format>` for each user and `mixed.<format>`.

    All files begin with the first sound that is heard (`began_at`, Unix time), have silence where their user says
    nothing, and are equally long once closed. "wav" is PCM; "ogg" keeps the Opus packets as they came, and marks lost
    ones for the player to conceal; "flac" needs `pip install "voicegw[av]"`. A file whose process died is valid up to
    its last second. Memory does not grow with length. `users=False` or `mixed=False` leaves these files out.

    Attributes:
        began_at (float | None): When the first sound was heard, Unix time in seconds.

    Raises:
        AudioError: there is no encoder for this format here.
        OSError: the directory cannot be made.
    """

    def __init__(
        self, directory: str | Path, format: Format = "wav", *, users: bool = True, mixed: bool = True
    ) -> None:
        if format not in TRACKS:
            raise AudioError(f"a recording is {', '.join(TRACKS)}, not {format!r}")
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._format = format
        self._open = TRACKS[format]
        self._records_users = users
        self._origin: int | None = None
        self._end = 0
        self._tracks: dict[int, Track] = {}
        self._mixed: Track | None = None
        self._mixing: dict[int, list[bytes]] = {}
        self._closed = False
        self.began_at: float | None = None
        self.needs_pcm = mixed or format != "ogg"
        if format == "flac":
            FlacTrack.check()
        if mixed:
            self._mixed = self._open(self._path(MIXED_NAME))

    @property
    def paths(self) -> dict[int, Path]:
        """The file of every user heard so far."""
        return {user_id: self._path(str(user_id)) for user_id in self._tracks}

    @property
    def mixed_path(self) -> Path | None:
        """The file of all together."""
        return self._path(MIXED_NAME) if self._mixed is not None else None

    @property
    def seconds(self) -> float:
        """How long the files are."""
        return self._end / 50

    def write(self, frame: HeardFrame) -> None:
        """Add 20 ms of a user; OSError where nothing can be written."""
        if self._closed:
            return
        if self._origin is None:
            self._origin = frame.slot
            self.began_at = time.time()
        slot = frame.slot - self._origin
        if slot < 0:
            return
        self._end = max(self._end, slot + 1)
        if self._records_users:
            track = self._tracks.get(frame.user_id)
            if track is None:
                track = self._tracks[frame.user_id] = self._open(self._path(str(frame.user_id)))
            track.write(slot, frame)
        if self._mixed is not None:
            self._mix(slot, frame)

    def close(self) -> None:
        """Finish all files; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._mixed is not None:
            self._mix_until(self._end)
            self._mixed.close(self._end)
        for track in self._tracks.values():
            track.close(self._end)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.{self._format}"

    def _mix(self, slot: int, frame: HeardFrame) -> None:
        waiting = self._mixing.get(slot)
        if waiting is not None:
            waiting.append(frame.pcm)
        elif slot >= self._end - _WINDOW_SLOTS:
            self._mixing[slot] = [frame.pcm]
            if len(self._mixing) > _WINDOW_SLOTS:
                self._mix_until(self._end - _WINDOW_SLOTS)

    def _mix_until(self, end: int) -> None:
        assert self._mixed is not None
        for slot in sorted(slot for slot in self._mixing if slot < end):
            self._mixed.write_pcm(slot, mix(self._mixing.pop(slot)))
