"""A fleet's worker: carries out `states/lease.toml`, and holds calls."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, assert_never

from voicegw.adapters.dials import DialBudget
from voicegw.adapters.system import System
from voicegw.adapters.timers import Timers
from voicegw.core.lease import (
    MARGIN,
    RENEWALS_A_LEASE,
    CallsGone,
    DrainRequested,
    JoinRequested,
    LeaseEvent,
    LeaseGranted,
    LeaseOrder,
    LeaseRefused,
    WorkerLease,
)
from voicegw.core.ownership import (
    ClaimWon,
    LeaseLapsed,
    LeaseLost,
    LeaseRegained,
    OfferSeen,
    OwnerSeen,
    OwnershipEvent,
)
from voicegw.errors import FleetError
from voicegw.events import DeadlinePassed
from voicegw.fleet.bus import Bus, NoAnswer, Overtaken
from voicegw.fleet.held import HeldCall
from voicegw.fleet.sources import Openers
from voicegw.fleet.streaming import StreamedSource
from voicegw.fleet.view import TURN_S, WORKER, FleetView, WorkerEntry
from voicegw.frozen import FORMAT
from voicegw.media.pacer import LOAD_WARNED, process_pacer

LEASE_S: Final = 3.0
RETRY_S: Final = 0.1
DRAIN_S: Final = 60.0
CONFIRM_S: Final = 5.0
STREAM_S: Final = 3.0  # a bot answers within a second, be it with nothing
DIALS: Final = ((50, 1.0), (3000, 600.0))  # a worker holds the calls of many bots, and takes over those of others
CALLS_A_TURN: Final = 50  # of so many calls one is handed over at a time
STREAM_LOAD: Final = 0.0015  # the part of a core that a stream takes, as long as few were measured here
ASSUMED_STREAMS: Final = 20  # so many measured ones count as much as that assumption

_log = logging.getLogger("voicegw")


class Worker:
    """Joins the fleet of `bus`, takes calls by its free capacity, hands them over when it drains.

    `trust` are the operator's options of VoiceClient: `ca_pem`, `allowed_hosts`, `allow_private_media`. It opens files
    below `files` and objects of `buckets`, and takes `max_calls` at most. One process has one worker: the lease is what
    lets its pacer send.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        name: str | None = None,
        lease_s: float = LEASE_S,
        trust: Mapping[str, Any] | None = None,
        files: Path | None = None,
        buckets: Iterable[str] = (),
        max_calls: int | None = None,
    ) -> None:
        self.bus = bus
        self.name = name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
        self.life = ""
        self.lease_s = lease_s
        self._system = System()
        self._system.dials = DialBudget(self._system.random, DIALS)
        self.trust: Mapping[str, Any] = {**(trust or {}), "may_speak": self.may_speak, "system": self._system}
        self._max_calls = max_calls
        self._loop = asyncio.get_running_loop()
        self.openers = Openers(bus, self._loop, files, tuple(buckets), self._streamed)
        self._lease = WorkerLease(lease_s)
        self._timers = Timers(self._loop, lambda name, at: self._feed(DeadlinePassed(name, at)))
        self._view = FleetView(self._loop.time, self._call_changed, self._worker_changed, self._worker_silent)
        self._held: dict[str, HeldCall] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._taking = False
        self._draining = False
        self._revision = 0
        self._until = 0.0
        self._over = asyncio.Event()
        self._joined = asyncio.Event()

    @property
    def state(self) -> str:
        """The state of `states/lease.toml`."""
        return self._lease.session.state

    @property
    def calls(self) -> dict[str, str]:
        """The calls in our hands, and the state of each in `states/ownership.toml`."""
        return {call_id: held.state for call_id, held in self._held.items()}

    def may_speak(self) -> bool:
        """Is the lease ours, by a clock that does not stand still while the host sleeps?"""
        return self._system.boot_s() < self._until

    async def run(self) -> None:
        """Join, and work until drained.

        Raises:
            FleetError: why it could not join, or not go on.
        """
        pacer = process_pacer()
        pacer.may_speak = self.may_speak
        try:
            await self.bus.watch_leases(self._view.take)
            end = await self.bus.serve(self.bus.subject("worker", self.name), self._asked)
            self._feed(JoinRequested())
            await self._over.wait()
            await end()
        finally:
            self._until = 0.0
            self._view.close()
            self._timers.cancel_all()
            pacer.may_speak = None
        if self._lease.session.error is not None:
            raise self._lease.session.error

    async def joined(self) -> None:
        """Until it has its first lease, or none."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._joined, self._over)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def drain(self) -> None:
        """Hand all calls over, then end."""
        self._feed(DrainRequested())

    # -- the lease

    def _feed(self, event: LeaseEvent) -> None:
        orders, timers = self._lease.receive(event, self._loop.time())
        self._timers.follow(timers)
        for order in orders:
            self._carry_out(order)
        if self.state in self._lease.session.table.final:
            self._over.set()

    def _carry_out(self, order: LeaseOrder) -> None:
        match order:
            case LeaseOrder.ASK_FOR_LEASE:
                self.bus.spawn(self._ask_for_lease())
            case LeaseOrder.ASK_FOR_RENEWAL:
                self.bus.spawn(self._ask_for_renewal())
            case LeaseOrder.TAKE_CALLS:
                self._taking = True
                self._joined.set()
                self._look_around()
            case LeaseOrder.SUSPEND_CALLS:
                self._taking = False
                self._tell_all(LeaseLapsed())
            case LeaseOrder.RESUME_CALLS:
                self._taking = True
                self._tell_all(LeaseRegained())
                self._look_around()
            case LeaseOrder.ABANDON_CALLS:
                self._taking = False
                self._tell_all(LeaseLost())
            case LeaseOrder.HAND_CALLS_OVER:
                self._taking, self._draining = False, True
                self.bus.spawn(self._drain())
            case LeaseOrder.GIVE_LEASE_BACK:
                self._until = 0.0
                self.bus.spawn(self._give_back())
            case _:
                assert_never(order)

    async def _ask_for_lease(self) -> None:
        self.life = secrets.token_hex(8)
        seen: set[int] = set()
        while not self._over.is_set():
            asked_at, asked_boot = self._loop.time(), self._system.boot_s()
            try:
                self._revision = await self.bus.leases.create(WORKER + self.name, self._entry().to_bytes())
            except NoAnswer:
                await asyncio.sleep(RETRY_S)
            except Overtaken:  # one of this name lives, or has died and its lease is not over yet
                other = self._view.workers.get(self.name)
                seen |= {other.revision} if other is not None else set()
                if len(seen) > 1:
                    self._feed(LeaseRefused())
                    return
                await asyncio.sleep(RETRY_S)
            else:
                self._granted(asked_at, asked_boot)
                return

    async def _ask_for_renewal(self) -> None:
        life = self.life
        while True:
            asked_at, asked_boot = self._loop.time(), self._system.boot_s()
            key, entry = WORKER + self.name, self._entry().to_bytes()
            try:
                async with asyncio.timeout(max(1.0, self.lease_s / RENEWALS_A_LEASE)):
                    self._revision = await self.bus.leases.update(key, entry, self._revision)
            except (NoAnswer, TimeoutError):
                await asyncio.sleep(RETRY_S)
            except Overtaken:
                if not await self._still_ours(life):
                    self._feed(LeaseRefused())
                    return
            else:
                self._granted(asked_at, asked_boot)
                return
            if self.life != life or self._over.is_set():
                return

    async def _still_ours(self, life: str) -> bool:
        """An answer may have been lost: then the last revision is our own."""
        while True:
            try:
                entry = await self.bus.leases.read(WORKER + self.name)
            except NoAnswer:
                await asyncio.sleep(RETRY_S)
                continue
            if entry is None or entry.value is None or WorkerEntry.from_bytes(entry.value).life != life:
                return False
            self._revision = entry.revision
            return True

    def _granted(self, asked_at: float, asked_boot: float) -> None:
        self._until = asked_boot + self.lease_s * (1 - MARGIN)
        self._feed(LeaseGranted(asked_at))

    async def _give_back(self) -> None:
        with contextlib.suppress(FleetError):
            await self.bus.leases.delete(WORKER + self.name, self._revision)

    def _entry(self) -> WorkerEntry:
        stats = process_pacer().stats
        load = min(1.0, stats.load)
        each = (load + ASSUMED_STREAMS * STREAM_LOAD) / (stats.streams + ASSUMED_STREAMS)
        coming = max(0, len(self._held) - stats.streams)  # claimed, but not heard by the pacer yet
        free = max(0, int((LOAD_WARNED - load) / each) - coming)
        if self._max_calls is not None:
            free = min(free, max(0, self._max_calls - len(self._held)))
        return WorkerEntry(
            life=self.life,
            version=importlib.metadata.version("voicegw"),
            document=FORMAT,
            lease_s=self.lease_s,
            calls=sum(not held.over for held in self._held.values()),
            streams=stats.streams,
            load=round(load, 4),
            free=free,
            draining=self._draining,
            host=socket.gethostname(),
        )

    # -- the calls

    def _tell_all(self, event: OwnershipEvent) -> None:
        for held in list(self._held.values()):
            held.feed(event)

    def _look_around(self) -> None:
        for call_id in list(self._view.calls):
            self._call_changed(call_id)

    def _call_changed(self, call_id: str) -> None:
        seen, held = self._view.calls.get(call_id), self._held.get(call_id)
        if seen is None:
            if held is not None:
                held.feed(OwnerSeen())
                held.feed(LeaseLost())
            return
        if not (self._taking or self._draining) or (held is not None and seen.revision < held.revision):
            return
        owner = self._view.owner(call_id)
        if seen.entry.life == self.life and owner == self.name:
            if held is None:
                held = self._hold(call_id)
            held.revision, held.giver = seen.revision, ""
            held.feed(ClaimWon())
        elif owner is not None:
            if held is not None and owner != held.giver:
                held.feed(OwnerSeen())
                held.feed(LeaseLost())
        elif held is None:
            self._consider(call_id)
        elif seen.revision > held.revision or held.giver:
            held.feed(OwnerSeen())
            self._consider(call_id)

    def _consider(self, call_id: str) -> None:
        """A call without an owner: when is our turn?"""
        order = self._view.order(call_id)
        if self._taking and self.name in order and call_id not in self._held:
            held = self._hold(call_id)
            held.set_turn(order.index(self.name) * TURN_S, leaving=False)
            held.feed(OfferSeen())

    def _hold(self, call_id: str) -> HeldCall:
        seen = self._view.calls[call_id]
        held = self._held[call_id] = HeldCall(self, call_id, seen.revision, seen.entry.before)
        return held

    def let_go(self, call: HeldCall) -> None:
        """The call is not in our hands any more."""
        if self._held.get(call.call_id) is call:
            del self._held[call.call_id]

    def confirm(self, call_id: str, before: str) -> None:
        """Tell the worker that offered the call that it speaks."""
        if before and before != self.name:
            self.bus.spawn(self.bus.tell(self.bus.subject("worker", before), {"do": "confirmed", "call": call_id}))

    def taker_of(self, call_id: str) -> str | None:
        """Another worker that may have the call."""
        order = self._view.order(call_id) if call_id in self._view.calls else []
        return next((name for name in order if name != self.name), None)

    def _streamed(self, call: str, playback: str, is_opus: bool) -> StreamedSource:
        """A source that only the bot can read."""
        bot = self.bus.subject("call", call, "bot")
        return StreamedSource(lambda asked: self.bus.ask(bot, asked, STREAM_S), playback, is_opus=is_opus)

    # -- the others

    def _worker_changed(self, name: str) -> None:
        if name not in self._view.workers or name == self.name:
            self._look_around()  # it is gone, and its calls are nobody's; or look again, now and then

    def _worker_silent(self, name: str) -> None:
        seen = self._view.workers.get(name)
        if seen is not None and name != self.name:
            self.bus.spawn(self._end_lease(name, seen.revision))

    async def _end_lease(self, name: str, revision: int) -> None:
        with contextlib.suppress(FleetError):  # another was faster, or it has renewed after all
            await self.bus.leases.delete(WORKER + name, revision)

    # -- handing over

    async def _asked(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked["do"]:
            case "drain":
                self.drain()
            case "shed":
                self.bus.spawn(self._hand_over(list(self._held.values()), asked["calls"]))
            case "announce" if self._taking and asked["call"] not in self._held:
                held = self._held[asked["call"]] = HeldCall(self, asked["call"], asked["revision"], asked["from"])
                if await held.promise(asked["from"], asked):
                    return {"life": self.life}
                held.feed(OwnerSeen())
            case "confirmed" if asked["call"] in self._confirmed:
                self._confirmed[asked["call"]].set()
        return {"calls": len(self._held)}

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._held:
                    for held in self._held.values():
                        held.set_turn(0.0, leaving=True)
                    if not await self._hand_over(list(self._held.values()), len(self._held)):
                        if not any(self._somebody_else(call_id) for call_id in self._held):
                            break  # nobody comes; they wait in the bucket
                        await asyncio.sleep(RETRY_S)
        self._feed(CallsGone())

    def _somebody_else(self, call_id: str) -> bool:
        """Is there another worker that may have the call?"""
        return self.taker_of(call_id) is not None

    async def _hand_over(self, calls: list[HeldCall], most: int) -> int:
        """One after the other: whoever takes a call opens only that one, and it is silent for a short while.

        How many were handed over; those that do not speak yet are not.
        """
        turn, handed = asyncio.Semaphore(1 + most // CALLS_A_TURN), 0

        async def one(held: HeldCall) -> None:
            nonlocal handed
            async with turn:
                if handed == most or not held.hand_over():
                    return
                handed += 1
                confirmed = self._confirmed[held.call_id] = asyncio.Event()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CONFIRM_S if self._somebody_else(held.call_id) else 0):
                        await confirmed.wait()
                del self._confirmed[held.call_id]

        await asyncio.gather(*(one(held) for held in calls))
        return handed
