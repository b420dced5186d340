"""Our membership's session: `states/call.toml`."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.core.signals import (
    AbortRequested,
    CloseRequested,
    ConnectRequested,
    DialAheadRequested,
    SessionLost,
    SessionThawed,
)
from voicegw.effects import (
    Closed,
    Connected,
    FlagsChanged,
    Moved,
    MoveFailed,
    Reconnecting,
    SendVoiceState,
    Warned,
)
from voicegw.errors import ConnectionFailed, InvalidEndpoint, Kicked, SignallingError, VoiceError
from voicegw.events import (
    CallThawed,
    HandOverAnnounced,
    JoinAbandoned,
    JoinRequested,
    LeaveRequested,
    SignallingFailed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.signalling import NO_FLAGS, Credentials
from voicegw.wire.endpoint import check_media_address, parse_endpoint

BACKOFF_BASE_S = 0.5
MAX_E2EE_FAILURES = 3
MAX_PAIRS_KEPT = 64


class CallSession(MachineSession):
    """The pair, the attempts, and why it ended."""

    __slots__ = (
        "asked_at",
        "attempts",
        "complained",
        "departures",
        "dialled",
        "e2ee_failures",
        "endpoint",
        "error",
        "ever_connected",
        "far_turn_s",
        "flags",
        "forgiven",
        "home",
        "inside",
        "last_server",
        "left_at",
        "server_alone_since",
        "session_id",
        "state_alone",
        "token",
    )
    machine: ClassVar[str] = "call"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        # the pair in hand; a half is alone until its other half came
        self.session_id: Secret[str] | None = None
        self.token: Secret[str] | None = None
        self.endpoint: str | None = None
        self.state_alone = False
        self.server_alone_since: float | None = None
        # what came before
        self.last_server: tuple[Secret[str], str | None] | None = None
        self.dialled: deque[tuple[Secret[str], Secret[str]]] = deque(maxlen=MAX_PAIRS_KEPT)
        # where the main gateway has us
        self.inside = False
        self.departures = 0
        self.flags = NO_FLAGS
        self.home = 0
        # attempts
        self.asked_at = 0.0
        self.left_at: float | None = None
        self.attempts = 0
        self.far_turn_s = 0.0
        self.forgiven = False
        self.complained = False
        self.e2ee_failures = 0
        self.ever_connected = False
        self.error: VoiceError | None = None

    # deadlines

    def backoff(self) -> float:
        """The most that we wait before the next attempt; the adapter draws the jitter."""
        return min(self.bound("backoff_over"), BACKOFF_BASE_S * 2.0 ** min(self.attempts, 16))

    def far_turn(self) -> float:
        """How far away our turn to dial is; a budget's window and some spreading at most."""
        return min(self.bound("far_turn_over"), self.far_turn_s)

    def rest_of_pair(self) -> float:
        """What is left for the pair since the first op 4."""
        return max(0.0, self.asked_at + self.bound("pair_timeout") - self.shared.now)

    def rest_of_leave(self) -> float:
        """What is left since the bot left; all of it where somebody else ended the call."""
        begun = self.shared.now if self.left_at is None else self.left_at
        return max(0.0, begun + self.bound("leave_timeout") - self.shared.now)

    # guards: the bot's wishes

    def there_already(self, event: JoinRequested) -> bool:
        """Is it the channel that we are in?"""
        return event.channel_id == self.shared.channel_id

    def may_be_dialled(self, event: HandOverAnnounced) -> bool:
        """Does the endpoint pass the rule for endpoints?"""
        return self._may_be_dialled(event.announced.endpoint)

    def resumable(self, event: CallThawed) -> bool:
        """Is there a session that may be resumed, at addresses that may be dialled?"""
        snapshot, options = event.snapshot, self.shared.options
        if not (snapshot.session_id and snapshot.token and snapshot.secret_key):
            return False
        if not self._may_be_dialled(snapshot.endpoint):
            return False
        try:
            check_media_address(snapshot.media[0], options.allow_private_media)
        except InvalidEndpoint:
            return False
        return True

    # guards: our voice state

    def own_departure(self, event: VoiceStateUpdated) -> bool:
        """Is this the answer to a leave of our own?"""
        return event.channel_id is None and self.departures > 0

    def stale_departure(self, event: VoiceStateUpdated) -> bool:
        """Are we told that we are out before we were told that we are in?"""
        return event.channel_id is None and not self.inside

    def no_channel(self, event: VoiceStateUpdated) -> bool:
        """Are we in no channel any more?"""
        return event.channel_id is None

    def changes_session(self, event: VoiceStateUpdated) -> bool:
        """Does it make the session in hand useless?"""
        return event.channel_id is not None and (
            event.session_id != self.session_id or event.channel_id != self.shared.channel_id
        )

    def session_of_server(self, event: VoiceStateUpdated) -> bool:
        """Does a voice server that came alone belong to this new session id?"""
        return self._server_alone() and event.session_id != self.session_id and self.completes_pair(event)

    def channel_of_server(self, event: VoiceStateUpdated) -> bool:
        """Does a voice server that came alone belong to this new channel?"""
        return self._server_alone() and self.changes_session(event) and event.session_id == self.session_id

    def supersedes_last_attempt(self, event: VoiceStateUpdated) -> bool:
        """Does it make the session in hand useless, and was that the last attempt?"""
        same = event.session_id == self.session_id
        corrects = same and self._server_alone()
        return self.changes_session(event) and not corrects and self.attempts_spent(event)

    def channel_changed(self, event: Any) -> bool:
        """Are we in another channel than the bot knows?"""
        return self.ever_connected and self.shared.channel_id != self.home

    # guards: the pair

    def completes_pair(self, event: VoiceStateUpdated) -> bool:
        """Is the server of this join there, and the pair not used up?"""
        if self.token is None or event.channel_id is None:
            return False
        return (event.session_id, self.token) not in self.dialled

    def null_endpoint(self, event: VoiceServerUpdated) -> bool:
        """Did the voice server go away?"""
        return not event.endpoint

    def null_endpoint_once_too_often(self, event: VoiceServerUpdated) -> bool:
        """Did it go away, and was that the last attempt?"""
        return not event.endpoint and self.attempts_spent(event)

    def endpoint_refused(self, event: VoiceServerUpdated) -> bool:
        """Is it a host that must not be dialled?"""
        return not self._may_be_dialled(event.endpoint)

    def same_server(self, event: VoiceServerUpdated) -> bool:
        """Is it the last one again, or does it make a pair that was used?"""
        if (event.token, event.endpoint) == self.last_server:
            return True
        return bool(event.endpoint) and (self.session_id, event.token) in self.dialled

    def session_known(self, event: Any) -> bool:
        """Is there a session id to go with the server?"""
        return self.session_id is not None

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
        return self.complained

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

    def note_channel(self, event: JoinRequested | CallThawed) -> None:
        """Where we want to be."""
        self.shared.channel_id = event.channel_id

    def note_home(self, event: CallThawed) -> None:
        """Where the other process was connected last, if it ever was."""
        self.home = event.snapshot.home
        self.ever_connected = self.home != 0

    def note_thawed(self, event: CallThawed) -> None:
        """The session of the other process is ours: its pair is used up, and its resume is the gateway's work."""
        snapshot = event.snapshot
        assert snapshot.session_id is not None
        assert snapshot.token is not None
        assert snapshot.endpoint is not None
        self.inside = True
        self.session_id, self.token, self.endpoint = snapshot.session_id, snapshot.token, snapshot.endpoint
        self.last_server = (snapshot.token, snapshot.endpoint)
        self._use_pair()
        self.shared.signals.append(SessionThawed(snapshot))

    def note_frozen(self, event: Any) -> None:
        """Our place in the channel and the voice session are another process's from here on."""
        self.error = None

    def begin_pair(self, event: Any) -> None:
        """The time for a pair runs from here."""
        self.forget_pair(event)
        self.asked_at = self.shared.now

    def send_join(self, event: Any) -> None:
        """Op 4."""
        self.shared.effects.append(SendVoiceState(self.shared.channel_id))

    def send_move(self, event: JoinRequested) -> None:
        """Op 4 with another channel; the present session runs on until both updates came."""
        self.shared.effects.append(SendVoiceState(event.channel_id))

    def send_leave(self, event: Any) -> None:
        """Op 4 with no channel, so that no ghost stays behind."""
        self.departures += 1
        self.last_server = None
        self.shared.effects.append(SendVoiceState(None))

    def note_departure(self, event: Any) -> None:
        """One leave of ours was answered, or never will be."""
        self.departures = max(0, self.departures - 1)
        self.inside = False

    def count_stale_departure(self, event: Any) -> None:
        """Somebody left before us."""
        self.shared.counters["stale departures"] += 1

    def forget_membership(self, event: Any) -> None:
        """The main gateway's session is dead, and with it all that it said of us."""
        self.inside = False
        self.departures = 0
        self.last_server = None
        self.forget_pair(event)

    # effects: the pair

    def forget_pair(self, event: Any) -> None:
        """Values of an earlier round are never used again."""
        self.session_id = None
        self.state_alone = False
        self.forget_server(event)

    def forget_server(self, event: Any) -> None:
        """The server is gone, its token with it."""
        self.token = None
        self.endpoint = None
        self.server_alone_since = None

    def note_voice_state(self, event: VoiceStateUpdated) -> None:
        """Session id, channel and flags; flags alone change nothing."""
        self.inside = True
        if self.changes_session(event):
            assert event.channel_id is not None
            self.session_id = event.session_id
            self.shared.channel_id = event.channel_id
            self.state_alone = not self._server_alone()
            self.server_alone_since = None
        if event.flags != self.flags:
            self.flags = event.flags
            self.shared.report(FlagsChanged(event.flags))

    def note_voice_server(self, event: VoiceServerUpdated) -> None:
        """Token and endpoint."""
        self.token = event.token
        self.endpoint = event.endpoint
        self.last_server = (event.token, event.endpoint)
        self.server_alone_since = None if self.state_alone else self.shared.now
        self.state_alone = False

    def note_server_gone(self, event: VoiceServerUpdated) -> None:
        """No endpoint: neither the old token nor the new one is of any use."""
        self.forget_server(event)
        self.last_server = (event.token, event.endpoint)

    def count_duplicate(self, event: Any) -> None:
        """The same server again."""
        self.shared.counters["ignored: duplicate server update"] += 1

    def dial(self, event: Any) -> None:
        """Hand the complete pair to the gateway machine; it serves once."""
        self._use_pair()
        self.shared.signals.append(ConnectRequested())

    def dial_again(self, event: Any) -> None:
        """The same pair, for an Identify: the session that it was used for is dead."""
        self.shared.signals.append(ConnectRequested())

    def dial_ahead(self, event: HandOverAnnounced) -> None:
        """Have a websocket and a key package when the call comes."""
        self.shared.signals.append(DialAheadRequested(event.announced))

    def _may_be_dialled(self, endpoint: str | None) -> bool:
        try:
            parse_endpoint(endpoint or "", self.shared.options.allowed_hosts)
        except InvalidEndpoint:
            return False
        return True

    def _use_pair(self) -> None:
        assert self.session_id is not None
        assert self.token is not None
        assert self.endpoint is not None
        self.dialled.append((self.session_id, self.token))
        self.shared.credentials = Credentials(
            guild_id=self.shared.guild_id,
            channel_id=self.shared.channel_id,
            user_id=self.shared.user_id,
            session_id=self.session_id,
            token=self.token,
            endpoint=self.endpoint,
        )

    def correct_channel(self, event: Any) -> None:
        """The session that is being made is of the channel that we hear of now."""
        assert self.shared.credentials is not None
        self.shared.credentials = replace(self.shared.credentials, channel_id=self.shared.channel_id)

    def close_gateway(self, event: Any) -> None:
        """End the voice session."""
        self.shared.signals.append(CloseRequested())

    def abort_gateway(self, event: Any) -> None:
        """End the voice session without another word to its server."""
        self.shared.signals.append(AbortRequested())

    # effects: attempts

    def spend_attempt(self, event: Any) -> None:
        """One more without reaching ready."""
        self.attempts += 1

    def note_far_turn(self, event: SessionLost) -> None:
        """When it comes."""
        self.far_turn_s = event.after_s

    def forgive(self, event: Any) -> None:
        """One second try."""
        self.forgiven = True

    def note_complaint(self, event: Any) -> None:
        """The first of two."""
        self.complained = True

    def note_e2ee_failure(self, event: Any) -> None:
        """A fresh session because of E2EE."""
        self.e2ee_failures += 1

    def note_connected(self, event: Any) -> None:
        """Attempts and complaints count from here again; what was forgiven once stays so."""
        self.ever_connected = True
        self.home = self.shared.channel_id
        self.attempts = 0
        self.complained = False
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
        self.left_at = self.shared.now

    def note_leave_unsent(self, event: SignallingFailed) -> None:
        """The bot stays visible in the channel until Discord notices."""
        self.error = SignallingError(f"the bot's gateway could not send the leave ({event.reason}); is it connected?")

    def note_kicked(self, event: Any) -> None:
        """Taken out by somebody; the same words whether the main gateway or the voice server tells it first."""
        self.error = Kicked("taken out of the voice channel by a moderator, or the channel or the call is gone")

    def note_no_answer(self, event: Any) -> None:
        """Discord answers a full or forbidden channel with silence."""
        half = "" if self.session_id is None and self.token is None else " in full"
        self.error = SignallingError(
            f"the main gateway did not answer the join{half} within {self.bound('pair_timeout'):g} s: the channel is "
            f"full, the bot may not connect to it, or the bot is offline{self._before()}"
        )

    def note_signalling_failed(self, event: SignallingFailed) -> None:
        """The bot's own gateway is away."""
        self.error = SignallingError(f"{_unsent(event)}{self._before()}")

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

    def warn_signalling_failed(self, event: SignallingFailed) -> None:
        """The bot's own gateway is away; it is asked again later."""
        self.shared.report(Warned(str(_unsent(event))))

    def report_move_failed(self, event: SignallingFailed) -> None:
        """The wish went nowhere."""
        self.shared.report(MoveFailed(_unsent(event)))

    def report_left(self, event: Any) -> None:
        """Never was there."""
        self.shared.report(Closed(None))

    def report_closed(self, event: Any) -> None:
        """Gone."""
        self.shared.report(Closed(self.error))

    def _before(self) -> str:
        """What went wrong first: another join was its consequence."""
        return f" Before that: {self.error}" if isinstance(self.error, ConnectionError) else ""

    def _server_alone(self) -> bool:
        """Has a voice server come, and the voice state that may belong to it not yet?"""
        since = self.server_alone_since
        return since is not None and self.shared.now - since <= self.bound("pair_timeout")


def _unsent(event: SignallingFailed) -> SignallingError:
    return SignallingError(f"the bot's gateway could not send the join ({event.reason}); is it connected?")
