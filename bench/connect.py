"""What a connect costs: from the wish to a ready voice session, without the time on the network."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.machine import HERE, cores
from bench.peers import BenchFailed, peer_python, pinned
from bench.results import OURS, Result, Settings

CONNECTS = 12


def connects(library: str, python: str, endpoint: str, ca: Path, parts: bool = False) -> dict[str, Any]:
    """Processor time in ms of one connect (`cpu_ms`), and of its parts, by a process of its own."""
    orders = {"library": library, "endpoint": endpoint, "ca": str(ca), "connects": CONNECTS, "parts": parts}
    command = (python, str(HERE / "drivers" / "connects.py"), json.dumps(orders))
    more = {"PYTHONPATH": str(HERE.parent), "SSL_CERT_FILE": str(ca)}
    with pinned(command, cores()[0], **more) as process:
        try:
            out, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            raise BenchFailed(f"{library} does not connect") from None
    if process.returncode:
        raise BenchFailed(f"{library} does not connect: {error.strip()[-400:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def each_round(settings: Settings, parts: bool = False) -> Iterator[dict[str, dict[str, Any]]]:
    """What every library says of its connects, round after round, against one local voice server."""
    peer = peer_python("discord.py")
    pythons = {OURS: sys.executable} | ({} if peer is None else {"discord.py": str(peer)})
    with tempfile.TemporaryDirectory() as scratch:
        ca = Path(scratch) / "ca.pem"
        serve = (sys.executable, "-m", "voicegw", "serve", "--open", "--host", "127.0.0.1", "--ca-out", str(ca))
        with pinned((*serve, "--json"), cores()[1]) as server:
            assert server.stdout is not None
            endpoint = json.loads(server.stdout.readline())["endpoint"]
            for _ in range(settings.rounds):
                yield {library: connects(library, python, endpoint, ca, parts) for library, python in pythons.items()}


def connect(settings: Settings) -> Result:
    """On the local voice server, with E2EE offered."""
    result = Result("connect", "Processor time of one connect", "ms", {})
    values: dict[str, list[float]] = {}
    for found in each_round(settings):
        for library, said in found.items():
            values.setdefault(library, []).append(said["cpu_ms"])
    result.values = values
    result.compare("discord.py", 0.7, "less")
    result.notes.append(
        f"{CONNECTS} connects a round in one process, alone in the channel, a rest before each; the first two are not "
        "counted, and with them what is made once, the reading of the system's authorities among it. TLS is in it."
    )
    return result


def connect_parts(settings: Settings) -> dict[str, list[float]]:
    """Milliseconds of each part, and of all the rest, by library and part."""
    values: dict[str, list[float]] = {}
    for found in each_round(settings, parts=True):
        for library, said in found.items():
            rest = said["cpu_ms"] - sum(said["parts"].values())
            for part, spent in {**said["parts"], "the event loop, the rest": rest}.items():
                values.setdefault(f"{library}, {part}", []).append(spent)
    return values


MEASURES = {"connect": connect}
