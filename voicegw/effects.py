"""Everything the machines want done: orders to the adapters, in the imperative, to be carried out in order.

No effect holds a token or a session id; the transport key in `UseKey` is a `Secret`.
"""

from __future__ import annotations

from enum import StrEnum

from voicegw.errors import VoiceError
from voicegw.secret import Secret
from voicegw.signalling import VoiceFlags
from voicegw.value import value

# -- main gateway


@value
class SendVoiceState:
    """Send op 4 on the main gateway; `channel_id` None leaves."""

    channel_id: int | None


# -- websocket


@value
class OpenSocket:
    """Dial the voice endpoint of the present credentials, or the one that was announced; events carry `generation`.

    `in_turn`: the turn among the dials of this process has been waited for.
    """

    generation: int
    in_turn: bool = False


@value
class CloseSocket:
    """Close with a close frame; `SocketClosed` follows."""

    code: int


@value
class AbortSocket:
    """Drop the socket, or the dial, without a close handshake; no event follows."""


@value
class SendIdentify:
    """Op 0."""

    max_dave_protocol_version: int


@value
class SendResume:
    """Op 7; `seq_ack` is -1 while nothing numbered was seen."""

    seq_ack: int


@value
class SendSelectProtocol:
    """Op 1, with our public address."""

    address: str
    port: int
    mode: str


@value
class SendHeartbeat:
    """Op 3."""

    seq_ack: int


@value
class SendSpeaking:
    """Op 5; `flags` 0 registers the SSRC or ends the speech, 1 is the microphone."""

    flags: int
    ssrc: int


@value
class SendTransitionReady:
    """Op 23."""

    transition_id: int


@value
class SendInvalidCommit:
    """Op 31."""

    transition_id: int


@value
class SendKeyPackage:
    """Op 26, binary."""

    data: bytes


@value
class SendCommitWelcome:
    """Op 28, binary."""

    data: bytes


# -- UDP


@value
class OpenUdp:
    """Open a UDP socket to the media address; events carry `generation`."""

    generation: int
    ip: str
    port: int


@value
class SendDiscovery:
    """Send the 74-byte IP discovery request; `PathHeard` follows where something came since the last look."""

    ssrc: int


@value
class SendKeepalive:
    """Send the 8-byte keepalive; `PathHeard`, `PathUnheard` or `PathMoved` follows."""


@value
class CloseUdp:
    """Close the UDP socket."""


# -- media


@value
class UseKey:
    """Encrypt and decrypt the transport with this key from now on; an equal key keeps its counter."""

    mode: str
    secret_key: Secret[bytes]
    ssrc: int


@value
class DropKey:
    """Forget the transport key: the session is over."""


@value
class ReleaseStream:
    """Frames may leave; `encrypted` says whether end to end."""

    encrypted: bool


class HoldReason(StrEnum):
    """Why no frame may leave: what a player does with the time meanwhile depends on it."""

    SILENT = "silent"  # there is nothing to say
    ALONE = "alone"  # nobody else is in the call, so there is no group and nobody who could hear
    NOT_READY = "not ready"  # others are there, but E2EE is not, or the policy forbids what the server offers


@value
class HoldStream:
    """No frame may leave."""

    reason: HoldReason


@value
class DrainStream:
    """Send five frames of silence; `SilenceSent` follows."""


@value
class MapSsrc:
    """Credit packets of `ssrc` to `user_id` from now on."""

    ssrc: int
    user_id: int


@value
class ForgetUser:
    """The user left: forget SSRCs, decoder and buffers."""

    user_id: int


# -- MLS group


@value
class CreateGroup:
    """Begin a new group at `protocol_version` for the present channel; `KeyPackageMade` follows."""

    protocol_version: int
    channel_id: int
    external_sender: bytes | None


@value
class SetExternalSender:
    """Give the group its external sender."""

    data: bytes


@value
class ApplyProposals:
    """Apply proposals; `CommitMade`, `ProposalsRejected` or nothing follows."""

    revoke: bool
    data: bytes
    known_users: frozenset[int]


@value
class ApplyCommit:
    """Apply a commit; `GroupJoined`, `GroupRejected` or `CommitIgnored` follows."""

    transition_id: int
    commit: bytes
    known_users: frozenset[int]
    member: bool


@value
class ApplyWelcome:
    """Join by a welcome; `GroupJoined` or `GroupRejected` follows."""

    transition_id: int
    welcome: bytes
    known_users: frozenset[int]


@value
class SetPassthrough:
    """Accept frames without E2EE, or no longer after `expiry_s`."""

    allowed: bool
    expiry_s: int


@value
class DropGroup:
    """Forget the group and its keys."""


# -- time


@value
class ArmTimer:
    """Bring `DeadlinePassed(name, at)` at the monotonic time `at`.

    With `jitter` the time is drawn evenly between now (`at - after_s`) and `at`; the event still says `at`.
    """

    name: str
    at: float
    after_s: float
    jitter: bool


@value
class CancelTimer:
    """Forget the timer."""

    name: str


# -- the bot


@value
class Connected:
    """The voice session is ready, or ready again, perhaps on another server."""

    channel_id: int


@value
class Moved:
    """The voice session is ready again, in another channel."""

    channel_id: int


@value
class MoveFailed:
    """A move could not even be asked for; the call goes on where it is."""

    error: VoiceError


@value
class FlagsChanged:
    """A moderator, the bot or the stage has muted, deafened or suppressed us, or ended that."""

    flags: VoiceFlags


@value
class Reconnecting:
    """The voice session was lost; the way back is under way."""

    reason: str


@value
class Resumed:
    """The websocket was lost and the session resumed; media went on meanwhile."""


@value
class Closed:
    """The call is over; `error` is None where the bot asked for it."""

    error: VoiceError | None


@value
class EncryptionChanged:
    """E2EE has a new epoch; everybody in the call can compare `privacy_code` (30 digits)."""

    epoch: int
    privacy_code: str


@value
class UsersChanged:
    """Users joined or left the call."""

    joined: tuple[int, ...]
    left: tuple[int, ...]


@value
class DowngradeRefused:
    """The voice server announced DAVE version 0 against the policy 'require': nothing leaves in the clear.

    In a call the stream is held until a group is offered again; at its beginning the call ends with `E2EERequired`.
    """

    protocol_version: int


@value
class IdentityChanged:
    """A user of this call shows another identity key than before; whoever compared codes must do it again."""

    user_id: int


@value
class SpeakingChanged:
    """A user's speech began or ended, by the packets that come: within 0.2 s of the sound."""

    user_id: int
    speaking: bool


@value
class MediaLost:
    """Nothing can be said or heard for now, though the call goes on; the way back is under way."""

    reason: str


@value
class MediaRestored:
    """What `MediaLost` told is over."""


@value
class PlaybackEnded:
    """Something that was played has ended: by itself, stopped, or by `error`."""

    position_s: float
    error: VoiceError | None


@value
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


@value
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
