"""Our membership's session: `states/call.toml`."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.effects import Closed, Connected, Moved, Reconnecting, SendVoiceState
from voicegw.errors import ConnectionFailed, InvalidEndpoint, Kicked, SignallingError, VoiceError
from voicegw.events import (
    CloseRequested,
    ConnectRequested,
    JoinAbandoned,
    JoinRequested,
    LeaveRequested,
    SessionLost,
    SignallingFailed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.signalling import Credentials
from voicegw.wire.endpoint import parse_endpoint

BACKOFF_BASE_S = 0.5
MAX_E2EE_FAILURES = 3
MAX_PAIRS_KEPT = 64


class CallSession(MachineSession):
    """The pair, the attempts, and why it ended."""

    __slots__ = (
        "attempts",
        "complaints",
        "departures",
        "dialled",
        "e2ee_failures",
        "endpoint",
        "error",
        "ever_connected",
        "forgiven",
        "session_id",
        "state_fresh",
        "token",
    )
    machine: ClassVar[str] = "call"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.session_id: Secret[str] | None = None
        self.token: Secret[str] | None = None
        self.endpoint: str | None = None
        self.dialled: deque[tuple[Secret[str], Secret[str]]] = deque(maxlen=MAX_PAIRS_KEPT)
        self.state_fresh = False
        self.departures = 0
        self.attempts = 0
        self.forgiven = False
        self.complaints = 0
        self.e2ee_failures = 0
        self.ever_connected = False
        self.error: VoiceError | None = None

    # deadlines

    def backoff(self) -> float:
        """The most that we wait before the next attempt; the adapter draws the jitter."""
        bound = self.table.deadlines["backoff_over"].seconds
        return min(bound, BACKOFF_BASE_S * 2.0 ** min(self.attempts, 16))

    # guards: the bot's wishes

    def there_already(self, event: JoinRequested) -> bool:
        """Is it the channel that we are in?"""
        return event.channel_id == self.shared.channel_id

    # guards: our voice state

    def own_departure(self, event: VoiceStateUpdated) -> bool:
        """Is this the answer to a leave of our own?"""
        return event.channel_id is None and self.departures > 0

    def no_channel(self, event: VoiceStateUpdated) -> bool:
        """Are we in no channel any more?"""
        return event.channel_id is None

    def changes_session(self, event: VoiceStateUpdated) -> bool:
        """Does it make the session in hand useless?"""
        return event.channel_id is not None and (
            event.session_id != self.session_id or event.channel_id != self.shared.channel_id
        )

    # guards: the pair

    def completes_pair(self, event: VoiceStateUpdated | VoiceServerUpdated) -> bool:
        """Is the other half of this join there, and was this pair never dialled?"""
        if isinstance(event, VoiceStateUpdated):
            return self.token is not None and self._unused(event.session_id, self.token)
        return self.session_id is not None and self._unused(self.session_id, event.token)

    def changes_session_afresh(self, event: VoiceStateUpdated) -> bool:
        """Does it make another pair of the server in hand, one that was never dialled?"""
        return self.changes_session(event) and self.token is not None and self._unused(event.session_id, self.token)

    def moved_once_too_often(self, event: VoiceStateUpdated) -> bool:
        """Does it make the session in hand useless, and was that the last attempt?"""
        return self.changes_session(event) and self.attempts_spent(event)

    def null_endpoint(self, event: VoiceServerUpdated) -> bool:
        """Did the voice server go away?"""
        return not event.endpoint

    def null_endpoint_once_too_often(self, event: VoiceServerUpdated) -> bool:
        """Did it go away, and was that the last attempt?"""
        return not event.endpoint and self.attempts_spent(event)

    def endpoint_refused(self, event: VoiceServerUpdated) -> bool:
        """Is it a host that must not be dialled?"""
        try:
            parse_endpoint(event.endpoint or "", self.shared.options.allowed_hosts)
        except InvalidEndpoint:
            return True
        return False

    def same_server(self, event: VoiceServerUpdated) -> bool:
        """Is it the one that we have, or one that this session was dialled with before?"""
        if event.token == self.token and event.endpoint == self.endpoint:
            return True
        return self.session_id is not None and not self._unused(self.session_id, event.token)

    def session_known(self, event: Any) -> bool:
        """Is there a session id to go with the server?"""
        return self.session_id is not None

    def state_came_first(self, event: Any) -> bool:
        """Did a new voice state announce this server?"""
        return self.state_fresh

    def pair_fresh(self, event: Any) -> bool:
        """Is there a pair that was not dialled yet?"""
        return self.session_id is not None and self.token is not None and self._unused(self.session_id, self.token)

    # guards: attempts

    def attempts_spent(self, event: Any) -> bool:
        """Was that the last attempt?"""
        return self.attempts + 1 >= self.shared.options.max_attempts

    def never_connected(self, event: Any) -> bool:
        """Has there been no session yet?"""
        return not self.ever_connected

    def already_forgiven(self, event: Any) -> bool:
        """Has there been one second try already?"""
        return self.forgiven

    def complained_before(self, event: Any) -> bool:
        """Is this the second complaint in a row?"""
        return self.complaints > 0

    def e2ee_hopeless(self, event: Any) -> bool:
        """Have fresh sessions not helped either?"""
        return self.e2ee_failures + 1 >= MAX_E2EE_FAILURES

    def waits_out_rate_limits(self, event: Any) -> bool:
        """Does the bot want to come back after the cool-down?"""
        return self.shared.options.rejoin_after_rate_limit

    def no_other_mode(self, event: Any) -> bool:
        """Has every mode been refused?"""
        return all(mode in self.shared.modes_refused for mode in self.shared.options.modes)

    # effects: main gateway

    def note_channel(self, event: JoinRequested) -> None:
        """Where we want to be."""
        self.shared.channel_id = event.channel_id

    def send_join(self, event: Any) -> None:
        """Op 4; both halves of the pair must belong to it."""
        self.forget_pair(event)
        self.shared.effects.append(SendVoiceState(self.shared.channel_id))

    def send_move(self, event: JoinRequested) -> None:
        """Op 4 with another channel; the present session runs on until both updates came."""
        self.shared.effects.append(SendVoiceState(event.channel_id))

    def send_leave(self, event: Any) -> None:
        """Op 4 with no channel, so that no ghost stays behind."""
        self.departures += 1
        self.shared.effects.append(SendVoiceState(None))

    def note_departure(self, event: Any) -> None:
        """One leave of ours was answered."""
        self.departures -= 1

    # effects: the pair

    def forget_pair(self, event: Any) -> None:
        """Values of an earlier round are never used again."""
        self.session_id = None
        self.state_fresh = False
        self.forget_server(event)

    def forget_server(self, event: Any) -> None:
        """The server is gone, its token with it."""
        self.token = None
        self.endpoint = None

    def note_voice_state(self, event: VoiceStateUpdated) -> None:
        """Session id and channel; flags alone change nothing."""
        if event.channel_id is not None and self.changes_session(event):
            self.session_id = event.session_id
            self.shared.channel_id = event.channel_id
            self.state_fresh = True

    def note_voice_server(self, event: VoiceServerUpdated) -> None:
        """Token and endpoint."""
        self.token = event.token
        self.endpoint = event.endpoint

    def count_duplicate(self, event: Any) -> None:
        """The same server again."""
        self.shared.counters["duplicate server updates"] += 1

    def dial(self, event: Any) -> None:
        """Hand the complete pair to the gateway machine."""
        assert self.session_id is not None
        assert self.token is not None
        assert self.endpoint is not None
        self.state_fresh = False
        self.dialled.append((self.session_id, self.token))
        self.shared.credentials = Credentials(
            guild_id=self.shared.guild_id,
            channel_id=self.shared.channel_id,
            user_id=self.shared.user_id,
            session_id=self.session_id,
            token=self.token,
            endpoint=self.endpoint,
        )
        self.shared.signals.append(ConnectRequested())

    def close_gateway(self, event: Any) -> None:
        """End the voice session."""
        self.shared.signals.append(CloseRequested())

    # effects: attempts

    def spend_attempt(self, event: Any) -> None:
        """One more without reaching ready."""
        self.attempts += 1

    def forgive(self, event: Any) -> None:
        """One second try."""
        self.forgiven = True

    def note_complaint(self, event: Any) -> None:
        """The first of two."""
        self.complaints += 1

    def note_e2ee_failure(self, event: Any) -> None:
        """A fresh session because of E2EE."""
        self.e2ee_failures += 1

    def note_connected(self, event: Any) -> None:
        """Attempts and complaints count from here again; what was forgiven once stays so."""
        self.ever_connected = True
        self.attempts = 0
        self.complaints = 0
        self.departures = 0

    def note_group(self, event: Any) -> None:
        """E2EE works: what failed before is forgotten."""
        self.e2ee_failures = 0

    # effects: why it ended

    def note_lost(self, event: SessionLost) -> None:
        """The voice session's own words."""
        self.error = event.error

    def note_left(self, event: LeaveRequested | JoinAbandoned) -> None:
        """The bot's wish, or what it could not wait for."""
        self.error = event.error if isinstance(event, JoinAbandoned) else None

    def note_kicked(self, event: Any) -> None:
        """Taken out by somebody."""
        self.departures = 0
        self.error = Kicked("taken out of the voice channel by a moderator, or the channel is gone")

    def note_no_answer(self, event: Any) -> None:
        """Discord answers a full or forbidden channel with silence."""
        self.error = SignallingError(
            "the main gateway did not answer the join within 10 s: the channel is full, "
            f"the bot may not connect to it, or the bot is offline{self._before()}"
        )

    def note_signalling_failed(self, event: SignallingFailed) -> None:
        """The bot's own gateway is away."""
        self.error = SignallingError(
            f"the bot's gateway could not send the join ({event.reason}); is it connected?{self._before()}"
        )

    def note_endpoint_refused(self, event: VoiceServerUpdated) -> None:
        """A host that is not Discord's."""
        try:
            parse_endpoint(event.endpoint or "", self.shared.options.allowed_hosts)
        except InvalidEndpoint as error:
            self.error = error

    def note_gave_up(self, event: Any) -> None:
        """The attempts are spent; the last failure says why."""
        last = f": {self.error}" if self.error is not None else ""
        self.error = ConnectionFailed(f"gave up after {self.attempts + 1} attempts{last}")

    # effects: what the bot hears

    def report_connected(self, event: Any) -> None:
        """There."""
        self.shared.report(Connected(self.shared.channel_id))

    def report_moved(self, event: Any) -> None:
        """There again."""
        self.shared.report(Moved(self.shared.channel_id))

    def report_reconnecting(self, event: Any) -> None:
        """On the way back."""
        reason = str(event.error) if isinstance(event, SessionLost) else event.name.replace("_", " ")
        self.shared.report(Reconnecting(reason))

    def report_left(self, event: Any) -> None:
        """Never was there."""
        self.shared.report(Closed(None))

    def report_closed(self, event: Any) -> None:
        """Gone."""
        self.shared.report(Closed(self.error))

    def _before(self) -> str:
        """What went wrong first: another join was its consequence."""
        return f" Before that: {self.error}" if isinstance(self.error, ConnectionError) else ""

    def _unused(self, session_id: Secret[str], token: Secret[str]) -> bool:
        return (session_id, token) not in self.dialled
