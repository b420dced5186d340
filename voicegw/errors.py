"""Everything this package raises on purpose.

    VoiceError
    |-- TableError                  a state table that cannot be right; names the row
    |-- EventNotAllowed             a wish that the present state forbids; nothing has changed
    |-- UsedElsewhere               (RuntimeError) from another thread, event loop or process than the object's own
    |-- SignallingError             the main gateway did not, or could not, answer our join
    |-- LoginRefused                Discord refuses the bot's login, or what the bot asks for
    |-- Kicked                      we were taken out of the channel
    |-- ConnectionFailed            (ConnectionError) no voice connection could be made
    |   |-- InvalidHandshake        TLS or the websocket upgrade was refused
    |   |   `-- CertificateRefused  the server's certificate is not what it must be
    |   |-- UdpBlocked              UDP does not pass; says where it ends
    |   `-- VoiceTimeout            (TimeoutError) a deadline passed
    |-- ConnectionClosed            (ConnectionError) an established connection ended; carries the close code
    |-- WebSocketProtocolError      the peer broke the protocol
    |   `-- MalformedFrame          one frame that cannot be decoded
    |-- InvalidEndpoint             (ValueError) a host or address that must not be dialled
    |-- InvalidDeadline             (ValueError) an option names no deadline of the tables, or no time
    |-- EncryptionError
    |   |-- NoCommonMode            no transport encryption that both sides know
    |   |-- PacketRejected          a datagram that is not authentic or not well formed
    |   |-- KeyExhausted            a key has been used as often as it may be
    |   `-- LeaseEnded              a key has been used as often as this process may, for now
    |-- FrozenCallError             a document of a frozen call that cannot be used
    |   |-- FrozenCallTooNew        written by a newer version
    |   `-- FrozenCallRefused       another fleet key, or changed bytes
    |-- E2EEError
    |   |-- E2EERequired            policy or server demands end-to-end encryption and it cannot be had
    |   |-- DaveNotFound            no usable MLS library (davey) on this machine
    |   `-- GroupError              an MLS message that does not fit our group
    |-- FleetError                  the fleet cannot be reached, or cannot do what was asked
    `-- AudioError
        |-- OpusNotFound            no usable libopus on this machine
        |-- NotAudio                a file or frame that is not audio we can read
        |-- SourceFailed            a source that died, or cannot do what was asked
        |-- SourceRefused           a URL or option that a user must not give to a decoder
        `-- TooManyStreams          more streams than this process can keep at pace

The peer's fault and the caller's are different classes. No message holds a token, a session id or a key.
"""

from __future__ import annotations


class VoiceError(Exception):
    """Base of everything this package raises on purpose."""


class TableError(VoiceError):
    """A state table is wrong; the message names the table and the row."""


class EventNotAllowed(VoiceError):
    """We were asked for something that this state forbids; the session is unchanged."""

    def __init__(self, event: str, state: str) -> None:
        super().__init__(f"{event} is not possible in state {state}")
        self.event = event
        self.state = state


class UsedElsewhere(VoiceError, RuntimeError):
    """The object belongs to another thread, event loop or process; nothing has happened."""


class SignallingError(VoiceError):
    """The main gateway gave no voice session: no permission, a full channel, or it is offline."""


class LoginRefused(VoiceError):
    """Discord refuses the bot's login, or what the bot asks for; the message says what to do."""


class Kicked(VoiceError):
    """We were taken out of the voice channel: by a moderator, with the channel, or at the end of the call."""


class ConnectionFailed(VoiceError, ConnectionError):
    """No voice connection could be made; `OSError` and `ConnectionError` catch it too."""


class InvalidHandshake(ConnectionFailed):
    """TLS or the websocket upgrade failed; `status` is the HTTP status where the upgrade was answered with one."""

    def __init__(self, what: str, status: int | None = None) -> None:
        super().__init__(what)
        self.status = status


class CertificateRefused(InvalidHandshake):
    """The server's certificate is expired, for another name, or from an unknown authority."""


class UdpBlocked(ConnectionFailed):
    """UDP does not pass between this host and the voice server.

    `stage` says where it ends: "route" (no way to that address), "sending" (this host refuses every datagram),
    "discovery" (nothing comes back).
    """

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(text)
        self.stage = stage


class VoiceTimeout(ConnectionFailed, TimeoutError):
    """A deadline passed."""


class ConnectionClosed(VoiceError, ConnectionError):
    """A voice connection ended.

    `code` is the websocket close code (None where none came), `reason` our words for it.
    """

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{reason} (close code {code if code is not None else 'none'})")
        self.code = code
        self.reason = reason


class WebSocketProtocolError(VoiceError):
    """The voice server broke the protocol."""


class MalformedFrame(WebSocketProtocolError):
    """A frame that cannot be decoded; the connection lives on.

    `op` and `seq` are what could be read of it: a frame that is refused still counts for `seq_ack`.
    """

    def __init__(self, what: str, op: int | None = None, seq: int | None = None) -> None:
        super().__init__(what)
        self.op = op
        self.seq = seq


class InvalidEndpoint(VoiceError, ValueError):
    """A voice endpoint or media address that must not be dialled."""


class InvalidDeadline(VoiceError, ValueError):
    """An option that changes a deadline which no table has, or to what is no number of seconds."""


class EncryptionError(VoiceError):
    """Base of everything about transport encryption."""


class NoCommonMode(EncryptionError):
    """The server offers no encryption mode that we know."""


class PacketRejected(EncryptionError):
    """A datagram that is not authentic or not well formed; it is counted and dropped."""


class KeyExhausted(EncryptionError):
    """A transport key has been used 2**32 - 1 times; another packet would repeat a nonce."""


class LeaseEnded(EncryptionError):
    """The nonces of a key that were leased to this process are used; speech is held until the lease is renewed."""


class FrozenCallError(VoiceError):
    """A document of a frozen call that cannot be used; the message says why, and what to do."""


class FrozenCallTooNew(FrozenCallError):
    """It was written by a newer version of this library."""


class FrozenCallRefused(FrozenCallError):
    """It was sealed with another fleet key, or its bytes were changed."""


class E2EEError(VoiceError):
    """Base of everything about end-to-end encryption (DAVE)."""


class E2EERequired(E2EEError):
    """End-to-end encryption is demanded, by us or by the server, and the other side refuses it."""


class DaveNotFound(E2EEError):
    """No usable MLS library (davey) on this machine: missing, broken, too old, or from a place not to be trusted."""


class GroupError(E2EEError):
    """An MLS message that does not fit the group we are in."""


class FleetError(VoiceError):
    """The fleet cannot be reached, has no room, or does not know what was asked for; the message says what to do."""


class AudioError(VoiceError):
    """Base of everything about sources, codecs and recordings."""


class OpusNotFound(AudioError):
    """No usable libopus on this machine."""


class NotAudio(AudioError):
    """A file or frame that is not audio we can read."""


class SourceFailed(AudioError):
    """A source died before its end, or cannot do what was asked of it; the message says how, with its exit code."""


class SourceRefused(AudioError, ValueError):
    """A URL, path or option that must not reach a decoder; nothing was started."""


class TooManyStreams(AudioError):
    """This process cannot keep another stream at pace."""
