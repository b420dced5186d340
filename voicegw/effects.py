"""Everything the machines want done: orders to the adapters, in the imperative, to be carried out in order.

No effect holds a token or a session id; the transport key in `UseKey` is a `Secret`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from voicegw.errors import VoiceError
from voicegw.secret import Secret
from voicegw.signalling import VoiceFlags

# -- main gateway


@dataclass(frozen=True, slots=True)
class SendVoiceState:
    """Send op 4 on the main gateway; `channel_id` None leaves."""

    channel_id: int | None


# -- websocket


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """Dial the voice endpoint of the present credentials; events carry `generation`.

    `in_turn`: the turn among the dials of this process has been waited for.
    """

    generation: int
    in_turn: bool = False


@dataclass(frozen=True, slots=True)
class CloseSocket:
    """Close with a close frame; `SocketClosed` follows."""

    code: int


@dataclass(frozen=True, slots=True)
class AbortSocket:
    """Drop the socket, or the dial, without a close handshake; no event follows."""


@dataclass(frozen=True, slots=True)
class SendIdentify:
    """Op 0."""

    max_dave_protocol_version: int


@dataclass(frozen=True, slots=True)
class SendResume:
    """Op 7; `seq_ack` is -1 while nothing numbered was seen."""

    seq_ack: int


@dataclass(frozen=True, slots=True)
class SendSelectProtocol:
    """Op 1, with our public address."""

    address: str
    port: int
    mode: str


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Op 3."""

    seq_ack: int


@dataclass(frozen=True, slots=True)
class SendSpeaking:
    """Op 5; `flags` 0 registers the SSRC or ends the speech, 1 is the microphone."""

    flags: int
    ssrc: int


@dataclass(frozen=True, slots=True)
class SendTransitionReady:
    """Op 23."""

    transition_id: int


@dataclass(frozen=True, slots=True)
class SendInvalidCommit:
    """Op 31."""

    transition_id: int


@dataclass(frozen=True, slots=True)
class SendKeyPackage:
    """Op 26, binary."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SendCommitWelcome:
    """Op 28, binary."""

    data: bytes


# -- UDP


@dataclass(frozen=True, slots=True)
class OpenUdp:
    """Open a UDP socket to the media address; events carry `generation`."""

    generation: int
    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class SendDiscovery:
    """Send the 74-byte IP discovery request; `PathHeard` follows where something came since the last look."""

    ssrc: int


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """Send the 8-byte keepalive; `PathHeard`, `PathUnheard` or `PathMoved` follows."""


@dataclass(frozen=True, slots=True)
class CloseUdp:
    """Close the UDP socket."""


# -- media


@dataclass(frozen=True, slots=True)
class UseKey:
    """Encrypt and decrypt the transport with this key from now on; an equal key keeps its counter."""

    mode: str
    secret_key: Secret[bytes]
    ssrc: int


@dataclass(frozen=True, slots=True)
class DropKey:
    """Forget the transport key: the session is over."""


@dataclass(frozen=True, slots=True)
class ReleaseStream:
    """Frames may leave; `encrypted` says whether end to end."""

    encrypted: bool


class HoldReason(StrEnum):
    """Why no frame may leave: what a player does with the time meanwhile depends on it."""

    SILENT = "silent"  # there is nothing to say
    ALONE = "alone"  # nobody else is in the call, so there is no group and nobody who could hear
    NOT_READY = "not ready"  # others are there, but E2EE is not, or the policy forbids what the server offers


@dataclass(frozen=True, slots=True)
class HoldStream:
    """No frame may leave."""

    reason: HoldReason


@dataclass(frozen=True, slots=True)
class DrainStream:
    """Send five frames of silence; `SilenceSent` follows."""


@dataclass(frozen=True, slots=True)
class MapSsrc:
    """Credit packets of `ssrc` to `user_id` from now on."""

    ssrc: int
    user_id: int


@dataclass(frozen=True, slots=True)
class ForgetUser:
    """The user left: forget SSRCs, decoder and buffers."""

    user_id: int


# -- MLS group


@dataclass(frozen=True, slots=True)
class CreateGroup:
    """Begin a new group at `protocol_version` for the present channel; `KeyPackageMade` follows."""

    protocol_version: int
    channel_id: int
    external_sender: bytes | None


@dataclass(frozen=True, slots=True)
class SetExternalSender:
    """Give the group its external sender."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ApplyProposals:
    """Apply proposals; `CommitMade`, `ProposalsRejected` or nothing follows."""

    revoke: bool
    data: bytes
    known_users: frozenset[int]


@dataclass(frozen=True, slots=True)
class ApplyCommit:
    """Apply a commit; `GroupJoined`, `GroupRejected` or `CommitIgnored` follows."""

    transition_id: int
    commit: bytes
    known_users: frozenset[int]
    member: bool


@dataclass(frozen=True, slots=True)
class ApplyWelcome:
    """Join by a welcome; `GroupJoined` or `GroupRejected` follows."""

    transition_id: int
    welcome: bytes
    known_users: frozenset[int]


@dataclass(frozen=True, slots=True)
class SetPassthrough:
    """Accept frames without E2EE, or no longer after `expiry_s`."""

    allowed: bool
    expiry_s: int


@dataclass(frozen=True, slots=True)
class DropGroup:
    """Forget the group and its keys."""


# -- time


@dataclass(frozen=True, slots=True)
class ArmTimer:
    """Bring `DeadlinePassed(name, at)` at the monotonic time `at`.

    With `jitter` the time is drawn evenly between now (`at - after_s`) and `at`; the event still says `at`.
    """

    name: str
    at: float
    after_s: float
    jitter: bool


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer."""

    name: str


# -- the bot


@dataclass(frozen=True, slots=True)
class Connected:
    """The voice session is ready, or ready again, perhaps on another server."""

    channel_id: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The voice session is ready again, in another channel."""

    channel_id: int


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """A move could not even be asked for; the call goes on where it is."""

    error: VoiceError


@dataclass(frozen=True, slots=True)
class FlagsChanged:
    """A moderator, the bot or the stage has muted, deafened or suppressed us, or ended that."""

    flags: VoiceFlags


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The voice session was lost; the way back is under way."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The websocket was lost and the session resumed; media went on meanwhile."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The call is over; `error` is None where the bot asked for it."""

    error: VoiceError | None


@dataclass(frozen=True, slots=True)
class EncryptionChanged:
    """E2EE has a new epoch; everybody in the call can compare `privacy_code` (30 digits)."""

    epoch: int
    privacy_code: str


@dataclass(frozen=True, slots=True)
class UsersChanged:
    """Users joined or left the call."""

    joined: tuple[int, ...]
    left: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DowngradeRefused:
    """The voice server announced DAVE version 0 against the policy 'require': nothing leaves in the clear.

    In a call the stream is held until a group is offered again; at its beginning the call ends with `E2EERequired`.
    """

    protocol_version: int


@dataclass(frozen=True, slots=True)
class IdentityChanged:
    """A user of this call shows another identity key than before; whoever compared codes must do it again."""

    user_id: int


@dataclass(frozen=True, slots=True)
class SpeakingChanged:
    """A user's speech began or ended, by the packets that come: within 0.2 s of the sound."""

    user_id: int
    speaking: bool


@dataclass(frozen=True, slots=True)
class MediaLost:
    """Nothing can be said or heard for now, though the call goes on; the way back is under way."""

    reason: str


@dataclass(frozen=True, slots=True)
class MediaRestored:
    """What `MediaLost` told is over."""


@dataclass(frozen=True, slots=True)
class PlaybackEnded:
    """Something that was played has ended: by itself, stopped, or by `error`."""

    position_s: float
    error: VoiceError | None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that the bot's owner should know; the call goes on."""

    text: str


Notice = (
    Connected
    | Moved
    | MoveFailed
    | FlagsChanged
    | Reconnecting
    | Resumed
    | Closed
    | EncryptionChanged
    | DowngradeRefused
    | IdentityChanged
    | UsersChanged
    | SpeakingChanged
    | MediaLost
    | MediaRestored
    | PlaybackEnded
    | Warned
)


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the bot."""

    notice: Notice


Effect = (
    SendVoiceState
    | OpenSocket
    | CloseSocket
    | AbortSocket
    | SendIdentify
    | SendResume
    | SendSelectProtocol
    | SendHeartbeat
    | SendSpeaking
    | SendTransitionReady
    | SendInvalidCommit
    | SendKeyPackage
    | SendCommitWelcome
    | OpenUdp
    | SendDiscovery
    | SendKeepalive
    | CloseUdp
    | UseKey
    | DropKey
    | ReleaseStream
    | HoldStream
    | DrainStream
    | MapSsrc
    | ForgetUser
    | CreateGroup
    | SetExternalSender
    | ApplyProposals
    | ApplyCommit
    | ApplyWelcome
    | SetPassthrough
    | DropGroup
    | ArmTimer
    | CancelTimer
    | Report
)
