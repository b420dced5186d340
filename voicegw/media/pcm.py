"""Arithmetic on 16-bit PCM, in native byte order: what is seldom needed, so that nothing has to be installed for it."""

from __future__ import annotations

import array
import operator
from collections.abc import Sequence


def mix(sounds: Sequence[bytes]) -> bytes:
    """The sum of sounds of one length; what is too loud is cut to the loudest there is."""
    if len(sounds) == 1:
        return sounds[0]
    total: list[int] = list(array.array("h", sounds[0]))
    for sound in sounds[1:]:
        total = list(map(operator.add, total, array.array("h", sound)))
    if max(total) > 32767 or min(total) < -32768:
        total = [min(max(sample, -32768), 32767) for sample in total]
    return array.array("h", total).tobytes()


def fade(pcm: bytes, begin: float, end: float) -> bytes:
    """Stereo sound that goes evenly from one level (1.0 is unchanged) to another."""
    samples = array.array("h", pcm)
    step = (end - begin) / max(1, len(samples) // 2)
    faded = (int(sample * (begin + step * (at // 2 + 1))) for at, sample in enumerate(samples))
    return array.array("h", faded).tobytes()


def cross_fade(before: bytes, after: bytes) -> bytes:
    """Stereo sound of the same length that begins as `before` and ends as `after`."""
    first, second = array.array("h", before), array.array("h", after)
    length = max(1, len(first) // 2)
    faded = (
        (one * (length - at // 2) + other * (at // 2)) // length
        for at, (one, other) in enumerate(zip(first, second, strict=True))
    )
    return array.array("h", faded).tobytes()
