"""F153 to F156, F161: hosts, addresses, proxies, trust and native code that others try to choose for us."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import logging
import os
import random
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ALICE, CHANNEL, GUILD, MakeClient
from tests.faults.cells import covers
from tests.faults.worlds import in_phase
from voicegw import native
from voicegw.adapters.websocket import VoiceWebSocket, tls_context
from voicegw.client import VoiceClient
from voicegw.effects import Closed, OpenSocket, OpenUdp, SendDiscovery, SendIdentify
from voicegw.errors import CertificateRefused, DaveNotFound, InvalidEndpoint
from voicegw.events import VoiceServerUpdated, VoiceStateUpdated
from voicegw.secret import Secret
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.testing.world import CHANNEL as WORLD_CHANNEL
from voicegw.testing.world import ENDPOINT, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.endpoint import check_media_address, parse_endpoint
from voicegw.wire.payloads import ReadyReceived

# -- F153

GOOD = "c-ams20-20d36bc4.discord.media"
CORPUS: dict[str, list[str]] = json.loads((Path(__file__).parent / "hostile.json").read_text(encoding="utf-8"))
EVIL, SCHEMES, USERS = CORPUS["evil"], CORPUS["schemes"], CORPUS["users"]
TAILS, PORTS = CORPUS["tails"], CORPUS["ports"]


def hostile() -> Iterator[str]:
    """Endpoints that are not Discord's, or not only that."""
    yield from ("", " ", "a" * 10_000, "." * 300, "a" * 64 + ".discord.media", "a." * 130 + "discord.media")
    yield from EVIL
    yield from CORPUS["look_alikes"]
    yield from (scheme + GOOD for scheme in SCHEMES)
    yield from (user + GOOD for user in USERS)
    yield from (GOOD + tail for tail in (*TAILS, *PORTS))
    yield from (
        host + tail for host, tail in itertools.product(EVIL, ("/." + GOOD, "#." + GOOD, "?." + GOOD, "\\." + GOOD))
    )
    yield from (evil + ":443@" + GOOD for evil in EVIL)
    yield from (GOOD + ":443@" + evil for evil in EVIL)
    yield from (GOOD + ":443/" + tail for tail in TAILS)
    yield from (f"{user}{GOOD}{tail}" for user, tail in itertools.product(USERS, TAILS[:12]))
    draw = random.Random("hostile endpoints")
    for _ in range(400):
        at = draw.randrange(len(GOOD) + 1)
        odd = draw.choice("@/\\?#\r\n\t \x00%<>\"'`{}|^~;,!$&()*+=[]_\u00ad\u2024\u3002\ufe52\uff0e\u0430\u0131")
        yield GOOD[:at] + odd + GOOD[at:]


HOSTILE = list(dict.fromkeys(hostile()))


@covers("F153")
def test_no_hostile_endpoint_is_dialled(phase: str) -> None:
    assert len(HOSTILE) >= 500
    world = in_phase(phase)
    for number, endpoint in enumerate(HOSTILE):
        if world.states["call"] == "closed" or number % 20 == 0:
            world = in_phase(phase)
        dialled, identified = len(world.sent(OpenSocket)), len(world.sent(SendIdentify))
        session_id = Secret(f"session of {number}")
        world.feed(VoiceStateUpdated(WORLD_CHANNEL, session_id))
        world.feed(VoiceServerUpdated(Secret(f"token of {number}"), endpoint))
        world.settle()
        assert len(world.sent(OpenSocket)) == dialled, ascii(endpoint)
        assert len(world.sent(SendIdentify)) == identified, ascii(endpoint)
        with pytest.raises(InvalidEndpoint):
            parse_endpoint(endpoint)
        errors = [notice.error for notice in world.notices if isinstance(notice, Closed)]
        assert all(isinstance(error, InvalidEndpoint) for error in errors)
        assert all(len(str(error)) < 400 and str(error).isprintable() for error in errors)


@covers("F153")
def test_the_good_one_is_dialled_in_the_same_way(phase: str) -> None:
    world = in_phase(phase)
    dialled = len(world.sent(OpenSocket))
    world.feed(VoiceStateUpdated(WORLD_CHANNEL, Secret("session")))
    world.feed(VoiceServerUpdated(Secret("token"), ENDPOINT))
    world.settle()
    assert len(world.sent(OpenSocket)) == dialled + 1


# -- F154


def inner_addresses() -> Iterator[str]:
    draw = random.Random("inner addresses")
    for text in CORPUS["inner_networks"]:
        network = ipaddress.ip_network(text)
        for offset in {0, network.num_addresses - 1, *(draw.randrange(network.num_addresses) for _ in range(6))}:
            address = network[offset]
            yield str(address)
            if address.version == 4:
                yield f"::ffff:{address}"


@covers("F154")
def test_no_datagram_goes_to_an_inner_address() -> None:
    addresses = [*dict.fromkeys(inner_addresses()), *CORPUS["no_literals"]]
    assert len(addresses) > 250
    for address in addresses:
        world = World()
        world.unanswered.add("SendIdentify")
        world.join()
        world.server(ReadyReceived(7, address, 50004, PREFERRED_MODES))
        world.advance(30)
        assert world.sent(OpenUdp) == [], address
        assert world.sent(SendDiscovery) == [], address
        (error,) = [notice.error for notice in world.notices if isinstance(notice, Closed)]
        assert isinstance(error, InvalidEndpoint)


def test_global_addresses_are_taken() -> None:
    for address in ("8.8.8.8", "66.22.196.1", "2606:4700::1111", "2a00:1450:4001:80b::200e", "::ffff:8.8.8.8"):
        assert str(check_media_address(address, allow_private=False)) in (address, str(ipaddress.ip_address(address)))


# -- F155


@pytest.mark.loopback
@covers("F155")
async def test_no_proxy_of_the_environment_is_used(
    server: VoiceServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[bytes] = []

    async def trap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1000))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    proxy = await asyncio.start_server(trap, "127.0.0.1", 0)
    url = f"http://name:canary-password@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    for name in ("http", "https", "ws", "wss", "all", "socks", "udp"):
        for variable in (f"{name}_proxy", f"{name.upper()}_PROXY"):
            monkeypatch.setenv(variable, url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with caplog.at_level(logging.DEBUG):
        alice = make_client(server, ALICE)
        await alice.connect(CHANNEL)
        await alice.close()
    proxy.close()
    await proxy.wait_closed()
    assert asked == []
    assert "canary-password" not in caplog.text


# -- F156


def careless_contexts() -> Iterator[ssl.SSLContext]:
    for verify_mode in (ssl.CERT_NONE, ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = verify_mode
        yield context
    yield ssl._create_unverified_context()
    yield ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@covers("F156")
async def test_a_context_that_checks_nothing_is_refused(server: VoiceServer) -> None:
    for context in careless_contexts():
        with pytest.raises(CertificateRefused, match="must check"):
            VoiceClient(user_id=ALICE, guild_id=GUILD, signalling=LocalSignalling(server, ALICE), ssl_context=context)
    trusting = tls_context(server.ca_pem)
    alice = VoiceClient(
        user_id=ALICE,
        guild_id=GUILD,
        signalling=LocalSignalling(server, ALICE),
        ssl_context=trusting,
        allowed_hosts=(server.host,),
        allow_private_media=True,
    )
    trusting.check_hostname = False  # behind our back
    with pytest.raises(CertificateRefused):
        await VoiceWebSocket.connect(f"wss://{server.endpoint}/?v=8", trusting)
    with pytest.raises(CertificateRefused):
        await alice.connect(CHANNEL)
    await alice.close()
    assert server.members(CHANNEL) == []


# -- F161

PLANTED = """
import pathlib
pathlib.Path("loaded").write_text(__name__)
DAVE_PROTOCOL_VERSION = 1
"""
ASK = """
import json, os, sys
sys.path.insert(0, "")
from voicegw.errors import VoiceError
from voicegw.media.opus import load_opus
from voicegw.native import load_davey
said = {}
for name, load in (("davey", load_davey), ("opus", load_opus)):
    try:
        load()
        said[name] = "loaded"
    except VoiceError as error:
        said[name] = type(error).__name__
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
print(json.dumps({**said, "planted": os.getcwd() in maps}))
"""


@covers("F161")
def test_no_library_of_the_working_directory_is_loaded(tmp_path: Path) -> None:
    for package in ("davey", "opuslib_next", "av"):
        (tmp_path / package / "_native").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text(PLANTED)
    genuine = next(iter(native.find_package("opuslib_next").submodule_search_locations or ()))  # type: ignore[union-attr]
    for library in (Path(genuine) / "_native").glob("*opus*"):
        copied = library.read_bytes()
        for place in (tmp_path, tmp_path / "opuslib_next" / "_native"):
            for name in (library.name, "libopus.so.0", "libopus.so", "opus.dll", "libopus.0.dylib"):
                (place / name).write_bytes(copied)
    for search in ("", ".", str(tmp_path)):
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            cwd=tmp_path,
            env={**os.environ, "LD_LIBRARY_PATH": search},
            capture_output=True,
            text=True,
            check=True,
        )
        said = json.loads(done.stdout)
        assert said["davey"] == DaveNotFound.__name__
        assert said["planted"] is False
        assert not (tmp_path / "loaded").exists()


@covers("F161")
def test_the_systems_library_is_taken_where_the_loader_finds_it_and_not_a_planted_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.0")
    for search in (".", "", f"/usr/lib:{tmp_path}"):
        monkeypatch.setenv("LD_LIBRARY_PATH", search)
        (tmp_path / "libopus.so.0").unlink(missing_ok=True)
        assert native.find_library("opus") == "libopus.so.0"
        (tmp_path / "libopus.so.0").touch()
        assert native.find_library("opus") is None
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert native.find_library("opus") == "libopus.so.0"
    monkeypatch.setattr("ctypes.util.find_library", lambda name: str(tmp_path / f"lib{name}.so.0"))
    assert native.find_library("opus") is None


@covers("F161")
def test_what_is_installed_is_taken_and_its_version_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(Path(sys.prefix))  # a venv below the working directory is an installation all the same
    assert native.find_package("davey") is not None
    native.load_davey.cache_clear()
    assert native.load_davey().DAVE_PROTOCOL_VERSION >= 1
    assert (native.installed_version("davey") or ()) >= native.OLDEST_DAVEY
    assert native.installed_version("no such distribution") is None
    monkeypatch.chdir(tmp_path)
    assert native.is_trusted(sys.executable)
    assert not native.is_trusted(tmp_path / "davey")
