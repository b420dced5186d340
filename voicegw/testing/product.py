"""All six machines together, from every state that they can be in, under every event.

Breadth first, so the counterexample of what fails is the shortest. Two calls are of one kind if their machines are in
the same states and agree on what most guards look at (the pair, attempts, transitions, others); of each kind the first
one found is followed.
"""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from voicegw.core.gateway import GatewaySession
from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.effects import ReleaseStream
from voicegw.errors import ConnectionFailed, EventNotAllowed, VoiceTimeout
from voicegw.events import (
    CallThawed,
    CommitIgnored,
    CommitMade,
    DeadlinePassed,
    Event,
    FrameRejected,
    FreezeRequested,
    GroupJoined,
    GroupRejected,
    HandOverAnnounced,
    IdentityDiffered,
    IpDiscovered,
    JoinAbandoned,
    JoinRequested,
    KeyExhausted,
    KeyPackageMade,
    LeaveRequested,
    MainSessionLost,
    MainSessionResumed,
    MainSessionStarted,
    NoncesMet,
    PathHeard,
    PathLost,
    PathMoved,
    PathUnheard,
    ProposalsRejected,
    ReaderFailed,
    SignallingFailed,
    SilenceSent,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
    SpeechEnded,
    SpeechStarted,
    Stamped,
    UdpFailed,
    UserVerified,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy, Options, VoiceSession
from voicegw.signalling import VoiceFlags
from voicegw.snapshot import Announcement, SessionSnapshot
from voicegw.testing.invariants import forbidden
from voicegw.testing.world import CANARY, CHANNEL, ENDPOINT, GUILD, MEDIA, OTHER, USER
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.frames import SequenceCounter
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    HeartbeatAcked,
    HeartbeatRequested,
    HelloReceived,
    ProposalsReceived,
    ReadyReceived,
    ResumedReceived,
    SessionDescriptionReceived,
    SpeakingReceived,
    TransitionExecuted,
    TransitionPrepared,
    VideoReceived,
    WelcomeReceived,
)

Thing = TypeVar("Thing", bound=Shared | MachineSession)
CONTAINERS = {dict, set, list, deque, Counter}  # what a session changes in place

PATIENT = ("heartbeat", "transport")  # ask several times before they give up
MOST_DEADLINES = 20

ERROR = ConnectionFailed("explored")
KEY = Secret(bytes(32))

FROZEN_AS = ("active", "waiting.group", "clear.only", "clear.upgrading", "refused")


def _snapshot(dave: str) -> SessionSnapshot:
    """A session of another process whose group was in that state."""
    return SessionSnapshot(
        channel_id=CHANNEL,
        home=CHANNEL,
        session_id=Secret(f"{CANARY} session"),
        token=Secret(f"{CANARY} token"),
        endpoint=ENDPOINT,
        seq_ack=7,
        ssrc=1,
        media=(MEDIA, 1),
        selected=("203.0.113.7", 1),
        mode=PREFERRED_MODES[0],
        secret_key=KEY,
        users=(OTHER,),
        dave=dave,
        dave_protocol_version=0 if dave == "clear.only" else 1,
        epoch=1 if dave == "active" else 0,
    )


WEBSOCKET: Mapping[str, Event] = {
    "socket opened": SocketOpened(),
    "socket failed": SocketFailed(ERROR),
    "socket refused": SocketRefused(ERROR),
    "socket unavailable": SocketUnavailable(ERROR),
    "socket rate limited": SocketRateLimited(ERROR),
    "frame rejected": FrameRejected(None),
    "ready rejected": FrameRejected(2),
    "reader failed": ReaderFailed("KeyError"),
    **{
        f"closed {code}": SocketClosed(code)
        for code in (None, 1000, 1002, 1008, 1011, 4000, 4004, 4006, 4011, 4012, 4014, 4016, 4017, 4021)
    },
    "hello": HelloReceived(13.75, 8),
    "ready": ReadyReceived(1, MEDIA, 1, PREFERRED_MODES),
    "ready without modes": ReadyReceived(1, MEDIA, 1, ()),
    "ready at home": ReadyReceived(1, "10.0.0.1", 1, PREFERRED_MODES),
    "session description": SessionDescriptionReceived(PREFERRED_MODES[0], KEY, 1),
    "session description, version 0": SessionDescriptionReceived(PREFERRED_MODES[0], KEY, 0),
    "session description, version 9": SessionDescriptionReceived(PREFERRED_MODES[0], KEY, 9),
    "session description, other mode": SessionDescriptionReceived(PREFERRED_MODES[1], KEY, 1),
    "resumed": ResumedReceived(),
    "acked": HeartbeatAcked(None),
    "heartbeat requested": HeartbeatRequested(),
    "speaking": SpeakingReceived(OTHER, 5, 1),
    "video": VideoReceived(OTHER, 5),
    "somebody comes": ClientsConnected((OTHER,)),
    "somebody goes": ClientDisconnected(OTHER),
    "external sender": ExternalSenderReceived(b"sender"),
    "proposals": ProposalsReceived(revoke=False, data=b"\0"),
    "commit 0": CommitAnnounced(0, b"commit"),
    "commit 1": CommitAnnounced(1, b"commit"),
    "welcome 0": WelcomeReceived(0, b"welcome"),
    "transition 0 to version 0": TransitionPrepared(0, 0),
    "transition 1 to version 0": TransitionPrepared(0, 1),
    "transition 0 to version 1": TransitionPrepared(1, 0),
    "transition 1 to version 1": TransitionPrepared(1, 1),
    "transition 1 executed": TransitionExecuted(1),
    "transition 1 to version 9": TransitionPrepared(9, 1),
    "epoch 1": EpochPrepared(1, 1),
    "epoch 1 of version 9": EpochPrepared(9, 1),
    "epoch 2": EpochPrepared(1, 2),
}
UDP: Mapping[str, Event] = {
    "ip discovered": IpDiscovered("203.0.113.7", 1),
    "udp failed": UdpFailed(ERROR),
    "path heard": PathHeard(),
    "path unheard": PathUnheard(),
    "path lost": PathLost("explored"),
    "path moved": PathMoved(),
}
OTHERS: Mapping[str, Event] = {
    "join": JoinRequested(CHANNEL),
    "join elsewhere": JoinRequested(CHANNEL + 1),
    "join abandoned": JoinAbandoned(VoiceTimeout("explored")),
    "leave": LeaveRequested(),
    "announced": HandOverAnnounced(Announcement(ENDPOINT, CHANNEL, 1)),
    "announced without a group": HandOverAnnounced(Announcement(ENDPOINT, CHANNEL)),
    "announced elsewhere": HandOverAnnounced(Announcement("voice.discord.media:2048", CHANNEL + 1, 1)),
    "foreign endpoint announced": HandOverAnnounced(Announcement("example.com", CHANNEL, 1)),
    "frozen": FreezeRequested(),
    **{f"thawed from {dave}": CallThawed(_snapshot(dave)) for dave in FROZEN_AS},
    "thawed without a session": CallThawed(SessionSnapshot(CHANNEL, CHANNEL)),
    "voice state": VoiceStateUpdated(CHANNEL, Secret(f"{CANARY} session")),
    "voice state elsewhere": VoiceStateUpdated(CHANNEL + 1, Secret(f"{CANARY} session elsewhere")),
    "voice state of a move": VoiceStateUpdated(CHANNEL + 1, Secret(f"{CANARY} session")),
    "voice state, muted": VoiceStateUpdated(CHANNEL, Secret(f"{CANARY} session"), VoiceFlags(mute=True)),
    "no channel": VoiceStateUpdated(None, Secret(f"{CANARY} session")),
    "voice server": VoiceServerUpdated(Secret(f"{CANARY} token"), ENDPOINT),
    "another voice server": VoiceServerUpdated(Secret(f"{CANARY} another token"), ENDPOINT),
    "null endpoint": VoiceServerUpdated(Secret(f"{CANARY} null token"), None),
    "foreign endpoint": VoiceServerUpdated(Secret(f"{CANARY} foreign token"), "example.com"),
    "signalling failed": SignallingFailed("RuntimeError"),
    "main session lost": MainSessionLost(),
    "main session started": MainSessionStarted(),
    "main session resumed": MainSessionResumed(),
    "key exhausted": KeyExhausted(),
    "nonces met": NoncesMet(),
    "key package made": KeyPackageMade(b"key package"),
    "commit made": CommitMade(b"commit"),
    "proposals rejected": ProposalsRejected(False, b"\0", "explored"),
    "group joined 0": GroupJoined(0, 1, "0" * 30),
    "group joined 1": GroupJoined(1, 2, "1" * 30),
    "identity differed": IdentityDiffered(OTHER),
    "user verified": UserVerified(OTHER),
    "group rejected": GroupRejected(1, "explored"),
    "commit ignored": CommitIgnored(1),
    "speech started": SpeechStarted(),
    "speech ended": SpeechEnded(),
    "silence sent": SilenceSent(),
}


def _samples() -> dict[str, list[tuple[str, Event]]]:
    """The events above by the tables' words for them, with where they come from."""
    found: dict[str, list[tuple[str, Event]]] = {}
    for source, events in (("websocket", WEBSOCKET), ("udp", UDP), ("", OTHERS)):
        for event in events.values():
            closed = isinstance(event, SocketClosed)
            word = GatewaySession.table.close_event(event.code).event if closed else event.name  # type: ignore[union-attr]
            found.setdefault(word, []).append((source, event))
    return found


SAMPLES: Mapping[str, list[tuple[str, Event]]] = _samples()


@dataclass(frozen=True, slots=True)
class Counterexample:
    """The shortest list of events after which something does not hold."""

    events: tuple[str, ...]
    what: str

    def __str__(self) -> str:
        return f"{self.what}, after: {', '.join(self.events)}"


@dataclass(frozen=True, slots=True)
class Exploration:
    """How many kinds of calls were found, how many steps were taken, and what does not hold."""

    kinds: int
    steps: int
    complete: bool
    counterexamples: tuple[Counterexample, ...]


def explore(policy: E2EEPolicy = E2EEPolicy.REQUIRE, limit: int = 20_000) -> Exploration:
    """Follow every kind of call under every event; at most `limit` kinds, and one counterexample each of what fails."""
    return _Explorer(policy, limit).go()


class _Explorer:
    """One exploration, breadth first."""

    def __init__(self, policy: E2EEPolicy, limit: int) -> None:
        first = VoiceSession(USER, GUILD, Options(policy=policy, max_attempts=2, rejoin_after_rate_limit=True))
        self.policy, self.limit = policy, limit
        self.seen = {kind_of(first)}
        self.todo: deque[tuple[VoiceSession, float, tuple[str, ...]]] = deque([(first, 0.0, ())])
        self.found: dict[str, Counterexample] = {}
        self.steps = 0

    def go(self) -> Exploration:
        """Follow them all, or as many as the limit allows."""
        while self.todo and len(self.seen) < self.limit:
            session, now, path = self.todo.popleft()
            ghost = _heeds_a_ghost(session, now)
            if ghost is not None:
                self._note("V04: an event of an older socket has an effect", (*path, ghost))
            for name, event, later in happenings(session, now):
                branch = clone(session)
                if self._step(branch, event, later, (*path, name)):
                    self._follow(branch, later, (*path, name))
            for machine in PATIENT:
                self._wear_out(clone(session), machine, now, path)
        return Exploration(len(self.seen), self.steps, not self.todo, tuple(self.found.values()))

    def _step(self, branch: VoiceSession, event: Event | Stamped, now: float, trail: tuple[str, ...]) -> bool:
        """One event, and all that must hold after it; False where the core cannot go on."""
        self.steps += 1
        taken: list[object] = []
        branch.observer = taken.append
        before = branch.shared.timers.keys() - ({event.name} if isinstance(event, DeadlinePassed) else set())
        try:
            effects = branch.receive(event, now)
        except EventNotAllowed:
            effects = []
        except Exception as error:  # the core must raise nothing else, whatever comes
            self._note(f"V01: the core raises {type(error).__name__}", trail)
            return False
        for what in forbidden(branch):
            self._note(what, trail)
        if not taken and (effects or branch.shared.timers.keys() != before):
            self._note("V03: what is ignored has an effect", trail)
        if self.policy is E2EEPolicy.REQUIRE and any(
            isinstance(effect, ReleaseStream) and not effect.encrypted for effect in effects
        ):
            self._note("V09: speech leaves in the clear against the policy", trail)
        return True

    def _wear_out(self, branch: VoiceSession, machine: str, now: float, path: tuple[str, ...]) -> None:
        """Let one machine's deadlines pass, one after the other, until it gives up what it is about."""
        session: MachineSession = getattr(branch, machine)
        kind = kind_of(branch)
        for _ in range(MOST_DEADLINES):
            name = session.table.states[session.state].deadline
            if name is None:
                return
            path, now = (*path, name), max(now, branch.shared.timers[name])
            if not self._step(branch, DeadlinePassed(name, branch.shared.timers[name]), now, path):
                return
            if kind_of(branch) != kind:
                self._follow(branch, now, path)
                return

    def _follow(self, branch: VoiceSession, now: float, path: tuple[str, ...]) -> None:
        kind = kind_of(branch)
        if kind not in self.seen:
            self.seen.add(kind)
            self.todo.append((branch, now, path))

    def _note(self, what: str, trail: tuple[str, ...]) -> None:
        self.found.setdefault(what, Counterexample(trail, what))


def _heeds_a_ghost(session: VoiceSession, now: float) -> str | None:
    """The first event of the socket before that has an effect, on a clone of the session."""
    branch, before = clone(session), kind_of(session)
    for source, events, generation in (
        ("websocket", WEBSOCKET, session.shared.socket_generation - 1),
        ("udp", UDP, session.shared.udp_generation - 1),
    ):
        for name, event in events.items():
            stamped = Stamped("udp" if source == "udp" else "websocket", generation, event)
            if branch.receive(stamped, now) or kind_of(branch) != before:
                return f"{name}, of the {source} before"
    return None


def happenings(session: VoiceSession, now: float) -> Iterator[tuple[str, Event | Stamped, float]]:
    """What can happen next, and when: everything now, and each armed deadline at its time."""
    shared = session.shared
    for name, event in WEBSOCKET.items():
        yield name, Stamped("websocket", shared.socket_generation, event), now
    for name, event in UDP.items():
        yield name, Stamped("udp", shared.udp_generation, event), now
    for name, event in OTHERS.items():
        yield name, event, now
    for name, at in shared.timers.items():
        yield name, DeadlinePassed(name, at), max(now, at)


def kind_of(session: VoiceSession) -> tuple[object, ...]:
    """What tells two calls apart: the six states, and what most guards look at.

    How often heart and path have asked already is left out; `_Explorer._wear_out` lets them ask to the end.
    """
    call, shared, states = session.call, session.shared, session.states
    for machine in PATIENT:
        states[machine] = states[machine].partition(".")[0]
    return (
        *states.values(),
        session.speech.allowed,
        call.session_id is not None,
        call.token is not None,
        min(call.attempts, 1),
        bool(session.dave.transitions),
        bool(shared.others),
    )


def clone(session: VoiceSession) -> VoiceSession:
    """A session that goes its own way from here; secrets and payloads are shared, they never change."""
    branch = object.__new__(VoiceSession)
    branch.observer = None
    branch.shared = shared = _twin(session.shared)
    for machine in session.machines:
        twin = _twin(machine)
        twin.shared = shared
        setattr(branch, machine.machine, twin)
    return branch


def _twin(thing: Thing) -> Thing:
    kind = type(thing)
    slots = _known_slots.get(kind)
    if slots is None:
        slots = tuple(slot for base in kind.__mro__ for slot in getattr(base, "__slots__", ()))
        _known_slots[kind] = slots
    twin = object.__new__(kind)
    for slot in slots:
        value = getattr(thing, slot)
        of = type(value)
        setattr(twin, slot, value.copy() if of in CONTAINERS else copy.copy(value) if of is SequenceCounter else value)
    return twin


_known_slots: dict[type, tuple[str, ...]] = {}
