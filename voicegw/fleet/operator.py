"""What an operator asks of a fleet: who is there, and that calls go elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from voicegw.errors import FleetError
from voicegw.fleet.bus import Bus, Nobody
from voicegw.fleet.view import FleetView

EVEN_ENOUGH: Final = 1.1  # a worker with a tenth more than its share keeps what it has


class Operator:
    """Follows the fleet of `bus`; `await follow()` first. `changed()` is called after every change."""

    def __init__(self, bus: Bus, changed: Callable[[], None] = lambda: None) -> None:
        self._bus = bus
        now = asyncio.get_running_loop().time
        self.view = FleetView(now, lambda call_id: changed(), lambda worker: changed())

    async def follow(self) -> None:
        """Know what there is.

        Raises:
            FleetError: NATS is away.
        """
        await self._bus.watch_leases(self.view.take)

    def close(self) -> None:
        """Follow no more."""
        self.view.close()

    @property
    def status(self) -> dict[str, Any]:
        """Workers with what they say of themselves, how many calls each has, and calls that nobody has."""
        calls = self.calls
        workers = [
            {"name": name, **asdict(seen.entry), "calls": calls.get(name, 0)}
            for name, seen in sorted(self.view.workers.items())
        ]
        for worker in workers:
            del worker["life"]
        return {"workers": workers, "calls": len(self.view.calls), "without_owner": len(self.view.unowned())}

    @property
    def calls(self) -> dict[str, int]:
        """How many calls each worker has."""
        counts: dict[str, int] = {}
        for call_id in self.view.calls:
            owner = self.view.owner(call_id)
            if owner is not None:
                counts[owner] = counts.get(owner, 0) + 1
        return counts

    async def drain(self, worker: str, timeout_s: float = 60.0) -> int:
        """Have a worker hand all its calls over and end; how many it had.

        Raises:
            FleetError: there is no such worker, or it is still there after `timeout_s` seconds.
        """
        if worker not in self.view.workers:
            known = ", ".join(sorted(self.view.workers)) or "none"
            raise FleetError(f"there is no worker {worker!r}; there are: {known}")
        had = self.calls.get(worker, 0)
        await self._tell(worker, {"do": "drain"})
        try:
            async with asyncio.timeout(timeout_s):
                await self.view.until(lambda: worker not in self.view.workers)
        except TimeoutError:
            raise FleetError(f"{worker} has still {self.calls.get(worker, 0)} calls after {timeout_s:g} s") from None
        return had

    async def rebalance(self) -> dict[str, int]:
        """Have workers with more than their share hand calls over; how many each was asked to.

        A share goes by what a worker can have: its calls and its room.
        """
        calls = self.calls
        room = {
            name: calls.get(name, 0) + seen.entry.free
            for name, seen in self.view.workers.items()
            if not seen.entry.draining
        }
        total, whole = sum(calls.get(name, 0) for name in room), sum(room.values())
        asked = {}
        for name, mine in room.items():
            share = total * mine / whole if whole else 0.0
            if calls.get(name, 0) > share * EVEN_ENOUGH and calls.get(name, 0) - int(share) > 1:
                asked[name] = calls.get(name, 0) - round(share)
                await self._tell(name, {"do": "shed", "calls": asked[name]})
        return asked

    async def _tell(self, worker: str, what: dict[str, Any]) -> None:
        try:
            await self._bus.ask(self._bus.subject("worker", worker), what)
        except Nobody:
            raise FleetError(f"{worker} does not answer; its lease will end") from None
