"""How loud: gain, sums and ramps of 16-bit PCM at the speed of C, and a meter for a loudness target.

`audioop` is part of Python up to 3.12; later, audioop-lts carries the same module on.
"""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from array import array
from typing import Any, Final

from voicegw.media.opus import FRAME_BYTES, SAMPLE_RATE

WIDTH: Final = 2
RAMP_STEPS: Final = 8
MEASURED_EVERY: Final = 4
GATE_LUFS: Final = -70.0
RELATIVE_GATE_LU: Final = 10.0
MOST_GAIN: Final = 10 ** (12 / 20)
LEAST_GAIN: Final = 10 ** (-24 / 20)

with warnings.catch_warnings():  # Python 3.11 and 3.12 say that it will go
    warnings.simplefilter("ignore", DeprecationWarning)
    _audioop: Any = importlib.import_module("audioop")

# ITU-R BS.1770-4, the two stages of the K weighting at 48 kHz: b0, b1, b2, a1, a2.
_SHELF: Final = (1.53512485958697, -2.69169618940638, 1.19839281085285, -1.69065929318241, 0.73248077421585)
_HIGH_PASS: Final = (1.0, -2.0, 1.0, -1.99004745483398, 0.99007225036621)


def added(one: bytes, other: bytes) -> bytes:
    """The sum; what is too loud is cut to the loudest there is."""
    total: bytes = _audioop.add(one, other, WIDTH)
    return total


def scaled(pcm: bytes, before: float, after: float) -> bytes:
    """A frame whose gain goes from `before` to `after`."""
    if before == after:
        if after == 1.0:
            return pcm
        even: bytes = _audioop.mul(pcm, WIDTH, after)
        return even
    size = len(pcm) // RAMP_STEPS & ~3
    steps = []
    for step in range(RAMP_STEPS):
        gain = before + (after - before) * (step + 1) / RAMP_STEPS
        end = (step + 1) * size if step < RAMP_STEPS - 1 else len(pcm)
        steps.append(_audioop.mul(pcm[step * size : end], WIDTH, gain))
    return b"".join(steps)


def peak(pcm: bytes) -> int:
    """The largest sample, without its sign."""
    largest: int = _audioop.max(pcm, WIDTH)
    return largest


class LoudnessMeter:
    """Loudness so far after ITU-R BS.1770: K weighting, both gates. It listens to every fourth frame."""

    __slots__ = ("_blocks", "_heard")

    def __init__(self) -> None:
        self._heard = 0
        self._blocks: list[float] = []

    def hear(self, pcm: bytes) -> None:
        """Take the next frame."""
        self._heard += 1
        if self._heard % MEASURED_EVERY == 1 and len(pcm) == FRAME_BYTES:
            self._blocks.append(_power(pcm))

    @property
    def lufs(self) -> float | None:
        """None while nothing loud enough was heard."""
        loud = [power for power in self._blocks if power > _power_of(GATE_LUFS)]
        if not loud:
            return None
        gate = sum(loud) / len(loud) * 10 ** (-RELATIVE_GATE_LU / 10)
        kept = [power for power in loud if power > gate]
        return -0.691 + 10 * math.log10(sum(kept) / len(kept))


def _power_of(lufs: float) -> float:
    return math.pow(10.0, (lufs + 0.691) / 10)


def _power(pcm: bytes) -> float:
    """Mean square of both channels after the K weighting, 1 for full scale."""
    samples = array("h", pcm)
    if sys.byteorder == "big":
        samples.byteswap()
    total, settled = 0.0, SAMPLE_RATE // 250  # the filters begin at rest: the first 4 ms are theirs
    for side in (0, 1):
        channel = samples[side::2]
        b0, b1, b2, a1, a2 = _SHELF
        c0, c1, c2, d1, d2 = _HIGH_PASS
        s1 = s2 = t1 = t2 = 0.0
        squares = 0.0
        for at, sample in enumerate(channel):
            shelved = b0 * sample + s1
            s1, s2 = b1 * sample - a1 * shelved + s2, b2 * sample - a2 * shelved
            passed = c0 * shelved + t1
            t1, t2 = c1 * shelved - d1 * passed + t2, c2 * shelved - d2 * passed
            if at >= settled:
                squares += passed * passed
        total += squares / (len(channel) - settled)
    return total / 32768.0**2


def gain_for(target_lufs: float, measured: float, loudest: int) -> float:
    """The gain that brings `measured` to the target and cuts nothing of what was heard."""
    gain = min(MOST_GAIN, max(LEAST_GAIN, 10 ** ((target_lufs - measured) / 20)))
    return min(gain, 32767 / loudest) if loudest else gain
