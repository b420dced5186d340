"""A call in virtual time: the core, a clock that jumps, and everybody it talks to, answering until told not to."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from voicegw.effects import (
    AbortSocket,
    ApplyCommit,
    ApplyWelcome,
    ArmTimer,
    CancelTimer,
    CloseSocket,
    CloseUdp,
    CreateGroup,
    DrainStream,
    DropKey,
    Effect,
    HoldStream,
    Notice,
    OpenSocket,
    OpenUdp,
    ReleaseStream,
    Report,
    SendDiscovery,
    SendHeartbeat,
    SendIdentify,
    SendKeepalive,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
    SendVoiceState,
)
from voicegw.errors import VoiceError
from voicegw.events import (
    DeadlinePassed,
    Event,
    GroupJoined,
    IpDiscovered,
    JoinRequested,
    KeyPackageMade,
    PathHeard,
    PathUnheard,
    SilenceSent,
    SocketClosed,
    SocketOpened,
    Stamped,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy, Options, Transition, VoiceSession
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.payloads import (
    ClientsConnected,
    ExternalSenderReceived,
    HeartbeatAcked,
    HelloReceived,
    Payload,
    ReadyReceived,
    ResumedReceived,
    SessionDescriptionReceived,
    TransitionExecuted,
    WelcomeReceived,
)

USER, GUILD, CHANNEL, OTHER = 104694319306248192, 41771983423143937, 127121515262115840, 158533742254751744
ENDPOINT, MEDIA = "c-ams20-20d36bc4.discord.media:2087", "8.8.8.8"


class Violation(VoiceError):
    """An invariant does not hold; the message says which, and after which event."""


class World:
    """One call's core and its surroundings.

    `feed` gives the core one event and carries out what it wants; `advance` lets time pass. Each kind of effect is
    answered as a healthy peer would, after `latency_s`, unless its class's name is in `unanswered`. Invariants are
    checked after every event: timers are exactly the deadlines of the present states, speech never leaves in the
    clear under `require`, nothing is left after the end. `others` are in the call from the beginning.
    """

    def __init__(
        self, options: Options | None = None, *, others: tuple[int, ...] = (OTHER,), latency_s: float = 0.0
    ) -> None:
        self.options = options or Options()
        self.others = others
        self.latency_s = latency_s
        self.unanswered: set[str] = set()
        self.dave_protocol_version = 1
        self.transition_id = 0
        self.heartbeat_interval_s = 13.75
        self.now = 1000.0
        self.session = VoiceSession(USER, GUILD, self.options, self._note)
        self.trace: list[Transition] = []
        self.effects: list[tuple[float, Effect]] = []
        self.notices: list[Notice] = []
        self.on_event: Callable[[Event | Stamped], None] | None = None
        self._timers: dict[str, float] = {}
        self._coming: list[tuple[float, int, Event | Stamped]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._session_id: Secret[str] | None = None
        self._seq = 0
        self._socket = self._udp = 0
        self._epoch = 0
        self._stream: ReleaseStream | None = None
        self._announced = 0
        self._path_open = False

    # -- what a test does

    def feed(self, event: Event | Stamped) -> list[Effect]:
        """One event, now; what was said before and has no latency is answered first."""
        effects = self.session.receive(event, self.now)
        for effect in effects:
            self.effects.append((self.now, effect))
            self._carry_out(effect)
        self.check(event)
        if self.on_event is not None:
            self.on_event(event)
        return effects

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        end = self.now + seconds
        while (due := self._next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            self._happen()
        self.now = end

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        self.advance(0.0)

    def until(self, predicate: Callable[[], bool], seconds: float) -> float:
        """Let time pass until `predicate()`; how long that took.

        Raises:
            Violation: it did not come true within `seconds`, or nothing is left that could bring it.
        """
        begin = self.now
        while not predicate():
            due = self._next_due()
            if due is None or due > begin + seconds:
                raise Violation(f"not reached in {seconds:g} s: {self.session.states}")
            self.now = max(self.now, due)
            self._happen()
        return self.now - begin

    def server(self, payload: Payload | Event, *, numbered: bool = True) -> list[Effect]:
        """The voice server says something on the present websocket."""
        return self.feed(self._stamped(payload, numbered))

    def udp(self, event: Event) -> list[Effect]:
        """Something happens on the present UDP socket."""
        return self.feed(Stamped("udp", self._udp, event))

    def join(self, channel_id: int = CHANNEL) -> None:
        """The bot joins, and everybody answers."""
        self.feed(JoinRequested(channel_id))
        self.settle()

    def sent(self, kind: type[Effect]) -> list[Effect]:
        """Every effect of one kind so far."""
        return [effect for _, effect in self.effects if isinstance(effect, kind)]

    def times(self, kind: type[Effect]) -> list[float]:
        """When each effect of one kind came, in seconds since the beginning."""
        return [at - 1000.0 for at, effect in self.effects if isinstance(effect, kind)]

    def way(self, machine: str) -> list[str]:
        """The states that a machine has entered."""
        return [step.after for step in self.trace if step.machine == machine and step.after != step.before]

    @property
    def states(self) -> dict[str, str]:
        """Every machine's state."""
        return self.session.states

    @property
    def timers(self) -> dict[str, float]:
        """What is armed, and for when."""
        return dict(self._timers)

    # -- invariants

    def check(self, event: Event | Stamped) -> None:
        """Hold the invariants.

        Raises:
            Violation: one does not hold.
        """
        for what in forbidden(self.session):
            self._fail(event, what)
        if self._timers != self.session.shared.timers:
            self._fail(event, f"armed are {sorted(self._timers)}, the core knows {sorted(self.session.shared.timers)}")
        if self._path_open != (self.session.transport.state != "closed"):
            self._fail(event, f"the UDP socket is {'open' if self._path_open else 'closed'}")
        speech, dave = self.session.speech.state, self.session.dave.state
        if (self._stream is not None) != (speech in ("speaking", "draining")):
            self._fail(event, f"the stream is {'open' if self._stream else 'held'} while speech is {speech}")
        if self._stream is not None:
            if dave.startswith(("off", "waiting", "refused", "recovering")):
                self._fail(event, f"the stream is open while the group is {dave}")
            if not self._stream.encrypted and not dave.startswith("clear"):
                self._fail(event, f"the stream is in the clear while the group is {dave}")
        if speech == "speaking" and self.session.gateway.state == "ready" and self._announced != 1:
            self._fail(event, "speech that was not announced on this connection")

    def _fail(self, event: Event | Stamped, what: str) -> None:
        raise Violation(f"after {event}: {what}; {self.session.states}")

    # -- the surroundings

    def _note(self, transition: Transition) -> None:
        self.trace.append(transition)

    def _stamped(self, event: Event, numbered: bool = True) -> Stamped:
        if not numbered:
            return Stamped("websocket", self._socket, event)
        self._seq = (self._seq + 1) & 0xFFFF
        return Stamped("websocket", self._socket, event, self._seq)

    def _next_due(self) -> float | None:
        times = list(self._timers.values())
        if self._coming:
            times.append(self._coming[0][0])
        return min(times, default=None)

    def _happen(self) -> None:
        """The next thing that is due: what was said comes before the timer of the same moment."""
        if self._coming and self._coming[0][0] <= self.now:
            self.feed(heapq.heappop(self._coming)[2])
            return
        name = min(self._timers, key=lambda name: (self._timers[name], name))
        self.feed(DeadlinePassed(name, self._timers.pop(name)))

    def _say(self, event: Event | Stamped) -> None:
        heapq.heappush(self._coming, (self.now + self.latency_s, next(self._order), event))

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case ArmTimer(name=name, at=at):
                self._timers[name] = at
            case CancelTimer(name=name):
                self._timers.pop(name, None)
            case Report(notice=notice):
                self.notices.append(notice)
            case ReleaseStream(encrypted=False) if self.options.policy is E2EEPolicy.REQUIRE:
                raise Violation(f"speech would leave in the clear; {self.session.states}")
            case ReleaseStream():
                self._stream = effect
            case HoldStream() | DropKey():
                self._stream = None
            case SendSpeaking(flags=flags):
                self._announced = flags
            case OpenSocket(generation=generation):
                self._socket = generation
                self._announced = 0
            case OpenUdp(generation=generation):
                self._udp = generation
                self._path_open = True
            case CloseUdp():
                self._path_open = False
            case AbortSocket():
                self._socket = 0
        answered = type(effect).__name__ not in self.unanswered
        if isinstance(effect, SendKeepalive):  # the path is looked at whether or not anybody answers
            self._say(Stamped("udp", self._udp, PathHeard() if answered else PathUnheard()))
        elif answered:
            for event in self._answers(effect):
                self._say(event)

    def _answers(self, effect: Effect) -> Iterator[Event | Stamped]:
        match effect:
            case SendVoiceState(channel_id=None):
                yield VoiceStateUpdated(None, self._session_id or Secret(""))
            case SendVoiceState(channel_id=channel_id):
                number = next(self._numbers)
                self._session_id = Secret(f"session {number}")
                yield VoiceStateUpdated(channel_id, self._session_id)
                yield VoiceServerUpdated(Secret(f"token {number}"), ENDPOINT)
            case OpenSocket():
                yield self._stamped(SocketOpened(), numbered=False)
                yield self._stamped(HelloReceived(self.heartbeat_interval_s, 8), numbered=False)
            case SendIdentify():
                self._seq = 0
                yield self._stamped(ReadyReceived(next(self._numbers), MEDIA, 50004, PREFERRED_MODES))
            case SendResume():
                yield self._stamped(ResumedReceived(), numbered=False)
            case SendDiscovery():
                yield Stamped("udp", self._udp, IpDiscovered("203.0.113.7", 50004))
            case SendSelectProtocol(mode=mode):
                yield self._stamped(self.description(mode))
                if self.others:
                    yield self._stamped(ClientsConnected(self.others))
                yield self._stamped(ExternalSenderReceived(b"external sender"))
            case SendHeartbeat():
                yield self._stamped(HeartbeatAcked(0), numbered=False)
            case CloseSocket(code=code):
                yield self._stamped(SocketClosed(code), numbered=False)
            case CreateGroup():
                yield KeyPackageMade(b"key package")
            case SendKeyPackage() if self.others:
                yield self._stamped(WelcomeReceived(self.transition_id, b"welcome"))
            case ApplyWelcome(transition_id=number) | ApplyCommit(transition_id=number):
                self._epoch += 1
                yield GroupJoined(number, self._epoch, f"{self._epoch:030d}")
            case SendTransitionReady(transition_id=number):
                yield self._stamped(TransitionExecuted(number))
            case DrainStream():
                yield SilenceSent()

    def description(self, mode: str | None = None, key: int | None = None) -> SessionDescriptionReceived:
        """A Session Description with a fresh key (or the key of that number) and the present DAVE version."""
        number = next(self._numbers) if key is None else key
        return SessionDescriptionReceived(
            mode or self.session.gateway.mode, Secret(number.to_bytes(32, "big")), self.dave_protocol_version
        )


def forbidden(session: VoiceSession) -> Iterator[str]:
    """What no call may ever be."""
    waiting = {machine.table.states[machine.state].deadline for machine in session.machines} - {None}
    if set(session.shared.timers) != waiting:
        yield "armed timers are not the deadlines of the states"
    gateway, speech, dave = session.gateway.state, session.speech.state, session.dave.state
    over = gateway.startswith("closed")
    if speech == "speaking" and not dave.startswith(("active", "changing", "clear")):
        yield "speech leaves while E2EE is not ready"
    if over and speech == "speaking":
        yield "speech leaves without a voice session"
    if over and dave != "off":
        yield "the group outlives its voice session"
    if over and session.transport.state != "closed":
        yield "the UDP path outlives its voice session"
    if (gateway == "ready") != (session.heartbeat.state != "stopped") and (over or gateway == "ready"):
        yield "the heart outlives its websocket" if over else "ready without a heart"
    if session.call.state == "closed" and gateway != "closed.down":
        yield "the websocket outlives the call"
    if session.call.state == "connected" and over:
        yield "the call says connected without a voice session"
    if session.call.state == "idle" and gateway != "closed.down":
        yield "a voice session without a call"
