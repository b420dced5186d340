"""Which hosts and media addresses may be dialled.

The main gateway names the voice server's host, the voice server names the media address; both are input. A host must
be below discord.media or in the caller's allow-list; a media address must be a global one unless private ones are
allowed.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

from voicegw.errors import InvalidEndpoint
from voicegw.wire.opcodes import GATEWAY_VERSION

DISCORD_SUFFIX = ".discord.media"
DEFAULT_PORT = 443
MAX_ENDPOINT = 300

# What Python calls global and is not, or leads to an IPv4 address that may be an inner one: of IPv6 only 2000::/3 is
# given out, and in it are 6to4 (2002::/16), benchmarks and identifiers (2001::/23), documentation (3fff::/20).
_NOT_GLOBAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("::/3", "4000::/2", "8000::/1", "2001::/23", "2002::/16", "3fff::/20"),
        *("192.0.0.0/24", "192.88.99.0/24"),
    )
)

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A voice server that may be dialled; `url` has the gateway's version."""

    host: str
    port: int
    url: str


def parse_endpoint(endpoint: str, allowed_hosts: Collection[str] = ()) -> Endpoint:
    """Read `host[:port]` as VOICE_SERVER_UPDATE gives it; a port is kept as it is, none means 443.

    Raises:
        InvalidEndpoint: not that form, or a host that is neither Discord's nor in `allowed_hosts`.
    """
    text = endpoint.removeprefix("wss://")
    if not text or len(text) > MAX_ENDPOINT:
        raise InvalidEndpoint("the voice endpoint is empty or too long")
    host, port_text = _split(text)
    allowed = {_normal(name) for name in allowed_hosts}
    normal = _normal(host)
    discords = host.isascii() and normal.endswith(DISCORD_SUFFIX)
    if not normal:
        raise InvalidEndpoint(f"{_shown(host)} is no host name")
    if normal not in allowed and not discords:
        raise InvalidEndpoint(
            f"{_shown(host)} is not a voice server of Discord; allowed_hosts permits a server of your own"
        )
    if port_text is not None and (not _PORT.match(port_text) or int(port_text) > 65535):
        raise InvalidEndpoint("the voice endpoint's port is not a number from 1 to 65535")
    shown_host = f"[{normal}]" if ":" in normal else normal
    authority = shown_host if port_text is None else f"{shown_host}:{port_text}"
    return Endpoint(
        host=normal,
        port=DEFAULT_PORT if port_text is None else int(port_text),
        url=f"wss://{authority}/?v={GATEWAY_VERSION}",
    )


@functools.lru_cache(maxsize=256)
def check_media_address(ip: str, allow_private: bool) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Is this an address that media may be sent to?

    Raises:
        InvalidEndpoint: no IP literal; unspecified or multicast; not global while `allow_private` is false.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError as error:
        raise InvalidEndpoint("the media address is no IP literal") from error
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    judged = mapped or address
    if judged.is_unspecified or judged.is_multicast or (judged.is_reserved and judged.version == 4):
        raise InvalidEndpoint(f"{_shown(ip)} is not a unicast address")
    if not allow_private and (not judged.is_global or any(judged in network for network in _NOT_GLOBAL)):
        raise InvalidEndpoint(f"{_shown(ip)} is not a global address")
    return address


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidEndpoint("the voice endpoint is not host[:port]")
        return host, rest[1:] if rest else None
    host, colon, port = text.partition(":")
    return host, port if colon else None


@functools.lru_cache(maxsize=256)
def _normal(host: str) -> str:
    """Lower case, as an IDNA name or an IP literal in its short form; the empty text for anything else."""
    if ":" in host or host[-1:].isdigit():  # no other can be an IP literal
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            pass
    try:
        name = host.encode("idna").decode("ascii").lower() if not host.isascii() else host.lower()
    except UnicodeError:
        return ""
    return name if _NAME.match(name) else ""


def _shown(host: str) -> str:
    return ascii(host[:80])
