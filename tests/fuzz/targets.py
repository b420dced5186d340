"""What is fuzzed: each target takes any bytes and lets nothing out but what is documented.

A target is a function of bytes, with a few right inputs to begin from. It handles the errors that its parser documents;
whatever else it lets out is a finding. Where a parser answers, the answer is put to use: messages go through the
machines, files are read to their end.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voicegw.errors import EventNotAllowed, InvalidEndpoint, MalformedFrame, TableError, VoiceError
from voicegw.events import Event, Stamped
from voicegw.flight import FlightRecorder, NotARecord, read_record, replay
from voicegw.media.ogg import OggOpusReader, _checksum
from voicegw.media.wav import WavReader
from voicegw.secret import Secret
from voicegw.session import Transition, VoiceSession
from voicegw.tables.check import check_table
from voicegw.tables.load import parse_table, tables_directory
from voicegw.testing.product import clone
from voicegw.testing.world import GUILD, USER, World
from voicegw.wire import dave_frames, discovery, mls, mls_messages, rtp
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.endpoint import check_media_address, parse_endpoint
from voicegw.wire.frames import decode_binary, decode_text
from voicegw.wire.payloads import SessionDescriptionReceived

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "vectors.json").read_text(encoding="utf-8"))
KEY = Secret(bytes(range(32)))


@dataclass(frozen=True, slots=True)
class Target:
    """One parser, or a few that read the same bytes."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


def wanted(*path: str) -> list[bytes]:
    """Every hexadecimal text below a place of the known answers."""
    found: list[bytes] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif isinstance(value, str) and len(value) >= 8:
            with contextlib.suppress(ValueError):
                found.append(bytes.fromhex(value))

    for name in path:
        collect(VECTORS[name])
    return found


# -- the websocket


def _ready_session() -> VoiceSession:
    world = World()
    world.join()
    world.session.observer = None
    return world.session


READY = _ready_session()


def _into_the_machines(message: Any) -> None:
    """A message that could be decoded moves a ready call's machines, and they raise nothing but a refusal."""
    session = clone(READY)
    with contextlib.suppress(EventNotAllowed):
        session.receive(message.payload, session.shared.now)
    if isinstance(message.payload, SessionDescriptionReceived):
        other = replace(message.payload, secret_key=Secret(bytes(32)))
        assert repr(message.payload) == repr(other), "what is shown depends on the key"


def text_frame(data: bytes) -> None:
    """JSON messages."""
    try:
        message = decode_text(data.decode("utf-8", "surrogateescape"))
    except MalformedFrame:
        return
    _into_the_machines(message)


def binary_frame(data: bytes) -> None:
    """MLS messages in their frames."""
    try:
        message = decode_binary(data)
    except MalformedFrame:
        return
    _into_the_machines(message)


# -- datagrams


def datagram(data: bytes) -> None:
    """RTP, RTCP, discovery and keepalive answers, as the receiver reads them."""
    rtp.kind_of(data)
    discovery.parse_discovery(data, 1)
    discovery.parse_request(data)
    rtp.parse_rtcp(data)
    try:
        view = rtp.parse_rtp(data)
        rtp.strip(data, view)
    except VoiceError:
        return
    rtp.parse_extension(0xBEDE, data[:64])


def sealed_packet(data: bytes) -> None:
    """Datagrams of both modes; nothing that is not authentic comes out."""
    for cipher in CIPHERS:
        with contextlib.suppress(VoiceError):
            cipher.open(data, min(12, len(data)))


CIPHERS = [TransportCipher(mode, KEY) for mode in ("aead_aes256_gcm_rtpsize", "aead_xchacha20_poly1305_rtpsize")]


def dave_frame(data: bytes) -> None:
    """The form of an encrypted frame."""
    dave_frames.is_dave_frame(data)
    decoded = dave_frames.decode_uleb128(data)
    if decoded is not None and decoded[0] < 1 << 32:
        again = dave_frames.decode_uleb128(dave_frames.encode_uleb128(decoded[0]))
        assert again is not None
        assert again[0] == decoded[0]


# -- MLS


def mls_message(data: bytes) -> None:
    """Every MLS reader on the same bytes."""
    for read in (
        mls.parse_key_package,
        mls.parse_proposal_messages,
        mls.parse_proposal_refs,
        mls.check_external_sender,
        mls_messages.parse_commit_welcome,
        mls_messages.parse_welcome,
    ):
        with contextlib.suppress(VoiceError):
            read(data)


# -- files


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """The bytes as a file, in memory where that can be had."""
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        yield file.name


def ogg_file(data: bytes) -> None:
    """Ogg Opus, as it is or with right checksums put in: the parser behind them wants to be reached, too."""
    if data[:1] == b"\x01":
        data = _with_checksums(data[1:])
    with as_file(data) as path, contextlib.suppress(VoiceError), OggOpusReader(path) as reader:
        for number, _ in enumerate(reader):
            if number > 1000:
                break


def _with_checksums(data: bytes) -> bytes:
    pages, at = bytearray(data), 0
    while (at := pages.find(b"OggS", at)) >= 0 and at + 27 <= len(pages):
        end = at + 27 + pages[at + 26]
        end += sum(pages[at + 27 : end])
        pages[at + 22 : at + 26] = bytes(4)
        pages[at + 22 : at + 26] = struct.pack("<I", _checksum(bytes(pages[at:end])))
        at = end
    return bytes(pages)


def wav_file(data: bytes) -> None:
    """WAV of every format."""
    with as_file(data) as path, contextlib.suppress(VoiceError), WavReader(path) as reader:
        for number, _ in enumerate(reader):
            if number > 1000:
                break


def flight_record(data: bytes) -> None:
    """Flight records; what can be read can be run."""
    with as_file(data) as path:
        try:
            record = read_record(path)
            replay(record)
        except (NotARecord, VoiceError):
            return


# -- texts


def endpoint(data: bytes) -> None:
    """Endpoints and media addresses; an endpoint that passes is one of Discord's."""
    text = data.decode("utf-8", "replace")
    for private in (False, True):
        with contextlib.suppress(InvalidEndpoint):
            check_media_address(text, private)
    try:
        found = parse_endpoint(text)
    except InvalidEndpoint:
        return
    assert found.host.endswith(".discord.media")
    assert 0 < found.port < 1 << 16


def table(data: bytes) -> None:
    """State tables; what can be read can be checked."""
    try:
        read = parse_table(data.decode("utf-8", "replace"), "heartbeat")
    except TableError:
        return
    check_table(read)


def _texts(name: str) -> list[bytes]:
    found = []
    for entry in VECTORS["gateway_json"][name]:
        message = entry.get("frame", entry.get("message", entry)) if isinstance(entry, dict) else entry
        found.append(message.encode() if isinstance(message, str) else json.dumps(message).encode())
    return found


def _record() -> bytes:
    world = World()
    recorder = FlightRecorder(USER, GUILD, world.options)
    seen = [0]

    def step(transition: Transition) -> None:
        world.trace.append(transition)
        recorder.step(transition)

    def note(event: Event | Stamped) -> None:
        recorder.note(world.now, event, [effect for _, effect in world.effects[seen[0] :]])
        seen[0] = len(world.effects)

    world.session.observer = step
    world.on_event = note
    world.join()
    return "\n".join(recorder.lines()).encode()


DEMO = Path(__file__).parent.parent.parent / "voicegw" / "media" / "demo.ogg"
WAV = (
    b"RIFF\x2c\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x02\x00\x80\xbb\x00\x00\x00\xee\x02\x00\x04\x00\x10\x00"
    b"data\x08\x00\x00\x00"
)

TARGETS: Mapping[str, Target] = {
    "text_frame": Target(text_frame, _texts("messages")),
    "binary_frame": Target(binary_frame, wanted("gateway_binary", "mls_external_sender", "mls_external_proposals")),
    "datagram": Target(
        datagram, wanted("ip_discovery", "udp_control", "transport_rtcp", "rtp_header", "rtp_extension")
    ),
    "sealed_packet": Target(sealed_packet, wanted("transport_rtp", "transport_rtcp")),
    "dave_frame": Target(dave_frame, wanted("dave_frames", "dave_frame_check")),
    "mls_message": Target(
        mls_message, wanted("mls_key_package", "mls_external_proposals", "mls_production_capture", "mls_transcript")
    ),
    "ogg_file": Target(ogg_file, [DEMO.read_bytes()[:4000], b"\x01" + DEMO.read_bytes()[:4000]]),
    "wav_file": Target(wav_file, [WAV + bytes(8), WAV.replace(b"\x01\x00\x02", b"\x03\x00\x02") + bytes(8)]),
    "flight_record": Target(flight_record, [_record()]),
    "endpoint": Target(endpoint, [b"c-ams20.discord.media:2087", b"[2001:db8::1]:443", b"8.8.8.8", b"::ffff:10.0.0.1"]),
    "table": Target(table, [(tables_directory() / "heartbeat.toml").read_text(encoding="utf-8").encode()]),
}
