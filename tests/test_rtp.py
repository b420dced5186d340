"""RTP, RTCP and the plain UDP packets, against the known answers."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import VECTORS
from voicegw.errors import PacketRejected
from voicegw.wire.discovery import (
    discovery_request,
    discovery_response,
    keepalive,
    parse_discovery,
    parse_request,
)
from voicegw.wire.rtp import (
    kind_of,
    pack_header,
    parse_extension,
    parse_rtcp,
    parse_rtp,
    speaking_flag_to_extension,
    strip,
)

DISCOVERY = VECTORS["ip_discovery"]


@pytest.mark.parametrize("case", VECTORS["rtp_header"]["cases"], ids=lambda case: case["header"])
def test_headers_there_and_back(case: dict[str, Any]) -> None:
    header = pack_header(case["seq"], case["timestamp"], case["ssrc"])
    assert header.hex() == case["header"]
    view = parse_rtp(header)
    assert (view.sequence, view.timestamp_ticks, view.ssrc) == (case["seq"], case["timestamp"], case["ssrc"])
    assert (view.payload_type, view.aad_length, view.marker) == (120, 12, False)


def test_sequence_and_timestamp_wrap() -> None:
    step = VECTORS["rtp_header"]["step"]["wrap_example"]
    before = parse_rtp(bytes.fromhex(step["before"]))
    after = pack_header(before.sequence + 1, before.timestamp_ticks + 960, before.ssrc)
    assert after.hex() == step["after"]


@pytest.mark.parametrize("case", VECTORS["rtp_extension"]["cases"], ids=lambda case: case["body"] or "empty")
def test_extension_elements(case: dict[str, Any]) -> None:
    profile = int(case["preamble"][:4], 16)
    elements = parse_extension(profile, bytes.fromhex(case["body"]))
    expected = case["elements"]
    if expected is None:
        assert elements is None
    else:
        assert elements == {int(key): bytes.fromhex(value) for key, value in expected.items()}


def test_speaking_flags_in_the_extension() -> None:
    for case in VECTORS["rtp_extension"]["speaking_flag_to_extension"]:
        assert speaking_flag_to_extension(case["flags"]) == case["extension"]


def test_kinds_of_datagrams() -> None:
    rtp = pack_header(1, 2, 3) + bytes(40)
    assert kind_of(rtp) == "rtp"
    assert kind_of(bytes((0x80, 0xF8)) + rtp[2:]) == "rtp"  # with the marker bit
    for second in range(256):
        expected = "rtcp" if 200 <= second <= 206 else "rtp"
        assert kind_of(bytes((0x80, second)) + rtp[2:]) == expected
    control = VECTORS["udp_control"]
    for packet in (control["keepalive_jda"], *(case["packet"] for case in control["udp_ping_request"])):
        assert kind_of(bytes.fromhex(packet)) == "control"
    assert kind_of(b"") == "control"
    assert kind_of(pack_header(1, 2, 3)) == "control"  # too short to be authentic


def test_padding_and_extension_are_stripped() -> None:
    header = bytes((0xB0, 0x78)) + pack_header(1, 2, 3)[2:] + bytes.fromhex("bede0001")
    view = parse_rtp(header)
    assert (view.aad_length, view.extension_words, view.has_padding) == (16, 1, True)
    assert strip(b"EXT!payload" + b"\0\0\3", view) == b"payload"
    assert strip(b"EXT!" + b"\0\0\3", view) == b""
    for plain in (b"EXT!payload\0", b"EXT!payload\xff", b"EX\1", b""):
        with pytest.raises(PacketRejected):
            strip(plain, view)


@pytest.mark.parametrize("count", range(16))
@pytest.mark.parametrize("extended", [False, True])
def test_the_clear_header_is_measured_right(count: int, extended: bool) -> None:
    first = 0x80 | count | (0x10 if extended else 0)
    header = bytes((first,)) + pack_header(1, 2, 3)[1:] + bytes(4 * count) + (b"\xbe\xde\0\2" if extended else b"")
    view = parse_rtp(header)
    assert view.aad_length == len(header)
    assert view.extension_words == (2 if extended else 0)
    if len(header) > 12:
        with pytest.raises(PacketRejected):
            parse_rtp(header[:-1])


def test_reports_of_the_captured_packet() -> None:
    assert parse_rtcp(bytes.fromhex(VECTORS["transport_rtcp_capture"]["plain"])) == []
    report = next(case for case in VECTORS["transport_rtcp"]["cases"] if case["name"] == "receiver_report")
    (block,) = parse_rtcp(bytes.fromhex(report["plain"]))
    assert (block.ssrc, block.fraction_lost, block.cumulative_lost) == (0x63, 12 / 256, 34)
    assert (block.highest_sequence, block.jitter_ticks) == (0x00011234, 0x11)


@given(st.binary(max_size=120))
def test_any_bytes_are_rtp_or_our_error(data: bytes) -> None:
    parse_rtcp(data)
    kind_of(data)
    try:
        view = parse_rtp(data)
        strip(data[view.aad_length :], view)
    except PacketRejected:
        pass


@given(st.binary(max_size=80))
def test_any_extension_body_parses(body: bytes) -> None:
    elements = parse_extension(0xBEDE, body)
    assert elements is not None
    assert all(0 < key < 15 and 1 <= len(value) <= 16 for key, value in elements.items())


# -- IP discovery and keepalive


def test_discovery_requests() -> None:
    for case in DISCOVERY["request"]:
        request = discovery_request(case["ssrc"])
        assert request.hex() == case["packet"]
        assert parse_request(request) == case["ssrc"]


@pytest.mark.parametrize("case", DISCOVERY["response"], ids=lambda case: case["address"])
def test_discovery_responses(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["packet"])
    found = parse_discovery(data, case["ssrc"])
    assert found is not None
    assert (found.address, found.port) == (case["address"], case["port"])
    assert discovery_response(case["ssrc"], case["address"], case["port"]) == data


@pytest.mark.parametrize("case", DISCOVERY["reject"], ids=lambda case: case["why"])
def test_other_datagrams_are_no_discovery_response(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["packet"])
    ssrc = struct.unpack_from(">I", data, 4)[0]
    assert parse_discovery(data, ssrc) is None


def test_a_response_for_another_ssrc_is_not_ours() -> None:
    case = DISCOVERY["wrong_ssrc"]
    assert parse_discovery(bytes.fromhex(case["packet"]), case["expected_ssrc"]) is None
    assert parse_request(bytes.fromhex(DISCOVERY["legacy_70_byte"]["packet"])) is None


def test_keepalives_count_little_endian() -> None:
    for case in VECTORS["udp_control"]["keepalive_counter_le"]:
        assert keepalive(case["counter"]).hex() == case["packet"]
