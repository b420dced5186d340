"""Everything that moves the machines: what the voice server says, what adapters notice, what the bot wishes.

An event is a fact in the past tense. Its `name` is the word that the tables in `states/` use for it. What the voice
server says is decoded in `voicegw.wire.payloads`; those payloads are events as they stand.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from voicegw.errors import VoiceError
from voicegw.secret import Secret
from voicegw.signalling import NO_FLAGS, VoiceFlags
from voicegw.snapshot import Announcement, SessionSnapshot
from voicegw.value import value
from voicegw.wire.payloads import Payload

# -- the bot's wishes


@value
class JoinRequested:
    """The bot wants to be in `channel_id` of its guild."""

    name: ClassVar[str] = "join_requested"
    channel_id: int


@value
class JoinAbandoned:
    """The bot waits no longer for a join or a move; `error` is why, None where it was cancelled."""

    name: ClassVar[str] = "join_abandoned"
    error: VoiceError | None


@value
class LeaveRequested:
    """The bot wants to be gone."""

    name: ClassVar[str] = "leave_requested"


@value
class HandOverAnnounced:
    """A call that another process is about to freeze; it may be dialled ahead."""

    name: ClassVar[str] = "hand_over_announced"
    announced: Announcement


@value
class CallThawed:
    """A call that another process has frozen, or that died with it, shall go on here."""

    name: ClassVar[str] = "call_thawed"
    snapshot: SessionSnapshot

    @property
    def channel_id(self) -> int:
        """Where the bot wants to be."""
        return self.snapshot.channel_id


@value
class FreezeRequested:
    """The call shall go on in another process."""

    name: ClassVar[str] = "freeze_requested"


@value
class UserVerified:
    """People have compared the verification code of `user_id`, and it is theirs."""

    name: ClassVar[str] = "user_verified"
    user_id: int


# -- the main gateway


@value
class VoiceStateUpdated:
    """Our own voice state changed; `channel_id` None means that we are in no channel."""

    name: ClassVar[str] = "voice_state_updated"
    channel_id: int | None
    session_id: Secret[str]
    flags: VoiceFlags = NO_FLAGS


@value
class VoiceServerUpdated:
    """The guild's voice server changed; `endpoint` None means that it went away."""

    name: ClassVar[str] = "voice_server_updated"
    token: Secret[str]
    endpoint: str | None


@value
class SignallingFailed:
    """Op 4 could not be sent."""

    name: ClassVar[str] = "signalling_failed"
    reason: str


@value
class MainSessionLost:
    """The bot's main gateway session was invalidated (not resumed)."""

    name: ClassVar[str] = "main_session_lost"


@value
class MainSessionStarted:
    """The bot's main gateway identified afresh."""

    name: ClassVar[str] = "main_session_started"


@value
class MainSessionResumed:
    """The bot's main gateway was away and has resumed: nothing is lost."""

    name: ClassVar[str] = "main_session_resumed"


# -- the websocket


@value
class SocketOpened:
    """The websocket upgrade succeeded."""

    name: ClassVar[str] = "socket_opened"


@value
class SocketFailed:
    """The websocket could not be opened."""

    name: ClassVar[str] = "socket_failed"
    error: VoiceError


@value
class DialPostponed:
    """The process has dialled too often lately; our turn comes in `seconds`."""

    name: ClassVar[str] = "dial_postponed"
    seconds: float


@value
class HostWoke:
    """The host has slept, or the process has not run, for `seconds`."""

    name: ClassVar[str] = "host_woke"
    seconds: float


@value
class SocketUnavailable:
    """The upgrade was answered with HTTP 5xx."""

    name: ClassVar[str] = "socket_unavailable"
    error: VoiceError


@value
class SocketRateLimited:
    """The upgrade was answered with HTTP 429."""

    name: ClassVar[str] = "socket_rate_limited"
    error: VoiceError


@value
class SocketRefused:
    """The server's certificate is not what it must be."""

    name: ClassVar[str] = "socket_refused"
    error: VoiceError


@value
class SocketClosed:
    """The websocket ended; `code` is None where no close frame came.

    The gateway's table turns the code into one of its `closed_*` events.
    """

    name: ClassVar[str] = "socket_closed"
    code: int | None


@value
class FrameRejected:
    """A frame could not be decoded; `op` where that much could be read."""

    name: ClassVar[str] = "frame_rejected"
    op: int | None


@value
class ReaderFailed:
    """Handling a frame raised something unexpected: our defect."""

    name: ClassVar[str] = "reader_failed"
    what: str


# -- the UDP path


@value
class IpDiscovered:
    """The voice server told our public address."""

    name: ClassVar[str] = "ip_discovered"
    address: str
    port: int


@value
class UdpFailed:
    """No UDP socket could be opened."""

    name: ClassVar[str] = "udp_failed"
    error: VoiceError


@value
class PathHeard:
    """Authentic datagrams have come since the path was last looked at."""

    name: ClassVar[str] = "path_heard"


@value
class PathUnheard:
    """No authentic datagram has come since the last keepalive."""

    name: ClassVar[str] = "path_unheard"


@value
class PathLost:
    """For 2 s the host has refused to send every datagram; `reason` is the system's word for it."""

    name: ClassVar[str] = "path_lost"
    reason: str


@value
class PathMoved:
    """This host would send to the voice server from another address now: another network, another interface."""

    name: ClassVar[str] = "path_moved"


@value
class KeyExhausted:
    """The transport key has been used 2**31 times."""

    name: ClassVar[str] = "key_exhausted"


@value
class NoncesMet:
    """Under the transport key, which both directions share, the server is about to use nonces that we have used."""

    name: ClassVar[str] = "nonces_met"


# -- the MLS group


@value
class KeyPackageMade:
    """A fresh key package, for op 26."""

    name: ClassVar[str] = "key_package_made"
    data: bytes


@value
class CommitMade:
    """Our commit of the present proposals, with its welcome where it adds anybody: op 28's payload."""

    name: ClassVar[str] = "commit_made"
    data: bytes


@value
class ProposalsRejected:
    """Proposals that do not fit our group now."""

    name: ClassVar[str] = "proposals_rejected"
    revoke: bool
    data: bytes
    reason: str


@value
class GroupJoined:
    """A commit or a welcome was applied; `privacy_code` has 30 digits."""

    name: ClassVar[str] = "group_joined"
    transition_id: int
    epoch: int
    privacy_code: str


@value
class GroupRejected:
    """A commit or a welcome does not fit our group."""

    name: ClassVar[str] = "group_rejected"
    transition_id: int
    reason: str


@value
class CommitIgnored:
    """A commit of a group that we are not in yet."""

    name: ClassVar[str] = "commit_ignored"
    transition_id: int


@value
class IdentityDiffered:
    """A user who was in the call before was added with another identity key, or with one that cannot be compared."""

    name: ClassVar[str] = "identity_differed"
    user_id: int


# -- the player


@value
class SpeechStarted:
    """There is something to say."""

    name: ClassVar[str] = "speech_started"


@value
class SpeechEnded:
    """There is nothing more to say: the end, a pause, a stop."""

    name: ClassVar[str] = "speech_ended"


@value
class SilenceSent:
    """The five frames of silence have left."""

    name: ClassVar[str] = "silence_sent"


# -- time


@value
class DeadlinePassed:
    """A timer fired; `name` is the deadline's, `at` the time it was armed for, which tells a stale one."""

    name: str
    at: float


Event = (
    Payload
    | JoinRequested
    | JoinAbandoned
    | LeaveRequested
    | HandOverAnnounced
    | CallThawed
    | FreezeRequested
    | UserVerified
    | VoiceStateUpdated
    | VoiceServerUpdated
    | SignallingFailed
    | MainSessionLost
    | MainSessionStarted
    | MainSessionResumed
    | SocketOpened
    | DialPostponed
    | HostWoke
    | SocketFailed
    | SocketUnavailable
    | SocketRateLimited
    | SocketRefused
    | SocketClosed
    | FrameRejected
    | ReaderFailed
    | IpDiscovered
    | UdpFailed
    | PathHeard
    | PathUnheard
    | PathLost
    | PathMoved
    | KeyExhausted
    | NoncesMet
    | KeyPackageMade
    | CommitMade
    | ProposalsRejected
    | GroupJoined
    | GroupRejected
    | CommitIgnored
    | IdentityDiffered
    | SpeechStarted
    | SpeechEnded
    | SilenceSent
    | DeadlinePassed
)


@value
class Stamped:
    """An event with the generation of the socket that caused it; one of another generation has no effect.

    `seq` is the message's sequence number, where it had one.
    """

    source: Literal["websocket", "udp"]
    generation: int
    event: Event
    seq: int | None = None
