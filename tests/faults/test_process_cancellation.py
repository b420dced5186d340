"""Cancellation, an exception or a close at every await: of what the bot calls, and of each task of the call itself."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.faults.phases import ALICE, CHANNEL
from voicegw.errors import VoiceError
from voicegw.testing.loop import Process
from voicegw.testing.network import Host
from voicegw.testing.simulation import Simulation
from voicegw.testing.watch import Watch

OPERATIONS = ("connect", "move_to", "close")
KINDS = ("cancel", "exception", "close")


class Injected(Exception):
    """Thrown into an await from outside."""


async def stepped(work: Any, suspended: Callable[[int], BaseException | None]) -> Any:
    """Await a coroutine; before its nth suspension `suspended(n)` may give an exception to be thrown there."""
    return await _driven(work, suspended)


@types.coroutine
def _driven(work: Any, suspended: Callable[[int], BaseException | None]) -> Generator[Any, Any, Any]:
    number = 0
    try:
        waits = work.send(None)
        while True:
            number += 1
            error = suspended(number)
            if error is not None:
                waits = work.throw(error)
                continue
            try:
                sent = yield waits
            except BaseException as thrown:
                waits = work.throw(thrown)
            else:
                waits = work.send(sent)
    except StopIteration as stop:
        return stop.value


class Trial:
    """One operation of one client in a run of its own, disturbed at one of its awaits; `at` 0 only counts."""

    def __init__(self, operation: str, kind: str, at: int) -> None:
        self.operation = operation
        self.kind = kind
        self.at = at
        self.awaits = 0

    def run(self) -> int:
        """How many awaits there were."""
        sim = Simulation(seed=1, policy="fifo")
        with Watch(sim) as watch:
            sim.run(lambda sim: self._story(sim, watch))
            watch.check()
        return self.awaits

    async def _story(self, sim: Simulation, watch: Watch) -> None:
        watch.server(sim.server)
        alice = sim.client(ALICE)
        watch.client(alice)
        if self.operation != "connect":
            await alice.connect(CHANNEL)
        closing: list[asyncio.Task[None]] = []

        def suspended(number: int) -> BaseException | None:
            self.awaits = number
            if number != self.at:
                return None
            if self.kind == "exception":
                return Injected()
            if self.kind == "cancel":
                task.cancel()
            else:
                closing.append(sim.loop.create_task(alice.close()))
            return None

        work: dict[str, Callable[[], Awaitable[None]]] = {
            "connect": lambda: alice.connect(CHANNEL),
            "move_to": lambda: alice.move_to(CHANNEL + 1),
            "close": alice.close,
        }
        task = sim.loop.create_task(stepped(work[self.operation](), suspended))
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), VoiceError | Injected | None)
        await asyncio.gather(*closing)
        await alice.close()
        asked = any(request is not None for request in alice.signalling.requests)
        assert alice.signalling.requests.count(None) == int(asked)
        assert alice.over


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_await_may_be_the_last(operation: str, kind: str) -> None:
    awaits = Trial(operation, kind, at=0).run()
    assert awaits >= 1
    for at in range(1, awaits + 1):
        Trial(operation, kind, at).run()


class Lightning:
    """Strikes when a task of Alice's process takes its nth step; `at` 0 only counts."""

    def __init__(self, sim: Simulation, at: int, strike: Callable[[asyncio.Task[Any]], object]) -> None:
        self.steps = 0
        self._loop = sim.loop
        self._at = at
        self._strike = strike
        self._spared: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        """From now on; the task that says so is spared."""
        self._spared = asyncio.current_task()
        self._loop.before_step = self._step

    def end(self) -> None:
        """No more."""
        self._loop.before_step = None

    def _step(self, task: asyncio.Task[Any], process: Process | None) -> None:
        if task is self._spared or not isinstance(process, Host) or process.address != "10.0.0.1":
            return
        self.steps += 1
        if self.steps == self._at:
            self._strike(task)


def struck(kind: str, at: int, seed: int) -> int:
    """A join, a lost websocket and a resume, struck once; how many steps there were."""
    sim = Simulation(seed)

    async def story(sim: Simulation) -> None:
        alice = sim.client(ALICE)
        closing: list[asyncio.Task[None]] = []

        def strike(task: asyncio.Task[Any]) -> None:
            if kind == "cancel":
                task.cancel()
            else:
                closing.append(sim.loop.create_task(alice.close()))

        lightning = Lightning(sim, at, strike)
        lightning.begin()
        joining = sim.loop.create_task(alice.connect(CHANNEL))
        await asyncio.wait([joining])
        if alice.states["gateway"] == "ready":
            sim.server.drop_socket(ALICE)
        await asyncio.sleep(60)
        lightning.end()
        counted.append(lightning.steps)
        assert joining.cancelled() or isinstance(joining.exception(), VoiceError | None)
        if not closing and not joining.cancelled() and joining.exception() is None:
            assert alice.states["gateway"] == "ready"
        await asyncio.gather(*closing, alice.close())
        requests: list[int | None] = alice.signalling.requests  # a way back may leave and join once more before
        assert requests[-1] is None
        assert len(requests) == 1 or requests[-2] is not None

    counted: list[int] = []
    sim.run(story)
    return counted[0]


@covers("F145")
@pytest.mark.parametrize("kind", ["cancel", "close"])
def test_each_task_may_be_struck_at_each_step(kind: str, seed: int) -> None:
    steps = struck("nothing", 0, seed)
    assert steps > 40
    for at in range(1 + seed, steps + 1, 3):
        struck(kind, at, seed)
