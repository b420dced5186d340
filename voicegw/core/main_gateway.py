"""A bot's own login: `states/main_gateway.toml`, with the heart of `states/heartbeat.toml` beside it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from voicegw.core.heartbeat import HeartbeatSession
from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Options, Shared
from voicegw.core.signals import GatewayClosed, HeartStarted, SessionEnded
from voicegw.effects import AbortSocket, CloseSocket, Effect, OpenSocket, SendIdentify, SendResume
from voicegw.errors import ConnectionClosed, ConnectionFailed, LoginRefused, VoiceError
from voicegw.events import (
    DeadlinePassed,
    MainSessionLost,
    MainSessionResumed,
    MainSessionStarted,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRefused,
)
from voicegw.secret import Secret
from voicegw.wire.payloads import HeartbeatAcked, HeartbeatRequested, HelloReceived

BACKOFF_BASE_S = 1.0
MAX_ATTEMPTS = 8
HEARTBEAT_BOUND_S = 60.0  # the main gateway is beaten at the interval of its Hello, 41.25 s


@dataclass(frozen=True, slots=True)
class LoginRequested:
    """The tool wants to be logged in."""

    name: ClassVar[str] = "login_requested"


@dataclass(frozen=True, slots=True)
class LogoutRequested:
    """The tool is done."""

    name: ClassVar[str] = "logout_requested"


@dataclass(frozen=True, slots=True)
class LoginAccepted:
    """READY: who we are, the session, and where it is resumed."""

    name: ClassVar[str] = "login_accepted"
    user_id: int
    session_id: Secret[str]
    resume_url: str


@dataclass(frozen=True, slots=True)
class LoginResumed:
    """RESUMED."""

    name: ClassVar[str] = "login_resumed"


@dataclass(frozen=True, slots=True)
class SessionInvalidated:
    """Op 9; `resumable` says whether the session is only not to be had yet."""

    name: ClassVar[str] = "session_invalidated"
    resumable: bool


@dataclass(frozen=True, slots=True)
class ReconnectRequested:
    """Op 7."""

    name: ClassVar[str] = "reconnect_requested"


LoginEvent = (
    LoginRequested
    | LogoutRequested
    | LoginAccepted
    | LoginResumed
    | SessionInvalidated
    | ReconnectRequested
    | HelloReceived
    | HeartbeatAcked
    | HeartbeatRequested
    | SocketOpened
    | SocketFailed
    | SocketRefused
    | SocketClosed
    | DeadlinePassed
)


class MainGatewaySession(MachineSession):
    """Which session, how many attempts, and why it ended."""

    __slots__ = ("attempts", "error", "resume_url", "session_id", "told", "user_id")
    machine: ClassVar[str] = "main_gateway"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.session_id: Secret[str] | None = None
        self.resume_url = ""
        self.user_id = 0
        self.attempts = 0
        self.told: list[MainSessionLost | MainSessionStarted | MainSessionResumed] = []
        self.error: VoiceError | None = None

    # deadlines

    def backoff(self) -> float:
        """The most that we wait before the next attempt; the adapter draws the jitter."""
        return min(self.bound("login_backoff_over"), BACKOFF_BASE_S * 2.0**self.attempts)

    # guards

    def session_known(self, event: Any) -> bool:
        """Is there a session to resume?"""
        return self.session_id is not None

    def session_resumable(self, event: SessionInvalidated) -> bool:
        """Does the server say that it can still be had?"""
        return event.resumable

    def attempts_spent(self, event: Any) -> bool:
        """Was that the last attempt?"""
        return self.attempts + 1 >= MAX_ATTEMPTS

    # effects: the session

    def note_session(self, event: LoginAccepted) -> None:
        """Who we are, and how to come back."""
        self.user_id = event.user_id
        self.session_id = event.session_id
        self.resume_url = event.resume_url
        self.attempts = 0

    def note_resumed(self, event: Any) -> None:
        """Attempts count from here again."""
        self.attempts = 0

    def forget_session(self, event: Any) -> None:
        """The next login is a new one."""
        self.session_id = None
        self.resume_url = ""
        self.shared.sequence.reset()

    def spend_attempt(self, event: Any) -> None:
        """One more without being logged in."""
        self.attempts += 1

    # effects: the websocket and its heart

    def open_socket(self, event: Any) -> None:
        """Dial; events of older sockets count no more."""
        self.shared.socket_generation += 1
        self.shared.effects.append(OpenSocket(self.shared.socket_generation))

    def abort_socket(self, event: Any) -> None:
        """Drop it without a word, and hear nothing more of it."""
        self.shared.socket_generation += 1
        self.shared.effects.append(AbortSocket())

    def close_socket(self, event: Any) -> None:
        """Close with 1000, which ends the session."""
        self.shared.socket_generation += 1
        self.shared.effects.append(CloseSocket(1000))

    def start_heart(self, event: HelloReceived) -> None:
        """Beat at Hello's interval."""
        self.shared.signals.append(HeartStarted(event.heartbeat_interval_s))

    def end_heart(self, event: Any) -> None:
        """A heart belongs to one websocket."""
        self.shared.signals.append(GatewayClosed())

    def send_identify(self, event: Any) -> None:
        """Op 2."""
        self.shared.effects.append(SendIdentify(0))

    def send_resume(self, event: Any) -> None:
        """Op 6, with the last number seen."""
        self.shared.effects.append(SendResume(self.shared.sequence.last))

    # effects: what voice calls hear, in `told` until somebody takes it from there

    def tell_lost(self, event: Any) -> None:
        """The session is dead, and its voice sessions with it."""
        self.told.append(MainSessionLost())

    def tell_started(self, event: Any) -> None:
        """There is a session, perhaps another one than the calls knew."""
        self.told.append(MainSessionStarted())

    def tell_resumed(self, event: Any) -> None:
        """The session lives on; voice is untouched."""
        self.told.append(MainSessionResumed())

    # effects: what the tool hears

    def report_gave_up(self, event: Any) -> None:
        """The attempts are spent."""
        what = event.error if isinstance(event, SocketFailed) else _words(event)
        self.error = ConnectionFailed(f"gave the main gateway up after {self.attempts + 1} attempts: {what}")

    def report_refused(self, event: SocketRefused) -> None:
        """The certificate is wrong."""
        self.error = event.error

    def report_closed_for_good(self, event: SessionEnded) -> None:
        """Wrong token, forbidden intents."""
        self.error = LoginRefused(event.reason)


class LoginSession:
    """The door of both machines: `receive(event, now)` returns the effects in the order of their carrying out."""

    def __init__(self) -> None:
        self.shared = Shared(0, 0, Options(deadlines={"beat_due": HEARTBEAT_BOUND_S}))
        self.login = MainGatewaySession(self.shared)
        self.heartbeat = HeartbeatSession(self.shared)

    def receive(self, event: LoginEvent, now: float, *, generation: int | None = None) -> list[Effect]:
        """Feed one event; one of an older socket's `generation`, or of a timer armed anew, has no effect.

        Raises:
            EventNotAllowed: a login where there is one.
        """
        shared = self.shared
        shared.now = now
        if generation is not None and generation != shared.socket_generation:
            return []
        if isinstance(event, DeadlinePassed):
            if shared.timers.get(event.name) != event.at:
                return []
            del shared.timers[event.name]
        shared.effects = []
        self._fire(self._judge(event) if isinstance(event, SocketClosed) else event)
        while shared.signals:
            self._fire(shared.signals.popleft())
        return shared.effects

    def _judge(self, event: SocketClosed) -> SessionEnded:
        entry = self.login.table.close_event(event.code)
        return SessionEnded(entry.event, event.code, entry.reason)

    def _fire(self, event: Any) -> None:
        for machine in (self.login, self.heartbeat):
            if event.name in machine.table.vocabulary:
                machine.fire(event)


def _words(event: Any) -> VoiceError | str:
    if isinstance(event, SessionEnded):
        return ConnectionClosed(event.code, event.reason)
    return str(event.name.replace("_", " "))
