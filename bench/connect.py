"""What a connect costs: from the wish to a ready voice session, without the time on the network."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import HERE, cores
from bench.peers import BenchFailed, peer_python, pinned
from bench.results import OURS, Result, Settings

CONNECTS = 12


def connects(library: str, python: str, endpoint: str, ca: Path) -> float:
    """Processor time in ms of one connect, by a process of its own."""
    told = json.dumps({"library": library, "endpoint": endpoint, "ca": str(ca), "connects": CONNECTS})
    command = (python, str(HERE / "drivers" / "connects.py"), told)
    more = {"PYTHONPATH": str(HERE.parent), "SSL_CERT_FILE": str(ca)}
    with pinned(command, cores()[0], **more) as process:
        try:
            out, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            raise BenchFailed(f"{library} does not connect") from None
    if process.returncode:
        raise BenchFailed(f"{library} does not connect: {error.strip()[-400:]}")
    return float(json.loads(out.splitlines()[-1])["cpu_ms"])


def connect(settings: Settings) -> Result:
    """On the local voice server, with E2EE offered."""
    result = Result("connect", "Processor time of one connect", "ms", {})
    values: dict[str, list[float]] = {}
    python = peer_python("discord.py")
    with tempfile.TemporaryDirectory() as scratch:
        ca = Path(scratch) / "ca.pem"
        serve = (sys.executable, "-m", "voicegw", "serve", "--open", "--host", "127.0.0.1", "--ca-out", str(ca))
        with pinned((*serve, "--json"), cores()[1]) as server:
            assert server.stdout is not None
            endpoint = json.loads(server.stdout.readline())["endpoint"]
            for _ in range(settings.rounds):
                values.setdefault(OURS, []).append(connects(OURS, sys.executable, endpoint, ca))
                if python is not None:
                    theirs = connects("discord.py", str(python), endpoint, ca)
                    values.setdefault("discord.py", []).append(theirs)
    result.values = values
    result.compare("discord.py", 0.7, "less")
    result.notes.append(f"{CONNECTS} connects a round in one process, the first two not counted, TLS among it.")
    return result


MEASURES = {"connect": connect}
