"""What several tests need: the wire's known answers, a local voice server, and clients on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from voicegw.adapters.dials import DialBudget
from voicegw.adapters.system import THIS_SYSTEM
from voicegw.client import VoiceClient
from voicegw.effects import Notice
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer

# What is slow on one machine is not wrong: no example has a deadline.
settings.register_profile("voicegw", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("voicegw")

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text(encoding="utf-8"))

GUILD, CHANNEL, OTHER_CHANNEL = 41771983423143937, 127121515262115840, 127121515262115841
ALICE, BOB, CAROL = 104694319306248192, 158533742254751744, 852892297661906993

MakeClient = Callable[..., VoiceClient]


@pytest.fixture(autouse=True)
def dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has the dials of a process of its own, however many come before it."""
    monkeypatch.setattr(THIS_SYSTEM, "dials", DialBudget(THIS_SYSTEM.random))


@pytest.fixture
async def server() -> AsyncIterator[VoiceServer]:
    """A local voice server with E2EE."""
    async with VoiceServer() as running:
        yield running


@pytest.fixture
async def local_discord() -> AsyncIterator[VoiceServer]:
    """A local voice server with a main gateway that bots log in to."""
    async with VoiceServer(main_gateway=True) as running:
        yield running


@pytest.fixture
def place(local_discord: VoiceServer, tmp_path: Path) -> Path:
    """A file with what `voicegw serve --main-gateway` would have printed."""
    (tmp_path / "ca.pem").write_bytes(local_discord.ca_pem)
    words = {
        "endpoint": local_discord.endpoint,
        "ca": str(tmp_path / "ca.pem"),
        "api": local_discord.api,
        "gateway": local_discord.gateway_url,
    }
    path = tmp_path / "server.json"
    path.write_text(json.dumps(words), encoding="utf-8")
    return path


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Makes clients of a server and closes them in the end."""
    made: list[VoiceClient] = []

    def make(server: VoiceServer, user_id: int, **options: Any) -> VoiceClient:
        chosen = {"signalling": LocalSignalling(server, user_id), **server.trust, **options}
        client = VoiceClient(user_id=user_id, guild_id=GUILD, **chosen)
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()


def signalling_of(client: VoiceClient) -> LocalSignalling:
    """The client's main gateway."""
    signalling = client._wishes.signalling
    assert isinstance(signalling, LocalSignalling)
    return signalling


async def encrypted(*clients: VoiceClient) -> None:
    """Until all have one group."""

    def agreed() -> bool:
        codes = {client.privacy_code for client in clients}
        return len(codes) == 1 and "" not in codes and all(client.states["dave"] == "active" for client in clients)

    for client in clients:
        await client.wait_for(agreed)


async def pair(make_client: MakeClient, server: VoiceServer, **options: Any) -> tuple[VoiceClient, VoiceClient]:
    """Alice and Bob in one encrypted call."""
    alice, bob = make_client(server, ALICE, **options), make_client(server, BOB, **options)
    await alice.connect(CHANNEL)
    await bob.connect(CHANNEL)
    await encrypted(alice, bob)
    return alice, bob


def notices(client: VoiceClient) -> list[Notice]:
    kept: list[Notice] = []
    client.add_listener(kept.append)
    return kept


async def say(speaker: VoiceClient, listener: VoiceClient, hz: float = 440.0, seconds: float = 0.3) -> float:
    """Play a tone and wait until all of it was heard; the frequency that was heard."""
    user_id = speaker.session.shared.user_id
    sink = MeasuringSink()
    listener.listen(sink)
    before = speaker.stats.packets
    heard_before = listener.stats.users[user_id].packets if user_id in listener.stats.users else 0
    await speaker.play(ToneSource(hz, seconds)).wait()
    await speaker.wait_for(lambda: speaker.states["speech"] == "silent")
    sent = speaker.stats.packets - before
    await listener.wait_for(lambda: listener.stats.users[user_id].packets - heard_before == sent)
    await listener.flush()
    return sink.frequency(user_id)
