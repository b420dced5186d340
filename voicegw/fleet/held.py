"""One call in this worker's hands: carries out `states/ownership.toml`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, Final, Protocol, assert_never

from voicegw.adapters.timers import Timers
from voicegw.core.ownership import (
    CallAnnounced,
    CallEnded,
    CallFrozen,
    CallOwnership,
    CallReady,
    ClaimLost,
    ClaimWon,
    HandOverRequested,
    LeaseLost,
    OwnershipEvent,
    OwnershipOrder,
    TakerMissing,
    TakerReady,
)
from voicegw.effects import Closed
from voicegw.errors import FleetError, VoiceError
from voicegw.events import DeadlinePassed
from voicegw.fleet.bus import Bus, NoAnswer, Overtaken
from voicegw.fleet.document import CallDocument
from voicegw.fleet.notices import notice_to
from voicegw.fleet.sources import Openers
from voicegw.fleet.speaker import Speaker
from voicegw.fleet.view import CALL, CallEntry, ids_of
from voicegw.frozen import FORMAT, FrozenCall
from voicegw.snapshot import Announcement

RETRY_S: Final = 0.1

_log = logging.getLogger("voicegw")


class Holder(Protocol):
    """The worker, as its calls see it."""

    name: str
    life: str
    bus: Bus
    openers: Openers
    trust: Mapping[str, Any]

    def may_speak(self) -> bool:
        """Is the lease ours?"""

    def let_go(self, call: HeldCall) -> None:
        """The call is not in our hands any more."""

    def confirm(self, call_id: str, before: str) -> None:
        """Tell the worker that offered the call that it speaks."""

    def taker_of(self, call_id: str) -> str | None:
        """Another worker that may have the call."""


class HeldCall:
    """`revision` is the last that is known of the call's key, `before` who offered it, `giver` who has promised it."""

    def __init__(self, worker: Holder, call_id: str, revision: int, before: str) -> None:
        self.call_id = call_id
        self.revision = revision
        self.before = before
        self._worker = worker
        self._bus = worker.bus
        guild_id, user_id = ids_of(call_id)
        self._ownership = CallOwnership(user_id, guild_id)
        self._loop = asyncio.get_running_loop()
        self._timers = Timers(self._loop, lambda name, at: self.feed(DeadlinePassed(name, at)))
        self.giver = ""
        self._announced: dict[str, Any] = {}
        self._dialling: asyncio.Task[bool] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._suspending: asyncio.Task[None] | None = None
        self._speaker: Speaker | None = None
        self._unserve: Callable[[], Awaitable[None]] | None = None
        self._document: CallDocument | None = None
        self._document_revision = 0
        self._unsure = False
        self._writing = asyncio.Lock()
        self._doing = asyncio.Lock()

    @property
    def state(self) -> str:
        """The state of `states/ownership.toml`."""
        return self._ownership.session.state

    @property
    def over(self) -> bool:
        """Is it out of our hands?"""
        return self.state in self._ownership.session.table.final

    def set_turn(self, seconds: float, leaving: bool) -> None:
        """How long others have before us, and whether this worker drains."""
        self._ownership.session.turn_s = seconds
        self._ownership.session.worker_leaves = leaving

    def hand_over(self) -> bool:
        """Let another worker have the call; False where the table does not let it go now."""
        return OwnershipOrder.ANNOUNCE in self._fed(HandOverRequested())

    async def promise(self, giver: str, announced: dict[str, Any]) -> bool:
        """Get ready for the call, which its owner is about to give to us; are we?"""
        self.giver, self._announced = giver, announced
        self.feed(CallAnnounced())
        return self._dialling is not None and await self._dialling

    def feed(self, event: OwnershipEvent) -> None:
        """Let the table decide, and carry out what it wants."""
        self._fed(event)

    def _fed(self, event: OwnershipEvent) -> list[OwnershipOrder]:
        orders, timers = self._ownership.receive(event, self._loop.time())
        self._timers.follow(timers)
        for order in orders:
            self._carry_out(order)
        if self.over:
            self._timers.cancel_all()
            self._worker.let_go(self)
        return orders

    def _carry_out(self, order: OwnershipOrder) -> None:
        match order:
            case OwnershipOrder.DIAL_AHEAD:
                self._dialling = asyncio.ensure_future(self._dial_ahead())
            case OwnershipOrder.CLAIM:
                self._asking = self._bus.spawn(self._claim())
            case OwnershipOrder.OPEN:
                self._bus.spawn(self._open(read=True))
            case OwnershipOrder.REOPEN:
                self._bus.spawn(self._open(read=False))
            case OwnershipOrder.CONFIRM:
                self._worker.confirm(self.call_id, self.before)
            case OwnershipOrder.ANNOUNCE:
                self._bus.spawn(self._announce())
            case OwnershipOrder.FREEZE:
                self._bus.spawn(self._freeze())
            case OwnershipOrder.GIVE:
                taker = self._ownership.session.taker
                assert taker is not None
                self._asking = self._bus.spawn(self._let_have(taker.taker, taker.life))
            case OwnershipOrder.OFFER:
                self._asking = self._bus.spawn(self._let_have("", ""))
            case OwnershipOrder.SUSPEND:
                self._stop()
                self._suspending = self._bus.spawn(self._suspend())
            case OwnershipOrder.ABANDON:
                self._stop()
                self._bus.spawn(self._let_go())
            case OwnershipOrder.REMOVE:
                self._bus.spawn(self._remove())
            case OwnershipOrder.REPORT_NOT_OPENED:
                _log.warning("call %s could not be opened", self.call_id)
            case _:
                assert_never(order)

    # -- the key

    async def _claim(self) -> None:
        entry = CallEntry(self._worker.name, self._worker.life, self.before, FORMAT)
        try:
            self.revision = await self._bus.leases.update(CALL + self.call_id, entry.to_bytes(), self.revision)
        except Overtaken:
            self.feed(ClaimLost())
        except NoAnswer:
            pass  # the deadline, or the bucket, decides
        else:
            self.feed(ClaimWon())

    async def _let_have(self, owner: str, life: str) -> None:
        """Take our name out of the key, and put that of another in, or none."""
        entry = CallEntry(owner, life, self._worker.name, FORMAT)
        while True:
            try:
                self.revision = await self._bus.leases.update(CALL + self.call_id, entry.to_bytes(), self.revision)
            except NoAnswer:
                await asyncio.sleep(RETRY_S)
            except Overtaken:
                return  # ours all the same, where an answer was lost; else it is another's already
            else:
                return

    async def _remove(self) -> None:
        await self._unserved()
        if self._speaker is not None:
            await self._speaker.close()
        async with self._writing:
            await self._delete()

    async def _delete(self) -> None:
        if self._unsure:
            with contextlib.suppress(NoAnswer):
                await self._look_again()
        for bucket, key, revision in (
            (self._bus.leases, CALL + self.call_id, self.revision),
            (self._bus.documents, self.call_id, self._document_revision),
        ):
            try:
                await bucket.delete(key, revision)
            except FleetError as error:
                _log.warning("call %s is over, but its key is still there: %s", self.call_id, error)

    # -- ahead of a hand-over

    async def _announce(self) -> None:
        """Have the worker whose turn it is dial ahead, while we speak."""
        taker, speaker = self._worker.taker_of(self.call_id), self._speaker
        told = speaker.announcement if speaker is not None else None
        answer: dict[str, Any] = {}
        if taker is not None and told is not None:
            options, announced = told
            asked = {"call": self.call_id, "revision": self.revision, "from": self._worker.name}
            asked |= {"options": options, **asdict(announced)}
            with contextlib.suppress(VoiceError):
                answer = await self._bus.ask(self._bus.subject("worker", taker), {"do": "announce", **asked})
        if taker is not None and answer.get("life"):
            self.feed(TakerReady(taker, answer["life"]))
        else:
            self.feed(TakerMissing())

    async def _dial_ahead(self) -> bool:
        self._speaker = self._new_speaker()
        announced = Announcement(**{each.name: self._announced[each.name] for each in fields(Announcement)})
        return await self._speaker.dial_ahead(self._announced["options"], announced)

    # -- the call

    def _new_speaker(self) -> Speaker:
        return Speaker(
            self._bus,
            self.call_id,
            self._worker.name,
            self._worker.openers,
            self._worker.trust,
            self._write,
            lambda error: self.feed(CallEnded()),
        )

    async def _open(self, *, read: bool) -> None:
        """From the document in the bucket, or with `read` False from the one that was suspended here."""
        if self._speaker is None or self._speaker.gone:
            self._speaker = self._new_speaker()
        speaker = self._speaker
        try:
            if self._suspending is not None:
                await self._suspending
            document = self._document
            if read or document is None:
                document = await self._read()
            document.life = self._worker.life
            self._unserve = await self._bus.serve(self._bus.subject("call", self.call_id, "worker"), self._do)
            if self._speaker is not speaker:  # it was given up meanwhile
                await self._unserved()
                return
            await speaker.open(document)
        except VoiceError as error:
            if self._speaker is speaker:  # else it was frozen while it was being opened
                await self._bus.tell(speaker.bot, {"do": "hear", "notice": notice_to(Closed(error))})
                self.feed(CallEnded())
        else:
            if self._speaker is speaker:
                self.feed(CallReady())

    async def _read(self) -> CallDocument:
        while True:
            try:
                entry = await self._bus.documents.read(self.call_id)
                break
            except NoAnswer:
                await asyncio.sleep(RETRY_S)
        if entry is None or entry.value is None:
            raise FleetError(f"there is no document of call {self.call_id}")
        self._document = CallDocument.from_bytes(entry.value, self._bus.seal, self.call_id)
        self._document_revision = entry.revision
        return self._document

    async def _freeze(self) -> None:
        speaker = self._speaker
        assert speaker is not None
        await speaker.turn_over()
        await self._unserved()
        if self._speaker is not speaker or speaker.gone:  # the lease has ended meanwhile, or the call
            return
        frozen = await speaker.freeze()
        if frozen is not None:
            while True:
                try:
                    await self._write(frozen)
                    break
                except NoAnswer:
                    await asyncio.sleep(RETRY_S)
                except Overtaken:
                    return
        self.feed(CallFrozen())

    async def _suspend(self) -> None:
        speaker, self._speaker = self._speaker, None
        frozen = await speaker.freeze() if speaker is not None else None
        await self._unserved()
        if frozen is not None and self._document is not None:
            self._document.frozen = frozen.to_bytes(self._bus.seal.keys[0])

    async def _let_go(self) -> None:
        speaker, self._speaker = self._speaker, None
        if speaker is not None:
            await speaker.freeze()
        await self._unserved()

    async def _do(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the bot says: once, and kept before it is answered."""
        document, speaker = self._document, self._speaker
        if not self._worker.may_speak() or document is None or speaker is None:
            return {"busy": True}  # whoever may speak for the call is to be asked again
        number = asked.get("number")
        if number is None:
            return await speaker.do(asked)
        async with self._doing:
            if asked["bot"] == document.bot and number <= document.done:
                return {"about": speaker.about()}
            try:
                answer = await speaker.do(asked)
            except VoiceError:
                if self._speaker is not speaker or speaker.gone:
                    return {"busy": True}
                raise
            if self._speaker is not speaker or speaker.gone:
                return {"busy": True}  # it was frozen without it
            document.bot, document.done = asked["bot"], number
            document.channel_id = asked.get("channel", document.channel_id)
            await speaker.keep()
            return answer

    async def _write(self, frozen: FrozenCall) -> None:
        """Make the document durable.

        Raises:
            NoAnswer: it may be.
            Overtaken: somebody else writes it.
        """
        async with self._writing:
            assert self._document is not None
            self._document.frozen = frozen.to_bytes(self._bus.seal.keys[0])
            data = self._document.to_bytes(self._bus.seal, self.call_id)
            if self._unsure:
                await self._look_again()
            self._unsure = True
            try:
                self._document_revision = await self._bus.documents.update(self.call_id, data, self._document_revision)
            except Overtaken:
                self._unsure = False
                self._loop.call_soon(self.feed, LeaseLost())
                raise
            self._unsure = False

    async def _look_again(self) -> None:
        """A write was not answered: was it done?"""
        entry = await self._bus.documents.read(self.call_id)
        if entry is None or entry.value is None or entry.revision == self._document_revision:
            return
        if CallDocument.from_bytes(entry.value, self._bus.seal, self.call_id).life == self._worker.life:
            self._document_revision = entry.revision

    async def _unserved(self) -> None:
        unserve, self._unserve = self._unserve, None
        if unserve is not None:
            await unserve()

    def _stop(self) -> None:
        """Silence at once; what was asked about the key is not wanted any more.

        A call that is being opened is not cancelled, which would be a leave: it ends when its client is frozen.
        """
        if self._speaker is not None:
            self._speaker.hush()
        if self._asking is not None:
            self._asking.cancel()
