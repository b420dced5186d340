"""Looks at the calls a few times a second while somebody watches, and not at all while nobody does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final

from voicegw.adapters.calls import Calls
from voicegw.client import VoiceClient
from voicegw.flight import FlightRecorder
from voicegw.view.sampling import Clock, detail, summary

LOOK_EVERY_S: Final = 0.3
ENDED_KEPT: Final = 50
RECORDS_KEPT: Final = 8
ENDING_S: Final = 10.0

_log = logging.getLogger("voicegw")


class Ended:
    """A call that is over: what it was at last, and its flight record while it is one of the newest."""

    def __init__(self, number: int, client: VoiceClient, clock: Clock, now: float) -> None:
        self.number = number
        self.client: VoiceClient | None = client
        self.clock = clock
        self.at = now
        self.recorder: FlightRecorder | None = client.flight_recorder
        self.line: dict[str, Any] = {}
        self.whole: dict[str, Any] = {}

    def look(self, now: float) -> None:
        """Until its last machine has come to rest the client is looked at; then it is let go."""
        if self.client is None:
            return
        self.line = {**summary(self.number, self.client, self.clock), "ended": True}
        self.whole = detail(self.client, self.clock)
        machines = self.client.session.machines
        if now - self.at > ENDING_S or all(machine.state in machine.table.final for machine in machines):
            self.client = None


class Watch:
    """The calls of a host as they are now, and as the last of those were that are over."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._ended: OrderedDict[int, Ended] = OrderedDict()
        self._clocks: dict[int, Clock] = {}
        self._lines: dict[int, dict[str, Any]] = {}
        self._looked_at = -LOOK_EVERY_S
        calls.watchers.append(self._left)

    def close(self) -> None:
        """Hear of calls that end no longer."""
        self._calls.watchers.remove(self._left)

    def lines(self) -> dict[int, dict[str, Any]]:
        """A line for every call, by number; looked at anew where the last look is some time ago."""
        now = self._loop.time()
        if now - self._looked_at < LOOK_EVERY_S / 2:
            return self._lines
        self._looked_at = now
        live = self._calls.live()
        self._clocks = {number: self._clocks.get(number) or Clock() for number in live}
        lines: dict[int, dict[str, Any]] = {}
        for number, client in live.items():
            try:
                lines[number] = summary(number, client, self._clocks[number])
            except (RuntimeError, KeyError):  # it lives on another thread and was between two steps
                lines[number] = self._lines.get(number, {})
        for ended in tuple(self._ended.values()):
            ended.look(now)
            lines[ended.number] = ended.line
        self._lines = {number: line for number, line in lines.items() if line}
        return self._lines

    def whole(self, number: int) -> dict[str, Any] | None:
        """The rest of one call; None where there is none of that number, or where it cannot be told right now."""
        if number in self._ended:
            return self._ended[number].whole
        client = self._calls.live().get(number)
        if client is None:
            return None
        try:
            return detail(client, self._clocks.setdefault(number, Clock()))
        except (RuntimeError, KeyError):
            return None

    def record(self, number: int) -> str | None:
        """The flight record that a call keeps, as lines of JSON; None where it keeps none."""
        if number in self._ended:
            recorder = self._ended[number].recorder
        else:
            client = self._calls.live().get(number)
            recorder = client.flight_recorder if client is not None else None
        return None if recorder is None else "\n".join(recorder.lines()) + "\n"

    async def changes(self, number: int | None) -> AsyncIterator[dict[str, Any]]:
        """What has changed since the last time, a few times a second: `calls` with new lines (at first all of them),
        `gone` numbers, and the parts of `call` (that of `number`) that are new. An empty one says that nothing has.
        """
        told: dict[int, str] | None = None
        parts: dict[str, str] = {}
        while True:
            lines = {key: json.dumps(line) for key, line in self.lines().items()}
            change: dict[str, Any] = {}
            if told is None:
                change["calls"] = list(self._lines.values())
            elif news := [self._lines[key] for key, text in lines.items() if told.get(key) != text]:
                change["calls"] = news
            if gone := [key for key in told or () if key not in lines]:
                change["gone"] = gone
            told = lines
            if number is not None and (whole := self.whole(number)) is not None:
                texts = {key: json.dumps(value) for key, value in whole.items()}
                if fresh := {key: whole[key] for key, text in texts.items() if parts.get(key) != text}:
                    change["call"] = {"id": number, **fresh}
                parts = texts
            yield change
            await asyncio.sleep(LOOK_EVERY_S)

    def _left(self, number: int, client: VoiceClient) -> None:
        """Called on the client's own thread."""
        try:
            self._loop.call_soon_threadsafe(self._keep, number, client)
        except RuntimeError:
            _log.debug("the live view's loop is closed")

    def _keep(self, number: int, client: VoiceClient) -> None:
        now = self._loop.time()
        ended = self._ended[number] = Ended(number, client, self._clocks.get(number) or Clock(), now)
        ended.look(now)
        self._loop.call_later(ENDING_S + 1, lambda: ended.look(self._loop.time()))
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        for old in list(self._ended.values())[:-RECORDS_KEPT]:
            old.recorder = None
