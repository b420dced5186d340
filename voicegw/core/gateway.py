"""The voice websocket's session: `states/gateway.toml`."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.core.signals import (
    DialAheadRequested,
    DiscoveryFailed,
    E2eeAgreed,
    GatewayClosed,
    GatewayDown,
    GatewayInterrupted,
    GatewayReady,
    GatewayResumed,
    HeartStarted,
    MediaOffered,
    SessionEnded,
    SessionLost,
    SessionThawed,
)
from voicegw.effects import (
    AbortSocket,
    CloseSocket,
    DowngradeRefused,
    DropKey,
    ForgetUser,
    MapSsrc,
    OpenSocket,
    Reconnecting,
    Resumed,
    SendIdentify,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    UseKey,
    UsersChanged,
    Warned,
)
from voicegw.errors import (
    ConnectionClosed,
    ConnectionFailed,
    E2EEError,
    E2EERequired,
    InvalidEndpoint,
    NoCommonMode,
    UdpBlocked,
    VoiceError,
    VoiceTimeout,
    WebSocketProtocolError,
)
from voicegw.events import (
    DialPostponed,
    FrameRejected,
    IpDiscovered,
    SocketClosed,
    SocketFailed,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
)
from voicegw.secret import Secret
from voicegw.wire.encryption import choose_mode
from voicegw.wire.endpoint import check_media_address
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    HelloReceived,
    ReadyReceived,
    SessionDescriptionReceived,
    SpeakingReceived,
    VideoReceived,
)

REJECTED_LIMIT = 10
MAX_USERS = 1000


class GatewaySession(MachineSession):
    """One voice session with one voice server."""

    __slots__ = (
        "address",
        "ahead",
        "hello_ahead_s",
        "key",
        "last_close_code",
        "met",
        "mode",
        "rejected_in_row",
        "renewing",
        "selected",
        "turn_s",
    )
    machine: ClassVar[str] = "gateway"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.mode = ""
        self.rejected_in_row = 0
        self.turn_s = 0.0
        self.last_close_code: int | None = None
        self.address = self.selected = ("", 0)
        self.key: Secret[bytes] | None = None
        self.renewing = self.met = False
        # of a websocket that is dialled for a call which is another process's yet: its endpoint, and Hello's interval
        self.ahead = ""
        self.hello_ahead_s = 0.0

    @property
    def endpoint(self) -> str:
        """Where to dial: as the pair says, or while there is none, the announcement."""
        pair = self.shared.credentials
        return self.ahead if pair is None else pair.endpoint

    def judge(self, event: SocketClosed) -> SessionEnded:
        """Turn a close code into the table's decision."""
        self.last_close_code = event.code
        entry = self.table.close_event(event.code)
        return SessionEnded(entry.event, event.code, entry.reason)

    # deadlines

    def until_turn(self) -> float:
        """Seconds until this process may dial for us."""
        return self.turn_s

    # guards

    def turn_too_late(self, event: DialPostponed) -> bool:
        """Is the turn further away than we wait?"""
        return event.seconds > self.bound("dial_turn")

    def media_address_refused(self, event: ReadyReceived) -> bool:
        """Is the media address one that must not be sent to?"""
        try:
            check_media_address(event.ip, self.shared.options.allow_private_media)
        except InvalidEndpoint:
            return True
        return False

    def no_common_mode(self, event: ReadyReceived) -> bool:
        """Is no offered encryption mode usable?"""
        try:
            self._choose(event)
        except NoCommonMode:
            return True
        return False

    def mode_differs(self, event: SessionDescriptionReceived) -> bool:
        """Does the server use another mode than we selected?"""
        return event.mode != self.mode

    def version_unknown(self, event: SessionDescriptionReceived) -> bool:
        """Is the DAVE version one that we did not offer?"""
        return not 0 <= event.dave_protocol_version <= self.shared.options.max_dave_protocol_version

    def downgrade_refused(self, event: SessionDescriptionReceived) -> bool:
        """Would the call be in the clear against our policy?"""
        return event.dave_protocol_version == 0 and self.shared.options.policy == "require"

    def address_changed(self, event: IpDiscovered) -> bool:
        """Does the server know us under another address?"""
        return (event.address, event.port) != self.selected

    def address_unselected(self, event: Any) -> bool:
        """Was an address found that the server does not know yet?"""
        return self.address != self.selected

    def dialled_elsewhere(self, event: SessionThawed) -> bool:
        """Is the websocket that was dialled ahead another endpoint's?"""
        return event.snapshot.endpoint != self.ahead

    def udp_blocked(self, event: DiscoveryFailed) -> bool:
        """Does UDP not pass? (Or had the host no socket for it?)"""
        return isinstance(event.error, UdpBlocked)

    def key_may_be_renewed(self, event: Any) -> bool:
        """Has another key not been asked for yet?"""
        return not self.renewing

    def nonces_met_first(self, event: Any) -> bool:
        """Is it the first time in this session?"""
        return not self.met

    def handshake_spoiled(self, event: FrameRejected) -> bool:
        """Was it a message without which there is no session?"""
        return event.op in (Opcode.READY, Opcode.SESSION_DESCRIPTION)

    def too_many_rejected(self, event: FrameRejected) -> bool:
        """Is this one bad frame in a row too many?"""
        return self.rejected_in_row + 1 >= REJECTED_LIMIT

    # effects: the session

    def begin_session(self, event: Any) -> None:
        """Forget everything of the session before."""
        self.shared.sequence.reset()
        self.shared.users.clear()
        self.shared.ssrc = 0
        self.mode = ""
        self.address = self.selected = ("", 0)
        self.key = None
        self.renewing = self.met = False

    def restore_session(self, event: SessionThawed) -> None:
        """The session of another process, as far as it can be taken along."""
        snapshot, shared = event.snapshot, self.shared
        assert snapshot.secret_key is not None
        shared.sequence.last = snapshot.seq_ack
        shared.ssrc = snapshot.ssrc
        shared.users.update(snapshot.users)
        self.mode, self.key = snapshot.mode, snapshot.secret_key
        self.address = self.selected = snapshot.selected
        shared.effects.append(UseKey(snapshot.mode, snapshot.secret_key, snapshot.ssrc))
        shared.effects += [MapSsrc(ssrc, user_id) for ssrc, user_id in snapshot.ssrcs]

    def end_session(self, event: Any) -> None:
        """Key, path, heart and group belong to the session and end with it."""
        self.shared.effects.append(DropKey())
        self.shared.signals.append(GatewayClosed())

    def note_ahead(self, event: DialAheadRequested) -> None:
        """Where to dial while there is no pair."""
        self.ahead = event.announced.endpoint

    def note_hello(self, event: HelloReceived) -> None:
        """For a heart that does not beat yet."""
        self.hello_ahead_s = event.heartbeat_interval_s

    def start_heart_as_greeted(self, event: Any) -> None:
        """Beat at the interval of the Hello that came ahead."""
        self.shared.signals.append(HeartStarted(self.hello_ahead_s))

    def open_socket(self, event: Any) -> None:
        """Dial; events of older sockets count no more."""
        self.shared.socket_generation += 1
        self.shared.effects.append(OpenSocket(self.shared.socket_generation))

    def open_socket_in_turn(self, event: Any) -> None:
        """Dial: we have waited for our turn."""
        self.shared.socket_generation += 1
        self.shared.effects.append(OpenSocket(self.shared.socket_generation, in_turn=True))

    def note_turn(self, event: DialPostponed) -> None:
        """When it comes."""
        self.turn_s = event.seconds

    def report_no_turn(self, event: DialPostponed) -> None:
        """Tell the call that it was not even tried, and when it may be."""
        error = ConnectionFailed(
            f"this process has dialled too often lately; its turn to dial comes in {event.seconds:.0f} s"
        )
        self._lose("lost_no_turn", error, event.seconds)

    def close_socket(self, event: Any) -> None:
        """Close with 1000: we are done for good."""
        self.shared.effects.append(CloseSocket(1000))

    def close_undecodable(self, event: Any) -> None:
        """Close with 4002, the voice gateway's own word for a payload that cannot be decoded."""
        self.shared.effects.append(CloseSocket(4002))

    def abort_socket(self, event: Any) -> None:
        """Drop it without a word, and hear nothing more of it."""
        self.shared.socket_generation += 1
        self.shared.effects.append(AbortSocket())

    def stop_heart(self, event: Any) -> None:
        """It belongs to the websocket that is dropped; media does not."""
        self.shared.signals.append(GatewayInterrupted())

    def interrupt(self, event: Any) -> None:
        """The websocket is lost, the session is not."""
        self.shared.signals.append(GatewayInterrupted())
        reason = event.reason if isinstance(event, SessionEnded) else event.name.replace("_", " ")
        self.shared.report(Reconnecting(reason))

    # effects: the handshake

    def start_heart(self, event: HelloReceived) -> None:
        """Beat at Hello's interval."""
        self.shared.signals.append(HeartStarted(event.heartbeat_interval_s))
        if event.odd:
            self.shared.report(Warned(f"Hello's heartbeat interval is odd; {event.heartbeat_interval_s:g} s is used"))

    def send_identify(self, event: Any) -> None:
        """Op 0."""
        self.shared.effects.append(SendIdentify(self.shared.options.max_dave_protocol_version))

    def send_resume(self, event: Any) -> None:
        """Op 7, with the last number seen; what comes next must be the number after it."""
        self.shared.sequence.watch()
        self.shared.effects.append(SendResume(self.shared.sequence.last))

    def note_ready(self, event: ReadyReceived) -> None:
        """Keep our SSRC and choose the encryption mode."""
        self.shared.ssrc = event.ssrc
        self.mode = self._choose(event)

    def offer_media(self, event: ReadyReceived) -> None:
        """Tell the transport where media goes."""
        self.shared.signals.append(MediaOffered(event.ip, event.port))

    def note_address(self, event: IpDiscovered) -> None:
        """Where the server sees us."""
        self.address = (event.address, event.port)

    def send_select_protocol(self, event: Any) -> None:
        """Op 1."""
        self.selected = self.address
        self.shared.effects.append(SendSelectProtocol(*self.address, self.mode))

    def renew_key(self, event: Any) -> None:
        """Op 1 once more; the Session Description that follows holds another key."""
        self.renewing = True
        self.send_select_protocol(event)

    def use_key(self, event: SessionDescriptionReceived) -> None:
        """Encrypt with the transport key from here on."""
        self.renewing = self.renewing and event.secret_key == self.key
        self.key = event.secret_key
        self.shared.effects.append(UseKey(event.mode, event.secret_key, self.shared.ssrc))

    def register_ssrc(self, event: Any) -> None:
        """Op 5 with 0: the server must know our SSRC before the first packet."""
        self.shared.effects.append(SendSpeaking(0, self.shared.ssrc))

    def agree_e2ee(self, event: SessionDescriptionReceived) -> None:
        """Tell the dave machine the version."""
        self.shared.signals.append(E2eeAgreed(event.dave_protocol_version))

    # effects: who is there

    def map_ssrc(self, event: SpeakingReceived) -> None:
        """Credit packets of this SSRC to the user that announced it."""
        self.shared.effects.append(MapSsrc(event.ssrc, event.user_id))

    def map_audio_ssrc(self, event: VideoReceived) -> None:
        """The same from op 12; 0 means no audio."""
        if event.audio_ssrc:
            self.shared.effects.append(MapSsrc(event.audio_ssrc, event.user_id))

    def note_users(self, event: ClientsConnected) -> None:
        """More users are in the call; those above the cap are strangers."""
        new = (user for user in dict.fromkeys(event.user_ids) if user not in self.shared.users)
        joined = tuple(itertools.islice(new, MAX_USERS - len(self.shared.users)))
        self.shared.users.update(joined)
        self.shared.report(UsersChanged(joined=joined, left=()))

    def forget_user(self, event: ClientDisconnected) -> None:
        """A user left, and with it SSRCs, decoder and buffers."""
        self.shared.users.discard(event.user_id)
        self.shared.effects.append(ForgetUser(event.user_id))
        self.shared.report(UsersChanged(joined=(), left=(event.user_id,)))

    def count_rejected(self, event: FrameRejected) -> None:
        """One bad frame; the reader lives."""
        self.rejected_in_row += 1
        self.shared.counters["frames rejected"] += 1

    # effects: what the call machine hears

    def announce_ready(self, event: Any) -> None:
        """The session is there."""
        self.shared.signals.append(GatewayReady())

    def announce_resumed(self, event: Any) -> None:
        """The session is there again."""
        self.shared.signals.append(GatewayResumed())
        self.shared.report(Resumed())

    def announce_down(self, event: Any) -> None:
        """Closed as asked."""
        self.shared.signals.append(GatewayDown())

    def report_new_pair(self, event: Any) -> None:
        """Another pair may help."""
        self._lose("lost_new_pair", _error_of(event))

    def report_later(self, event: Any) -> None:
        """Another pair may help, after a wait."""
        self._lose("lost_later", _error_of(event))

    def report_timeout(self, event: Any) -> None:
        """A deadline passed; another pair may help."""
        self._lose("lost_new_pair", VoiceTimeout(f"the voice server did not answer in time ({event.name})"))

    def report_refused(self, event: SocketRefused) -> None:
        """The certificate is wrong: nothing was said, and nothing falls back."""
        self._lose("lost_untrusted", event.error)

    def report_address_refused(self, event: ReadyReceived) -> None:
        """The voice server named a media address that must not be sent to."""
        error = InvalidEndpoint(
            f"the voice server names {event.ip} as media address, which is not a global one; "
            "allow_private_media permits it for a server of your own"
        )
        self._lose("lost_for_good", error)

    def report_no_common_mode(self, event: ReadyReceived) -> None:
        """No encryption mode that both sides know."""
        offered = ", ".join(event.modes)
        self._lose("lost_for_good", NoCommonMode(f"the voice server offers no mode that we know: {offered}"))

    def report_mode_differs(self, event: SessionDescriptionReceived) -> None:
        """The server took another mode than was selected."""
        error = WebSocketProtocolError(f"{self.mode} was selected, the voice server answers with {event.mode}")
        self._lose("lost_new_pair", error)

    def report_version_unknown(self, event: SessionDescriptionReceived) -> None:
        """The server selected a DAVE version that was not offered."""
        version = event.dave_protocol_version
        offered = self.shared.options.max_dave_protocol_version
        self._lose("lost_for_good", E2EEError(f"DAVE version {version} was selected, {offered} was offered"))

    def report_e2ee_refused(self, event: SessionDescriptionReceived) -> None:
        """The call would be in the clear."""
        self.shared.report(DowngradeRefused(event.dave_protocol_version))
        error = E2EERequired(
            "the voice server offers no end-to-end encryption here and the policy is 'require'; "
            "policy 'allow' joins without it"
        )
        self._lose("lost_for_good", error)

    def report_e2ee_required(self, event: SessionEnded) -> None:
        """The server demands E2EE and we did not offer it."""
        error = E2EERequired(
            "Discord requires end-to-end encryption in this channel; the policy 'off' switched it off"
            if self.shared.options.policy == "off"
            else "Discord requires an end-to-end encryption (DAVE) version that the installed davey does not have"
        )
        self._lose("lost_for_good", error)

    def report_e2ee_lost(self, event: Any) -> None:
        """Recovery failed too often."""
        self._lose("lost_e2ee", E2EEError("end-to-end encryption could not be recovered"))

    def report_protocol_error(self, event: FrameRejected) -> None:
        """The server says what cannot be understood."""
        error = WebSocketProtocolError("the voice server sent a message that cannot be used")
        self._lose("lost_new_pair", error)

    def report_udp_blocked(self, event: DiscoveryFailed) -> None:
        """No datagram leaves, or none comes back."""
        self._lose("lost_udp_blocked", event.error)

    def report_path_gone(self, event: DiscoveryFailed) -> None:
        """The host is short of sockets, or UDP has passed until now; a fresh session may have it again."""
        self._lose("lost_new_pair", event.error)

    def note_meeting(self, event: Any) -> None:
        """Once is forgiven."""
        self.met = True

    def warn_nonces_met(self, event: Any) -> None:
        """The server's defect; end-to-end encryption has keys of its own."""
        self.shared.report(
            Warned("the voice server counts its nonces where ours are: transport encryption is weakened")
        )

    def report_forgiven_once(self, event: SessionEnded) -> None:
        """One new pair, then the end."""
        self._lose("lost_forgiven_once", _error_of(event))

    def report_complaint(self, event: SessionEnded) -> None:
        """The end after two in a row."""
        self._lose("lost_complaint", _error_of(event))

    def report_await(self, event: SessionEnded) -> None:
        """The main gateway decides."""
        self._lose("lost_await", _error_of(event))

    def report_await_server(self, event: SessionEnded) -> None:
        """Another server may be announced."""
        self._lose("lost_await_server", _error_of(event))

    def report_other_mode(self, event: SessionEnded) -> None:
        """The other mode, once."""
        self.shared.modes_refused.add(self.mode)
        self._lose("lost_other_mode", _error_of(event))

    def report_rate_limited(self, event: SessionEnded | SocketRateLimited) -> None:
        """No retry inside the cool-down."""
        self._lose("lost_rate_limited", _error_of(event))

    def report_defect(self, event: SessionEnded) -> None:
        """Our defect."""
        self._lose("lost_for_good", _error_of(event))

    def _choose(self, event: ReadyReceived) -> str:
        wanted = [mode for mode in event.modes if mode in self.shared.options.modes]
        return choose_mode(wanted, self.shared.modes_refused)

    def _lose(self, name: str, error: VoiceError, after_s: float = 0.0) -> None:
        self.shared.signals.append(SessionLost(name, error, after_s))


def _error_of(event: Any) -> VoiceError:
    if isinstance(event, SessionEnded):
        return ConnectionClosed(event.code, event.reason)
    if isinstance(event, SocketFailed | SocketUnavailable | SocketRateLimited):
        return event.error
    return ConnectionFailed(f"the voice session ended: {event.name.replace('_', ' ')}")
