"""Sound out of an `ffmpeg` program, for what nothing else here reads.

The process is owned: it is started for a source, ended with it (asked, then killed), waited for, and its exit code is
reported. It gets a list of arguments that are all ours, may read one local file or its own input and nothing else, and
is told what the file is, so that no playlist in disguise opens others.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from voicegw.errors import SourceFailed, SourceRefused
from voicegw.media.opus import FRAME_BYTES
from voicegw.media.sources import file_description

TERM_S: Final = 2.0
KILL_S: Final = 2.0
READ_BYTES: Final = 1 << 16
ERROR_BYTES: Final = 2000
FORMATS: Final = frozenset(
    (
        "aac",
        "aiff",
        "amr",
        "ape",
        "asf",
        "au",
        "avi",
        "caf",
        "flac",
        "flv",
        "matroska",
        "mov",
        "mp3",
        "mpegts",
        "ogg",
        "wav",
        "wv",
    )
)


class Stream(Protocol):
    """What a program can be fed from."""

    def read(self, size: int = -1, /) -> bytes | None:
        """Up to `size` bytes, b"" at the end."""

    def close(self) -> None:
        """Let go."""


def find_ffmpeg() -> str | None:
    """The program's path; None where there is none."""
    return shutil.which("ffmpeg")


def arguments(program: str, format: str, path: Path | None, start_s: float = 0.0) -> list[str]:
    """The whole command line; `path` None reads the program's input.

    Raises:
        SourceRefused: a format that is not on the list.
    """
    if format not in FORMATS:
        raise SourceRefused(f"{format!r} is not a format that is given to ffmpeg")
    # "file:" before an absolute path: no name can look like an option or like another protocol.
    place = "pipe:0" if path is None else f"file:{path.absolute()}"
    return [
        *(program, "-nostdin", "-hide_banner", "-loglevel", "error"),
        *("-protocol_whitelist", "pipe" if path is None else "file", "-f", format),
        *(("-ss", f"{start_s:.3f}") if start_s else ()),
        *("-i", place, "-map", "0:a:0", "-f", "s16le", "-ar", "48000", "-ac", "2", "pipe:1"),
    ]


class FfmpegSource:
    """A local file, or a stream that is read for it, decoded by ffmpeg.

    `format` is the name of ffmpeg's demuxer for it. The program starts with the first `read`. `exit_code` is there when
    it has ended: negative for a signal.

    Raises:
        SourceRefused: a format that is not on the list.
        SourceFailed: there is no ffmpeg on this host.
    """

    is_opus: Final = False

    def __init__(self, file: Path | Stream, format: str, *, program: str | None = None) -> None:
        found = program or find_ffmpeg()
        if found is None:
            raise SourceFailed("there is no ffmpeg on this host; install it, or voicegw[av]")
        self._program, self._format = found, format
        self._path = file if isinstance(file, Path) else None
        self.description = None if self._path is None else file_description(self._path)
        self._stream: Stream | None = None if isinstance(file, Path) else file
        arguments(found, format, self._path)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._held = bytearray()
        self._said = b""
        self._start_s = 0.0
        self._over = self._closed = False
        self.exit_code: int | None = None

    def read(self) -> bytes:
        """The next 20 ms of PCM; b"" at the end. It blocks while ffmpeg has nothing.

        Raises:
            SourceFailed: ffmpeg ended with another exit code than 0, once.
        """
        held = self._held
        while len(held) < FRAME_BYTES and not self._over:
            data = self._more()
            held += data
            if not data:
                self._over = True
                self._finish()
        if not held or self._closed:
            return b""
        frame = bytes(held[:FRAME_BYTES])
        del held[:FRAME_BYTES]
        return frame if len(frame) == FRAME_BYTES else frame.ljust(FRAME_BYTES, b"\0")

    def seek(self, seconds: float) -> None:
        """Go to `seconds` from the start, by another process. SourceFailed for a stream."""
        if self._path is None:
            raise SourceFailed("a stream cannot be sought")
        process, self._process = self._process, None
        if process is not None:
            end(process)
        self._held.clear()
        self._said, self._start_s, self._over, self.exit_code = b"", seconds, False, None

    def abort(self) -> None:
        """End a `read` of another thread."""
        self._closed = True
        abort = getattr(self._stream, "abort", None)
        if abort is not None:
            abort()
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                process.terminate()

    def close(self) -> None:
        """End the process and wait for it, 4 s at most; harmless when it has ended."""
        self._closed = self._over = True
        self._held.clear()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            self.exit_code = end(process)
        if self._stream is not None:
            self._stream.close()

    # -- the process

    def _started(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._process is None and not self._closed:
                feed = subprocess.DEVNULL if self._stream is None else subprocess.PIPE
                command = arguments(self._program, self._format, self._path, self._start_s)
                pipe = subprocess.PIPE
                try:
                    process = subprocess.Popen(command, stdin=feed, stdout=pipe, stderr=pipe)  # noqa: S603 - all ours
                except OSError as error:
                    raise SourceFailed(f"ffmpeg cannot be started: {error.strerror}") from error
                weakref.finalize(self, end, process)  # a source that nobody closed
                self._process = process
                if self._stream is not None:
                    assert process.stdin is not None
                    pump = threading.Thread(target=_pump, args=(self._stream, process.stdin), daemon=True)
                    pump.name = "voicegw ffmpeg input"
                    pump.start()
            return self._process

    def _more(self) -> bytes:
        """Some output; b"" at its end. What it complains of is taken meanwhile, lest it blocks."""
        process = self._started()
        if process is None:
            return b""
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors = process.stdout.fileno(), process.stderr.fileno()
        if sys.platform == "win32":
            return os.read(output, READ_BYTES)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(errors, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if errors in ready:
                    said = os.read(errors, READ_BYTES)
                    self._said = (self._said + said)[-ERROR_BYTES:]
                    if not said:
                        selector.unregister(errors)
                if output in ready:
                    return os.read(output, READ_BYTES)

    def _finish(self) -> None:
        """Its output has ended: so must it."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_S)
        lived = process.poll() is None
        if process.stderr is not None and not lived:
            self._said = (self._said + process.stderr.read(ERROR_BYTES))[-ERROR_BYTES:]
        self.exit_code = code = end(process)
        if self._closed or (code == 0 and not lived):
            return
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = self._said.decode("utf-8", "replace").strip().splitlines()
        raise SourceFailed(f"ffmpeg {how}" + (f": {said[-1][:200]}" if said else ""))


def end(process: subprocess.Popen[bytes]) -> int:
    """Ask it to end, then kill it, and wait; its exit code."""
    for ask, patience in ((process.terminate, TERM_S), (process.kill, KILL_S)):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    code = process.poll()
    return -9 if code is None else code


def _pump(stream: Stream, pipe: BinaryIO) -> None:
    """Feed it until one of the two ends; what goes wrong with the stream ends the input."""
    with contextlib.suppress(Exception):
        while data := stream.read(READ_BYTES):
            pipe.write(data)
            pipe.flush()
    with contextlib.suppress(OSError):
        pipe.close()
