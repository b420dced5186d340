"""What will happen to a simulated call, all of it drawn from a seed before the first event.

A plan is data: a run of it needs no further draw but those that each step makes from its own number. So a step can be
left out and the others stay as they are, which is how a failing run is made short (`voicegw.testing.shrink`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voicegw.session import E2EEPolicy, Options

STEPS = (5, 45)
WAITS_S = (0.0, 0.0, 0.02, 0.02, 0.3, 0.3, 1.0, 1.0, 2.5, 2.5, 6.0, 31.0)
WAIT = "wait"

# Seeded anew for each plan: to make one costs as much as to seed it.
STREAMS = {name: random.Random(0) for name in ("circumstances", "schedule", "details")}  # noqa: S311 - to be repeatable

Step = tuple[str, int]
"""What happens (a name in `HAPPENINGS`, or `wait`), and the number that its details are drawn from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A call's circumstances and all that happens in it. The times are in seconds."""

    seed: int
    policy: E2EEPolicy
    max_attempts: int
    rejoin_after_rate_limit: bool
    alone: bool
    latency_s: float
    dave_protocol_version: int
    heartbeat_interval_s: float
    steps: tuple[Step, ...]

    @property
    def options(self) -> Options:
        """The bot's choices."""
        return Options(
            policy=self.policy,
            max_attempts=self.max_attempts,
            rejoin_after_rate_limit=self.rejoin_after_rate_limit,
        )

    def to_text(self) -> str:
        """One line of JSON, for a file of plans that must never fail again."""
        return json.dumps(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "seed": self.seed,
            "policy": self.policy.value,
            "max_attempts": self.max_attempts,
            "rejoin_after_rate_limit": self.rejoin_after_rate_limit,
            "alone": self.alone,
            "latency_s": self.latency_s,
            "dave_protocol_version": self.dave_protocol_version,
            "heartbeat_interval_s": self.heartbeat_interval_s,
            "steps": [list(step) for step in self.steps],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """What `to_json` wrote."""
        steps = tuple((str(name), int(draw)) for name, draw in data["steps"])
        return cls(**{**data, "policy": E2EEPolicy(data["policy"]), "steps": steps})


def plan_of(seed: int, happenings: Sequence[str]) -> Plan:
    """The plan of a seed. Circumstances, schedule and details have streams of their own."""
    for name, stream in STREAMS.items():
        stream.seed(f"{name} {seed}")
    circumstances, schedule, details = STREAMS.values()
    policy = circumstances.choice((E2EEPolicy.REQUIRE, E2EEPolicy.ALLOW))
    clear = circumstances.random() < 0.3
    return Plan(
        seed=seed,
        policy=policy,
        max_attempts=circumstances.choice((1, 2, 3, 12)),
        rejoin_after_rate_limit=circumstances.random() < 0.5,
        alone=circumstances.random() < 0.2,
        latency_s=circumstances.choice((0.0, 0.02, 0.3, 2.0)),
        dave_protocol_version=0 if clear and policy is E2EEPolicy.ALLOW else 1,
        heartbeat_interval_s=circumstances.choice((13.75, 13.75, 41.25, 1.0)),
        steps=tuple(
            (WAIT if schedule.random() < 0.5 else schedule.choice(happenings), details.getrandbits(32))
            for _ in range(schedule.randint(*STEPS))
        ),
    )
