"""One call in the hands of a fleet's worker: `states/ownership.toml`. Pure."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.orders import Door
from voicegw.core.shared import Options, Shared
from voicegw.events import DeadlinePassed
from voicegw.value import value


@value
class OfferSeen:
    """The call has no owner; our turn comes `turn_s` seconds from now."""

    name: ClassVar[str] = "offer_seen"


@value
class CallAnnounced:
    """Its owner is about to hand the call over to us."""

    name: ClassVar[str] = "call_announced"


@value
class OwnerSeen:
    """Another has it, or it is gone."""

    name: ClassVar[str] = "owner_seen"


@value
class ClaimWon:
    """The key names us."""

    name: ClassVar[str] = "claim_won"


@value
class ClaimLost:
    """The key had changed before our claim."""

    name: ClassVar[str] = "claim_lost"


@value
class CallReady:
    """The voice session is ready."""

    name: ClassVar[str] = "call_ready"


@value
class CallEnded:
    """The bot left, or the call failed for good."""

    name: ClassVar[str] = "call_ended"


@value
class HandOverRequested:
    """The worker drains, or others have more room."""

    name: ClassVar[str] = "hand_over_requested"


@value
class TakerReady:
    """The worker `taker`, whose lease is `life`, has dialled ahead."""

    name: ClassVar[str] = "taker_ready"
    taker: str
    life: str


@value
class TakerMissing:
    """No worker has dialled ahead."""

    name: ClassVar[str] = "taker_missing"


@value
class CallFrozen:
    """The document is kept."""

    name: ClassVar[str] = "call_frozen"


@value
class LeaseLapsed:
    """The worker's lease has ended by its own clock."""

    name: ClassVar[str] = "lease_lapsed"


@value
class LeaseRegained:
    """Nobody has taken anything meanwhile."""

    name: ClassVar[str] = "lease_regained"


@value
class LeaseLost:
    """The call is another's."""

    name: ClassVar[str] = "lease_lost"


OwnershipEvent = (
    OfferSeen
    | CallAnnounced
    | OwnerSeen
    | ClaimWon
    | ClaimLost
    | CallReady
    | CallEnded
    | HandOverRequested
    | TakerReady
    | TakerMissing
    | CallFrozen
    | LeaseLapsed
    | LeaseRegained
    | LeaseLost
    | DeadlinePassed
)


class OwnershipOrder(Enum):
    """What the machine wants of the worker."""

    DIAL_AHEAD = auto()
    CLAIM = auto()
    OPEN = auto()
    REOPEN = auto()
    CONFIRM = auto()
    ANNOUNCE = auto()
    FREEZE = auto()
    GIVE = auto()
    OFFER = auto()
    SUSPEND = auto()
    ABANDON = auto()
    REMOVE = auto()
    REPORT_NOT_OPENED = auto()


class OwnershipSession(MachineSession):
    """Whose turn it is, who shall have the call after us, and whether this worker is about to leave."""

    __slots__ = ("orders", "taker", "turn_s", "worker_leaves")
    machine: ClassVar[str] = "ownership"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.turn_s = 0.0
        self.worker_leaves = False
        self.taker: TakerReady | None = None
        self.orders: list[OwnershipOrder] = []

    # deadlines and guards

    def turn(self) -> float:
        """Until it is our turn."""
        return min(self.bound("turn_came"), self.turn_s)

    def leaving(self, event: Any) -> bool:
        """Does this worker drain?"""
        return self.worker_leaves

    def taker_known(self, event: Any) -> bool:
        """Is there one who has dialled ahead?"""
        return self.taker is not None

    # effects

    def dial_ahead(self, event: Any) -> None:
        """Have all that can be had before the call is ours."""
        self.orders.append(OwnershipOrder.DIAL_AHEAD)

    def claim(self, event: Any) -> None:
        """Put our name into the key."""
        self.orders.append(OwnershipOrder.CLAIM)

    def open_call(self, event: Any) -> None:
        """Read the document; thaw, or join."""
        self.orders.append(OwnershipOrder.OPEN)

    def reopen(self, event: Any) -> None:
        """Thaw what was suspended here."""
        self.orders.append(OwnershipOrder.REOPEN)

    def confirm(self, event: Any) -> None:
        """Tell the one before us that it speaks."""
        self.orders.append(OwnershipOrder.CONFIRM)

    def announce(self, event: Any) -> None:
        """Tell the worker that shall have the call, so that it can dial ahead."""
        self.taker = None
        self.orders.append(OwnershipOrder.ANNOUNCE)

    def note_taker(self, event: TakerReady) -> None:
        """Who gets the key."""
        self.taker = event

    def freeze(self, event: Any) -> None:
        """Be silent and keep the document."""
        self.orders.append(OwnershipOrder.FREEZE)

    def give(self, event: Any) -> None:
        """Put the taker's name into the key."""
        self.orders.append(OwnershipOrder.GIVE)

    def offer(self, event: Any) -> None:
        """Take our name out of the key."""
        self.orders.append(OwnershipOrder.OFFER)

    def suspend(self, event: Any) -> None:
        """Be silent and have the document here."""
        self.orders.append(OwnershipOrder.SUSPEND)

    def abandon(self, event: Any) -> None:
        """Forget the call without a word to anybody."""
        self.orders.append(OwnershipOrder.ABANDON)

    def remove_call(self, event: Any) -> None:
        """Leave where we have not left, and remove key and document."""
        self.orders.append(OwnershipOrder.REMOVE)

    def report_not_opened(self, event: Any) -> None:
        """Tell the bot."""
        self.orders.append(OwnershipOrder.REPORT_NOT_OPENED)


class CallOwnership(Door[OwnershipSession, OwnershipOrder]):
    """One call's."""

    def __init__(self, user_id: int, guild_id: int) -> None:
        super().__init__(OwnershipSession(Shared(user_id, guild_id, Options())))
