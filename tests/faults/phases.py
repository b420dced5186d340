"""A whole client brought to one phase on a simulated network, and kept there until `let_go`."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any, cast

from tests.faults.worlds import phase_of
from voicegw.errors import VoiceError
from voicegw.testing.bots import Frames
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.watch import Watch
from voicegw.testing.world import World
from voicegw.wire.opcodes import Opcode

CHANNEL = 127121515262115840
ALICE, BOB = 1, 2


class Call:
    """Alice in a phase; from R on Bob is in the call, too, and both are encrypted."""

    def __init__(self, sim: Simulation, **options: Any) -> None:
        self.sim = sim
        self.watch = Watch(sim)
        self.watch.server(sim.server)
        self.alice = sim.client(ALICE, **options)
        self.watch.client(self.alice)
        self.bob: SimulatedClient | None = None
        self.joining: asyncio.Task[None] | None = None
        self.closing: asyncio.Task[None] | None = None

    @property
    def host(self) -> Any:
        """Alice's host."""
        return self.alice.system

    @property
    def phase(self) -> str:
        """Where the call is now."""
        return phase_of(cast(World, self.alice))

    @property
    def leaves(self) -> int:
        """How many leaves were sent."""
        return int(self.alice.signalling.requests.count(None))

    async def come_to(self, phase: str, *, speaking: bool = False) -> Call:
        """Come there, and stay."""
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "P": self._unanswered,
            "D": self._undialled,
            "H": self._without_ready,
            "R": self._ready,
            "U": self._resuming,
            "E": self._without_server,
            "B": self._refused,
            "C": self._closing,
            "X": self._closed,
        }
        if phase != "I":
            await steps[phase]()
        if speaking and self.bob is not None:
            self.alice.play(Frames(10_000))
            await asyncio.sleep(0.5)
        assert self.phase == phase, f"wanted {phase}, the call is in {self.alice.states}"
        return self

    def hold_no_more(self) -> None:
        """What kept the call in its phase is gone."""
        self.sim.network.black_holes.clear()
        self.sim.server.faults.withhold.clear()

    def let_go(self) -> None:
        """Nothing holds the call any more, and nothing fails."""
        self.hold_no_more()
        self.host.recover()
        if self.alice.signalling.silent:
            self.alice.signalling.silent = False
        if self.phase == "E" and self.alice.signalling.credentials is not None:
            self.alice.signalling.hand_over()

    async def settle(self) -> None:
        """Until the call is ready or over."""
        async with asyncio.timeout(120):
            await until(lambda: self.phase in "RX" or (self.phase == "I" and self.joining is None))

    def join(self) -> asyncio.Task[None]:
        """Connect, in a task."""
        self.joining = asyncio.ensure_future(quietly(self.alice.connect(CHANNEL)))
        return self.joining

    async def _unanswered(self) -> None:
        self.alice.signalling.silent = True
        self.join()
        await asyncio.sleep(0.01)

    async def _undialled(self) -> None:
        self.sim.network.black_holes.add(self.sim.server.host)
        self.join()
        await asyncio.sleep(0.2)

    async def _without_ready(self) -> None:
        self.sim.server.faults.withhold.add(Opcode.READY)
        self.join()
        await asyncio.sleep(0.5)

    async def _ready(self) -> None:
        await self.join()
        bob = self.bob = self.sim.client(BOB)
        self.watch.client(bob)
        await bob.connect(CHANNEL)
        async with asyncio.timeout(10):
            await until(lambda: bob.privacy_code != "" and bob.privacy_code == self.alice.privacy_code)

    async def _resuming(self) -> None:
        await self._ready()
        self.sim.network.black_holes.add(self.sim.server.host)
        self.sim.server.drop_socket(ALICE)
        await asyncio.sleep(0.2)

    async def _without_server(self) -> None:
        await self._ready()
        self.alice.signalling.remove_server()
        await asyncio.sleep(0.2)

    async def _refused(self) -> None:
        self.host.fail("connect", errno.ECONNREFUSED)
        self.join()
        async with asyncio.timeout(25):
            await until(
                lambda: self.alice.states["call"] == "waiting.backoff" and self.alice.session.call.attempts >= 3
            )

    async def _closing(self) -> None:
        await self._ready()
        for connection in self.sim.network.connections:
            if self.host in connection.hosts:
                connection.silence()
        self.closing = asyncio.ensure_future(self.alice.close())
        await asyncio.sleep(0.1)

    async def _closed(self) -> None:
        await self._ready()
        await self.alice.close()


async def until(so: Callable[[], bool]) -> None:
    """Look every 10 ms of virtual time."""
    while not so():  # noqa: ASYNC110 - what is looked at tells nobody when it changes
        await asyncio.sleep(0.01)


async def quietly(work: Awaitable[None]) -> None:
    """A join that may fail, with errors of ours only."""
    try:
        await work
    except VoiceError:
        return


def in_call(phase: str, story: Callable[[Call], Awaitable[None]], seed: int = 1, **options: Any) -> Simulation:
    """Run `story` with a call in `phase`; all invariants hold meanwhile, and in the end nothing may be left."""

    async def whole(sim: Simulation) -> None:
        await call.come_to(phase)
        await story(call)
        call.let_go()
        tasks = [task for task in (call.joining, call.closing) if task is not None]
        await asyncio.gather(*tasks)

    sim = Simulation(seed)
    call = Call(sim, **options)
    with call.watch:
        sim.run(whole)
        call.watch.finish(())
        call.watch.check()
    return sim
