"""What a campaign brings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class CampaignRun:
    """What a campaign brought; `figures` are its own."""

    campaign: str
    seed: int
    events: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    trace_hash: str = ""
    violation: str | None = None
    tail: list[str] = field(default_factory=list)
