"""Everything that can happen to a call, drawn from a seed: the same seed brings the same run."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from voicegw.effects import ArmTimer, CancelTimer, SendIdentify, SendResume, SendSelectProtocol, SendVoiceState
from voicegw.errors import ConnectionFailed, EventNotAllowed, VoiceTimeout
from voicegw.events import (
    CommitIgnored,
    CommitMade,
    DeadlinePassed,
    DialPostponed,
    Event,
    FrameRejected,
    FreezeRequested,
    GroupRejected,
    HostWoke,
    JoinAbandoned,
    JoinRequested,
    KeyExhausted,
    LeaveRequested,
    MainSessionLost,
    MainSessionResumed,
    MainSessionStarted,
    NoncesMet,
    PathLost,
    PathMoved,
    PathUnheard,
    ProposalsRejected,
    ReaderFailed,
    SignallingFailed,
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
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.signalling import VoiceFlags
from voicegw.testing.invariants import Violation
from voicegw.testing.plan import WAIT, WAITS_S, Plan, plan_of
from voicegw.testing.product import SAMPLES
from voicegw.testing.run import KEPT_LINES, TOLD, Run, fields_of, row_of
from voicegw.testing.world import CANARY, CHANNEL, ENDPOINT, MEDIA, OTHER, USER, World
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
SESSION_BEGINS = frozenset({SendIdentify, SendResume})
TIMERS = frozenset({ArmTimer, CancelTimer})  # two effects of three; when a timer fires is heard
ANOTHER_ENDPOINT, NO_ENDPOINT = "c-fra02-another.discord.media:443", "10.0.0.1:443"
RESUMABLE = (None, 1000, 1001, 1005, 1006, 1011, 1012, 4013, 4015)
CLOSE_CODES = (*range(1000, 1016), *range(4000, 4025))


class Chaos:
    """One run: a world, and what a plan does to it."""

    _draw = random.Random(0)  # noqa: S311 - repeatable: each step seeds it anew, so that one serves all runs

    def __init__(self, plan: int | Plan) -> None:
        self.plan = plan if isinstance(plan, Plan) else plan_of(plan, NAMES)
        self.run = Run(self.plan)
        others = () if self.plan.alone else (OTHER,)
        self.world = World(self.plan.options, others=others, latency_s=self.plan.latency_s)
        self.world.dave_protocol_version = self.plan.dave_protocol_version
        self.world.heartbeat_interval_s = self.plan.heartbeat_interval_s
        self.world.jitter = random.Random(f"jitter {self.plan.seed}").random  # noqa: S311
        self._hash = hashlib.sha256()

    def go(self) -> Run:
        """All steps of the plan; then heal, and see the call come to ready or to its end."""
        turn = 0
        while self.step(turn):
            turn += 1
        return self.end()

    def step(self, turn: int) -> bool:
        """One step of the plan; False where none is left, or an invariant did not hold."""
        if self.run.violation is not None or turn >= len(self.plan.steps):
            return False
        try:
            self.happen(*self.plan.steps[turn])
        except Violation as violation:
            self.run.violation = str(violation)
            return False
        return True

    def end(self) -> Run:
        """Heal, and say what the run brought."""
        run = self.run
        if run.violation is None:
            try:
                self.heal()
            except Violation as violation:
                run.violation = str(violation)
        self.fold()
        run.trace_hash = self._hash.hexdigest()
        return run

    def happen(self, name: str, draw: int) -> None:
        """One thing happens, its details drawn from `draw`; the first of all is that the bot joins."""
        world = self.world
        idle = world.session.call.state == "idle"
        if idle or name != WAIT:
            self._draw.seed(draw)
        if idle:
            first = self._draw.random()
            self._feed(
                JoinRequested(CHANNEL) if first > 0.002 else LeaveRequested() if first > 0.001 else FreezeRequested()
            )
        if name == WAIT:
            world.advance(WAITS_S[draw % len(WAITS_S)])
            return
        self.run.faults[name] += 1
        for event in HAPPENINGS[name](self):
            self._feed(event)

    def heal(self) -> None:
        """Everybody answers again, and the call comes to ready or to its end.

        Raises:
            Violation: it does neither within the time that the tables give it.
        """
        if self.world.states["call"] == "idle":
            return
        self.world.unanswered.clear()
        self.world.instead.clear()
        self.world.latency_s = 0.02
        self.world.until(self._settled, GIVE_UP_S)

    def fold(self) -> None:
        """Put what the world has kept into the trace hash and let it go, for runs that are long."""
        world, run = self.world, self.run
        rows = list(map(row_of, world.trace))
        effects = [effect for _, effect in world.effects]
        texts = [
            f"{kind.__name__} {effect.name}" if (kind := type(effect)) in TIMERS else fields_of(effect)  # type: ignore[union-attr]
            for effect in effects
        ]
        told = "\n".join(texts)
        if CANARY in told and run.violation is None:
            run.violation = "V18: a secret shows in an effect"
        heard = [event.event if type(event) is Stamped else event for _, event in world.heard]
        names = "\n".join([type(event).__name__ for event in heard])
        times = array("d", [at for at, _ in world.heard])
        steps = "\n".join(map(TOLD.__getitem__, rows))
        self._hash.update(f"{names}\n{steps}\n{told}\n".encode() + times.tobytes())
        run.events += len(world.heard)
        run.voice_sessions += sum(map(SESSION_BEGINS.__contains__, map(type, effects)))
        run.rows.update(rows)
        run.virtual_s = world.now - world.BEGIN
        run.last.extend(world.trace[-KEPT_LINES:])
        for kept in (world.trace, world.effects, world.heard):
            kept.clear()

    def _settled(self) -> bool:
        session = self.world.session
        call = session.call.state
        return call == "closed" or (call == "connected" and session.gateway.state == "ready")

    def _feed(self, event: Event | Stamped) -> None:
        try:
            self.world.feed(event)
        except EventNotAllowed:
            self.run.faults["refused wishes"] += 1

    def _server(self, *events: Event) -> Iterator[Stamped]:
        """What the voice server says now."""
        for event in events:
            yield self.world._stamped(event)

    # -- what can happen

    def silence(self) -> Iterator[Event | Stamped]:
        """Somebody answers no more, or again."""
        self.world.unanswered ^= {self._draw.choice(ANSWERS)}
        yield from ()

    def habit(self) -> Iterator[Event | Stamped]:
        """From now on somebody answers in a way of its own, or everybody in the usual way again."""
        world, draw = self.world, self._draw
        code, error = draw.choice(CLOSE_CODES), ConnectionFailed("simulated")

        def said(*events: Event) -> Callable[[Any], list[Event | Stamped]]:
            return lambda effect: [world._stamped(event) for event in events]

        def described(effect: SendSelectProtocol) -> list[Event | Stamped]:
            description = replace(world.description(effect.mode), dave_protocol_version=draw_version)
            return [world._stamped(description), world._stamped(ClientsConnected((USER,)))]

        draw_version = draw.choice((0, 1, 9))
        if draw.random() < 0.2:
            world.instead.clear()
            return
        name, answer = draw.choice(
            (
                ("SendIdentify", said(SocketClosed(code))),
                ("SendIdentify", said(ReadyReceived(7, MEDIA, 9, ()))),
                ("SendIdentify", said(ReadyReceived(7, "10.0.0.1", 9, PREFERRED_MODES))),
                ("SendSelectProtocol", said(SocketClosed(code))),
                ("SendSelectProtocol", described),
                ("SendResume", said(SocketClosed(code))),
                ("OpenSocket", said(SocketOpened())),
                ("OpenSocket", said(SocketFailed(error))),
                ("OpenSocket", said(SocketRefused(error))),
                ("CloseSocket", said(SocketClosed(code))),
                ("ApplyWelcome", lambda effect: [GroupRejected(effect.transition_id, "simulated")]),
                ("ApplyCommit", lambda effect: [GroupRejected(effect.transition_id, "simulated")]),
                ("ApplyProposals", lambda effect: [CommitMade(b"commit")]),
                ("ApplyProposals", lambda effect: [ProposalsRejected(False, b"\0", "simulated")]),
                ("SendVoiceState", self._elsewhere),
                ("SendTransitionReady", lambda effect: []),
                ("DrainStream", lambda effect: [SpeechStarted()]),
            )
        )
        world.instead[name] = answer
        yield from ()

    def _elsewhere(self, effect: SendVoiceState) -> list[Event | Stamped]:
        number = next(self.world._numbers)
        state = VoiceStateUpdated(effect.channel_id, Secret(f"{CANARY} session {number}"))
        return [state, VoiceServerUpdated(Secret(f"{CANARY} token {number}"), "example.com")]

    def nudge(self) -> Iterator[Event | Stamped]:
        """Something that one of the machines has a row for now."""
        machine = self._draw.choice(self.world.session.machines)
        words = sorted((machine.table.enabled(machine.state) & SAMPLES.keys()) - {FreezeRequested.name})
        if words:
            source, event = self._draw.choice(SAMPLES[self._draw.choice(words)])
            if source == "websocket":
                yield self.world._stamped(event)
            elif source == "udp":
                yield Stamped("udp", self.world.session.shared.udp_generation, event)
            else:
                yield event

    def deafness(self) -> Iterator[Event | Stamped]:
        """Nobody answers until one of the timers has fired, or all have."""
        world = self.world
        before, world.unanswered = world.unanswered, set(ANSWERS)
        if world.timers:
            until = self._draw.choice(sorted(world.timers.values()))
            world.advance(max(0.0, until - world.now) + 0.01)
        world.unanswered = before
        yield from ()

    def close(self) -> Iterator[Event | Stamped]:
        """The websocket ends, with any code or none."""
        codes = RESUMABLE if self._draw.random() < 0.7 else CLOSE_CODES
        yield self.world._stamped(SocketClosed(self._draw.choice(codes)), numbered=False)

    def failure(self) -> Iterator[Event | Stamped]:
        """A dial, a socket or a reader fails."""
        error = ConnectionFailed("simulated")
        event = self._draw.choice(
            (
                SocketFailed(error),
                SocketUnavailable(error),
                SocketRateLimited(error),
                DialPostponed(self._draw.choice((0.1, 5.0, 90.0, 600.0))),
                ReaderFailed("KeyError"),
                SocketClosed(None),
            )
        )
        yield self.world._stamped(event, numbered=False)
        if self._draw.random() < 0.3:
            yield Stamped("udp", self.world.session.shared.udp_generation, UdpFailed(error))

    def garbage(self) -> Iterator[Event | Stamped]:
        """Frames that cannot be decoded."""
        for _ in range(self._draw.choice((1, 1, 2, 12))):
            yield self.world._stamped(FrameRejected(self._draw.choice((None, 2, 4, 27))), numbered=False)

    def repetition(self) -> Iterator[Event | Stamped]:
        """Something that was said before is said again."""
        if self.world.heard:
            past = self._draw.choice(self.world.heard[-30:])[1]
            if isinstance(past, Stamped) and past.seq is not None and self._draw.random() < 0.5:
                past = self.world._stamped(past.event)
            yield past

    def ghost(self) -> Iterator[Event | Stamped]:
        """Sockets that were replaced speak up."""
        shared = self.world.session.shared
        live = {"websocket": shared.socket_generation, "udp": shared.udp_generation}
        old = [
            event
            for _, event in self.world.heard[-60:]
            if isinstance(event, Stamped) and event.generation < live[event.source]
        ]
        for _ in range(min(len(old), 3)):
            yield self._draw.choice(old)

    def old_pair(self) -> Iterator[Event | Stamped]:
        """The main gateway repeats a voice state and a voice server of before."""
        for kind in self._draw.sample((VoiceStateUpdated, VoiceServerUpdated), 2):
            said = [event for _, event in self.world.heard if isinstance(event, kind)]
            if said:
                yield self._draw.choice(said)

    def oddity(self) -> Iterator[Event | Stamped]:
        """The voice server says what fits at another time."""
        number = self._draw.randrange(4)
        version = self._draw.choice((0, 1, 1, 1))
        yield from self._server(
            self._draw.choice(
                (
                    HelloReceived(self._draw.choice((1.0, 13.75, 300.0)), 8),
                    ReadyReceived(7, self._draw.choice((MEDIA, "10.0.0.1")), 9, PREFERRED_MODES[:number]),
                    ResumedReceived(),
                    HeartbeatRequested(),
                    SpeakingReceived(OTHER, 5, 1),
                    Unlisted(99),
                    self.world.description(self._draw.choice((None, *PREFERRED_MODES)), number),
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
        number = self._draw.randrange(4)
        yield from self._server(TransitionPrepared(0, number))
        if self._draw.random() < 0.7:
            yield from self._server(TransitionExecuted(number))
        if self._draw.random() < 0.5:
            yield from self._server(EpochPrepared(1, 1))

    def upgrade(self) -> Iterator[Event | Stamped]:
        """The voice server begins with E2EE in a call that goes on in the clear, and may never finish it."""
        world, draw = self.world, self._draw
        numbers = draw.sample(range(1, 4), draw.choice((1, 2)))
        if draw.random() < 0.5:
            world.unanswered.add("SendTransitionReady")
        yield from self._server(EpochPrepared(1, 1), ExternalSenderReceived(b"external sender"))
        for number in numbers:
            yield from self._server(WelcomeReceived(number, b"welcome"))
            world.advance(2 * world.latency_s)
        if draw.random() < 0.5:
            yield from self._server(TransitionExecuted(numbers[0]))

    def membership(self) -> Iterator[Event | Stamped]:
        """Others come and go."""
        user_id = self._draw.choice((OTHER, 7, 8))
        joined = self._draw.random() < 0.5
        yield from self._server(ClientsConnected((user_id,)) if joined else ClientDisconnected(user_id))

    def group(self) -> Iterator[Event | Stamped]:
        """The MLS library does not like what came, once or again and again."""
        number = self._draw.randrange(4)
        event = self._draw.choice(
            (GroupRejected(number, "simulated"), CommitIgnored(number), ProposalsRejected(False, b"\0", "simulated"))
        )
        for _ in range(self._draw.choice((1, 1, 1, 3))):
            yield event
        if self._draw.random() < 0.2:
            yield self.world._stamped(SocketClosed(None), numbered=False)

    def main_gateway(self) -> Iterator[Event | Stamped]:
        """Kicks, moves, other servers, null endpoints, a lost session, in any order."""
        number = self._draw.randrange(1000)
        if self._draw.random() < 0.05:
            yield VoiceStateUpdated(None, Secret(f"{CANARY} kicked"))
            return
        yield self._draw.choice(
            (
                VoiceStateUpdated(CHANNEL + number % 2, self._session_id(number), VoiceFlags(mute=number % 3 == 0)),
                VoiceServerUpdated(Secret(f"{CANARY} other {number}"), ENDPOINT),
                VoiceServerUpdated(Secret(f"{CANARY} null {number}"), None),
                SignallingFailed("RuntimeError"),
                MainSessionLost(),
                MainSessionStarted(),
                MainSessionResumed(),
            )
        )

    def moves(self) -> Iterator[Event | Stamped]:
        """Moved again and again, states and servers in any order."""
        for number in range(self._draw.choice((2, 5, 30))):
            if self._draw.random() < 0.5:
                yield VoiceStateUpdated(CHANNEL + number % 3, Secret(f"{CANARY} moved {self._draw.randrange(4)}"))
            else:
                yield VoiceServerUpdated(Secret(f"{CANARY} other {self._draw.randrange(4)}"), ENDPOINT)
            if self._draw.random() < 0.2:
                self.world.advance(self._draw.choice((0.02, 0.3)))

    def departure(self) -> Iterator[Event | Stamped]:
        """The call is moved, and its voice session ends before the new server is known."""
        world, draw = self.world, self._draw
        if draw.random() < 0.5:
            yield world._stamped(SocketClosed(None), numbered=False)
        yield VoiceStateUpdated(CHANNEL + draw.randrange(1, 3), self._session_id(draw.randrange(1000)))
        ends = (
            SocketClosed(draw.choice(CLOSE_CODES)),
            SocketFailed(ConnectionFailed("simulated")),
            DialPostponed(600.0),
        )
        yield world._stamped(draw.choice(ends), numbered=False)

    def crowd(self) -> Iterator[Event | Stamped]:
        """Very many come, and some go."""
        begin = self._draw.randrange(1, 5000)
        many = self._draw.choice((5, 50, 700))
        yield from self._server(ClientsConnected(tuple(range(begin, begin + many))))
        yield from self._server(ClientDisconnected(begin))

    def _session_id(self, number: int) -> Secret[str]:
        """Discord moves us under the same session id; another one is a session elsewhere."""
        present = self.world.session.call.session_id
        return present if present is not None and number % 5 else Secret(f"{CANARY} moved {number}")

    def bot(self) -> Iterator[Event | Stamped]:
        """Wishes, sensible or not."""
        wish = self._draw.random()
        if wish < 0.7:
            yield self._draw.choice((SpeechStarted(), SpeechEnded()))
        elif wish < 0.9:
            yield JoinRequested(CHANNEL + self._draw.randrange(2))
        elif wish < 0.95:
            yield JoinAbandoned(VoiceTimeout("simulated"))
        elif wish > 0.99:
            yield LeaveRequested()

    def hand_over(self) -> Iterator[Event | Stamped]:
        """The call goes to another process: frozen, or after a crash; its session may not be resumed there."""
        world, draw = self.world, self._draw
        if world.session.call.state == "closed":
            return
        if draw.random() < 0.3:
            code = draw.choice(CLOSE_CODES)
            world.instead["SendResume"] = lambda effect: [world._stamped(SocketClosed(code))]
        self.fold()
        ahead_s = draw.choice((None, 0.0, 0.05, 20.0))
        crash, away_s = draw.random() < 0.5, draw.choice((0.0, 0.05, 3.0, 70.0))
        endpoint = draw.choice((None, None, None, ANOTHER_ENDPOINT, NO_ENDPOINT))
        try:
            world.hand_over(
                crash=crash, away_s=away_s, announced_s=ahead_s, endpoint=endpoint, meanwhile=self._while_expected
            )
        except EventNotAllowed:
            self.run.faults["refused wishes"] += 1
        yield from ()

    def _while_expected(self) -> None:
        """What happens to a call that is dialled ahead, and not there yet."""
        draw = self._draw
        if draw.random() < 0.3:
            return
        wish = draw.choice((JoinRequested(CHANNEL), LeaveRequested(), FreezeRequested()))
        happening = draw.choice((self.close, self.close, self.failure, self.group, self.nudge, lambda: iter((wish,))))
        for event in happening():
            self._feed(event)

    def wear(self) -> Iterator[Event | Stamped]:
        """The key is used up, the path is quiet, gone, or elsewhere."""
        what = self._draw.choice((KeyExhausted(), NoncesMet(), PathUnheard(), PathLost("ENETUNREACH"), PathMoved()))
        on_path = not isinstance(what, KeyExhausted | NoncesMet)
        yield Stamped("udp", self.world.session.shared.udp_generation, what) if on_path else what

    def stall(self) -> Iterator[Event | Stamped]:
        """The process does not run for a while; timers fire late, one of them stale."""
        world = self.world
        world.now += self._draw.choice((0.5, 5.0, 60.0))
        name = self._draw.choice(("beat_due", "hello_timeout", "move_timeout", *world.timers))
        yield DeadlinePassed(name, world.timers.get(name, world.now) - 0.125)
        if self._draw.random() < 0.5:
            yield HostWoke(60.0)


HAPPENINGS: dict[str, Callable[[Chaos], Iterator[Event | Stamped]]] = {
    happening.__name__: happening
    for happening in (
        Chaos.silence,
        Chaos.deafness,
        Chaos.habit,
        Chaos.nudge,
        Chaos.close,
        Chaos.failure,
        Chaos.garbage,
        Chaos.repetition,
        Chaos.ghost,
        Chaos.old_pair,
        Chaos.oddity,
        Chaos.downgrade,
        Chaos.upgrade,
        Chaos.membership,
        Chaos.crowd,
        Chaos.group,
        Chaos.main_gateway,
        Chaos.moves,
        Chaos.departure,
        Chaos.bot,
        Chaos.hand_over,
        Chaos.wear,
        Chaos.stall,
    )
}
NAMES = tuple(HAPPENINGS)


def run_seed(seed: int) -> Run:
    """One run; what is only of interest where something broke is left out."""
    run = Chaos(seed).go()
    if run.violation is None:
        run.last.clear()
    return run
