"""A call in virtual time: the core, a clock that jumps, and everybody it talks to, answering until told not to."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from voicegw.effects import (
    AbortSocket,
    ApplyCommit,
    ApplyWelcome,
    ArmTimer,
    CancelTimer,
    CloseSocket,
    CreateGroup,
    DrainStream,
    Effect,
    Notice,
    OpenSocket,
    OpenUdp,
    Report,
    SendDiscovery,
    SendHeartbeat,
    SendIdentify,
    SendKeepalive,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendTransitionReady,
    SendVoiceState,
)
from voicegw.errors import EventNotAllowed
from voicegw.events import (
    CallThawed,
    DeadlinePassed,
    Event,
    FreezeRequested,
    GroupJoined,
    HandOverAnnounced,
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
from voicegw.session import Options, Transition, VoiceSession
from voicegw.snapshot import Announcement
from voicegw.testing.invariants import Invariants, Violation, broken, refused
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
CANARY = "canary"  # is in every secret, and nowhere else


class World:
    """One call's core and its surroundings.

    `feed` gives the core one event and carries out what it wants; `advance` lets time pass. Each kind of effect is
    answered as a healthy peer would, after `latency_s`, unless its class's name is in `unanswered`, or in `instead`,
    which says what comes for it. With `jitter` (0 to 1, drawn anew each time) timers that may come early do.
    `others` are in the call from the beginning. After every event the invariants are held (`testing.invariants`).
    """

    BEGIN = 1000.0

    def __init__(
        self, options: Options | None = None, *, others: tuple[int, ...] = (OTHER,), latency_s: float = 0.0
    ) -> None:
        self.options = options or Options()
        self.others = others
        self.latency_s = latency_s
        self.unanswered: set[str] = set()
        self.instead: dict[str, Callable[[Any], Iterable[Event | Stamped]]] = {}
        self.jitter: Callable[[], float] | None = None
        self.dave_protocol_version = 1
        self.transition_id = 0
        self.heartbeat_interval_s = 13.75
        self.now = self.BEGIN
        self.trace: list[Transition] = []
        self.session = VoiceSession(USER, GUILD, self.options, self.trace.append)  # no cycle: a world goes at once
        self.invariants = Invariants()
        self.heard: list[tuple[float, Event | Stamped]] = []
        self.effects: list[tuple[float, Effect]] = []
        self.notices: list[Notice] = []
        self.on_event: Callable[[Event | Stamped], None] | None = None
        self._timers = self.invariants.timers
        self._early: dict[str, float] = {}
        self._coming: list[tuple[float, int, Event | Stamped]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._session_id: Secret[str] | None = None
        self._seq = 0
        self._socket = self._udp = 0
        self._epoch = 0

    # -- what a test does

    def feed(self, event: Event | Stamped) -> list[Effect]:
        """One event, now; what was said before and has no latency is answered first.

        Raises:
            EventNotAllowed: the bot asked for something that the present state forbids; nothing has changed.
            Violation: an invariant does not hold.
        """
        session, trace, now = self.session, self.trace, self.now
        known = len(trace)
        self.heard.append((now, event))
        try:
            effects = session.receive(event, now)
        except EventNotAllowed:
            refused(session, event, self._timers, trace[known:])
            raise
        except Exception as error:  # whatever comes, the core must raise nothing else
            raise broken("V01", event, session, f"the core raises {type(error).__name__}: {error}") from error
        if type(event) is DeadlinePassed and event.at == self._timers.get(event.name):
            del self._timers[event.name]
            self._early.pop(event.name, None)
        for effect in effects:
            self.effects.append((now, effect))
            self._carry_out(effect)
        self.invariants.look(session, event, trace[known:], effects)
        if self.on_event is not None:
            self.on_event(event)
        return effects

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        end = self.now + seconds
        while self._happen_until(end):
            pass
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
            if not self._happen_until(begin + seconds):
                raise Violation(f"V06: not reached in {seconds:g} s, in {self.session.states}")
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

    def hand_over(
        self,
        *,
        crash: bool = False,
        away_s: float = 0.0,
        announced_s: float | None = None,
        endpoint: str | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """The call goes on in another process, `away_s` later: frozen before, or taken from its last checkpoint.

        With `announced_s` it was announced there, so long before that it may be dialled ahead: as one of `endpoint`,
        by default its own. `meanwhile` happens between both.

        Raises:
            Violation: an invariant does not hold.
            EventNotAllowed: what happened meanwhile has begun another call.
        """
        snapshot = self.session.snapshot()
        if not crash:
            self.feed(FreezeRequested())
        self._coming = [told for told in self._coming if isinstance(told[2], VoiceStateUpdated | VoiceServerUpdated)]
        heapq.heapify(self._coming)
        self.session = VoiceSession(USER, GUILD, self.options, self.trace.append)
        self.invariants = Invariants()
        self._timers = self.invariants.timers
        self._early.clear()
        self._socket = self._udp = 0
        self.now += away_s
        if announced_s is not None:
            endpoint = endpoint or snapshot.endpoint or ENDPOINT  # it may have lost its session since
            version = snapshot.dave_protocol_version
            self.feed(HandOverAnnounced(Announcement(endpoint, snapshot.channel_id, version, snapshot.external_sender)))
            self.advance(announced_s)
            meanwhile()
        self.feed(CallThawed(snapshot))

    def sent(self, kind: type[Effect]) -> list[Effect]:
        """Every effect of one kind so far."""
        return [effect for _, effect in self.effects if isinstance(effect, kind)]

    def times(self, kind: type[Effect]) -> list[float]:
        """When each effect of one kind came, in seconds since the beginning."""
        return [at - self.BEGIN for at, effect in self.effects if isinstance(effect, kind)]

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

    # -- the surroundings

    def _stamped(self, event: Event, numbered: bool = True) -> Stamped:
        if not numbered:
            return Stamped("websocket", self._socket, event)
        self._seq = (self._seq + 1) & 0xFFFF
        return Stamped("websocket", self._socket, event, self._seq)

    def next_due(self) -> float | None:
        """When the next thing happens; None where nothing will."""
        timers = {**self._timers, **self._early} if self._early else self._timers
        due = min(timers.values(), default=None)
        return self._coming[0][0] if self._coming and (due is None or self._coming[0][0] < due) else due

    def happen(self) -> None:
        """The next thing happens, when it is due."""
        self._happen_until(math.inf)

    def _happen_until(self, end: float) -> bool:
        """The next thing happens if it is due by then; what was said comes before the timer of the same moment."""
        due, coming = self.next_due(), self._coming
        if due is None or due > end:
            return False
        if due > self.now:
            self.now = due
        if coming and coming[0][0] <= self.now:
            self.feed(heapq.heappop(coming)[2])
        else:
            timers = {**self._timers, **self._early} if self._early else self._timers
            name = min([name for name, at in timers.items() if at == due])
            self.feed(DeadlinePassed(name, self._timers[name]))
        return True

    def _say(self, event: Event | Stamped) -> None:
        heapq.heappush(self._coming, (self.now + self.latency_s, next(self._order), event))

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, ArmTimer):
            self._timers[effect.name] = effect.at
            if effect.jitter and self.jitter is not None:
                self._early[effect.name] = self.now + effect.after_s * self.jitter()
            return
        if isinstance(effect, CancelTimer):
            self._timers.pop(effect.name, None)
            if self._early:
                self._early.pop(effect.name, None)
            return
        kind = type(effect)
        do = HANDS.get(kind)
        if do is not None:
            do(self, effect)
        voice = VOICES.get(kind)
        instead = self.instead.get(kind.__name__) if self.instead else None
        if voice is None and instead is None:
            return
        if kind.__name__ not in self.unanswered:
            for event in instead(effect) if instead is not None else voice(self, effect) if voice else ():
                self._say(event)
        elif kind is SendKeepalive:  # the path is looked at whether or not anybody answers
            self._say(Stamped("udp", self._udp, PathUnheard()))

    def _report(self, effect: Report) -> None:
        self.notices.append(effect.notice)

    def _open_socket(self, effect: OpenSocket) -> None:
        self._socket = effect.generation

    def _abort_socket(self, effect: AbortSocket) -> None:
        self._socket = 0

    def _open_udp(self, effect: OpenUdp) -> None:
        self._udp = effect.generation

    # -- what everybody answers

    def _on_voice_state(self, effect: SendVoiceState) -> Iterator[Event | Stamped]:
        if effect.channel_id is None:
            yield VoiceStateUpdated(None, self._session_id or Secret(""))
            return
        number = next(self._numbers)
        self._session_id = Secret(f"{CANARY} session {number}")
        yield VoiceStateUpdated(effect.channel_id, self._session_id)
        yield VoiceServerUpdated(Secret(f"{CANARY} token {number}"), ENDPOINT)

    def _on_open_socket(self, effect: OpenSocket) -> Iterator[Event | Stamped]:
        yield self._stamped(SocketOpened(), numbered=False)
        yield self._stamped(HelloReceived(self.heartbeat_interval_s, 8), numbered=False)

    def _on_identify(self, effect: SendIdentify) -> Iterator[Event | Stamped]:
        self._seq = 0
        yield self._stamped(ReadyReceived(next(self._numbers), MEDIA, 50004, PREFERRED_MODES))

    def _on_resume(self, effect: SendResume) -> Iterator[Event | Stamped]:
        yield self._stamped(ResumedReceived(), numbered=False)

    def _on_discovery(self, effect: SendDiscovery) -> Iterator[Event | Stamped]:
        yield Stamped("udp", self._udp, IpDiscovered("203.0.113.7", 50004))

    def _on_select_protocol(self, effect: SendSelectProtocol) -> Iterator[Event | Stamped]:
        yield self._stamped(self.description(effect.mode))
        if self.others:
            yield self._stamped(ClientsConnected(self.others))
        yield self._stamped(ExternalSenderReceived(b"external sender"))

    def _on_heartbeat(self, effect: SendHeartbeat) -> Iterator[Event | Stamped]:
        yield self._stamped(HeartbeatAcked(0), numbered=False)

    def _on_keepalive(self, effect: SendKeepalive) -> Iterator[Event | Stamped]:
        yield Stamped("udp", self._udp, PathHeard())

    def _on_close(self, effect: CloseSocket) -> Iterator[Event | Stamped]:
        yield self._stamped(SocketClosed(effect.code), numbered=False)

    def _on_create_group(self, effect: CreateGroup) -> Iterator[Event | Stamped]:
        yield KeyPackageMade(b"key package")

    def _on_key_package(self, effect: SendKeyPackage) -> Iterator[Event | Stamped]:
        if self.others:
            yield self._stamped(WelcomeReceived(self.transition_id, b"welcome"))

    def _on_group(self, effect: ApplyWelcome | ApplyCommit) -> Iterator[Event | Stamped]:
        self._epoch += 1
        yield GroupJoined(effect.transition_id, self._epoch, f"{self._epoch:030d}")

    def _on_transition_ready(self, effect: SendTransitionReady) -> Iterator[Event | Stamped]:
        yield self._stamped(TransitionExecuted(effect.transition_id))

    def _on_drain(self, effect: DrainStream) -> Iterator[Event | Stamped]:
        yield SilenceSent()

    def description(self, mode: str | None = None, key: int | None = None) -> SessionDescriptionReceived:
        """A Session Description with a fresh key (or the key of that number) and the present DAVE version."""
        number = next(self._numbers) if key is None else key
        return SessionDescriptionReceived(
            mode or self.session.gateway.mode, Secret(number.to_bytes(32, "big")), self.dave_protocol_version
        )


HANDS: Mapping[type, Callable[[World, Any], None]] = {
    Report: World._report,
    OpenSocket: World._open_socket,
    AbortSocket: World._abort_socket,
    OpenUdp: World._open_udp,
}
VOICES: Mapping[type, Callable[[World, Any], Iterator[Event | Stamped]]] = {
    SendVoiceState: World._on_voice_state,
    OpenSocket: World._on_open_socket,
    SendIdentify: World._on_identify,
    SendResume: World._on_resume,
    SendDiscovery: World._on_discovery,
    SendSelectProtocol: World._on_select_protocol,
    SendHeartbeat: World._on_heartbeat,
    SendKeepalive: World._on_keepalive,
    CloseSocket: World._on_close,
    CreateGroup: World._on_create_group,
    SendKeyPackage: World._on_key_package,
    ApplyWelcome: World._on_group,
    ApplyCommit: World._on_group,
    SendTransitionReady: World._on_transition_ready,
    DrainStream: World._on_drain,
}
