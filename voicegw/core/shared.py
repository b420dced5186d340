"""What the six machines of one call have in common."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from voicegw.core.signals import Signal
from voicegw.effects import Effect, Notice, Report
from voicegw.errors import InvalidDeadline
from voicegw.signalling import Credentials
from voicegw.tables.load import load_table, table_names
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.frames import SequenceCounter

DAVE_PROTOCOL_VERSION = 1


class E2EEPolicy(StrEnum):
    """Whether speech may leave without end-to-end encryption."""

    REQUIRE = "require"  # never
    ALLOW = "allow"  # where the server announces version 0
    OFF = "off"  # E2EE is not even offered; Discord refuses that outside stage channels


@dataclass(frozen=True, slots=True)
class Options:
    """What a bot may choose about a call.

    `deadlines` are other seconds for deadlines of the tables, by name: `{"endpoint_timeout": 10.0}`.

    Raises:
        InvalidDeadline: no table has a deadline of that name, or it is not a number of seconds above 0.
    """

    policy: E2EEPolicy = E2EEPolicy.REQUIRE
    modes: tuple[str, ...] = PREFERRED_MODES
    allowed_hosts: tuple[str, ...] = ()
    allow_private_media: bool = False
    max_attempts: int = 12
    rejoin_after_rate_limit: bool = False
    deadlines: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.deadlines:
            return
        known = {name for machine in table_names() for name in load_table(machine).deadlines}
        for name, seconds in self.deadlines.items():
            if name not in known:
                raise InvalidDeadline(f"no table has a deadline {name!r}; there are {', '.join(sorted(known))}")
            if not 0 < seconds < math.inf:
                raise InvalidDeadline(f"the deadline {name} cannot be {seconds} s")

    @property
    def max_dave_protocol_version(self) -> int:
        """What Identify offers."""
        return 0 if self.policy is E2EEPolicy.OFF else DAVE_PROTOCOL_VERSION


class Shared:
    """One call's identity, options and present values, seen by all six sessions."""

    __slots__ = (
        "channel_id",
        "counters",
        "credentials",
        "effects",
        "guild_id",
        "modes_refused",
        "now",
        "options",
        "sequence",
        "signals",
        "socket_generation",
        "ssrc",
        "timers",
        "udp_generation",
        "user_id",
        "users",
    )

    def __init__(self, user_id: int, guild_id: int, options: Options) -> None:
        self.user_id = user_id
        self.guild_id = guild_id
        self.options = options
        self.channel_id = 0
        self.now = 0.0
        self.effects: list[Effect] = []
        self.signals: deque[Signal] = deque()
        self.timers: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        self.credentials: Credentials | None = None
        self.sequence = SequenceCounter()
        self.socket_generation = 0
        self.udp_generation = 0
        self.ssrc = 0
        self.users: set[int] = set()
        self.modes_refused: set[str] = set()

    @property
    def others(self) -> set[int]:
        """Users in the call but us."""
        return self.users - {self.user_id}

    def report(self, notice: Notice) -> None:
        """Tell the bot."""
        self.effects.append(Report(notice))
