"""Where a packet's time goes in a process that sends at pace: what perf sees of it, by stacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.cost import STREAMS
from bench.machine import built, cores, cpu_s
from bench.peers import Sender, pinned, senders, sending, sink
from bench.results import OURS, Result, Settings
from bench.streams import WARM_S

MANY = 1500
ROUNDS, SECONDS, SAMPLES_A_S = 2, 3.0, 4999
FRAME = re.compile(r"\s*[0-9a-f]+ (?P<symbol>.+) \((?P<object>.*)\)$")
SENDS = re.compile(r"sys_(sendto|sendmsg|write)")
WAITS = re.compile(r"futex|nanosleep|epoll|poll|schedule")
OBJECTS = {
    "davey": "DAVE",
    "_rust": "sealing",
    "sodium": "sealing",
    "libcrypto": "sealing",
}
STEPS = ("system call", "waking", "sealing", "DAVE", "the rest")
RUNS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    (OURS, STREAMS, {}),
    ("discord.py", STREAMS, {}),
    ("C", STREAMS, {}),
    (OURS, MANY, {}),
    ("C", MANY, {}),
    (OURS, STREAMS, {"dave": True}),
    ("discord.py", STREAMS, {"dave": True}),
)


def profile_paced(settings: Settings) -> Result:
    """System call, waking, encryption and the rest, of ours, discord.py and C."""
    result = Result("profile-paced", "Where the time of a sent packet goes, at pace", "µs", {})
    if shutil.which("perf") is None:
        result.notes.append("perf is not installed here.")
        return result
    values: dict[str, list[float]] = {}
    for _ in range(min(ROUNDS, settings.rounds)):
        for name, streams, kind in RUNS:
            for sender in senders(name):
                of = _of(name, streams, kind)
                for step, value in _profile(sender, streams, kind).items():
                    values.setdefault(f"{of}, {step}", []).append(value)
    result.values = values
    medians, shares = result.medians(), []
    for name, streams, kind in RUNS:
        of = _of(name, streams, kind)
        whole = sum(value for who, value in medians.items() if who.startswith(f"{of}, "))
        if whole:
            shares.append(f"{of} {medians.get(f'{of}, {STEPS[0]}', 0.0) / whole:.0%} of {whole:.1f} µs")
    result.notes += [
        f"The number is that of the streams. Of each packet the system call takes: {'; '.join(shares)}. It is the same "
        "for everybody, and nobody can be further ahead of another than by what is left.",
        f"Samples of perf, {SAMPLES_A_S} a second, which costs something itself. [profile-send](#profile-send) is the "
        "same work without rests. What it costs more here is memory that no cache has: every packet is of another "
        "stream, another key and another socket of the kernel's, and the core was idle before. That is why ten frames "
        "of a stream are sealed at once.",
    ]
    return result


def _of(name: str, streams: int, kind: dict[str, Any]) -> str:
    return f"{name} {streams}{' + DAVE' if kind else ''}"


def _profile(sender: Sender, streams: int, kind: dict[str, Any]) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory() as place,
        sink() as other,
        sending(sender, other.port, streams, **kind) as process,
    ):
        time.sleep(WARM_S)
        data = str(Path(place) / "perf.data")
        other.begin()
        before = cpu_s(process.pid)
        record = ("perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_A_S), "-g", "-o", data)
        subprocess.run((*record, "-p", str(process.pid), "--", "sleep", str(SECONDS)), capture_output=True, check=False)
        spent = cpu_s(process.pid) - before
        packets = other.end()["packets"]
        said = subprocess.run(
            ("perf", "script", "-i", data, "-F", "tid,ip,sym,dso"), capture_output=True, text=True, check=False
        ).stdout
    counted = Counter(_step(stack) for stack in said.split("\n\n") if FRAME.search(stack))
    samples = sum(counted.values())
    cost = spent * 1e6 / max(1, packets)
    return {step: counted[step] / samples * cost for step in STEPS if counted[step]}


def _step(stack: str) -> str:
    """Of one sample, by its innermost frame and those in the kernel."""
    frames = [found for line in stack.splitlines() if (found := FRAME.match(line))]
    symbols = " ".join(frame["symbol"] for frame in frames)
    if SENDS.search(symbols):
        return STEPS[0]
    if not frames or "kernel" in frames[0]["object"]:
        return STEPS[1] if WAITS.search(symbols) else STEPS[4]
    return next((step for part, step in OBJECTS.items() if part in frames[0]["object"]), STEPS[4])


def batch(settings: Settings) -> Result:
    """One system call for each datagram, or one for 64 of different sockets."""
    result = Result("batch", "Sending a datagram of 272 bytes in C", "µs", {})
    program = built("batch")
    values: dict[str, list[float]] = {}
    for _ in range(settings.rounds if program is not None else 0):
        for streams in (STREAMS, MANY):
            with sink() as other, pinned((str(program), str(other.port), str(streams)), cores()[0]) as process:
                assert process.stdout is not None
                said = process.stdout.readline().split()
            for way, value in zip(("send", "io_uring, 64 at once"), said, strict=False):
                values.setdefault(f"{streams} sockets, {way}", []).append(float(value))
    result.values = values
    result.notes.append(
        "io_uring is the only call that takes datagrams of different sockets. What the kernel does for a datagram is "
        "nearly all of it, and that stays; so it is not used here. Many hosts and Docker's defaults forbid it, too."
        if values
        else "The kernel here knows no io_uring, or forbids it."
    )
    return result


MEASURES = {"profile-paced": profile_paced, "batch": batch}
