"""Who is compared, each in an environment of its own, and the processes that send."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import CACHE, HERE, built, cores
from voicegw.errors import VoiceError

READY_S = 120.0
PYTHON_PACKAGES = {
    "discord.py": ("discord.py==2.7.1", "PyNaCl==1.6.2", "davey==0.1.7", "cryptography"),
    "py-cord": ("py-cord==2.8.1", "PyNaCl==1.6.2", "davey==0.1.7", "cryptography"),
}
NODE_PACKAGES = {
    "@discordjs/voice": ("@discordjs/voice@0.19.2", "@noble/ciphers@2.4.0", "@snazzah/davey@0.1.12", "opusscript@0.1.1")
}


class BenchFailed(VoiceError):
    """A benchmark cannot be run here."""


def peer_python(name: str, packages: tuple[str, ...] = ()) -> Path | None:
    """The interpreter of an environment that has a peer, made once; None where it cannot be had."""
    place = CACHE / name.replace(".", "-")
    python = place / "bin" / "python"
    if not (place / "done").exists():
        venv.create(place, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "-q", *(packages or PYTHON_PACKAGES[name])]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        (place / "done").touch()
    return python


def peer_node(name: str) -> Path | None:
    """The directory whose `node_modules` has a peer; None where there is no Node or no registry."""
    npm, place = shutil.which("npm"), CACHE / "node"
    if npm is None or shutil.which("node") is None:
        return None
    if not (place / "done").exists():
        place.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-save", "--prefix", place, *NODE_PACKAGES[name]]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        (place / "done").touch()
    return place


@dataclass(frozen=True)
class Sender:
    """Somebody who sends: `command` gets one argument of JSON, `port`, `streams`, `size` and more of the kind.

    It prints "ready" when all streams send, answers every further line on stdin by a line of JSON where it has one to
    give, and ends with its stdin.
    """

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def senders(*names: str) -> list[Sender]:
    """Those of `names` that can be had here."""
    found: list[Sender] = []
    for name in names:
        if name in PYTHON_PACKAGES:
            python = peer_python(name)
            if python is not None:
                driver = str(HERE / "drivers" / "discord_py.py")
                found.append(Sender(name, (str(python), driver), (("PYTHONPATH", str(HERE.parent)),)))
        elif name in NODE_PACKAGES:
            place = peer_node(name)
            if place is not None:
                driver = place / "discordjs.mjs"
                shutil.copy(HERE / "drivers" / "discordjs.mjs", driver)
                found.append(Sender(name, ("node", str(driver))))
        elif name == "C":
            program = built("sender", "crypto")
            if program is not None:
                found.append(Sender(name, (str(program),)))
        else:
            driver = str(HERE / "drivers" / "voicegw_streams.py")
            found.append(Sender(name, (sys.executable, driver), (("PYTHONPATH", str(HERE.parent)),)))
    return found


@contextmanager
def pinned(command: tuple[str, ...], core: int, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A program on one core, with pipes; it has ended when the context ends."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **more},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def sending(sender: Sender, port: int, streams: int, **kind: Any) -> Iterator[subprocess.Popen[str]]:
    """A sender on the first core whose streams are on their way."""
    kind.setdefault("size", 240)
    if sender.name == "C":
        arguments: tuple[str, ...] = (str(port), str(streams), str(kind["size"]))
    else:
        arguments = (json.dumps({"port": port, "streams": streams, **kind}),)
    with pinned((*sender.command, *arguments), cores()[0], **dict(sender.environment)) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.strip() != "ready":
            process.terminate()
            _, error = process.communicate()
            raise BenchFailed(f"{sender.name} does not send: {error.strip()[-400:] or line}")
        yield process


class Sink:
    """The other end: counts what arrives in a window."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._words, self._answers = process.stdin, process.stdout
        self.port = int(self._answers.readline())

    def begin(self) -> None:
        """Forget, and count from now on."""
        self._words.write("b")
        self._words.flush()

    def end(self) -> dict[str, Any]:
        """What arrived: packets, streams, the least and most of one stream, quantiles of the gaps' error in ms."""
        self._words.write("e")
        self._words.flush()
        read: dict[str, Any] = json.loads(self._answers.readline())
        return read


@contextmanager
def sink() -> Iterator[Sink]:
    """A sink on the last core."""
    program = built("sink")
    if program is None:
        raise BenchFailed("the sink needs a C compiler; install one (apt install gcc libc6-dev)")
    with pinned((str(program),), cores()[1]) as process:
        yield Sink(process)
