"""How alike two recordings are, and which tone one holds.

Everything takes PCM of 16 bit, stereo, 48 kHz, and needs nothing but the standard library.
"""

from __future__ import annotations

import array
import cmath
import functools
import math
import sys
from itertools import accumulate
from operator import add, mul, sub
from typing import Final, NamedTuple

from voicegw.media.opus import SAMPLE_RATE

_COARSE: Final = 24
_FINE: Final = 6
_WINDOW: Final = SAMPLE_RATE // _FINE // 2
_SILENCE_DB: Final = -120.0
_SPECTRUM: Final = 32_768


class Likeness(NamedTuple):
    """`score` 0 to 1; `lag_s` by how much the heard sound begins later; `level_db` how much louder it is.

    The level compares the loudness of the two whole recordings, -120 where nothing is heard.
    """

    score: float
    lag_s: float
    level_db: float


def likeness(reference_pcm: bytes, heard_pcm: bytes) -> Likeness:
    """Look for the reference in what was heard.

    The delay is found by correlating the two, to one sample. The score is the correlation of the waveforms below
    4 kHz in windows of half a second of the reference, weighted with the reference's energy: a coded copy scores
    above 0.9, another song below 0.3, silence 0, and what is missing counts as nothing. A copy whose parts have
    moved against each other is no copy: only the parts that share the best delay count. Loudness does not matter.
    Takes about a second of computing for 20 s of sound.
    """
    reference, heard = _mono(reference_pcm), _mono(heard_pcm)
    loud, level = _power(reference), _power(heard)
    if not loud or not level:
        return Likeness(0.0, 0.0, _SILENCE_DB if not level else 0.0)
    level_db = max(_SILENCE_DB, 10 * math.log10(level / loud))
    reference_sums, heard_sums = _running(reference), _running(heard)
    lag = _coarse_lag(_thinned(reference_sums, _COARSE), _thinned(heard_sums, _COARSE)) * _COARSE
    fine = _thinned(reference_sums, _FINE)

    def aligned(shift: int) -> list[int]:
        return _shifted(heard_sums, shift, len(fine))

    for step, reach in ((_FINE, 8), (1, _FINE)):
        around = [lag + step * n for n in range(-reach, reach + 1)]
        lag = max(around, key=lambda shift: sum(map(mul, fine, aligned(shift))))
    return Likeness(_windowed(fine, aligned(lag)), lag / SAMPLE_RATE, level_db)


def pcm_frequency(pcm: bytes) -> float:
    """The strongest frequency in Hz, looked for in the middle 0.7 s; 0.0 for silence.

    A steady tone is told to about 1 Hz from 0.1 s of it.
    """
    sound = _mono(pcm)
    middle = max(0, (len(sound) - _SPECTRUM) // 2)
    sound = sound[middle : middle + _SPECTRUM]
    if not any(sound):
        return 0.0
    turn = 2 * math.pi / len(sound)
    size = 1 << max(13, (len(sound) - 1).bit_length())
    faded = [complex(s * (1 - math.cos(turn * n))) for n, s in enumerate(sound)]
    power = [abs(value) for value in _transform(faded + [0j] * (size - len(faded)))[: size // 2]]
    best = max(range(1, size // 2 - 1), key=power.__getitem__)
    before, peak, after = (math.log(power[n] + 1e-9) for n in (best - 1, best, best + 1))
    bend = before - 2 * peak + after
    offset = 0.5 * (before - after) / bend if bend else 0.0
    return min(SAMPLE_RATE / 2, max(0.0, (best + offset) * SAMPLE_RATE / size))


def _mono(pcm: bytes) -> list[int]:
    """Left and right together, without their mean."""
    samples = array.array("h", pcm[: len(pcm) - len(pcm) % 4])
    if sys.byteorder == "big":
        samples.byteswap()
    both = list(map(add, samples[::2], samples[1::2]))
    mean = round(sum(both) / len(both)) if both else 0
    return [sample - mean for sample in both] if mean else both


def _power(sound: list[int]) -> float:
    return sum(map(mul, sound, sound)) / len(sound) if sound else 0.0


def _running(sound: list[int]) -> list[int]:
    return list(accumulate(sound, initial=0))


def _thinned(sums: list[int], by: int, start: int = 0) -> list[int]:
    """Every `by`th sample from `start`, each the sum of `by` neighbours, out of running sums."""
    marks = sums[start::by]
    return list(map(sub, marks[1:], marks))


def _shifted(sums: list[int], shift: int, length: int) -> list[int]:
    """`length` thinned samples that begin `shift` samples of 48 kHz later; nothing where there is no sound."""
    lead = max(0, -(shift // _FINE)) if shift < 0 else 0
    out = [0] * lead + _thinned(sums, _FINE, shift + lead * _FINE)
    return out[:length] + [0] * (length - len(out))


def _windowed(reference: list[int], heard: list[int]) -> float:
    total = score = 0.0
    for at in range(0, len(reference), _WINDOW):
        ours, theirs = reference[at : at + _WINDOW], heard[at : at + _WINDOW]
        energy, other = sum(map(mul, ours, ours)), sum(map(mul, theirs, theirs))
        if energy and other:
            score += energy * max(0.0, sum(map(mul, ours, theirs)) / math.sqrt(energy * other))
        total += energy
    return min(1.0, score / total) if total else 0.0


def _coarse_lag(reference: list[int], heard: list[int]) -> int:
    """The delay in samples at which the two correlate best."""
    wanted = len(reference) + len(heard)
    size = 1 << max(1, (wanted - 1).bit_length())
    both = list(map(complex, reference + [0] * (size - len(reference)), heard + [0] * (size - len(heard))))
    # One transform serves two real signals: they are its even and its odd part.
    there = _transform(both)
    back = [there[0].conjugate()] + [value.conjugate() for value in reversed(there[1:])]
    product = [(a + b) * (a - b).conjugate() * 1j for a, b in zip(there, back, strict=True)]
    found = [value.real for value in _transform(product)]
    best = max(range(size), key=found.__getitem__)
    return best - size if best > len(heard) else best


@functools.lru_cache(maxsize=32)
def _twiddles(half: int) -> tuple[complex, ...]:
    return tuple(cmath.exp(-1j * math.pi * n / half) for n in range(half))


def _transform(values: list[complex]) -> list[complex]:
    """The discrete Fourier transform of a power of two of values."""
    if len(values) == 1:
        return values
    if len(values) == 2:
        a, b = values
        return [a + b, a - b]
    even, odd = _transform(values[::2]), list(map(mul, _transform(values[1::2]), _twiddles(len(values) // 2)))
    return list(map(add, even, odd)) + list(map(sub, even, odd))
