"""Make a failing run short: the fewest steps of its plan, and the plainest circumstances, that fail in the same way.

Delta debugging over the plan: halves, quarters, ... of the steps are left out as long as the same invariant breaks.
Each step draws its details from its own number, so leaving one out changes nothing about the others.
"""

from __future__ import annotations

from dataclasses import replace

from voicegw.events import Event, JoinRequested, Stamped
from voicegw.testing.chaos import Chaos
from voicegw.testing.plan import WAIT, Plan, Step
from voicegw.testing.run import Run

PLAIN = (
    {"latency_s": 0.0},
    {"alone": False},
    {"dave_protocol_version": 1},
    {"max_attempts": 12},
    {"rejoin_after_rate_limit": False},
)


def shrink(failed: Run) -> Run:
    """The shortest run that was found to break the same invariant; its `story` tells step by step what came in."""
    best = failed
    for values in PLAIN:
        best = _better(best, replace(best.plan, **values))
    parts = 2
    while len(best.plan.steps) > 0:
        steps = best.plan.steps
        size = max(1, len(steps) // parts)
        for begin in range(0, len(steps), size):
            tried = _better(best, _without(best.plan, begin, begin + size))
            if tried is not best:
                best, parts = tried, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(steps))
    teller = Teller(best.plan)
    told = teller.go()
    told.story = teller.story
    return told


def report(run: Run) -> list[str]:
    """Seed, what broke, the shortest story found, its plan for the file of plans, and the end of the trace."""
    short = shrink(run)
    return [
        f"seed {run.seed}: {run.violation}",
        f"shortest found: {len(short.plan.steps)} of {len(run.plan.steps)} steps, {short.events} events",
        *(f"  {line}" for line in short.story),
        f"  {short.violation}",
        f"plan: {short.plan.to_text()}",
        "the end of the trace:",
        *(f"  {line}" for line in run.tail),
    ]


class Teller(Chaos):
    """A run that writes down each step and what it feeds."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.story: list[str] = []

    def happen(self, name: str, draw: int) -> None:
        """One step, told."""
        before = self.world.now
        at = len(self.story)
        try:
            super().happen(name, draw)
        finally:
            waited = f" {self.world.now - before:g} s" if name == WAIT else ""
            self.story.insert(at, f"{before - self.world.BEGIN:9.3f} {name}{waited}")

    def heal(self) -> None:
        """Told, too."""
        self.story.append(f"{self.world.now - self.world.BEGIN:9.3f} everybody answers again")
        super().heal()

    def _feed(self, event: Event | Stamped) -> None:
        bare = event.event if isinstance(event, Stamped) else event
        if not isinstance(bare, JoinRequested) or self.story:
            older = f" of {event.source} {event.generation}" if isinstance(event, Stamped) else ""
            self.story.append(f"{'':9}   {str(bare)[:160]}{older}")
        super()._feed(event)


def _without(plan: Plan, begin: int, end: int) -> Plan:
    steps: tuple[Step, ...] = plan.steps[:begin] + plan.steps[end:]
    return replace(plan, steps=steps)


def _better(best: Run, plan: Plan) -> Run:
    """The run of `plan` where it breaks the same invariant, else the one before."""
    if plan == best.plan:
        return best
    tried = Chaos(plan).go()
    return tried if tried.kind is not None and tried.kind == best.kind else best
