"""Websocket frames: every known message decodes to its payload; bad ones give MalformedFrame and nothing else."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import VECTORS
from voicegw.errors import MalformedFrame
from voicegw.secret import Secret
from voicegw.wire import frames
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    HeartbeatAcked,
    HelloReceived,
    Payload,
    ProposalsReceived,
    ReadyReceived,
    SessionDescriptionReceived,
    SpeakingReceived,
    TransitionPrepared,
    Unlisted,
    VideoReceived,
    WelcomeReceived,
)

MESSAGES = {entry["name"]: entry for entry in VECTORS["gateway_json"]["messages"]}
FROM_SERVER = [name for name, entry in MESSAGES.items() if entry["direction"] == "server"]


def decode(name: str) -> Payload:
    return frames.decode_text(json.dumps(MESSAGES[name]["message"])).payload


@pytest.mark.parametrize("name", FROM_SERVER)
def test_every_known_server_message_decodes(name: str) -> None:
    message = frames.decode_text(json.dumps(MESSAGES[name]["message"]))
    assert message.payload.op == MESSAGES[name]["op"]
    assert message.seq == MESSAGES[name]["message"].get("seq")


def test_payloads_carry_what_the_message_says() -> None:
    assert decode("hello") == HelloReceived(13.75, 8)
    assert decode("hello_float_interval") == HelloReceived(13.75025, 8)
    assert decode("ready") == ReadyReceived(
        12871, "198.51.100.9", 50004, ("aead_aes256_gcm_rtpsize", "aead_xchacha20_poly1305_rtpsize")
    )
    assert decode("session_description") == SessionDescriptionReceived(
        "aead_aes256_gcm_rtpsize", Secret(bytes(range(32))), 1
    )
    assert decode("session_description_no_dave").dave_protocol_version == 0  # type: ignore[union-attr]
    assert decode("speaking_receive_priority") == SpeakingReceived(158533742254751744, 9001, 5)
    assert decode("heartbeat_ack") == decode("heartbeat_ack_below_v8") == HeartbeatAcked(1501184119561)
    assert decode("clients_connect") == ClientsConnected((158533742254751744, 852892297661906993))
    assert decode("video") == VideoReceived(158533742254751744, 9001)
    assert decode("dave_prepare_transition_downgrade") == TransitionPrepared(0, 8)
    assert decode("dave_prepare_epoch") == decode("dave_prepare_epoch_with_transition_id") == EpochPrepared(1, 1)
    assert decode("unknown_opcode") == Unlisted(99)


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("identify", lambda: frames.identify(1, 2, Secret("s"), Secret("t"), 1)),
        ("select_protocol", lambda: frames.select_protocol("203.0.113.7", 50004, "aead_aes256_gcm_rtpsize")),
        ("heartbeat_v8", lambda: frames.heartbeat(1501184119561, 10)),
        ("heartbeat_v8_nothing_received", lambda: frames.heartbeat(1501184119561, -1)),
        ("speaking_send", lambda: frames.speaking(1, 12871)),
        ("speaking_stop", lambda: frames.speaking(0, 12871)),
        ("resume", lambda: frames.resume(1, Secret("s"), Secret("t"), 10)),
        ("dave_transition_ready", lambda: frames.transition_ready(7)),
        ("dave_invalid_commit_welcome", lambda: frames.invalid_commit_welcome(9)),
    ],
)
def test_client_messages_have_the_known_shape(name: str, built: Any) -> None:
    expected = MESSAGES[name]["message"]
    message = json.loads(frames.encode_text(expected["op"], built()))
    if name in ("identify", "resume"):
        assert message["d"].keys() == expected["d"].keys()
        assert {type(value) for value in message["d"].values()} == {type(value) for value in expected["d"].values()}
    else:
        assert message == expected


def test_identify_names_the_channel_only_when_asked() -> None:
    session_id, token = Secret("s"), Secret("t")
    plain = frames.identify(1, 2, session_id, token, 1)
    named = frames.identify(1, 2, session_id, token, 1, channel_id=3)
    secrets = {"session_id": session_id, "token": token}
    assert plain == {"server_id": "1", "user_id": "2", **secrets, "max_dave_protocol_version": 1}
    assert named == plain | {"channel_id": "3"}


def decode_any(frame: dict[str, str]) -> frames.Message:
    if "text" in frame:
        return frames.decode_text(frame["text"])
    return frames.decode_binary(bytes.fromhex(frame["binary"]))


@pytest.mark.parametrize("run", VECTORS["seq_tracking"]["runs"], ids=lambda run: run["name"])
def test_sequence_numbers_are_shared_by_text_and_binary(run: dict[str, Any]) -> None:
    counter = frames.SequenceCounter()
    seen = []
    for frame in run["frames"]:
        try:
            counter.note(decode_any(frame).seq)
        except MalformedFrame as error:
            counter.note(error.seq)
        seen.append(counter.last)
    assert seen == run["seq_ack_after"]


@pytest.mark.parametrize("frame", VECTORS["seq_tracking"]["reject"], ids=lambda frame: frame["why"])
def test_frames_without_shape_are_refused(frame: dict[str, str]) -> None:
    with pytest.raises(MalformedFrame):
        decode_any(frame)


@pytest.mark.parametrize("entry", VECTORS["gateway_binary"]["frames"], ids=lambda entry: f"op {entry['op']}")
def test_every_known_binary_frame(entry: dict[str, Any]) -> None:
    data = bytes.fromhex(entry["frame"])
    if entry["direction"] == "client":
        assert frames.encode_binary(data[0], data[1:]) == data
        assert data[0] == entry["op"]
        return
    message = frames.decode_binary(data)
    assert message.seq == entry["seq"]
    payload = message.payload
    match payload:
        case ExternalSenderReceived(data=content):
            assert content == data[3:]
        case ProposalsReceived(revoke=revoke, data=content):
            assert revoke == (entry["operation"] == "revoke")
            assert content == data[4:]
        case (
            CommitAnnounced(transition_id=number, commit=content)
            | WelcomeReceived(transition_id=number, welcome=content)
        ):
            assert number == entry["transition_id"]
            assert content == data[5:]
        case _:
            raise AssertionError(payload)


@pytest.mark.parametrize("entry", VECTORS["gateway_binary"]["reject"], ids=lambda entry: entry["why"])
def test_bad_binary_frames_are_refused_but_counted(entry: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrame) as caught:
        frames.decode_binary(bytes.fromhex(entry["frame"]))
    assert caught.value.seq == 9
    assert caught.value.op == bytes.fromhex(entry["frame"])[2]


@pytest.mark.parametrize(
    "text",
    [
        '{"op":NaN}',
        '{"op":1e400,"d":{}}',
        '{"op":8,"op":9}',
        '{"op":8,"d":' + "[" * 40 + "]" * 40 + "}",
        '{"op":8,"d":' + "9" * 30 + "}",
        '{"op":8,"d":' + "9" * 10_000 + "}",
        '{"op":8,"d":[' + "0," * 10_000 + "0]}",
        '{"op":true}',
        '{"op":-1}',
        '{"op":25,"d":{}}',
        '{"op":2,"d":{"ssrc":0,"ip":"198.51.100.9","port":1,"modes":[]}}',
        '{"op":2,"d":{"ssrc":1,"ip":"a.example","port":1,"modes":[]}}',
        '{"op":2,"d":{"ssrc":1,"ip":"198.51.100.9","port":0,"modes":[]}}',
        '{"op":4,"d":{"mode":"m","secret_key":[1,2,3]}}',
        '{"op":4,"d":{"mode":"m","secret_key":' + str([256] * 32) + "}}",
        '{"op":11,"d":{"user_ids":["0"]}}',
        '{"op":22,"d":{"transition_id":65536}}',
        "[" * 200_000,
        '"' + "a" * (1 << 20) + '"',
    ],
    ids=lambda text: text[:40],
)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(MalformedFrame):
        frames.decode_text(text)


def test_limits_hold_at_the_limit() -> None:
    nested = '{"op":99,"d":' + "[" * 30 + "]" * 30 + "}"
    listed = '{"op":99,"d":[' + "0," * 9_999 + "0]}"
    wide = '{"op":99,"d":18446744073709551615}'
    for text in (nested, listed, wide):
        assert frames.decode_text(text).payload == Unlisted(99)


@pytest.mark.parametrize(
    ("interval", "seconds", "odd"),
    [
        (0, 1.0, True),
        (-5, 1.0, True),
        (999, 1.0, True),
        (1000, 1.0, False),
        (300_000, 300.0, False),
        (300_001, 300.0, True),
        (10**15, 300.0, True),
        ("13750", 13.75, True),
        (None, 13.75, True),
        (True, 13.75, True),
        (41250, 41.25, False),
        (13750.5, 13.7505, False),
    ],
)
def test_odd_heartbeat_intervals_are_clamped(interval: object, seconds: float, odd: bool) -> None:
    text = json.dumps({"op": 8, "d": {"v": 8, "heartbeat_interval": interval}})
    assert frames.decode_text(text).payload == HelloReceived(seconds, 8, odd)


def test_a_refused_message_still_says_op_and_number() -> None:
    with pytest.raises(MalformedFrame) as caught:
        frames.decode_text('{"op":4,"d":{},"seq":7}')
    assert (caught.value.op, caught.value.seq) == (Opcode.SESSION_DESCRIPTION, 7)


def test_no_message_prints_a_key() -> None:
    shown = repr(decode("session_description"))
    assert "<secret>" in shown
    assert "0, 1, 2" not in shown
    assert "\\x01\\x02" not in shown


@given(st.text())
def test_any_text_gives_a_message_or_our_error(text: str) -> None:
    with contextlib.suppress(MalformedFrame):
        frames.decode_text(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["heartbeat_interval", "ssrc", "ip", "port", "modes", "mode", "secret_key", "user_id", "user_ids", "transition_id"]
)


@given(st.integers(0, 40), st.dictionaries(FIELDS, JSON) | JSON, JSON)
@example(4, {"secret_key": [1]}, "\N{GRINNING FACE}")
def test_any_fields_give_a_message_or_our_error(op: int, d: object, seq: object) -> None:
    try:
        message = frames.decode_text(json.dumps({"op": op, "d": d, "seq": seq}))
    except MalformedFrame:
        return
    assert message.payload.op == op


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_our_error(data: bytes) -> None:
    try:
        message = frames.decode_binary(data)
    except MalformedFrame:
        return
    assert message.seq == int.from_bytes(data[:2], "big")
