"""Fuzz the parsers: `python -m tests.fuzz --seconds 60 [TARGET ...]`; exit 1 where one lets out what it must not.

With atheris (it comes with the extra `test` on Linux) the bytes are led by the parsers' own branches; without it, or
with --by-hand, right inputs are broken at random. The seconds are shared evenly by the targets, a process each.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """How many inputs were tried, and the one that something came out for, with what it was."""

    inputs: int
    finding: bytes | None = None
    said: str = ""


def main(arguments: Sequence[str]) -> int:
    """Fuzz what is named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (60)")
    parser.add_argument("--seed", type=int, default=0, help="another run (0: a new one each time)")
    parser.add_argument("--by-hand", action="store_true", help="without atheris")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own, see `_with_atheris`
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="which (all)")
    options = parser.parse_args(arguments)
    names = options.target or list(TARGETS)
    seed = options.seed or random.randrange(1, 1 << 31)
    seconds = options.seconds / len(names)
    guided = not options.by_hand and importlib.util.find_spec("atheris") is not None
    findings = 0
    for name in names:
        run = _with_atheris(name, seconds, seed) if guided else fuzz_by_hand(TARGETS[name], seconds, seed)
        print(f"{name:15} {run.inputs:9} inputs, {'nothing came out' if run.finding is None else 'FOUND'}", flush=True)
        if run.finding is not None:
            findings += 1
            print(f"  {run.finding.hex()}\n{run.said}")
    print(f"{len(names)} targets, {findings} findings, {'atheris' if guided else 'by hand'}, seed {seed}")
    return 1 if findings else 0


def fuzz_by_hand(target: Target, seconds: float, seed: int) -> Found:
    """Break right inputs at random until the time is over."""
    draw = random.Random(seed)
    end, inputs = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(50):
            inputs += 1
            data = _broken(draw, draw.choice(target.seeds))
            try:
                target.run(data)
            except Exception:
                return Found(inputs, data, traceback.format_exc())
    return Found(inputs)


def _broken(draw: random.Random, data: bytes) -> bytes:
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(200))
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(broken) + 1)
        what = draw.randrange(4)
        if what == 0 and at < len(broken):
            broken[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif what == 1:
            broken[at:at] = draw.randbytes(draw.choice((1, 2, 4)))
        elif what == 2:
            del broken[at : at + draw.choice((1, 4, 100))]
        else:
            other = draw.randrange(len(broken) + 1)
            broken[at:at] = broken[other : other + draw.choice((1, 8, 64))]
    return bytes(broken[:MAX_LENGTH])


def _with_atheris(name: str, seconds: float, seed: int) -> Found:
    """libFuzzer ends its process, so it gets one."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, data in enumerate(TARGETS[name].seeds):
            Path(corpus, f"{number:04d}").write_bytes(data[:MAX_LENGTH])
        command = [
            sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), f"-max_total_time={max(1, round(seconds))}",
            f"-seed={seed}", f"-max_len={MAX_LENGTH}", f"-artifact_prefix={folder}/", "-print_final_stats=1",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ})
        counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        inputs = int(counted[1]) if counted else 0
        if done.returncode == 0 and counted:
            return Found(inputs)
        crashes = sorted(Path(folder).glob("crash-*")) + sorted(Path(folder).glob("timeout-*"))
        told = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(("#", "INFO"))]
        return Found(inputs, crashes[0].read_bytes() if crashes else b"", "\n".join(told[:60]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
