"""Which hosts and media addresses may be dialled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import VECTORS
from voicegw.errors import InvalidEndpoint
from voicegw.wire.endpoint import check_media_address, parse_endpoint


@pytest.mark.parametrize("case", VECTORS["gateway_json"]["endpoint_to_url"], ids=lambda case: str(case["endpoint"]))
def test_known_endpoints(case: dict[str, Any]) -> None:
    if case["url"] is None:
        with pytest.raises(InvalidEndpoint):
            parse_endpoint(case["endpoint"] or "")
    else:
        assert parse_endpoint(case["endpoint"]).url == case["url"]


def test_ports_are_kept_and_443_is_the_default() -> None:
    assert parse_endpoint("a.discord.media").port == 443
    for port in (443, 2048, 4430, 8080, 8443, 1, 65535):
        endpoint = parse_endpoint(f"a.discord.media:{port}")
        assert endpoint.port == port
        assert f":{port}/" in endpoint.url


HOSTILE = [
    "example.com",
    "discord.media",
    "adiscord.media",
    "discord.media.example.com",
    "a.discord.media.",
    "a.discord.media/path",
    "a.discord.media?x=1",
    "a.discord.media#x",
    "user@a.discord.media",
    "a.discord.media@example.com",
    "example.com#.discord.media",
    "example.com/.discord.media",
    "example.com\\.discord.media",
    "a.discord.media\r\nHost: example.com",
    "a b.discord.media",
    "a.dis\u0441ord.media",  # a Cyrillic letter
    "a.discord.media:0",
    "a.discord.media:65536",
    "a.discord.media:+80",
    "a.discord.media: 80",
    "a.discord.media:80:80",
    "a.discord.media:",
    "a..discord.media",
    "-a.discord.media",
    "a%2e.discord.media",
    "http://a.discord.media",
    "wss://wss://a.discord.media",
    "127.0.0.1",
    "[::1]:443",
    "[::1",
    "a" * 64 + ".discord.media",
    "a." * 200 + "discord.media",
]


@pytest.mark.parametrize("endpoint", HOSTILE)
def test_hostile_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(InvalidEndpoint):
        parse_endpoint(endpoint)


def test_the_allow_list_is_exact() -> None:
    allowed = ("127.0.0.1", "localhost", "::1", "voice.example.com")
    assert parse_endpoint("127.0.0.1:5000", allowed).url == "wss://127.0.0.1:5000/?v=8"
    assert parse_endpoint("[::1]:5000", allowed).url == "wss://[::1]:5000/?v=8"
    assert parse_endpoint("LOCALHOST:5000", allowed).host == "localhost"
    for endpoint in ("127.0.0.2", "a.voice.example.com", "example.com", "127.0.0.1.example.com"):
        with pytest.raises(InvalidEndpoint):
            parse_endpoint(endpoint, allowed)


def test_an_endpoint_that_is_too_long_is_not_even_looked_at() -> None:
    for endpoint in ("ü" * 301, "a." * 200 + "discord.media", ""):
        with pytest.raises(InvalidEndpoint, match="empty or too long"):
            parse_endpoint(endpoint)


def test_what_is_no_host_name_is_not_allowed_by_another_that_is_none() -> None:
    for endpoint in ("bad host:443", ":443", "voice_1:443"):
        with pytest.raises(InvalidEndpoint, match="is no host name"):
            parse_endpoint(endpoint, ("bad host", "", "voice_1", "127.0.0.1:443"))


@given(st.text(max_size=60))
def test_any_text_gives_discord_or_our_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except InvalidEndpoint:
        return
    assert endpoint.host.endswith(".discord.media")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "a.example",
        "",
    ],
)
def test_inner_media_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidEndpoint):
        check_media_address(address, allow_private=False)


def test_global_media_addresses_pass_and_private_ones_when_allowed() -> None:
    assert str(check_media_address("8.8.8.8", allow_private=False)) == "8.8.8.8"
    assert str(check_media_address("127.0.0.1", allow_private=True)) == "127.0.0.1"
    for address in ("0.0.0.0", "224.0.0.1", "ff02::1"):
        with pytest.raises(InvalidEndpoint):
            check_media_address(address, allow_private=True)
