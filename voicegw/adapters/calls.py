"""The calls of a host: those that are under way, and what all of them have come to. Nothing here is per packet."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from voicegw.effects import EncryptionChanged, Notice, Reconnecting
from voicegw.tables.load import load_table

if TYPE_CHECKING:
    from voicegw.client import VoiceClient
    from voicegw.session import Transition

CLOSES: Final = frozenset(entry.event for entry in load_table("gateway").close_codes)


@dataclass(slots=True)
class Tally:
    """What was counted of one call, or of several.

    `transitions` by machine and event, `closes` of the websocket by code (None: without a close frame) where the
    machine minded them, `packets` by what became of them (`CallStats.totals`), `reconnects` as the bot was told,
    `epochs` of E2EE groups.
    """

    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    closes: Counter[int | None] = field(default_factory=Counter)
    packets: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    epochs: int = 0

    def step(self, transition: Transition, close_code: int | None) -> None:
        """One step of one machine; `close_code` is the websocket's last."""
        step = (transition.machine, transition.event)
        self.transitions[step] = self.transitions.get(step, 0) + 1
        if transition.machine == "gateway" and transition.event in CLOSES:
            self.closes[close_code] += 1

    def hear(self, notice: Notice) -> None:
        """What the bot is told."""
        if isinstance(notice, Reconnecting):
            self.reconnects += 1
        elif isinstance(notice, EncryptionChanged):
            self.epochs += 1

    def add(self, other: Tally) -> None:
        """Another call's, too."""
        self.transitions.update(other.transitions)
        self.closes.update(other.closes)
        self.packets.update(other.packets)
        self.reconnects += other.reconnects
        self.epochs += other.epochs


class Calls:
    """Who is in a call, by numbers from 1 on, and `over`: what the calls that are over had come to.

    Clients join and leave from any thread. `watchers` are called with each that leaves, on its own thread.
    """

    def __init__(self) -> None:
        self._live: weakref.WeakKeyDictionary[VoiceClient, int] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.over = Tally()
        self.ended = 0
        self.watchers: list[Callable[[int, VoiceClient], None]] = []

    def join(self, client: VoiceClient) -> None:
        """A call begins."""
        with self._lock:
            self._live[client] = next(self._numbers)

    def leave(self, client: VoiceClient) -> None:
        """It is over; harmless when it is already."""
        with self._lock:
            number = self._live.pop(client, None)
            if number is None:
                return
            client.tally.packets = client.stats.totals
            self.over.add(client.tally)
            self.ended += 1
            watchers = tuple(self.watchers)
        for watcher in watchers:
            watcher(number, client)

    def live(self) -> dict[int, VoiceClient]:
        """Those that are under way, the oldest first."""
        with self._lock:
            return {number: client for client, number in self._live.items()}
