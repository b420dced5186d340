"""What the drivers in Python have in common: their orders, their sound, and waiting for the end."""

from __future__ import annotations

import array
import json
import os
import random
import resource
import sys
from typing import Any

PCM_SECONDS = 2


def orders() -> dict[str, Any]:
    """What to do: `port`, `streams`, `size` of an Opus frame, `pcm`, `dave`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard > 0 else soft, hard))
    read: dict[str, Any] = {"pcm": False, "dave": False, "size": 240, **json.loads(sys.argv[1])}
    return read


def opus_frame(size: int) -> bytes:
    """A frame that passes for 20 ms of stereo music."""
    return b"\xfc" + os.urandom(size - 1)


def pcm_frames() -> list[bytes]:
    """Two seconds of a chord in noise, 3840 bytes a frame."""
    import math

    drawn = random.Random(7)
    frames = []
    for frame in range(PCM_SECONDS * 50):
        samples = array.array("h")
        for n in range(frame * 960, frame * 960 + 960):
            value = sum(math.sin(2 * math.pi * hz * n / 48000) for hz in (220.0, 277.2, 329.6)) * 5000
            samples.append(int(value + drawn.gauss(0, 400)))
            samples.append(int(value * 0.8 + drawn.gauss(0, 400)))
        frames.append(samples.tobytes())
    return frames
