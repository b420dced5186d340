"""Opening files that somebody else named."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from voicegw.errors import NotAudio


def open_for_reading(path: str | Path) -> BinaryIO:
    """A regular file, open for reading bytes; whatever else the name stands for raises NotAudio."""
    try:
        place = Path(path)
        if place.is_dir():
            raise NotAudio(f"{place} is a directory, not an audio file")
        if place.exists() and not place.is_file():
            raise NotAudio(f"{place} is not a regular file")
        return place.open("rb")
    except OSError as error:
        raise NotAudio(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise NotAudio(f"{str(path)!r} cannot be a file's name") from None
