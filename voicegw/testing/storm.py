"""Full-client chaos: whole calls through random faults of every kind, in virtual time, from a seed.

    run = Storm(seed).go()
    assert run.violation is None, run.report()

A storm is planned before it begins: a list of happenings, each with its time, its name and a number from which its
details are drawn. So a failing plan can be shrunk by leaving happenings out (`shrink`), and nothing else changes. In
the end everything heals; then every bot must be ready again or have ended with a typed error, a new client must get
through, speech must be heard, and nothing may be left.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field

from voicegw.testing.bots import Bot
from voicegw.testing.injectors import INJECTORS, Scene
from voicegw.testing.invariants import Violation
from voicegw.testing.simulation import Simulation
from voicegw.testing.watch import Watch

STORM_S = 40.0
CHANNEL = 127121515262115840
SETTLE_S = 300.0
GROUP_S = 60.0
NOTICE_S = 20.0  # the last harm is noticed by then: a heart needs two beats and a look
SHOWN_LINES = 50


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that goes wrong: when, what, and the number its details are drawn from."""

    at_s: float
    name: str
    draw: int

    def __str__(self) -> str:
        return f"{self.at_s:7.3f} {self.name} {self.draw}"


@dataclass(slots=True)
class StormRun:
    """What one seed brought; `violation` is None where all held."""

    seed: int
    plan: tuple[Happening, ...]
    events: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    trace_hash: str = ""
    violation: str | None = None
    tail: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str | None:
        """Which invariant does not hold, where it was one; else which exception came."""
        text = self.violation or ""
        found = re.search(r"\bV\d\d\b", text) or re.match(r"\w+", text)
        return found[0] if found else None

    @property
    def likeness(self) -> str:
        """The violation without what differs from run to run: numbers, states."""
        return re.sub(r"\([^)]*\)|[0-9.]+", "", self.violation or "")

    def report(self) -> str:
        """Seed, what failed, the plan, and the end of the trace."""
        plan = [f"  {happening}" for happening in self.plan]
        tail = [f"  {line}" for line in self.tail]
        return "\n".join((f"seed {self.seed}: {self.violation}", "happenings:", *plan, "trace:", *tail))


def plan_of(seed: int) -> tuple[Happening, ...]:
    """The plan that a seed draws: some storms are of one kind, some of all."""
    chance = random.Random(f"plan {seed}")  # noqa: S311 - a simulation must be repeatable
    names = sorted(INJECTORS)
    if chance.random() < 0.3:
        kind = chance.choice(sorted({name.partition("_")[0] for name in names}))
        names = [name for name in names if name.startswith(kind)]
    count = chance.choice((0, 2, 4, 8, 12))
    times = sorted(chance.uniform(0, STORM_S) for _ in range(count))
    return tuple(Happening(round(at, 3), chance.choice(names), chance.randrange(1 << 32)) for at in times)


class Storm:
    """One run. `plan` replaces the one that the seed draws."""

    def __init__(self, seed: int, plan: Iterable[Happening] | None = None) -> None:
        self.run = StormRun(seed, tuple(plan_of(seed) if plan is None else plan))
        chance = random.Random(f"storm {seed}")  # noqa: S311
        self._dave = chance.random() < 0.9
        self._policy = "allow" if not self._dave or chance.random() < 0.2 else "require"
        self._modes = chance.choice(((), ("aead_aes256_gcm_rtpsize",), ("aead_xchacha20_poly1305_rtpsize",)))
        self._delay_s = chance.choice((0.001, 0.02, 0.15))
        self._checkpoints = chance.random() < 0.5
        self._keep_key = chance.random() < 0.5

    def go(self) -> StormRun:
        """Run it; nothing is raised."""
        run = self.run
        sim = Simulation(run.seed, delay_s=self._delay_s, dave=self._dave)
        with Watch(sim) as watch:
            begin = sim.loop.now
            try:
                sim.run(lambda sim: self._story(sim, watch))
                watch.finish(())
                watch.check()
            except Exception as error:  # whatever it is, it is what the run found
                first = watch.violations[0] if watch.violations else ""
                run.violation = first or f"{type(error).__name__}: {error}"
        run.events = watch.events
        run.virtual_s = sim.loop.now - begin
        run.trace_hash = sim.trace_hash
        run.tail = sim.trace[-SHOWN_LINES:]
        return run

    async def _story(self, sim: Simulation, watch: Watch) -> None:
        watch.server(sim.server)
        sim.server.faults.keep_key = self._keep_key  # whoever goes on with a call goes on with its key
        options = {"policy": self._policy, "keep_flight_record": True, "checkpoints": self._checkpoints}
        if self._modes:
            options["modes"] = self._modes
        bots = [Bot(sim, watch, number, CHANNEL, options) for number in (1, 2)]
        scene = Scene(sim, watch, bots)
        for bot in bots:
            bot.begin()
        begin = sim.loop.now
        for happening in self.run.plan:
            await asyncio.sleep(max(0.0, begin + happening.at_s - sim.loop.now))
            watch.check()
            self.run.faults[happening.name] += 1
            sim.note("storm", happening.name)
            await scene.inject(happening.name, random.Random(happening.draw))  # noqa: S311
        await asyncio.sleep(1.0)
        sim.note("storm", "over")
        await scene.heal()
        await asyncio.sleep(NOTICE_S)
        await self._recover(sim, watch, bots)

    async def _recover(self, sim: Simulation, watch: Watch, bots: list[Bot]) -> None:
        for bot in bots:
            await within(sim, bot.settled(), SETTLE_S, f"V06: {bot} is neither ready nor over")
        for bot in bots:
            if bot.over:
                await bot.come_back()
        for bot in bots:
            await bot.go_home()
        watch.check()
        for bot in bots:
            await within(sim, bot.agreed(bots), GROUP_S, f"V06: {bot} has no group with the others")
        speaker, *listeners = bots
        before = {bot: bot.heard(speaker) for bot in listeners}
        await within(sim, speaker.say(10), GROUP_S, f"V06: {speaker} cannot speak")
        for bot in listeners:
            await within(sim, bot.hears(speaker, before[bot] + 10), GROUP_S, f"V06: {bot} does not hear {speaker}")
        for bot in bots:
            await bot.end()
        watch.check()


def run_seed(seed: int) -> StormRun:
    """One storm."""
    return Storm(seed).go()


async def within(sim: Simulation, work: Awaitable[object], seconds: float, complaint: str) -> None:
    """Await `work`.

    Raises:
        Violation: it is not done in time.
    """
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError as error:
        raise Violation(f"{complaint} after {seconds:g} s") from error


def shrink(seed: int, plan: Iterable[Happening]) -> StormRun:
    """The run with the fewest happenings that leaving some out can find and that fails in the same way."""
    best = Storm(seed, plan).go()
    likeness = best.likeness
    size = len(best.plan)
    while size:
        size = (size + 1) // 2 if size > 1 else 1
        for start in range(0, len(best.plan), size):
            tried = Storm(seed, best.plan[:start] + best.plan[start + size :]).go()
            if tried.likeness == likeness:
                best, size = tried, min(2 * size, len(tried.plan))
                break
        else:
            if size == 1:
                break
    return best
