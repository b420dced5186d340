"""Sound out of PyAV (extra `av`), which brings FFmpeg's libraries: MP3, AAC, FLAC, Vorbis, the sound of video files."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any, BinaryIO, Final

from voicegw.errors import NotAudio, SourceFailed, SourceRefused
from voicegw.media.ffmpeg import FORMATS
from voicegw.media.files import open_for_reading
from voicegw.media.opus import FRAME_BYTES, SAMPLE_RATE
from voicegw.media.sources import file_description


def have_pyav() -> bool:
    """Is it installed?"""
    return importlib.util.find_spec("av") is not None


class AvSource:
    """A local file or a stream, decoded in this process; it is opened by the first `read`.

    `format` is the name of FFmpeg's demuxer for it. The library is given an open file, never a name: it opens nothing.

    Raises:
        SourceRefused: a format that is not on the list.
        NotAudio: the file cannot be opened.
    """

    is_opus: Final = False

    def __init__(self, file: Path | BinaryIO, format: str) -> None:
        if format not in FORMATS:
            raise SourceRefused(f"{format!r} is not a format that is given to a decoder")
        self._format = format
        self.description = file_description(file) if isinstance(file, Path) else None
        self._file: BinaryIO = open_for_reading(file) if isinstance(file, Path) else file
        self._held = bytearray()
        self._container: Any = None
        self._frames: Any = None
        self._resampler: Any = None
        self._over = False
        self.duration_s: float | None = None  # until it is opened, by the first read

    def read(self) -> bytes:
        """The next 20 ms of PCM; b"" at the end.

        Raises:
            NotAudio: what is there cannot be decoded.
        """
        held = self._held
        while len(held) < FRAME_BYTES and not self._over:
            self._decode()
        if not held:
            return b""
        frame = bytes(held[:FRAME_BYTES])
        del held[:FRAME_BYTES]
        return frame.ljust(FRAME_BYTES, b"\0")

    def seek(self, seconds: float) -> None:
        """Go to `seconds` from the start.

        Raises:
            SourceFailed: a stream cannot be sought.
        """
        if not self._file.seekable():
            raise SourceFailed("a stream cannot be sought")
        self._open()
        av = importlib.import_module("av")
        try:
            self._container.seek(int(seconds * av.time_base))
        except av.FFmpegError as error:
            raise SourceFailed(f"this file cannot be sought: {error}") from error
        self._begin(seconds)

    def close(self) -> None:
        """Close the file; `read` gives nothing more."""
        self._over = True
        self._held.clear()
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(Exception):
                container.close()
        self._file.close()

    def _open(self) -> None:
        if self._container is not None:
            return
        av = importlib.import_module("av")
        try:
            self._container = av.open(self._file, format=self._format)
            if not self._container.streams.audio:
                raise NotAudio("the file has no sound in it")
        except (av.FFmpegError, ValueError) as error:
            raise NotAudio(f"the file cannot be read as {self._format}: {error}") from error
        if self._container.duration:
            self.duration_s = self._container.duration / av.time_base
        self._begin(0.0)

    def _begin(self, from_s: float) -> None:
        av = importlib.import_module("av")
        self._resampler = av.AudioResampler(format="s16", layout="stereo", rate=SAMPLE_RATE)
        self._frames = self._container.decode(audio=0)
        self._held.clear()
        self._over = False
        self._from_s = from_s
        self._skip: int | None = None if from_s else 0

    def _decode(self) -> None:
        self._open()
        av = importlib.import_module("av")
        try:
            frame = next(self._frames, None)
            if frame is not None and frame.time is not None and self._skip is None:
                self._skip = max(0, round((self._from_s - frame.time) * SAMPLE_RATE)) * 4  # a seek lands before it
            for piece in self._resampler.resample(frame):
                self._held += bytes(piece.planes[0])[: piece.samples * 4]
            gone = min(self._skip or 0, len(self._held))
            if gone:
                del self._held[:gone]
                self._skip = (self._skip or 0) - gone
        except av.FFmpegError as error:
            self._over = True
            raise NotAudio(f"the sound cannot be decoded: {error}") from error
        if frame is None:
            self._over = True
