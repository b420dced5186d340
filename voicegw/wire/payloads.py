"""What a voice server says, decoded and validated. Each class is an event; `name` is its word in the state tables.

Snowflakes are ints here, times are seconds. `MalformedFrame` is the only error that decoding raises.
Source: Discord voice docs; community documentation for opcodes 12, 14 to 16, 18 and 20.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from voicegw.errors import MalformedFrame
from voicegw.secret import Secret
from voicegw.value import value
from voicegw.wire.opcodes import Opcode

KEY_BYTES = 32
U64 = 1 << 64
U32 = 1 << 32
U16 = 1 << 16
HEARTBEAT_RANGE_S = (1.0, 300.0)
DEFAULT_HEARTBEAT_S = 13.75


@value
class HelloReceived:
    """Op 8. An interval outside 1 s to 5 min is clamped, one that is no number becomes 13.75 s; `odd` says so."""

    op: ClassVar[Opcode] = Opcode.HELLO
    name: ClassVar[str] = "hello_received"
    heartbeat_interval_s: float
    version: int
    odd: bool = False


@value
class ReadyReceived:
    """Op 2: our SSRC, the media address (an IP literal), and the transport encryption modes on offer."""

    op: ClassVar[Opcode] = Opcode.READY
    name: ClassVar[str] = "ready_received"
    ssrc: int
    ip: str
    port: int
    modes: tuple[str, ...]


@value
class SessionDescriptionReceived:
    """Op 4: the transport key (32 bytes) and the DAVE version, 0 where none is named."""

    op: ClassVar[Opcode] = Opcode.SESSION_DESCRIPTION
    name: ClassVar[str] = "session_description_received"
    mode: str
    secret_key: Secret[bytes]
    dave_protocol_version: int


@value
class SpeakingReceived:
    """Op 5: who speaks under which SSRC; flags as in `Speaking`."""

    op: ClassVar[Opcode] = Opcode.SPEAKING
    name: ClassVar[str] = "speaking_received"
    user_id: int
    ssrc: int
    flags: int


@value
class HeartbeatRequested:
    """Op 3 from the server: it wants a heartbeat now."""

    op: ClassVar[Opcode] = Opcode.HEARTBEAT
    name: ClassVar[str] = "heartbeat_requested"


@value
class HeartbeatAcked:
    """Op 6; `nonce` is the `t` of the heartbeat, None where it was not an integer."""

    op: ClassVar[Opcode] = Opcode.HEARTBEAT_ACK
    name: ClassVar[str] = "heartbeat_acked"
    nonce: int | None


@value
class ResumedReceived:
    """Op 9."""

    op: ClassVar[Opcode] = Opcode.RESUMED
    name: ClassVar[str] = "resumed_received"


@value
class ClientsConnected:
    """Op 11: more users are in the call."""

    op: ClassVar[Opcode] = Opcode.CLIENTS_CONNECT
    name: ClassVar[str] = "clients_connected"
    user_ids: tuple[int, ...]


@value
class VideoReceived:
    """Op 12: another source of SSRC and user; `audio_ssrc` 0 means no audio."""

    op: ClassVar[Opcode] = Opcode.VIDEO
    name: ClassVar[str] = "video_received"
    user_id: int
    audio_ssrc: int


@value
class ClientDisconnected:
    """Op 13."""

    op: ClassVar[Opcode] = Opcode.CLIENT_DISCONNECT
    name: ClassVar[str] = "client_disconnected"
    user_id: int


@value
class SessionUpdated:
    """Op 14: codecs; nothing that an audio client needs."""

    op: ClassVar[Opcode] = Opcode.SESSION_UPDATE
    name: ClassVar[str] = "session_updated"


@value
class MediaSinkWants:
    """Op 15: the quality (0 to 100) wanted of our stream; `any_stream` None where it is not named."""

    op: ClassVar[Opcode] = Opcode.MEDIA_SINK_WANTS
    name: ClassVar[str] = "media_sink_wants"
    any_stream: int | None


@value
class BackendVersion:
    """Op 16: versions of the voice server's parts."""

    op: ClassVar[Opcode] = Opcode.VOICE_BACKEND_VERSION
    name: ClassVar[str] = "backend_version"
    voice: str
    rtc_worker: str


@value
class ClientFlags:
    """Op 18; None for bots."""

    op: ClassVar[Opcode] = Opcode.CLIENT_FLAGS
    name: ClassVar[str] = "client_flags"
    user_id: int
    flags: int | None


@value
class ClientPlatform:
    """Op 20; None for bots."""

    op: ClassVar[Opcode] = Opcode.CLIENT_PLATFORM
    name: ClassVar[str] = "client_platform"
    user_id: int
    platform: int | None


@value
class TransitionPrepared:
    """Op 21: be ready for `protocol_version` under this id; id 0 is in force at once."""

    op: ClassVar[Opcode] = Opcode.DAVE_PREPARE_TRANSITION
    name: ClassVar[str] = "transition_prepared"
    protocol_version: int
    transition_id: int


@value
class TransitionExecuted:
    """Op 22: the transition is in force."""

    op: ClassVar[Opcode] = Opcode.DAVE_EXECUTE_TRANSITION
    name: ClassVar[str] = "transition_executed"
    transition_id: int


@value
class EpochPrepared:
    """Op 24: epoch 1 begins a new group."""

    op: ClassVar[Opcode] = Opcode.DAVE_PREPARE_EPOCH
    name: ClassVar[str] = "epoch_prepared"
    protocol_version: int
    epoch: int


@value
class ExternalSenderReceived:
    """Op 25: who may propose changes to the group, as MLS bytes."""

    op: ClassVar[Opcode] = Opcode.MLS_EXTERNAL_SENDER
    name: ClassVar[str] = "external_sender_received"
    data: bytes


@value
class ProposalsReceived:
    """Op 27: a vector of MLS messages, or with `revoke` of proposal references; the operation byte is cut off."""

    op: ClassVar[Opcode] = Opcode.MLS_PROPOSALS
    name: ClassVar[str] = "proposals_received"
    revoke: bool
    data: bytes


@value
class CommitAnnounced:
    """Op 29: the commit that won."""

    op: ClassVar[Opcode] = Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION
    name: ClassVar[str] = "commit_announced"
    transition_id: int
    commit: bytes


@value
class WelcomeReceived:
    """Op 30: the way into the group."""

    op: ClassVar[Opcode] = Opcode.MLS_WELCOME
    name: ClassVar[str] = "welcome_received"
    transition_id: int
    welcome: bytes


@value
class Unlisted:
    """Any other opcode: counted and ignored, as the protocol wants it."""

    name: ClassVar[str] = "unlisted_received"
    op: int


Payload = (
    HelloReceived
    | ReadyReceived
    | SessionDescriptionReceived
    | SpeakingReceived
    | HeartbeatRequested
    | HeartbeatAcked
    | ResumedReceived
    | ClientsConnected
    | VideoReceived
    | ClientDisconnected
    | SessionUpdated
    | MediaSinkWants
    | BackendVersion
    | ClientFlags
    | ClientPlatform
    | TransitionPrepared
    | TransitionExecuted
    | EpochPrepared
    | ExternalSenderReceived
    | ProposalsReceived
    | CommitAnnounced
    | WelcomeReceived
    | Unlisted
)


# -- text frames: the `d` of each opcode


def _hello(d: Any) -> Payload:
    fields = d if isinstance(d, Mapping) else {}
    interval_ms = fields.get("heartbeat_interval")
    version = _optional_int(fields, "v") or 0
    if not isinstance(interval_ms, int | float) or isinstance(interval_ms, bool) or not math.isfinite(interval_ms):
        return HelloReceived(DEFAULT_HEARTBEAT_S, version, odd=True)
    low, high = HEARTBEAT_RANGE_S
    interval_s = min(high, max(low, interval_ms / 1000))
    return HelloReceived(interval_s, version, odd=interval_s != interval_ms / 1000)


def _ready(d: Any) -> Payload:
    fields = _mapping(d)
    ip = _text(fields, "ip")
    try:
        ipaddress.ip_address(ip)
    except ValueError as error:
        raise MalformedFrame("Ready names no IP address for media") from error
    modes = fields.get("modes")
    if not isinstance(modes, list):
        raise MalformedFrame("Ready names no encryption modes")
    return ReadyReceived(
        ssrc=_number(fields, "ssrc", U32, least=1),
        ip=ip,
        port=_number(fields, "port", U16, least=1),
        modes=tuple(mode for mode in modes if isinstance(mode, str)),
    )


def _session_description(d: Any) -> Payload:
    fields = _mapping(d)
    key = fields.get("secret_key")
    if not isinstance(key, Secret) or len(key.view()) != KEY_BYTES:
        raise MalformedFrame("the Session Description's key is not 32 bytes")
    version = fields.get("dave_protocol_version")
    return SessionDescriptionReceived(
        mode=_text(fields, "mode"),
        secret_key=key,
        dave_protocol_version=0 if version is None else _number(fields, "dave_protocol_version", U16),
    )


def _speaking(d: Any) -> Payload:
    fields = _mapping(d)
    return SpeakingReceived(
        user_id=_snowflake(fields, "user_id"),
        ssrc=_number(fields, "ssrc", U32),
        flags=_number(fields, "speaking", U32) if "speaking" in fields else 0,
    )


def _heartbeat_requested(d: Any) -> Payload:
    return HeartbeatRequested()


def _heartbeat_acked(d: Any) -> Payload:
    nonce = d.get("t") if isinstance(d, Mapping) else d
    return HeartbeatAcked(nonce if _is_int(nonce) else None)


def _resumed(d: Any) -> Payload:
    return ResumedReceived()


def _clients_connected(d: Any) -> Payload:
    ids = _mapping(d).get("user_ids")
    if not isinstance(ids, list):
        raise MalformedFrame("Clients Connect names no users")
    return ClientsConnected(tuple(_as_snowflake(item, "user_ids") for item in ids))


def _video(d: Any) -> Payload:
    fields = _mapping(d)
    if "user_id" not in fields:
        return Unlisted(int(Opcode.VIDEO))
    return VideoReceived(
        user_id=_snowflake(fields, "user_id"),
        audio_ssrc=_number(fields, "audio_ssrc", U32) if "audio_ssrc" in fields else 0,
    )


def _client_disconnected(d: Any) -> Payload:
    return ClientDisconnected(_snowflake(_mapping(d), "user_id"))


def _session_updated(d: Any) -> Payload:
    return SessionUpdated()


def _media_sink_wants(d: Any) -> Payload:
    return MediaSinkWants(_optional_int(_mapping(d), "any"))


def _backend_version(d: Any) -> Payload:
    fields = _mapping(d)
    return BackendVersion(str(fields.get("voice", "")), str(fields.get("rtc_worker", "")))


def _client_flags(d: Any) -> Payload:
    fields = _mapping(d)
    return ClientFlags(_snowflake(fields, "user_id"), _optional_int(fields, "flags"))


def _client_platform(d: Any) -> Payload:
    fields = _mapping(d)
    return ClientPlatform(_snowflake(fields, "user_id"), _optional_int(fields, "platform"))


def _transition_prepared(d: Any) -> Payload:
    fields = _mapping(d)
    return TransitionPrepared(_number(fields, "protocol_version", U16), _number(fields, "transition_id", U16))


def _transition_executed(d: Any) -> Payload:
    return TransitionExecuted(_number(_mapping(d), "transition_id", U16))


def _epoch_prepared(d: Any) -> Payload:
    fields = _mapping(d)
    return EpochPrepared(_number(fields, "protocol_version", U16), _number(fields, "epoch", U64))


TEXT_PAYLOADS: Mapping[int, Callable[[Any], Payload]] = {
    Opcode.READY: _ready,
    Opcode.HEARTBEAT: _heartbeat_requested,
    Opcode.SESSION_DESCRIPTION: _session_description,
    Opcode.SPEAKING: _speaking,
    Opcode.HEARTBEAT_ACK: _heartbeat_acked,
    Opcode.HELLO: _hello,
    Opcode.RESUMED: _resumed,
    Opcode.CLIENTS_CONNECT: _clients_connected,
    Opcode.VIDEO: _video,
    Opcode.CLIENT_DISCONNECT: _client_disconnected,
    Opcode.SESSION_UPDATE: _session_updated,
    Opcode.MEDIA_SINK_WANTS: _media_sink_wants,
    Opcode.VOICE_BACKEND_VERSION: _backend_version,
    Opcode.CLIENT_FLAGS: _client_flags,
    Opcode.CLIENT_PLATFORM: _client_platform,
    Opcode.DAVE_PREPARE_TRANSITION: _transition_prepared,
    Opcode.DAVE_EXECUTE_TRANSITION: _transition_executed,
    Opcode.DAVE_PREPARE_EPOCH: _epoch_prepared,
}


# -- binary frames: the bytes after sequence number and opcode


def _external_sender(data: bytes) -> Payload:
    if not data:
        raise MalformedFrame("an empty external sender")
    return ExternalSenderReceived(data)


def _proposals(data: bytes) -> Payload:
    if not data or data[0] > 1:
        raise MalformedFrame("proposals without a known operation")
    vector = data[1:]
    if not vector or vector[0] >> 6 == 3:
        raise MalformedFrame("proposals without a valid vector length")
    width = 1 << (vector[0] >> 6)
    length = int.from_bytes(vector[:width], "big") & ((1 << (8 * width - 2)) - 1)
    if len(vector) < width or len(vector) != width + length:
        raise MalformedFrame("the proposals' vector does not end with the frame")
    return ProposalsReceived(revoke=data[0] == 1, data=vector)


def _commit(data: bytes) -> Payload:
    if len(data) < 3:
        raise MalformedFrame("a commit without transition id or content")
    return CommitAnnounced(int.from_bytes(data[:2], "big"), data[2:])


def _welcome(data: bytes) -> Payload:
    if len(data) < 3:
        raise MalformedFrame("a welcome without transition id or content")
    return WelcomeReceived(int.from_bytes(data[:2], "big"), data[2:])


BINARY_PAYLOADS: Mapping[int, Callable[[bytes], Payload]] = {
    Opcode.MLS_EXTERNAL_SENDER: _external_sender,
    Opcode.MLS_PROPOSALS: _proposals,
    Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION: _commit,
    Opcode.MLS_WELCOME: _welcome,
}


# -- fields


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(d: Any) -> Mapping[str, Any]:
    if not isinstance(d, Mapping):
        raise MalformedFrame("a message without its fields")
    return d


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise MalformedFrame(f"{name} is missing or no text")
    return value


def _number(fields: Mapping[str, Any], name: str, limit: int, least: int = 0) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < limit:
        raise MalformedFrame(f"{name} is missing or out of range")
    return value


def _optional_int(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _snowflake(fields: Mapping[str, Any], name: str) -> int:
    return _as_snowflake(fields.get(name), name)


def _as_snowflake(value: object, name: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < U64:
        raise MalformedFrame(f"{name} is no snowflake")
    return value
