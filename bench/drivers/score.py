"""Scores recordings against `clean`, in an environment of its own: 48 kHz stereo of 16 bit in, JSON out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
from pesq import pesq
from pystoi import stoi
from scipy.signal import resample_poly


def mono(path: Path) -> numpy.ndarray:
    """One channel at 16 kHz."""
    samples = numpy.frombuffer(path.read_bytes(), dtype=numpy.int16)[::2].astype(float) / 32768
    return resample_poly(samples, 1, 3)


place = Path(sys.argv[1])
clean = mono(place / "clean")
found = {}
for path in sorted(place.iterdir()):
    if path.name != "clean":
        heard = mono(path)
        found[path.name] = {"pesq": float(pesq(16_000, clean, heard, "wb")), "stoi": float(stoi(clean, heard, 16_000))}
print(json.dumps(found))
