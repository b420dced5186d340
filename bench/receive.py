"""Receiving: what it costs to open, put in order and decode a packet, all threads together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.drivers.common import pcm_frames
from bench.drivers.receiving import AES, XCHACHA
from bench.machine import HERE, built, cores
from bench.peers import BenchFailed, peer_python
from bench.results import OURS, Result, Settings
from voicegw.media.opus import OpusEncoder, load_opus

USERS = 100
VOICE_RECV = "discord-ext-voice-recv"
PACKAGES = ("discord.py==2.7.1", "discord-ext-voice-recv==0.5.2a179", "davey==0.1.7")


def heard(command: list[str]) -> dict[str, Any]:
    """Run one who receives, on one core: processor seconds, packets given, frames that came out."""
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        preexec_fn=lambda: os.sched_setaffinity(0, {cores()[0]}),
    )
    if ended.returncode:
        raise BenchFailed(f"{command[0]} does not receive: {ended.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@contextmanager
def packets_of_speech() -> Iterator[str]:
    """A file of Opus packets in hex, 64 kbit/s stereo."""
    encoder = OpusEncoder(64_000)
    with tempfile.NamedTemporaryFile("w", suffix=".hex") as packets:
        packets.writelines(encoder.encode(frame).hex() + "\n" for frame in pcm_frames())
        packets.flush()
        yield packets.name


def orders(packets: str, seconds: float, mode: str) -> str:
    """What a driver in Python is told."""
    told = {"users": USERS, "seconds": seconds, "packets": packets, "libopus": load_opus().path, "mode": mode}
    return json.dumps(told)


def ours(packets: str, seconds: float, mode: str = AES) -> list[str]:
    """Our receiver, as a command."""
    return [sys.executable, str(HERE / "drivers" / "voicegw_receive.py"), orders(packets, seconds, mode)]


def cpu_us(found: dict[str, Any]) -> float:
    """Processor time of one frame that came out."""
    return float(found["cpu_s"] / found["frames"] * 1e6)


def receive(settings: Settings) -> Result:
    """100 users at 50 packets a second each, 64 kbit/s stereo, decoded for a sink; the same libopus for all."""
    result = Result("receive", "Processor time to receive, decrypt and decode a packet", "µs", {})
    seconds = 2 * settings.seconds
    with packets_of_speech() as packets:
        commands = {OURS: ours(packets, seconds), f"{OURS}, XChaCha20": ours(packets, seconds, XCHACHA)}
        python = peer_python(VOICE_RECV, PACKAGES)
        if python is not None:
            driver = str(HERE / "drivers" / "voice_recv.py")
            commands[VOICE_RECV] = [str(python), driver, orders(packets, seconds, XCHACHA)]
        program = built("receiver", "crypto", "dl")
        if program is not None:
            steps = str(round(seconds * 50))
            commands["C"] = [str(program), str(Path(load_opus().path)), packets, str(USERS), steps, "1"]
        values: dict[str, list[float]] = {who: [] for who in commands}
        frames: dict[str, int] = {}
        for _ in range(settings.rounds):
            for who, command in commands.items():
                found = heard(command)
                values[who].append(cpu_us(found))
                frames[who] = found["packets"] - found["frames"]
    result.values = values
    result.compare(VOICE_RECV, 3.5, "more", by=lambda our, their: their / our, of=f"{VOICE_RECV} / {OURS}")
    result.compare("C", 1.5, "less")
    result.notes.append(
        "C is AES-256-GCM by libcrypto and libopus alone, one decoder a user, without a jitter buffer; nearly all of "
        "it is libopus, and so is most of ours. discord-ext-voice-recv knows XChaCha20 only."
    )
    medians = result.medians()
    if VOICE_RECV in medians and "C" in medians:
        beyond, theirs = (medians[who] - medians["C"] for who in (OURS, VOICE_RECV))
        result.notes.append(
            f"Beyond what C takes, ours costs {beyond:.1f} µs a packet and discord-ext-voice-recv {theirs:.1f}, "
            f"{theirs / beyond:.1f} times as much. C itself would reach {medians[VOICE_RECV] / medians['C']:.1f}, so "
            f"that the target leaves {medians[VOICE_RECV] / 3.5 - medians['C']:.1f} µs for the jitter buffer, its "
            "clock, threads, and all of Python."
        )
    missing = ", ".join(f"{who} {count}" for who, count in frames.items())
    result.notes.append(f"Packets that did not come out in the last round: {missing}.")
    return result


MEASURES = {"receive": receive}
