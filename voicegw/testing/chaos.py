"""Everything that can happen to a call, drawn from a seed: the same seed brings the same run."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from voicegw.errors import ConnectionFailed, EventNotAllowed, VoiceTimeout
from voicegw.events import (
    CommitIgnored,
    DeadlinePassed,
    Event,
    FrameRejected,
    GroupRejected,
    JoinAbandoned,
    JoinRequested,
    KeyExhausted,
    LeaveRequested,
    MainSessionLost,
    MainSessionStarted,
    PathUnheard,
    ProposalsRejected,
    ReaderFailed,
    SignallingFailed,
    SocketClosed,
    SocketFailed,
    SocketRateLimited,
    SocketUnavailable,
    SpeechEnded,
    SpeechStarted,
    Stamped,
    UdpFailed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy, Options
from voicegw.testing.world import CHANNEL, ENDPOINT, MEDIA, OTHER, Violation, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    HeartbeatRequested,
    HelloReceived,
    ProposalsReceived,
    ReadyReceived,
    ResumedReceived,
    SpeakingReceived,
    TransitionExecuted,
    TransitionPrepared,
    Unlisted,
    WelcomeReceived,
)

STEPS = 40
GIVE_UP_S = 3600.0
ANSWERS = (
    "SendVoiceState",
    "OpenSocket",
    "SendIdentify",
    "SendResume",
    "SendDiscovery",
    "SendSelectProtocol",
    "SendHeartbeat",
    "SendKeepalive",
    "CloseSocket",
    "CreateGroup",
    "SendKeyPackage",
    "ApplyWelcome",
    "ApplyCommit",
    "SendTransitionReady",
    "DrainStream",
)
RESUMABLE = (None, 1000, 1001, 1005, 1006, 1011, 1012, 4013, 4015)
CLOSE_CODES = (*range(1000, 1016), *range(4000, 4025))


@dataclass(slots=True)
class Run:
    """What one seed brought; `violation` is None where all invariants held and the call came to ready or to its end."""

    seed: int
    events: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    trace_hash: str = ""
    violation: str | None = None
    tail: list[str] = field(default_factory=list)


class Chaos:
    """One run: a world, and what is done to it. Network, schedule and the bot draw from streams of their own."""

    def __init__(self, seed: int) -> None:
        self.run = Run(seed)
        self._network = random.Random(f"network {seed}")  # noqa: S311 - a simulation must be repeatable
        self._choice = random.Random(f"choice {seed}")  # noqa: S311
        policy = self._choice.choice(list(E2EEPolicy)[:2])
        others = (OTHER,) if self._choice.random() < 0.8 else ()
        options = Options(
            policy=policy,
            max_attempts=self._choice.choice((2, 3, 12)),
            rejoin_after_rate_limit=self._choice.random() < 0.5,
        )
        self.world = World(options, others=others, latency_s=self._network.choice((0.0, 0.02, 0.3, 2.0)))
        self.world.dave_protocol_version = 0 if policy is E2EEPolicy.ALLOW and self._network.random() < 0.3 else 1
        self.world.on_event = self._count
        self._past: list[Event | Stamped] = []
        self._hash = hashlib.sha256()

    def go(self, steps: int = STEPS) -> Run:
        """Join, let things happen, heal, and see the call come to ready or to its end."""
        world, run = self.world, self.run
        begin = world.now
        try:
            self._feed(JoinRequested(CHANNEL))
            for _ in range(steps):
                self.step()
            self.heal()
        except Violation as violation:
            run.violation = str(violation)
        except Exception as error:  # whatever it is, the core must not raise it
            run.violation = f"{type(error).__name__}: {error}"
        for transition in world.trace:
            line = f"{transition.at:.6f} {transition.machine} {transition.before} {transition.event} {transition.after}"
            self._hash.update(line.encode())
            run.tail.append(line)
        for at, effect in world.effects:
            self._hash.update(f"{at:.6f} {effect!r}".encode())
        del run.tail[:-50]
        run.virtual_s = world.now - begin
        run.trace_hash = self._hash.hexdigest()
        return run

    def step(self) -> None:
        """One thing happens, or time passes."""
        if self._choice.random() < 0.5:
            self.world.advance(self._choice.choice((0.0, 0.05, 1.0, 6.0, 31.0)))
            return
        self._do(self._choice.choice(tuple(HAPPENINGS)))

    def happen(self, name: str, draw: int) -> None:
        """One thing happens, its details drawn from `draw`; the first of all is that the bot joins."""
        self._network.seed(draw)
        self._choice.seed(draw)
        if self.world.states["call"] == "idle":
            self._feed(JoinRequested(CHANNEL))
        self._do(name)

    def heal(self) -> None:
        """Everybody answers again, and the call comes to ready or to its end.

        Raises:
            Violation: it does neither within an hour.
        """
        if self.world.states["call"] == "idle":
            return
        self.world.unanswered.clear()
        self.world.latency_s = 0.02
        self.world.until(self._settled, GIVE_UP_S)

    def _do(self, name: str) -> None:
        self.run.faults[name] += 1
        for event in HAPPENINGS[name](self):
            self._feed(event)

    def server(self, *events: Event) -> Iterator[Stamped]:
        """What the voice server says now."""
        for event in events:
            yield self.world._stamped(event)

    def _settled(self) -> bool:
        states = self.world.states
        return states["call"] == "closed" or (states["call"] == "connected" and states["gateway"] == "ready")

    def _feed(self, event: Event | Stamped) -> None:
        try:
            self.world.feed(event)
        except EventNotAllowed:
            self.run.faults["refused wishes"] += 1

    def _count(self, event: Event | Stamped) -> None:
        self.run.events += 1
        self._past.append(event)

    # -- what can happen

    def silence(self) -> Iterator[Event | Stamped]:
        """Somebody answers no more, or again."""
        self.world.unanswered ^= {self._network.choice(ANSWERS)}
        yield from ()

    def close(self) -> Iterator[Event | Stamped]:
        """The websocket ends, with any code or none."""
        codes = RESUMABLE if self._network.random() < 0.7 else CLOSE_CODES
        yield self.world._stamped(SocketClosed(self._network.choice(codes)), numbered=False)

    def failure(self) -> Iterator[Event | Stamped]:
        """A dial, a socket or a reader fails."""
        error = ConnectionFailed("simulated")
        event = self._network.choice(
            (
                SocketFailed(error),
                SocketUnavailable(error),
                SocketRateLimited(error),
                ReaderFailed("KeyError"),
                SocketClosed(None),
            )
        )
        yield self.world._stamped(event, numbered=False)
        if self._network.random() < 0.3:
            yield Stamped("udp", self.world.session.shared.udp_generation, UdpFailed(error))

    def garbage(self) -> Iterator[Event | Stamped]:
        """Frames that cannot be decoded."""
        for _ in range(self._network.choice((1, 1, 2, 12))):
            yield self.world._stamped(FrameRejected(self._network.choice((None, 2, 4, 27))), numbered=False)

    def repetition(self) -> Iterator[Event | Stamped]:
        """Something that was said before is said again."""
        if self._past:
            past = self._network.choice(self._past[-30:])
            if isinstance(past, Stamped) and past.seq is not None and self._network.random() < 0.5:
                past = self.world._stamped(past.event)
            yield past

    def oddity(self) -> Iterator[Event | Stamped]:
        """The voice server says what fits at another time."""
        number = self._network.randrange(4)
        version = self._network.choice((0, 1, 1, 1))
        yield from self.server(
            self._network.choice(
                (
                    HelloReceived(self._network.choice((1.0, 13.75, 300.0)), 8),
                    ReadyReceived(7, self._network.choice((MEDIA, "10.0.0.1")), 9, PREFERRED_MODES[:number]),
                    ResumedReceived(),
                    HeartbeatRequested(),
                    SpeakingReceived(OTHER, 5, 1),
                    Unlisted(99),
                    self.world.description(self._network.choice((None, *PREFERRED_MODES)), number),
                    TransitionPrepared(version, number),
                    TransitionExecuted(number),
                    EpochPrepared(version, number),
                    ExternalSenderReceived(bytes([number])),
                    ProposalsReceived(revoke=False, data=b"\0"),
                    CommitAnnounced(number, b"commit"),
                    WelcomeReceived(number, b"welcome"),
                )
            )
        )

    def downgrade(self) -> Iterator[Event | Stamped]:
        """The voice server gives E2EE up, perhaps without finishing it, and perhaps begins with it again."""
        number = self._network.randrange(4)
        yield from self.server(TransitionPrepared(0, number))
        if self._network.random() < 0.7:
            yield from self.server(TransitionExecuted(number))
        if self._network.random() < 0.5:
            yield from self.server(EpochPrepared(1, 1))

    def membership(self) -> Iterator[Event | Stamped]:
        """Others come and go."""
        user_id = self._network.choice((OTHER, 7, 8))
        joined = self._network.random() < 0.5
        yield from self.server(ClientsConnected((user_id,)) if joined else ClientDisconnected(user_id))

    def group(self) -> Iterator[Event | Stamped]:
        """The MLS library does not like what came."""
        number = self._network.randrange(4)
        yield self._network.choice(
            (GroupRejected(number, "simulated"), CommitIgnored(number), ProposalsRejected(False, b"\0", "simulated"))
        )

    def main_gateway(self) -> Iterator[Event | Stamped]:
        """Kicks, moves, other servers, null endpoints, a lost session, in any order."""
        number = self._network.randrange(1000)
        if self._network.random() < 0.05:
            yield VoiceStateUpdated(None, Secret("kicked"))
            return
        yield self._network.choice(
            (
                VoiceStateUpdated(CHANNEL + number % 2, Secret(f"moved {number}")),
                VoiceServerUpdated(Secret(f"other {number}"), ENDPOINT),
                VoiceServerUpdated(Secret(f"null {number}"), None),
                SignallingFailed("RuntimeError"),
                MainSessionLost(),
                MainSessionStarted(),
            )
        )

    def bot(self) -> Iterator[Event | Stamped]:
        """Wishes, sensible or not."""
        wish = self._choice.random()
        if wish < 0.7:
            yield self._choice.choice((SpeechStarted(), SpeechEnded()))
        elif wish < 0.9:
            yield JoinRequested(CHANNEL + self._choice.randrange(2))
        elif wish < 0.95:
            yield JoinAbandoned(VoiceTimeout("simulated"))
        elif wish > 0.99:
            yield LeaveRequested()

    def wear(self) -> Iterator[Event | Stamped]:
        """The key is used up, the path is quiet."""
        generation = self.world.session.shared.udp_generation
        yield self._network.choice((KeyExhausted(), Stamped("udp", generation, PathUnheard())))

    def stall(self) -> Iterator[Event | Stamped]:
        """The process does not run for a while; timers fire late, one of them stale."""
        self.world.now += self._network.choice((0.5, 5.0, 60.0))
        yield DeadlinePassed(self._network.choice(("beat_due", "hello_timeout", "settled")), self.world.now)


HAPPENINGS: dict[str, Callable[[Chaos], Iterator[Event | Stamped]]] = {
    happening.__name__: happening
    for happening in (
        Chaos.silence,
        Chaos.close,
        Chaos.failure,
        Chaos.garbage,
        Chaos.repetition,
        Chaos.oddity,
        Chaos.downgrade,
        Chaos.membership,
        Chaos.group,
        Chaos.main_gateway,
        Chaos.bot,
        Chaos.wear,
        Chaos.stall,
    )
}
