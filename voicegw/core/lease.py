"""A worker's lease: `states/lease.toml`. Pure."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.orders import Door
from voicegw.core.shared import Options, Shared
from voicegw.errors import FleetError
from voicegw.events import DeadlinePassed
from voicegw.value import value

RENEWALS_A_LEASE = 3
MARGIN = 0.1  # the part of a lease by which its holder ends it earlier than anybody else


@value
class JoinRequested:
    """The operator wants a worker here."""

    name: ClassVar[str] = "join_requested"


@value
class LeaseGranted:
    """The key was created or renewed; `asked_at` is when that was asked for."""

    name: ClassVar[str] = "lease_granted"
    asked_at: float


@value
class LeaseRefused:
    """The key has another revision than ours."""

    name: ClassVar[str] = "lease_refused"


@value
class DrainRequested:
    """SIGTERM, or the operator's wish."""

    name: ClassVar[str] = "drain_requested"


@value
class CallsGone:
    """No call is left here."""

    name: ClassVar[str] = "calls_gone"


LeaseEvent = JoinRequested | LeaseGranted | LeaseRefused | DrainRequested | CallsGone | DeadlinePassed


class LeaseOrder(Enum):
    """What the machine wants of the worker."""

    ASK_FOR_LEASE = auto()
    ASK_FOR_RENEWAL = auto()
    TAKE_CALLS = auto()
    SUSPEND_CALLS = auto()
    RESUME_CALLS = auto()
    ABANDON_CALLS = auto()
    HAND_CALLS_OVER = auto()
    GIVE_LEASE_BACK = auto()


class LeaseSession(MachineSession):
    """How long we may speak, and why we may not any more."""

    __slots__ = ("ends_at", "error", "orders", "seconds")
    machine: ClassVar[str] = "lease"

    def __init__(self, shared: Shared, seconds: float) -> None:
        super().__init__(shared)
        self.seconds = seconds
        self.ends_at = 0.0
        self.error: FleetError | None = None
        self.orders: list[LeaseOrder] = []

    # deadlines

    def renew_after(self) -> float:
        """A third of the lease."""
        return min(self.bound("renewal_due"), self.seconds / RENEWALS_A_LEASE)

    def remaining(self) -> float:
        """Until our own end."""
        return max(0.0, self.ends_at - self.shared.now)

    # effects

    def note_lease(self, event: LeaseGranted) -> None:
        """Others count from when they saw the renewal; we from when we asked for it, which was earlier."""
        self.ends_at = event.asked_at + self.seconds * (1 - MARGIN)

    def ask_for_lease(self, event: Any) -> None:
        """Create the key."""
        self.orders.append(LeaseOrder.ASK_FOR_LEASE)

    def ask_for_renewal(self, event: Any) -> None:
        """Update the key; until there is an answer."""
        self.orders.append(LeaseOrder.ASK_FOR_RENEWAL)

    def take_calls(self, event: Any) -> None:
        """Claim what nobody has, from here on."""
        self.orders.append(LeaseOrder.TAKE_CALLS)

    def suspend_calls(self, event: Any) -> None:
        """Be silent, and have what is needed to go on."""
        self.orders.append(LeaseOrder.SUSPEND_CALLS)

    def resume_calls(self, event: Any) -> None:
        """They are still ours; and take others again."""
        self.orders.append(LeaseOrder.RESUME_CALLS)

    def abandon_calls(self, event: Any) -> None:
        """They are others' now."""
        self.orders.append(LeaseOrder.ABANDON_CALLS)

    def hand_calls_over(self, event: Any) -> None:
        """One after the other, to whoever has room."""
        self.orders.append(LeaseOrder.HAND_CALLS_OVER)

    def give_lease_back(self, event: Any) -> None:
        """Remove the key."""
        self.orders.append(LeaseOrder.GIVE_LEASE_BACK)

    def report_name_taken(self, event: Any) -> None:
        """Two workers cannot have one name."""
        self.error = FleetError("a worker of this name is in the fleet already; give another --name")

    def report_no_answer(self, event: Any) -> None:
        """NATS does not answer."""
        self.error = FleetError(
            f"NATS gave no lease within {self.bound('join_timeout'):g} s; is JetStream enabled there?"
        )

    def report_lapsed(self, event: Any) -> None:
        """The fleet has been without NATS for too long."""
        self.error = FleetError(f"NATS did not answer for {self.bound('lapse_timeout'):g} s; start the worker again")


class WorkerLease(Door[LeaseSession, LeaseOrder]):
    """One worker's."""

    def __init__(self, seconds: float) -> None:
        super().__init__(LeaseSession(Shared(0, 0, Options()), seconds))
