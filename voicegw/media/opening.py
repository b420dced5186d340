"""A source by its name: a file of the host's, a URL that a user gave, or a tone."""

from __future__ import annotations

import io
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, cast

from voicegw.errors import NotAudio
from voicegw.media.ffmpeg import FfmpegSource, find_ffmpeg
from voicegw.media.files import open_for_reading
from voicegw.media.formats import LOOK_BYTES, OGG_OPUS, WAV, WEBM, format_of
from voicegw.media.opus_files import OggOpusSource, WebmOpusSource
from voicegw.media.pyav import AvSource, have_pyav
from voicegw.media.sources import Source, SourceDescription, ToneSource, WavSource
from voicegw.media.wav import NotPcm
from voicegw.media.web import Resolve, WebStream, addresses

_TONE: Final = "tone:"
_BUFFER: Final = 1 << 16


def open_source(name: str | Path) -> Source:
    """A source by name: "tone:440" is a sine of 440 Hz without end, everything else the path of a local file.

    Files are told apart by what is in them, never by their name: Ogg Opus and WebM Opus go out as they are, WAV is
    read here, and everything else by PyAV (`pip install voicegw[av]`) or an installed `ffmpeg`, where it is of a
    format that holds sound itself: no playlists. URLs are not opened; see `open_url`.

    Raises:
        NotAudio: in one line, what is missing, no file, or not audio.
    """
    if isinstance(name, str) and name.startswith(_TONE):
        try:
            hz = float(name.removeprefix(_TONE))
        except ValueError:
            raise NotAudio(f"{name!r} names no tone; write it like tone:440") from None
        return ToneSource(hz)
    try:
        with open_for_reading(name) as file:
            start = file.read(LOOK_BYTES)
    except OSError as error:
        raise NotAudio(f"{name} cannot be read: {error.strerror}") from None
    try:
        return _open_file(Path(name), format_of(start))
    except NotAudio as error:
        raise NotAudio(f"{name}: {error}") from None


def _open_file(path: Path, format: str | None) -> Source:
    if format == OGG_OPUS:
        return OggOpusSource(path)
    if format == WAV:
        try:
            return WavSource(path)
        except NotPcm:
            if not (have_pyav() or find_ffmpeg()):
                raise
    if format == WEBM:
        try:
            return WebmOpusSource(path)
        except NotAudio:
            if not (have_pyav() or find_ffmpeg()):
                raise
    return _decoded(path, format)


def _decoded(file: Path | BinaryIO, format: str | None) -> AvSource | FfmpegSource:
    if format is None:
        raise NotAudio("it is neither Ogg Opus, WebM, WAV nor another format of sound that is known here")
    if have_pyav():
        return AvSource(file, format)
    if find_ffmpeg() is not None:
        return FfmpegSource(file, format)
    raise NotAudio(f'{format} needs a decoder: pip install "voicegw[av]", or install ffmpeg')


def open_url(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    allow_private: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    resolve: Resolve = addresses,
) -> Source:
    """The sound at an http or https URL, which may come from a user. It blocks: use `await asyncio.to_thread(...)`.

    Ogg Opus and WebM Opus go out as they are, everything else is decoded as a file is. The web server is at a public
    address unless `allow_private`; so is every one that it redirects to. Nothing else is opened, whatever the stream
    says. A live stream that should come back by itself: `ReconnectingSource(lambda: open_url(url))`.

    Raises:
        SourceRefused: a URL that must not be fetched.
        SourceFailed: no answer, or another than 200.
        NotAudio: the answer is not audio.
    """
    stream = WebStream(url, headers=headers, allow_private=allow_private, ssl_context=ssl_context, resolve=resolve)
    try:
        file = _Peekable(stream)
        format = format_of(file.peek(LOOK_BYTES)[:LOOK_BYTES])
        given = cast("BinaryIO", file)
        source: OggOpusSource | WebmOpusSource | AvSource | FfmpegSource
        if format == OGG_OPUS:
            source = OggOpusSource(given)
        elif format == WEBM:
            source = WebmOpusSource(given)
        else:
            source = _decoded(given, format)
        if ssl_context is None and resolve is addresses:
            arguments = {"url": url, "headers": dict(headers or {}), "allow_private": allow_private}
            source.description = SourceDescription("url", arguments, live=stream.length is None)
        return source
    except BaseException:
        stream.close()
        raise


class _Peekable(io.BufferedReader):
    """A buffered stream that can be aborted."""

    def __init__(self, stream: WebStream) -> None:
        super().__init__(stream, _BUFFER)
        self._web = stream

    def abort(self) -> None:
        """End a `read` of another thread."""
        self._web.abort()
