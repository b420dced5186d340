"""The core of a call: events in, effects out. It opens nothing, reads no clock and draws no random number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from voicegw.core.call import CallSession
from voicegw.core.dave import DaveSession
from voicegw.core.gateway import GatewaySession
from voicegw.core.heartbeat import HeartbeatSession
from voicegw.core.lease import LeaseSession
from voicegw.core.machine_session import MachineSession
from voicegw.core.main_gateway import MainGatewaySession
from voicegw.core.ownership import OwnershipSession
from voicegw.core.shared import E2EEPolicy, Options, Shared
from voicegw.core.signals import MessagesLost, Signal
from voicegw.core.speech import SpeechSession
from voicegw.core.transport import TransportSession
from voicegw.effects import Effect
from voicegw.events import DeadlinePassed, Event, FrameRejected, SocketClosed, Stamped
from voicegw.secret import Secret
from voicegw.snapshot import SessionSnapshot

__all__ = ["ALL_SESSIONS", "SESSIONS", "E2EEPolicy", "Options", "Transition", "VoiceSession"]

SESSIONS: Mapping[str, type[MachineSession]] = {
    session.machine: session
    for session in (GatewaySession, HeartbeatSession, TransportSession, DaveSession, SpeechSession, CallSession)
}

# Every table's session: those of a call, the login of a bot that has no framework, and a fleet's worker.
ALL_SESSIONS: Mapping[str, type[MachineSession]] = {
    **SESSIONS,
    **{session.machine: session for session in (MainGatewaySession, LeaseSession, OwnershipSession)},
}

SESSION_PHASES = ("R", "U")  # of the gateway's states: there is a voice session that can be resumed

# Which machines hear a word, in the order in which they do.
HEARERS: Mapping[str, tuple[str, ...]] = {
    word: tuple(name for name, session in SESSIONS.items() if word in session.table.vocabulary)
    for heard in SESSIONS.values()
    for word in heard.table.vocabulary
}


class Transition(NamedTuple):
    """One step of one machine, for logs, tests and pictures; `row` counts from 1 in its table."""

    machine: str
    before: str
    event: str
    after: str
    at: float
    row: int = 0


class VoiceSession:
    """The six machines of one call, moved by one door.

    `receive(event, now)` feeds one event to every machine whose table knows it, then the signals that the machines
    gave each other, and returns the effects in the order in which they must be carried out. `now` is monotonic, in
    seconds.
    """

    __slots__ = (
        "call",
        "dave",
        "gateway",
        "heartbeat",
        "observer",
        "shared",
        "speech",
        "transport",
    )

    def __init__(
        self,
        user_id: int,
        guild_id: int,
        options: Options | None = None,
        observer: Callable[[Transition], None] | None = None,
    ) -> None:
        self.shared = Shared(user_id, guild_id, options or Options())
        self.observer = observer
        self.gateway = GatewaySession(self.shared)
        self.heartbeat = HeartbeatSession(self.shared)
        self.transport = TransportSession(self.shared)
        self.dave = DaveSession(self.shared)
        self.speech = SpeechSession(self.shared)
        self.call = CallSession(self.shared)

    @property
    def machines(self) -> tuple[MachineSession, ...]:
        """All six, in the order in which they see an event."""
        return tuple(getattr(self, name) for name in SESSIONS)

    @property
    def states(self) -> dict[str, str]:
        """Every machine's state."""
        return {machine.machine: machine.state for machine in self.machines}

    def snapshot(self, ssrcs: Iterable[tuple[int, int]] = ()) -> SessionSnapshot:
        """What another process needs to go on with this call; `ssrcs` are pairs of SSRC and user id.

        Its secrets are copies: they outlive the session.
        """
        call, gateway, dave, shared = self.call, self.gateway, self.dave, self.shared
        pair, key = shared.credentials, gateway.key
        alive = gateway.table.states[gateway.state].phase in SESSION_PHASES
        place = (call.session_id, shared.channel_id)
        if pair is None or not key or not alive or (pair.session_id, pair.channel_id) != place:
            return SessionSnapshot(shared.channel_id, call.home)
        return SessionSnapshot(
            channel_id=shared.channel_id,
            home=call.home,
            session_id=Secret(pair.session_id.reveal()),
            token=Secret(pair.token.reveal()),
            endpoint=pair.endpoint,
            seq_ack=shared.sequence.last,
            ssrc=shared.ssrc,
            media=self.transport.server,
            selected=gateway.selected,
            mode=gateway.mode,
            secret_key=Secret(key.reveal()),
            users=tuple(sorted(shared.users)),
            ssrcs=tuple(ssrcs),
            dave=dave.standing,
            dave_protocol_version=dave.version,
            epoch=dave.epoch,
            external_sender=dave.external_sender,
            last_transition=dave.last_transition,
        )

    def receive(self, event: Event | Stamped, now: float) -> list[Effect]:
        """Feed one event; carry out the returned effects in order.

        A stamped event of another generation, a message that was applied before (same number, same content), and a
        timer that was cancelled or armed anew have no effect.

        Raises:
            EventNotAllowed: the bot asked for something that the present state forbids; nothing has changed.
        """
        shared = self.shared
        shared.now = now
        if isinstance(event, Stamped):
            accepted = self._unstamp(event)
            if accepted is None:
                return []
            event = accepted
        if isinstance(event, DeadlinePassed):
            if shared.timers.get(event.name) != event.at:
                shared.counters["stale timers"] += 1
                return []
            del shared.timers[event.name]
        shared.effects = []
        self._fire(self.gateway.judge(event) if isinstance(event, SocketClosed) else event)
        while shared.signals:
            self._fire(shared.signals.popleft())
        return shared.effects

    def _unstamp(self, stamped: Stamped) -> Event | None:
        shared = self.shared
        current = shared.socket_generation if stamped.source == "websocket" else shared.udp_generation
        if stamped.generation != current:
            shared.counters["events of an older generation"] += 1
            return None
        if (odd := shared.sequence.note(stamped.seq)) is not None:
            shared.counters[f"sequence numbers {odd}"] += 1
            if odd == "lost":
                shared.signals.append(MessagesLost())
        if stamped.source == "websocket" and not isinstance(stamped.event, FrameRejected):
            self.gateway.rejected_in_row = 0
            if stamped.seq is not None and not shared.sequence.applies(stamped.seq, stamped.event):
                shared.counters["messages replayed"] += 1
                return None
        return stamped.event

    def _fire(self, event: Event | Signal) -> None:
        hearers = HEARERS.get(event.name, ())
        if not hearers:
            self.shared.counters[f"ignored: {event.name}"] += 1
        for hearer in hearers:
            machine: MachineSession = getattr(self, hearer)
            before = machine.state
            taken = machine.fire(event)
            if taken is not None and self.observer is not None:
                now, row = self.shared.now, taken.row.number
                step = (machine.machine, before, event.name, machine.state, now, row)
                self.observer(tuple.__new__(Transition, step))  # a third of the time that its own constructor takes
