"""The document of a frozen call: what it holds, who can read it, and what it never shows."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from voicegw import FleetKey, FrozenCall, SourceDescription
from voicegw.errors import FrozenCallError, FrozenCallRefused, FrozenCallTooNew
from voicegw.frozen import FORMAT
from voicegw.media.playlist import Playlist, PlaylistItem
from voicegw.media.sender import StreamMark
from voicegw.secret import Secret
from voicegw.snapshot import SessionSnapshot

GOLDEN = Path(__file__).parent / "golden" / "frozen_call_1.bin"
KEY = FleetKey("of the tests", Secret(bytes(range(32))))
SECRETS = ("session-of-alice", "token-of-alice", "signature=of-alice", "k" * 32)
CALL = FrozenCall(
    user_id=104694319306248192,
    guild_id=41771983423143937,
    session=SessionSnapshot(
        channel_id=127121515262115840,
        home=127121515262115840,
        session_id=Secret(SECRETS[0]),
        token=Secret(SECRETS[1]),
        endpoint="c-ams20-20d36bc4.discord.media:2087",
        seq_ack=65535,
        ssrc=10001,
        media=("66.22.196.1", 50004),
        selected=("203.0.113.7", 40000),
        mode="aead_aes256_gcm_rtpsize",
        secret_key=Secret(SECRETS[3].encode()),
        users=(1, 2),
        ssrcs=((10002, 1), (10003, 2)),
        dave="active",
        dave_protocol_version=1,
        epoch=7,
        external_sender=b"\0sender",
        last_transition=3,
    ),
    stream=StreamMark(nonces=1234, sequence=65535, timestamp_ticks=4294967295),
    keys=((b"digest", 1234),),
    playlist=Playlist(
        playing=PlaylistItem(
            "OggOpusSource", SourceDescription("file", {"path": "/music/a.opus"}), 12.34, 0.5, -16.0, True
        ),
        queue=(PlaylistItem("AvSource", SourceDescription("url", {"url": f"https://a.example/?{SECRETS[2]}"})),),
        over=(PlaylistItem("IteratorSource", ducks=0.3, position_s=1.0),),
        bitrate=96_000,
        ducked=0.5,
    ),
    options={"policy": "require", "modes": ["aead_aes256_gcm_rtpsize"], "deadlines": {"endpoint_timeout": 10.0}},
    states={"call": "connected"},
    frozen_at_ms=1_790_000_000_000,
)


def test_what_was_frozen_is_what_is_read() -> None:
    assert FrozenCall.from_bytes(CALL.to_bytes(KEY), KEY) == CALL
    assert FrozenCall.from_bytes(CALL.to_bytes(KEY), [FleetKey.generate("2"), KEY]) == CALL


def test_no_document_is_like_another() -> None:
    assert CALL.to_bytes(KEY) != CALL.to_bytes(KEY)


def test_secrets_are_neither_in_the_document_nor_shown() -> None:
    data = CALL.to_bytes(KEY)
    for secret in SECRETS:
        for form in (secret.encode(), base64.b64encode(secret.encode())):
            assert form not in data
        assert secret not in repr(CALL)
        assert secret not in str(CALL)
    assert b"/music" not in data
    assert KEY.to_text().reveal() not in repr(KEY)
    assert FleetKey.from_text(KEY.to_text().reveal()) == KEY


def test_another_key_opens_nothing() -> None:
    data = CALL.to_bytes(KEY)
    with pytest.raises(FrozenCallRefused, match="'of the tests', which is not known here"):
        FrozenCall.from_bytes(data, FleetKey.generate("another"))
    with pytest.raises(FrozenCallRefused, match="another one, or changed bytes"):
        FrozenCall.from_bytes(data, FleetKey("of the tests", Secret(bytes(32))))


def test_every_byte_counts() -> None:
    data = CALL.to_bytes(KEY)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(FrozenCallError):
            FrozenCall.from_bytes(bytes(changed), KEY)
    for length in range(0, len(data), 7):
        with pytest.raises(FrozenCallError):
            FrozenCall.from_bytes(data[:length], KEY)


@pytest.mark.parametrize("head", [b"[" * 1024, b'{"voicegw_frozen": 1e999, "key": "1", "guild": "1", "user": "1"}'])
def test_any_head_gives_a_call_or_our_error(head: bytes) -> None:
    with pytest.raises(FrozenCallError, match="no frozen call"):
        FrozenCall.from_bytes(head, KEY)


@pytest.mark.parametrize("name", ["guild", "user"])
def test_a_document_is_nobody_elses(name: str) -> None:
    line, _, sealed = CALL.to_bytes(KEY).partition(b"\n")
    head = {**json.loads(line), name: "7"}
    with pytest.raises(FrozenCallRefused):
        FrozenCall.from_bytes(json.dumps(head).encode() + b"\n" + sealed, KEY)


def test_a_newer_document_says_what_to_do() -> None:
    line, _, sealed = CALL.to_bytes(KEY).partition(b"\n")
    head = {**json.loads(line), "voicegw_frozen": FORMAT + 1}
    with pytest.raises(FrozenCallTooNew, match="update voicegw here"):
        FrozenCall.from_bytes(json.dumps(head).encode() + b"\n" + sealed, KEY)


def test_documents_of_format_1_stay_readable() -> None:
    """`python -m tests.test_frozen` writes one of the present format; those of older formats are never written anew."""
    assert FrozenCall.from_bytes(GOLDEN.read_bytes(), KEY) == CALL


def test_what_a_document_does_not_say_has_its_default() -> None:
    """A later version of the same format may leave out nothing, but an earlier one may have known less."""
    bare = dataclasses.replace(CALL, session=SessionSnapshot(5), playlist=Playlist(), options={}, states={}, keys=())
    assert FrozenCall.from_bytes(bare.to_bytes(KEY), KEY) == bare
    assert not bare.resumable
    assert CALL.resumable


def test_what_cannot_go_on_is_said() -> None:
    (line,) = CALL.playlist.lost
    assert line.startswith("IteratorSource at 1.0 s: only this process can read it")


@pytest.mark.parametrize("text", ["", "1", "1:", "1:AAAA", ":" + "A" * 43 + "=", "1:" + "!" * 44])
def test_no_fleet_key(text: str) -> None:
    with pytest.raises(FrozenCallError):
        FleetKey.from_text(text)


if __name__ == "__main__":
    GOLDEN.write_bytes(CALL.to_bytes(KEY))
