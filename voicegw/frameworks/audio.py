"""The frameworks' own audio sources as sources of ours."""

from __future__ import annotations

from typing import Any

FRAME_BYTES = 3840
OGG_HEADERS = (b"OpusHead", b"OpusTags")


def filled(frame: bytes) -> bytes:
    """20 ms of PCM: a short last frame gets silence behind it, an empty one says the end."""
    return frame and frame.ljust(FRAME_BYTES, b"\0")


class FrameworkSource:
    """An `AudioSource` of the discord.py family: 20 ms of PCM or one Opus packet a `read()`.

    `source` may be another one while it plays, as `client.source = PCMVolumeTransformer(client.source)` wants it.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.is_opus = bool(source.is_opus())

    def read(self) -> bytes:
        """The next 20 ms, b"" at the end."""
        frame: bytes = self.source.read()
        if not self.is_opus:
            return filled(frame)
        while frame.startswith(OGG_HEADERS):  # FFmpegOpusAudio gives the file's two headers as packets, too
            frame = self.source.read()
        return frame

    def close(self) -> None:
        """Let the framework's source clean up."""
        self.source.cleanup()
