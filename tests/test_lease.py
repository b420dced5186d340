"""A worker's lease and the calls in its hands, as their tables decide: no NATS, no clock."""

from __future__ import annotations

import pytest

from voicegw.core.lease import (
    MARGIN,
    CallsGone,
    DrainRequested,
    JoinRequested,
    LeaseEvent,
    LeaseGranted,
    LeaseOrder,
    LeaseRefused,
    LeaseSession,
    WorkerLease,
)
from voicegw.core.ownership import (
    CallAnnounced,
    CallEnded,
    CallFrozen,
    CallOwnership,
    CallReady,
    ClaimLost,
    ClaimWon,
    HandOverRequested,
    LeaseLapsed,
    LeaseLost,
    LeaseRegained,
    OfferSeen,
    OwnerSeen,
    OwnershipEvent,
    OwnershipOrder,
    OwnershipSession,
    TakerMissing,
    TakerReady,
)
from voicegw.effects import ArmTimer
from voicegw.errors import EventNotAllowed
from voicegw.events import DeadlinePassed
from voicegw.tables.load import load_table
from voicegw.tables.model import REFUSE

LEASE_S = 3.0
ASK, RENEW = LeaseOrder.ASK_FOR_LEASE, LeaseOrder.ASK_FOR_RENEWAL
SUSPEND, RESUME, ABANDON = LeaseOrder.SUSPEND_CALLS, LeaseOrder.RESUME_CALLS, LeaseOrder.ABANDON_CALLS
HAND_OVER, GIVE_BACK = LeaseOrder.HAND_CALLS_OVER, LeaseOrder.GIVE_LEASE_BACK


class Lease:
    """A worker's lease, its time, and what it wanted."""

    def __init__(self) -> None:
        self.door = WorkerLease(LEASE_S)
        self.now = 100.0
        self.orders: list[LeaseOrder] = []

    @property
    def state(self) -> str:
        return self.door.session.state

    def feed(self, *events: LeaseEvent) -> list[LeaseOrder]:
        new = [order for event in events for order in self.door.receive(event, self.now)[0]]
        self.orders += new
        return new

    def pass_deadline(self) -> list[LeaseOrder]:
        ((name, at),) = self.door.shared.timers.items()
        self.now = at
        return self.feed(DeadlinePassed(name, at))


@pytest.fixture
def lease() -> Lease:
    made = Lease()
    assert made.feed(JoinRequested()) == [ASK]
    assert made.feed(LeaseGranted(made.now)) == [LeaseOrder.TAKE_CALLS]
    assert made.state == "serving.held"
    return made


def test_a_lease_is_renewed_at_a_third_and_ends_a_tenth_early_from_when_it_was_asked_for(lease: Lease) -> None:
    assert lease.pass_deadline() == [RENEW]
    assert lease.now == pytest.approx(101.0)
    asked_at = lease.now
    lease.now += 0.5
    lease.feed(LeaseGranted(asked_at))
    assert lease.door.session.ends_at == pytest.approx(asked_at + LEASE_S * (1 - MARGIN))
    lease.pass_deadline()
    assert lease.pass_deadline() == [SUSPEND]
    assert lease.now == pytest.approx(asked_at + LEASE_S * (1 - MARGIN))
    assert lease.state == "lapsed"


@pytest.mark.parametrize("granted", ["first", "lapsed", "draining"])
def test_every_lease_that_is_granted_says_when_its_renewal_must_be_there(lease: Lease, granted: str) -> None:
    if granted == "draining":
        lease.feed(DrainRequested())
    if granted != "first":
        lease.pass_deadline()
        if granted == "lapsed":
            lease.pass_deadline()
        lease.feed(LeaseGranted(lease.now))
    begun = lease.now
    lease.pass_deadline()
    assert lease.state.endswith("renewing")
    assert lease.door.shared.timers == {"lease_ended": pytest.approx(begun + LEASE_S * (1 - MARGIN))}


def test_a_lapsed_lease_that_nobody_ended_brings_its_calls_back(lease: Lease) -> None:
    lease.pass_deadline()
    lease.pass_deadline()
    assert lease.feed(LeaseGranted(lease.now)) == [RESUME]
    assert lease.state == "serving.held"


@pytest.mark.parametrize("deadlines", [1, 2], ids=["while it is renewed", "lapsed"])
def test_a_lease_that_others_ended_begins_anew_without_calls(lease: Lease, deadlines: int) -> None:
    for _ in range(deadlines):
        lease.pass_deadline()
    assert lease.feed(LeaseRefused()) == [ABANDON, ASK]
    assert lease.state == "joining"


def test_a_fleet_without_nats_for_long_is_left_and_said_to_be(lease: Lease) -> None:
    for _ in range(3):
        lease.pass_deadline()
    assert (lease.state, lease.orders[-1]) == ("over", ABANDON)
    assert "NATS" in str(lease.door.session.error)


@pytest.mark.parametrize(("answer", "words"), [(LeaseRefused(), "name"), (None, "JetStream")])
def test_who_gets_no_lease_says_why(answer: LeaseEvent | None, words: str) -> None:
    lease = Lease()
    lease.feed(JoinRequested())
    lease.feed(answer) if answer is not None else lease.pass_deadline()
    assert lease.state == "over"
    assert words in str(lease.door.session.error)


def test_a_draining_worker_renews_until_its_calls_are_gone(lease: Lease) -> None:
    assert lease.feed(DrainRequested()) == [HAND_OVER]
    assert lease.pass_deadline() == [RENEW]
    lease.feed(LeaseGranted(lease.now))
    assert lease.state == "draining.held"
    assert lease.feed(CallsGone()) == [ABANDON, GIVE_BACK]
    assert (lease.state, lease.door.shared.timers) == ("over", {})


def test_a_drain_in_the_middle_of_a_renewal_goes_on_with_it(lease: Lease) -> None:
    lease.pass_deadline()
    assert lease.feed(DrainRequested()) == [HAND_OVER]
    assert lease.state == "draining.renewing"
    assert lease.feed(CallsGone()) == [ABANDON, GIVE_BACK]


@pytest.mark.parametrize("end", ["lease_ended", "refused"])
def test_a_draining_worker_that_loses_its_lease_abandons_what_is_left(lease: Lease, end: str) -> None:
    lease.feed(DrainRequested())
    lease.pass_deadline()
    new = lease.pass_deadline() if end == "lease_ended" else lease.feed(LeaseRefused())
    assert (lease.state, new) == ("over", [ABANDON])


def test_a_drain_where_there_is_nothing_to_hand_over_is_the_end(lease: Lease) -> None:
    for way in ((), (JoinRequested(),)):
        other = Lease()
        other.feed(*way)
        assert other.feed(DrainRequested()) == []
        assert other.state == "over"
    lease.pass_deadline()
    lease.pass_deadline()
    assert lease.feed(DrainRequested()) == [ABANDON]
    assert lease.state == "over"


def test_a_worker_joins_once(lease: Lease) -> None:
    with pytest.raises(EventNotAllowed):
        lease.feed(JoinRequested())


def test_a_timer_that_was_cancelled_changes_nothing(lease: Lease) -> None:
    assert lease.door.receive(DeadlinePassed("lease_ended", 1.0), lease.now) == ([], [])
    assert lease.state == "serving.held"


def test_a_timer_that_was_armed_anew_changes_nothing(lease: Lease) -> None:
    assert lease.door.receive(DeadlinePassed("renewal_due", 1.0), lease.now) == ([], [])
    assert lease.state == "serving.held"


def test_an_event_brings_its_own_timers_and_ends_no_timer_that_is_over(lease: Lease) -> None:
    ((name, at),) = lease.door.shared.timers.items()
    _, effects = lease.door.receive(DeadlinePassed(name, at), at)
    assert [type(effect) for effect in effects] == [ArmTimer]


def test_a_lease_that_is_over_has_no_time_left(lease: Lease) -> None:
    session = lease.door.session
    session.ends_at = lease.now - 5.0
    assert session.remaining() == 0.0


# -- one call


class Call:
    """A call in a worker's hands."""

    def __init__(self) -> None:
        self.door = CallOwnership(7, 8)
        self.now = 100.0

    @property
    def state(self) -> str:
        return self.door.session.state

    def feed(self, *events: OwnershipEvent) -> list[OwnershipOrder]:
        return [order for event in events for order in self.door.receive(event, self.now)[0]]

    def pass_deadline(self) -> list[OwnershipOrder]:
        ((name, at),) = self.door.shared.timers.items()
        self.now = at
        return self.feed(DeadlinePassed(name, at))


def owned() -> Call:
    call = Call()
    call.feed(ClaimWon(), CallReady())
    assert call.state == "owned"
    return call


def test_a_call_is_claimed_when_it_is_our_turn_and_opened_when_the_claim_is_won() -> None:
    call = Call()
    call.door.session.turn_s = 0.8
    assert call.feed(OfferSeen()) == []
    assert call.pass_deadline() == [OwnershipOrder.CLAIM]
    assert call.now == pytest.approx(100.8)
    assert call.feed(ClaimWon()) == [OwnershipOrder.OPEN]
    assert call.feed(CallReady()) == [OwnershipOrder.CONFIRM]
    assert call.state == "owned"


def test_a_call_whose_turn_nobody_has_reckoned_is_claimed_at_once() -> None:
    call = Call()
    assert not call.door.session.worker_leaves
    call.feed(OfferSeen())
    assert call.door.receive(DeadlinePassed("turn_came", 1.0), call.now) == ([], [])
    assert call.pass_deadline() == [OwnershipOrder.CLAIM]
    assert call.now == 100.0


@pytest.mark.parametrize("event", [OwnerSeen(), ClaimLost()])
def test_a_claim_that_another_won_is_given_up(event: OwnershipEvent) -> None:
    call = Call()
    call.feed(OfferSeen())
    call.pass_deadline()
    assert call.feed(event) == []
    assert call.state == "over"


def test_a_claim_without_an_answer_is_given_up_until_the_bucket_says_so() -> None:
    call = Call()
    call.feed(OfferSeen())
    call.pass_deadline()
    call.pass_deadline()
    assert call.state == "over"
    assert Call().feed(ClaimWon()) == [OwnershipOrder.OPEN]


READY = TakerReady("worker-2", "its lease")
FREEZING = (HandOverRequested(), TakerMissing())
OFFERED = (*FREEZING, CallFrozen())


def test_a_hand_over_is_announced_and_given_to_who_is_ready() -> None:
    call = owned()
    assert call.feed(HandOverRequested()) == [OwnershipOrder.ANNOUNCE]
    assert call.state == "announcing"  # it speaks on
    assert call.feed(READY) == [OwnershipOrder.FREEZE]
    assert call.feed(CallFrozen()) == [OwnershipOrder.GIVE]
    assert call.door.session.taker == READY
    assert call.feed(OwnerSeen()) == []
    assert call.state == "over"


@pytest.mark.parametrize("late", [False, True])
def test_a_hand_over_that_nobody_is_ready_for_is_offered_to_all(late: bool) -> None:
    call = owned()
    call.feed(HandOverRequested())
    assert (call.pass_deadline() if late else call.feed(TakerMissing())) == [OwnershipOrder.FREEZE]
    assert call.feed(READY) == []  # too late: it was told nothing more
    assert call.feed(CallFrozen()) == [OwnershipOrder.OFFER]
    assert call.feed(OwnerSeen()) == []
    assert call.state == "over"


def test_who_was_ready_once_is_not_given_the_next_hand_over() -> None:
    call = owned()
    call.feed(HandOverRequested(), READY, CallFrozen())
    assert call.pass_deadline() == [OwnershipOrder.CLAIM]
    call.feed(ClaimWon(), CallReady(), *FREEZING)
    assert call.feed(CallFrozen()) == [OwnershipOrder.OFFER]


def test_a_call_that_was_promised_is_opened_when_the_key_names_us() -> None:
    call = Call()
    assert call.feed(CallAnnounced()) == [OwnershipOrder.DIAL_AHEAD]
    assert call.feed(ClaimWon()) == [OwnershipOrder.OPEN]
    assert call.state == "opening"


@pytest.mark.parametrize("event", [None, OwnerSeen(), LeaseLost(), LeaseLapsed()])
def test_a_promise_that_is_not_kept_leaves_nothing_open(event: OwnershipEvent | None) -> None:
    call = Call()
    call.feed(CallAnnounced())
    assert (call.pass_deadline() if event is None else call.feed(event)) == [OwnershipOrder.ABANDON]
    assert (call.state, call.door.shared.timers) == ("over", {})


def test_a_document_that_cannot_be_kept_does_not_keep_the_call() -> None:
    call = owned()
    call.feed(*FREEZING)
    assert call.pass_deadline() == [OwnershipOrder.ABANDON, OwnershipOrder.OFFER]
    assert call.state == "offered"


@pytest.mark.parametrize(("leaves", "state"), [(False, "claiming"), (True, "over")])
def test_an_offer_that_nobody_takes_comes_back_but_not_to_who_leaves(leaves: bool, state: str) -> None:
    call = owned()
    call.feed(*OFFERED)
    call.door.session.worker_leaves = leaves
    assert call.pass_deadline() == ([] if leaves else [OwnershipOrder.CLAIM])
    assert call.state == state


def test_a_lapse_suspends_and_a_regained_lease_opens_again() -> None:
    announcing = owned()
    announcing.feed(HandOverRequested())
    for call in (owned(), announcing, Call()):
        call.feed(ClaimWon())
        assert call.feed(LeaseLapsed()) == [OwnershipOrder.SUSPEND]
        assert call.feed(LeaseRegained()) == [OwnershipOrder.REOPEN]
        assert call.state == "opening"


@pytest.mark.parametrize("way", [(), (LeaseLapsed(),), (HandOverRequested(),), FREEZING, OFFERED])
def test_a_lost_lease_is_the_end_of_it_here(way: tuple[OwnershipEvent, ...]) -> None:
    call = owned()
    call.feed(*way)
    assert call.feed(LeaseLost()) == [OwnershipOrder.ABANDON]
    assert (call.state, call.door.shared.timers) == ("over", {})


@pytest.mark.parametrize("way", [(OfferSeen(),), FREEZING, OFFERED])
def test_who_has_no_lease_claims_nothing_and_hands_nothing_over(way: tuple[OwnershipEvent, ...]) -> None:
    call = Call() if way == (OfferSeen(),) else owned()
    call.feed(*way)
    assert call.feed(LeaseLapsed()) == [OwnershipOrder.ABANDON]
    assert call.state == "over"


@pytest.mark.parametrize("way", [(), (CallReady(),), (CallReady(), HandOverRequested()), (CallReady(), *FREEZING)])
def test_a_call_that_is_over_has_no_key(way: tuple[OwnershipEvent, ...]) -> None:
    call = Call()
    call.feed(ClaimWon(), *way)
    assert call.feed(CallEnded()) == [OwnershipOrder.REMOVE]
    assert call.state == "over"


def test_a_call_that_does_not_open_is_told_and_removed() -> None:
    call = Call()
    call.feed(ClaimWon())
    assert call.feed(HandOverRequested()) == []
    assert call.pass_deadline() == [OwnershipOrder.REPORT_NOT_OPENED, OwnershipOrder.REMOVE]
    assert call.state == "over"


@pytest.mark.parametrize("session", [LeaseSession, OwnershipSession])
def test_only_a_second_join_is_refused(session: type[LeaseSession] | type[OwnershipSession]) -> None:
    table = load_table(session.machine)
    refused = [name for name, event in table.events.items() if event.otherwise == REFUSE]
    assert refused == (["join_requested"] if session is LeaseSession else [])
