"""What one machine of a call tells the others; adapters never send these."""

from __future__ import annotations

from typing import ClassVar

from voicegw.effects import HoldReason
from voicegw.errors import VoiceError
from voicegw.snapshot import Announcement, SessionSnapshot
from voicegw.value import value


@value
class ConnectRequested:
    """call to gateway: dial with the pair that is in `Shared.credentials`."""

    name: ClassVar[str] = "connect_requested"


@value
class DialAheadRequested:
    """call to gateway and dave: another process's session is expected here."""

    name: ClassVar[str] = "dial_ahead_requested"
    announced: Announcement


@value
class SessionThawed:
    """call to gateway, transport and dave: another process's session goes on here."""

    name: ClassVar[str] = "session_thawed"
    snapshot: SessionSnapshot

    @property
    def ip(self) -> str:
        """The voice server's address for media."""
        return self.snapshot.media[0]

    @property
    def port(self) -> int:
        """Its port."""
        return self.snapshot.media[1]


@value
class CloseRequested:
    """call to gateway: end the voice session."""

    name: ClassVar[str] = "close_requested"


@value
class AbortRequested:
    """call to gateway: end the voice session at once, without another word to its server."""

    name: ClassVar[str] = "abort_requested"


@value
class HeartStarted:
    """gateway to heartbeat: Hello was heard."""

    name: ClassVar[str] = "heart_started"
    interval_s: float


@value
class HeartDied:
    """heartbeat to gateway: two beats unanswered."""

    name: ClassVar[str] = "heart_died"


@value
class MediaOffered:
    """gateway to transport: Ready was heard."""

    name: ClassVar[str] = "media_offered"
    ip: str
    port: int


@value
class DiscoveryFailed:
    """transport to gateway: IP discovery stayed unanswered (`UdpBlocked`), or no socket could be had."""

    name: ClassVar[str] = "discovery_failed"
    error: VoiceError


@value
class E2eeAgreed:
    """gateway to dave: the Session Description named a DAVE version."""

    name: ClassVar[str] = "e2ee_agreed"
    protocol_version: int


@value
class E2eeLost:
    """dave to gateway: recovery failed too often."""

    name: ClassVar[str] = "e2ee_lost"


@value
class MessagesLost:
    """session to dave: after a resume numbered messages are missing."""

    name: ClassVar[str] = "messages_lost"


@value
class GroupEstablished:
    """dave to call: E2EE works."""

    name: ClassVar[str] = "group_established"


@value
class GatewayReady:
    """gateway to call: the voice session is ready."""

    name: ClassVar[str] = "gateway_ready"


@value
class GatewayInterrupted:
    """gateway to heartbeat: the websocket is lost, the session is not."""

    name: ClassVar[str] = "gateway_interrupted"


@value
class GatewayResumed:
    """gateway to transport, dave, speech and call: the session lives on."""

    name: ClassVar[str] = "gateway_resumed"


@value
class GatewayClosed:
    """gateway to heartbeat, transport and dave: the session is over."""

    name: ClassVar[str] = "gateway_closed"


@value
class GatewayDown:
    """gateway to call: closed as asked."""

    name: ClassVar[str] = "gateway_down"


@value
class SessionLost:
    """gateway to call: the voice session ended; `name` (lost_*) says what may help, `after_s` when the next turn is."""

    name: str
    error: VoiceError
    after_s: float = 0.0


@value
class SpeechAllowed:
    """dave to speech: frames may leave, encrypted end to end or (version 0, by policy) not."""

    name: ClassVar[str] = "speech_allowed"
    encrypted: bool


@value
class SpeechForbidden:
    """dave to speech: no frame may leave."""

    name: ClassVar[str] = "speech_forbidden"
    reason: HoldReason


@value
class SessionEnded:
    """A `SocketClosed` after the table has judged its code; `name` is the table's decision."""

    name: str
    code: int | None
    reason: str


Signal = (
    ConnectRequested
    | DialAheadRequested
    | SessionThawed
    | CloseRequested
    | AbortRequested
    | HeartStarted
    | HeartDied
    | MediaOffered
    | DiscoveryFailed
    | E2eeAgreed
    | E2eeLost
    | MessagesLost
    | GroupEstablished
    | GatewayReady
    | GatewayInterrupted
    | GatewayResumed
    | GatewayClosed
    | GatewayDown
    | SessionLost
    | SessionEnded
    | SpeechAllowed
    | SpeechForbidden
)
