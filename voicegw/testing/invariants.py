"""What must hold after every event of every simulated call; each finding begins with the invariant's id.

| id | what is seen here |
|---|---|
| V01 | nothing but `EventNotAllowed` is raised, and a refused wish changes nothing |
| V02 | armed are exactly the deadlines of the states; a ready session has a heart and a path, and both are armed |
| V03 | what is ignored, and a row that stays, leave every deadline alone |
| V04 | an event of a socket that was replaced or dropped has no effect |
| V05 | one websocket and one UDP socket at most |
| V06 | everything comes to ready or to its end within the bound that the tables give (`World.until`, `Chaos.heal`) |
| V09 | no speech leaves but as the group and the policy allow |
| V10 | a pair of session id and token serves one Identify, and one Resume per loss |
| V14 | every collection that the outside can fill stays under its cap |
| V15 | a call ends once |
| V16 | after the end nothing is left, and nothing comes any more |
| V17 | dials without reaching ready are bounded |
| V18 | no secret shows in what was recorded |
| V19 | hosts and media addresses follow their rules |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from voicegw.core.dave import MAX_PROPOSALS_KEPT, MAX_RECOVERIES, MAX_TRANSITIONS
from voicegw.effects import (
    AbortSocket,
    ArmTimer,
    CancelTimer,
    Closed,
    CloseUdp,
    CreateGroup,
    DropGroup,
    DropKey,
    Effect,
    HoldStream,
    OpenSocket,
    OpenUdp,
    ReleaseStream,
    Report,
    SendIdentify,
    SendResume,
    SendSpeaking,
    UseKey,
)
from voicegw.errors import InvalidEndpoint, VoiceError
from voicegw.events import (
    DialPostponed,
    Event,
    SocketClosed,
    SocketFailed,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
    Stamped,
)
from voicegw.secret import Secret
from voicegw.session import SESSIONS, E2EEPolicy, Transition, VoiceSession
from voicegw.tables.model import Table
from voicegw.wire.endpoint import check_media_address, parse_endpoint

MAX_USERS = 1000
SHOWN = 300  # letters of an event in a message
OWNERS = {name: machine for machine, session in SESSIONS.items() for name in session.table.deadlines}

ENDS = frozenset({DialPostponed, SocketClosed, SocketFailed, SocketRateLimited, SocketRefused, SocketUnavailable})

States = tuple[str, str, str, str, str, str]


class Violation(VoiceError):
    """An invariant does not hold; the message says which, and after which event."""


class Invariants:
    """Watches one call from outside: what came in, which rows were taken, what the core wants done.

    What is open is known from the effects alone, never from what the core believes.
    """

    __slots__ = (
        "announced",
        "closed",
        "dials",
        "group",
        "identified",
        "key",
        "latest",
        "moving_rows",
        "resumes",
        "sockets",
        "stream",
        "timers",
        "udp",
        "verdicts",
    )

    def __init__(self) -> None:
        self.timers: dict[str, float] = {}
        self.sockets: set[int] = set()
        self.udp: set[int] = set()
        self.latest = {"websocket": 0, "udp": 0}
        self.stream: ReleaseStream | None = None
        self.announced = 0
        self.key = self.group = self.closed = False
        self.identified: set[tuple[Secret[str], Secret[str]]] = set()
        self.resumes = self.dials = 0
        self.verdicts, self.moving_rows = _known_of(tuple(session.table for session in SESSIONS.values()))

    def look(
        self, session: VoiceSession, event: Event | Stamped, steps: Sequence[Transition], effects: Sequence[Effect]
    ) -> None:
        """One event is done. `timers` is what all effects so far have armed and cancelled.

        Raises:
            Violation: something does not hold.
        """
        stamp = event if type(event) is Stamped else None
        if stamp is not None and type(stamp.event) in ENDS:
            self._ended(stamp)
        if steps:
            if self.closed and effects:
                raise broken("V16", event, session, f"the call is over, and yet: {effects}")
            if stamp is not None and stamp.generation < self.latest[stamp.source]:
                raise broken("V04", event, session, f"an event of an older socket moves {steps[0].machine}")
            self._steps(session, event, steps, effects)
            self._caps(session, event)
        elif effects:
            raise broken("V03", event, session, f"no row was taken, and yet: {effects}")
        shared = session.shared
        if self.timers != shared.timers:
            raise broken(
                "V02", event, session, f"armed are {sorted(self.timers)}, the core knows {sorted(shared.timers)}"
            )
        states = states_of(session)
        verdict = self.verdicts.get(states)
        if verdict is None:
            verdict = self.verdicts[states] = (deadlines_of(session), tuple(forbidden_together(states)))
        deadlines, wrongs = verdict
        if wrongs:
            raise broken(wrongs[0][:3], event, session, wrongs[0][5:])
        if shared.timers.keys() != deadlines:
            raise broken(
                "V02", event, session, f"armed are {sorted(shared.timers)}, the states wait for {sorted(deadlines)}"
            )
        if effects:
            self._open(session, event, states)

    # -- what came in and what was taken

    def _ended(self, stamped: Stamped) -> None:
        if stamped.source == "websocket":
            if isinstance(stamped.event, DialPostponed) and stamped.generation in self.sockets:
                self.dials = max(0, self.dials - 1)  # it waited for its turn; nothing was dialled
            self.sockets.discard(stamped.generation)

    def _steps(
        self, session: VoiceSession, event: Event | Stamped, steps: Sequence[Transition], effects: Sequence[Effect]
    ) -> None:
        moved = set()
        ready = False
        for step in steps:
            machine, before, _, after, _, row = step
            if before != after or (machine, row) in self.moving_rows:
                moved.add(machine)
                ready = ready or (after == "ready" != before and machine == "gateway")
        for effect in effects:
            kind = type(effect)
            if kind is ArmTimer or kind is CancelTimer:
                owner = OWNERS[effect.name]  # type: ignore[union-attr]
                if owner not in moved:
                    raise broken("V03", event, session, f"{effect} touches a timer, but {owner} stayed where it was")
            elif kind in WATCHED:
                WATCHED[kind](self, session, event, effect)
        if ready:
            self.resumes = self.dials = 0

    def _caps(self, session: VoiceSession, event: Event | Stamped) -> None:
        dave, shared = session.dave, session.shared
        if len(dave.transitions) > MAX_TRANSITIONS:
            raise broken("V14", event, session, f"{len(dave.transitions)} transitions")
        if len(dave.rejected) > MAX_PROPOSALS_KEPT:
            raise broken("V14", event, session, f"{len(dave.rejected)} refused proposals")
        if len(dave.recoveries) > MAX_RECOVERIES:
            raise broken("V14", event, session, f"{len(dave.recoveries)} recoveries")
        if len(shared.users) > MAX_USERS:
            raise broken("V14", event, session, f"{len(shared.users)} users")
        if shared.signals:
            raise broken("V14", event, session, f"signals are left: {list(shared.signals)}")

    # -- what is open

    def _open(self, session: VoiceSession, event: Event | Stamped, states: States) -> None:
        _, _, transport, dave, speech, call = states
        if len(self.sockets) > 1 or len(self.udp) > 1:
            raise broken("V05", event, session, f"open are websockets {self.sockets} and UDP sockets {self.udp}")
        if bool(self.udp) != (transport != "closed"):
            raise broken("V05", event, session, f"the UDP socket is {'open' if self.udp else 'closed'}")
        if self.dials > session.shared.options.max_attempts + 1:
            raise broken("V17", event, session, f"{self.dials} dials without reaching ready")
        if (self.stream is not None) != (speech in ("speaking", "draining")):
            raise broken(
                "V09", event, session, f"the stream is {'open' if self.stream else 'held'} while speech is {speech}"
            )
        if self.stream is not None:
            if dave.startswith(("off", "waiting", "refused", "recovering")):
                raise broken("V09", event, session, f"the stream is open while the group is {dave}")
            if not self.stream.encrypted and not dave.startswith("clear"):
                raise broken("V09", event, session, f"the stream is in the clear while the group is {dave}")
        if speech == "speaking" and states[0] == "ready" and self.announced != 1:
            raise broken("V09", event, session, "speech that was not announced on this connection")
        if call == "closed":
            self.closed = True
            for what, left in (
                ("websocket", self.sockets),
                ("UDP socket", self.udp),
                ("key", self.key),
                ("group", self.group),
                ("stream", self.stream),
                ("timer", self.timers),
            ):
                if left:
                    raise broken("V16", event, session, f"the call is over and has a {what}")

    def _note_socket(self, session: VoiceSession, event: Event | Stamped, effect: OpenSocket) -> None:
        self.sockets.add(effect.generation)
        self.latest["websocket"] = effect.generation
        self.dials += session.call.state != "announced"  # what is dialled ahead is no attempt
        self.announced = 0
        try:
            parse_endpoint(session.gateway.endpoint, session.shared.options.allowed_hosts)
        except InvalidEndpoint as error:
            raise broken("V19", event, session, f"dials {error}") from error

    def _note_abort(self, session: VoiceSession, event: Event | Stamped, effect: AbortSocket) -> None:
        self.sockets.clear()
        self.latest["websocket"] += 1

    def _note_udp(self, session: VoiceSession, event: Event | Stamped, effect: OpenUdp) -> None:
        self.udp.add(effect.generation)
        self.latest["udp"] = effect.generation
        try:
            check_media_address(effect.ip, session.shared.options.allow_private_media)
        except InvalidEndpoint as error:
            raise broken("V19", event, session, f"media would go to an address that is refused: {error}") from error

    def _note_udp_closed(self, session: VoiceSession, event: Event | Stamped, effect: CloseUdp) -> None:
        self.udp.clear()
        self.latest["udp"] += 1

    def _note_identify(self, session: VoiceSession, event: Event | Stamped, effect: SendIdentify) -> None:
        credentials = session.shared.credentials
        assert credentials is not None
        pair = (credentials.session_id, credentials.token)
        if pair in self.identified:
            raise broken("V10", event, session, "a second Identify with the same session id and token")
        self.identified.add(pair)

    def _note_resume(self, session: VoiceSession, event: Event | Stamped, effect: SendResume) -> None:
        self.resumes += 1
        if self.resumes > 1:
            raise broken("V10", event, session, "a second Resume for one loss")

    def _note_release(self, session: VoiceSession, event: Event | Stamped, effect: ReleaseStream) -> None:
        if not effect.encrypted and session.shared.options.policy is E2EEPolicy.REQUIRE:
            raise broken("V09", event, session, "speech would leave in the clear")
        self.stream = effect

    def _note_hold(self, session: VoiceSession, event: Event | Stamped, effect: HoldStream) -> None:
        self.stream = None

    def _note_key(self, session: VoiceSession, event: Event | Stamped, effect: UseKey) -> None:
        self.key = True

    def _note_key_dropped(self, session: VoiceSession, event: Event | Stamped, effect: DropKey) -> None:
        self.key = False
        self.stream = None

    def _note_group(self, session: VoiceSession, event: Event | Stamped, effect: CreateGroup) -> None:
        self.group = True

    def _note_group_dropped(self, session: VoiceSession, event: Event | Stamped, effect: DropGroup) -> None:
        self.group = False

    def _note_speaking(self, session: VoiceSession, event: Event | Stamped, effect: SendSpeaking) -> None:
        self.announced = effect.flags

    def _note_report(self, session: VoiceSession, event: Event | Stamped, effect: Report) -> None:
        if isinstance(effect.notice, Closed):
            if self.closed:
                raise broken("V15", event, session, "the call ends a second time")
            self.closed = True


WATCHED: Mapping[type, Callable[[Invariants, VoiceSession, Event | Stamped, Any], None]] = {
    OpenSocket: Invariants._note_socket,
    AbortSocket: Invariants._note_abort,
    OpenUdp: Invariants._note_udp,
    CloseUdp: Invariants._note_udp_closed,
    SendIdentify: Invariants._note_identify,
    SendResume: Invariants._note_resume,
    ReleaseStream: Invariants._note_release,
    HoldStream: Invariants._note_hold,
    UseKey: Invariants._note_key,
    DropKey: Invariants._note_key_dropped,
    CreateGroup: Invariants._note_group,
    DropGroup: Invariants._note_group_dropped,
    SendSpeaking: Invariants._note_speaking,
    Report: Invariants._note_report,
}


def broken(number: str, event: Event | Stamped, session: VoiceSession, what: str) -> Violation:
    """The exception for an invariant that does not hold."""
    said = repr(event)
    shown = said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
    return Violation(f"{number}: {what}; after {shown}, in {session.states}")


def refused(
    session: VoiceSession, event: Event | Stamped, before: Mapping[str, float], steps: Sequence[object]
) -> None:
    """A wish was refused, and nothing may have changed.

    Raises:
        Violation: something has (V01).
    """
    if steps or session.shared.timers != before:
        raise broken("V01", event, session, "a refused wish has changed something")


def forbidden(session: VoiceSession) -> Iterator[str]:
    """What no call may ever be, seen from inside; each begins with the invariant's id."""
    if session.shared.timers.keys() != deadlines_of(session):
        yield "V02: armed timers are not the deadlines of the states"
    yield from forbidden_together(states_of(session))


def forbidden_together(states: States) -> Iterator[str]:
    """States that the six machines may never be in at the same time."""
    gateway, heartbeat, transport, dave, speech, call = states
    over = gateway.startswith("closed")
    if gateway == "ready" and heartbeat == "stopped":
        yield "V02: ready, and no heart beats"
    if gateway == "ready" and transport == "closed":
        yield "V02: ready, and nothing keeps the UDP path alive"
    if speech == "speaking" and not dave.startswith(("active", "changing", "clear")):
        yield "V09: speech leaves while E2EE is not ready"
    if over and speech == "speaking":
        yield "V09: speech leaves without a voice session"
    if over and dave != "off" and not (dave == "ahead" and gateway.endswith("_ahead")):
        yield "V16: the group outlives its voice session"
    if gateway.endswith("_ahead") and call != "announced":
        yield "V16: a websocket is dialled ahead for no call"
    if over and transport != "closed":
        yield "V16: the UDP path outlives its voice session"
    if over and heartbeat != "stopped":
        yield "V16: the heart outlives its websocket"
    if call == "closed" and gateway != "closed.down":
        yield "V16: the websocket outlives the call"
    if call == "connected" and over:
        yield "V16: the call says connected without a voice session"
    if call == "idle" and gateway != "closed.down":
        yield "V16: a voice session without a call"


def states_of(session: VoiceSession) -> States:
    """The six states, in the order in which the machines hear an event."""
    return (
        session.gateway.state,
        session.heartbeat.state,
        session.transport.state,
        session.dave.state,
        session.speech.state,
        session.call.state,
    )


def deadlines_of(session: VoiceSession) -> frozenset[str]:
    """The timers that the present states wait with."""
    waited_for = (machine.table.states[machine.state].deadline for machine in session.machines)
    return frozenset(name for name in waited_for if name is not None)


Verdicts = dict[States, tuple[frozenset[str], tuple[str, ...]]]


Rows = frozenset[tuple[str, int]]


def _known_of(tables: tuple[Table, ...]) -> tuple[Verdicts, Rows]:
    """What is known of these very tables, for all calls: combinations of states, and the rows that enter a state."""
    key = tuple(map(id, tables))
    if key not in _known:
        rows = frozenset((table.machine, row.number) for table in tables for row in table.rows if row.to is not None)
        _known[key] = (tables, {}, rows)
    return _known[key][1:]


_known: dict[tuple[int, ...], tuple[tuple[Table, ...], Verdicts, Rows]] = {}
