"""A whole fleet on one host: a NATS server, workers as processes, the local voice server, bots, listeners; and what the
listeners hear while things go wrong. For `voicegw fleet demo` and tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import voicegw
from voicegw.adapters.waiters import Waiters
from voicegw.client import VoiceClient
from voicegw.errors import FleetError, VoiceTimeout
from voicegw.fleet.bus import Bus
from voicegw.fleet.client import Fleet, FleetClient
from voicegw.fleet.local_nats import PATIENCE_S, Child, LocalNats
from voicegw.fleet.operator import Operator
from voicegw.fleet.sealing import ENVIRONMENT
from voicegw.fleet.sources import file
from voicegw.frozen import FleetKey
from voicegw.media.pacer import FRAME_S
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import SILENCE_FRAME

AFTER_S: Final = 0.5
MUSIC: Final = "demo.ogg"
BOTS, LISTENERS, GUILDS, CHANNELS = 1 << 40, 2 << 40, 3 << 40, 4 << 40


@dataclass(slots=True)
class Heard:
    """What the listener of one call heard, and what the voice server saw of it."""

    times: list[float] = field(default_factory=list)
    nonces: set[tuple[int, bytes]] = field(default_factory=set)
    keys: dict[bytes, int] = field(default_factory=dict)
    repeats: int = 0
    sources: list[tuple[str, int]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    stale: int = 0

    def gap_s(self, since: float, until: float) -> float:
        """The longest time without sound between these two; all of it where there was none.

        Where the call went from worker to worker, only what lies around that counts: from the last sound before to half
        a second after. When a host is busy whoever listens stands still now and then, and would hear that in all calls.
        """
        times = [since, *(at for at in self.times if since < at < until), until]
        changes = [at for at in self.changes if since < at < until]
        gaps = [
            later - at
            for at, later in itertools.pairwise(times)
            if not changes or any(at <= change + AFTER_S and change <= later for change in changes)
        ]
        return max(gaps)


class Trial:
    """`async with Trial(directory, calls=6) as trial: ...`"""

    def __init__(
        self, directory: Path, *, calls: int, workers: int = 3, lease_s: float = 2.0, nats_servers: int = 1
    ) -> None:
        self.directory = directory
        self.lease_s = lease_s
        self._count = calls
        self._first_workers = workers
        self.key = FleetKey.generate("trial")
        self.workers: dict[str, Child] = {}
        self.nats = LocalNats(directory, nats_servers)
        self._replicas = nats_servers
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
        await self.nats.start()
        await self.server.start()
        self.server.relay.tap = self._tap
        (self.directory / "ca.pem").write_bytes(self.server.ca_pem)
        bus = await self._connect()
        self.fleet = Fleet(bus)
        self.operator = Operator(bus, self._waiters.notify)
        await self.operator.follow()
        for number in range(self._first_workers):
            await self.start_worker(f"worker-{number + 1}")

    async def _connect(self) -> Bus:
        """A cluster takes a while to agree who leads it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await Bus.connect(self.nats.urls, [self.key], replicas=self._replicas)
            except FleetError:
                if self._replicas == 1 or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

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
                await self._kill_all()
                if self._watching:
                    await asyncio.wait(self._watching)
                await asyncio.gather(*(listener.close() for listener in self.listeners))
                await self.server.close()
        finally:
            await self._kill_all()

    async def _kill_all(self) -> None:
        for worker in self.workers.values():
            await worker.kill()
        await self.nats.kill()

    async def start_worker(self, name: str, *, nats_url: str | None = None, buckets: Sequence[str] = ()) -> None:
        """One more, which may play the objects of `buckets`; returns when it is in the fleet."""
        servers = [nats_url] if nats_url is not None else self.nats.urls
        more = [word for url in servers for word in ("--nats", url)]
        more += [word for bucket in buckets for word in ("--bucket", bucket)]
        trust = ("--ca", str(self.directory / "ca.pem"), "--allow-host", "127.0.0.1", "--allow-private-media")
        music = Path(voicegw.__file__).parent / "media"
        child = await Child.start(
            *(sys.executable, "-m", "voicegw", "fleet", "worker", *more),
            *("--name", name, "--lease", str(self.lease_s), "--files", str(music), *trust),
            log=self.directory / f"{name}.log",
            env={ENVIRONMENT: self.key.to_text().reveal()},
        )
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
        decrypt, times = listener.receiver.decrypt, self.heard[bot_id].times
        assert decrypt is not None

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
            heard.changes.append(time.monotonic())

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

    async def until_renewed(self, names: list[str]) -> None:
        """Until all of these workers have renewed their leases, beyond what was asked before now."""
        view = self.operator.view

        def beyond(revisions: dict[str, int]) -> Callable[[], bool]:
            return lambda: all(view.workers[name].revision > revision for name, revision in revisions.items())

        for _ in range(2):
            await self.until(beyond({name: view.workers[name].revision for name in names}))

    async def falls_silent(self, seconds: float = 1.0) -> None:
        """Until no call has been heard for so long."""

        def heard() -> int:
            return sum(len(one.times) for one in self.heard.values())

        def again(count: int) -> Callable[[], bool]:
            return lambda: heard() > count

        with contextlib.suppress(VoiceTimeout):
            while True:
                await self._waiters.wait_for(again(heard()), seconds)

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
            "calls_lost": sum(bot.closed for bot in self.bots),
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
