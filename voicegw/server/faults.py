"""What the local server does wrong, on purpose: attributes to set at any time, from the code that drives it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Faults:
    """All off by default. Opcodes are the server's own messages; shares are 0 to 1 of the datagrams towards clients."""

    ack_heartbeats: bool = True
    refuse_resume: bool = False
    keep_key: bool = False  # another Select Protocol brings the same key
    ignore_discovery: int = 0  # so many requests stay unanswered
    delay_s: dict[int, float] = field(default_factory=dict)  # by opcode; what comes after waits, too
    withhold: set[int] = field(default_factory=set)  # opcodes that are never sent
    lose: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # held back until the next datagram for the same client has left
    seed: int = 0
    _random: random.Random | None = None
    _held_back: dict[int, bytes] = field(default_factory=dict)

    def datagrams(self, user_id: int, data: bytes) -> Iterator[bytes]:
        """What leaves for `user_id` instead of `data`."""
        if not (self.lose or self.duplicate or self.reorder):
            yield data
            return
        if self._random is None:
            self._random = random.Random(self.seed)  # noqa: S311 - a script of faults, no secret
        draw = self._random.random
        if draw() < self.lose:
            return
        if user_id not in self._held_back and draw() < self.reorder:
            self._held_back[user_id] = data
            return
        yield data
        if draw() < self.duplicate:
            yield data
        if user_id in self._held_back:
            yield self._held_back.pop(user_id)
