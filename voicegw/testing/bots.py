"""A simulated bot: joins, speaks, ends with its call, and comes back as a bot author would write it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from voicegw.effects import Closed, Notice
from voicegw.errors import VoiceError
from voicegw.frozen import FrozenCall
from voicegw.media.playback import Playback
from voicegw.media.sources import SourceDescription
from voicegw.server import LocalSignalling
from voicegw.testing.invariants import Violation
from voicegw.wire.encryption import KeyTable

if TYPE_CHECKING:
    from voicegw.testing.simulation import SimulatedClient, Simulation
    from voicegw.testing.watch import Watch

CONNECT_S = 30.0
CLOSE_S = 5.0
HOME_S = 90.0
TOLD_AHEAD_S = 1.0


class Frames:
    """A source of Opus packets that cost nothing to make; each is as long as its number says."""

    is_opus = True

    def __init__(self, count: int) -> None:
        self.left = self.count = count
        self.closed = False

    @property
    def description(self) -> SourceDescription:
        """Another process makes the same packets."""
        return SourceDescription("frames", {"count": self.count})

    def read(self) -> bytes:
        """A packet: TOC of 20 ms stereo, and some bytes."""
        if self.closed or self.left == 0:
            return b""
        self.left -= 1
        return b"\xfc" + bytes(40 + self.left % 7)

    def close(self) -> None:
        """No more."""
        self.closed = True


class Bot:
    """One user with one client at a time; its awaitables are held to their bounds."""

    def __init__(self, sim: Simulation, watch: Watch, number: int, channel_id: int, options: dict[str, Any]) -> None:
        self.sim = sim
        self.watch = watch
        self.user_id = number
        self.home = channel_id
        self.signalling = LocalSignalling(sim.server, number)
        self.notices: list[Notice] = []
        self.playback: Playback | None = None
        self.handing = self.store_away = False
        self._options = {name: value for name, value in options.items() if name != "checkpoints"}
        self._keeps = options.get("checkpoints", False)
        self._stored: FrozenCall | None = None
        self._lives = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.client = self._make()

    def _make(self) -> SimulatedClient:
        life = next(self._lives)
        address = f"10.{life // 250}.{self.user_id}.{life % 250}"
        client = self.sim.client(self.user_id, address=address, signalling=self.signalling, **self._options)
        client.system.keys = KeyTable()  # a process of its own knows no key
        self.watch.client(client)
        client.add_listener(self.notices.append)
        self._stored = None
        return client

    async def _write(self, frozen: FrozenCall) -> None:
        """The fleet's store, which is not always there."""
        await asyncio.sleep(self.sim.delay_s)
        if self.store_away:
            raise ConnectionError("the store is away")
        self._stored = frozen

    @property
    def over(self) -> bool:
        """Has its call ended?"""
        return self.client.states["call"] == "closed"

    @property
    def ready(self) -> bool:
        """Is it in a channel, with a voice session?"""
        states = self.client.states
        return states["call"] == "connected" and states["gateway"] == "ready"

    # -- what it does meanwhile

    def begin(self) -> None:
        """Join, without waiting for it."""
        self.do(self.join(self.home))

    def do(self, work: Any) -> asyncio.Task[None]:
        """Something that goes on beside the rest."""
        task: asyncio.Task[None] = self.sim.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def join(self, channel_id: int) -> None:
        """Connect or move; what it raises must be ours, and come in time."""
        host = self.client.system
        before = self.sim.loop.now - host.frozen_s
        try:
            if self._keeps and self.client.states["call"] == "idle":
                self.client.keep_checkpoints(self._write)
            await self.client.connect(channel_id)
        except VoiceError:
            pass
        except Exception as error:
            self.watch.violate(f"V15: connect raised {error!r}")
        took_s = self.sim.loop.now - host.frozen_s - before
        if took_s > CONNECT_S + 0.1:
            self.watch.violate(f"V15: connect took {took_s:.1f} s")

    async def hand_over(self, crash: bool, away_s: float) -> None:
        """Its call goes to another process: frozen, or taken from the last checkpoint of one that died.

        Where it is there at once, it has been told ahead.
        """
        if self.handing or self.over:
            return
        self.handing = True
        ahead: SimulatedClient | None = None
        try:
            announced = self.client.announcement()
            if announced is not None and not crash and away_s < TOLD_AHEAD_S:
                ahead = self._make()
                self.signalling.attach(self.client)  # which has the call until it is frozen
                await ahead.expect(announced)
            stored = self._stored
            frozen = await self.client.freeze()
            if crash and stored is not None:  # what dies tells nothing that it has not told before
                frozen = stored
            await asyncio.sleep(away_s)
            self.notices.clear()
            client, ahead = ahead or self._make(), None
            self.signalling.attach(client)
            self.client, self._stored = client, None
            await client.go_on(frozen, CONNECT_S, {"frames": Frames}, self._write if self._keeps else None)
        except VoiceError:
            pass
        except Exception as error:
            self.watch.violate(f"V15: a hand-over raised {error!r}")
        finally:
            self.handing = False
            if ahead is not None:
                await ahead.close()

    def speak(self, frames: int) -> None:
        """Play, if there is a call."""
        if not self.over:
            self.playback = self.client.play(Frames(frames))

    async def end(self) -> None:
        """Close, in time, and leave nothing."""
        host = self.client.system
        before = self.sim.loop.now - host.frozen_s
        await self.client.close()
        took_s = self.sim.loop.now - host.frozen_s - before
        if took_s > CLOSE_S:
            self.watch.violate(f"V15: close took {took_s:.1f} s")
        for task in tuple(self._tasks):
            await task
        ends = [notice for notice in self.notices if isinstance(notice, Closed)]
        if len(ends) > 1:
            self.watch.violate(f"V15: {len(ends)} ends of one call were told")

    # -- what must be so in the end

    async def settled(self) -> None:
        """Until it is ready or over."""
        await self._until(lambda: not self.handing and (self.ready or self.over))

    async def come_back(self) -> None:
        """Its call has ended: a new client, as a bot would make one.

        Raises:
            Violation: it does not get through a healthy network.
        """
        error = self.client.error
        if error is not None and not isinstance(error, VoiceError):
            raise Violation(f"V15: the call ended with {error!r}")
        await self.end()
        if self.signalling.credentials is not None and self.signalling.requests[-1] is not None:
            raise Violation(f"V16: {self} ended with {error!r} and is still in its channel")
        self.renew()
        try:
            await self.client.connect(self.home)
        except VoiceError as failure:
            raise Violation(f"V06: {self} could not come back: {failure!r}") from failure

    def renew(self) -> None:
        """Another client, for another call."""
        self.notices.clear()
        self.client = self._make()

    async def go_home(self) -> None:
        """Back to the channel where all meet, wherever it was moved."""
        credentials = self.signalling.credentials
        if credentials is None or credentials.channel_id != self.home:
            try:
                await self.client.move_to(self.home, HOME_S)
            except VoiceError as failure:
                raise Violation(f"V06: {self} could not go home: {failure!r}") from failure

    async def agreed(self, bots: list[Bot]) -> None:
        """Until all have one group, or none where the call has no E2EE."""

        def same() -> bool:
            states = {bot.client.states["dave"] for bot in bots}
            codes = {bot.client.privacy_code for bot in bots}
            return len(codes) == 1 and (states == {"active"} or all(state.startswith("clear") for state in states))

        await self._until(same)

    async def say(self, frames: int) -> None:
        """Play to the end."""
        await self.client.play(Frames(frames)).wait()

    def heard(self, speaker: Bot) -> int:
        """Packets so far."""
        stats = self.client.stats.users.get(speaker.user_id)
        return stats.packets if stats is not None else 0

    async def hears(self, speaker: Bot, packets: int) -> None:
        """Until so many have come."""
        await self._until(lambda: self.heard(speaker) >= packets)

    async def _until(self, so: Callable[[], bool]) -> None:
        while not so():  # noqa: ASYNC110 - virtual time costs nothing, and this asks the client for no help
            await asyncio.sleep(0.5)

    def __repr__(self) -> str:
        return f"bot {self.user_id} ({', '.join(f'{name} {state}' for name, state in self.client.states.items())})"
