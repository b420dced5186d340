"""The body of the frameworks' voice clients, in a framework as small as can be; the real ones are interop tests."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from typing import Any

import pytest

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, OTHER_CHANNEL
from voicegw.errors import Kicked, VoiceError
from voicegw.frameworks.call import FrameworkSource, require
from voicegw.frameworks.voice_protocol import GuildVoiceClient
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer

pytestmark = pytest.mark.loopback


class Client:
    """A framework's client that is logged in."""

    def __init__(self, server: VoiceServer, user_id: int) -> None:
        self.user = types.SimpleNamespace(id=user_id)
        self.signalling = LocalSignalling(server, user_id)
        self.signalling.attach(self)
        self.voice_client: Any = None
        self.mutes: list[tuple[bool, bool]] = []
        self.tasks: list[asyncio.Future[None]] = []

    def voice_state_update(self, data: Any) -> None:
        self.tasks.append(asyncio.ensure_future(self.voice_client.on_voice_state_update(data)))

    def voice_server_update(self, data: Any) -> None:
        self.tasks.append(asyncio.ensure_future(self.voice_client.on_voice_server_update(data)))


class Channel:
    """A framework's voice channel; it is its own guild, too."""

    def __init__(self, client: Client, channel_id: int) -> None:
        self.client = client
        self.id = channel_id
        self.guild = types.SimpleNamespace(id=GUILD, change_voice_state=self._change_voice_state)

    async def connect(self, *, cls: Any, timeout: float = 20.0) -> Any:
        self.client.voice_client = cls(self.client, self)
        await self.client.voice_client.connect(timeout=timeout, reconnect=True, self_deaf=True)
        return self.client.voice_client

    async def _change_voice_state(self, *, channel: Any, self_mute: bool, self_deaf: bool) -> None:
        self.client.mutes.append((self_mute, self_deaf))
        channel_id = channel.id if channel is not None else None
        await self.client.signalling.update_voice_state(GUILD, channel_id, self_mute=self_mute, self_deaf=self_deaf)


class Protocol:
    """A framework's base class."""

    cleaned_up = 0

    def __init__(self, client: Client, channel: Channel) -> None:
        self.client = client
        self.channel = channel

    def cleanup(self) -> None:
        self.cleaned_up += 1


def connected_class(server: VoiceServer) -> type:
    """A framework's voice client for a local server."""
    options = {"ca_pem": server.ca_pem, "allowed_hosts": (server.host,), "allow_private_media": True}
    return type("Voice", (GuildVoiceClient, Protocol), {"options": options})


class AudioSource:
    """A framework's source."""

    def __init__(self) -> None:
        self.frames = [bytes(3840), bytes(100)]
        self.cleaned = threading.Event()

    def is_opus(self) -> bool:
        return False

    def read(self) -> bytes:
        return self.frames.pop(0) if self.frames else b""

    def cleanup(self) -> None:
        self.cleaned.set()


async def test_a_bot_joins_plays_moves_and_leaves(server: VoiceServer) -> None:
    alice, bob = Client(server, ALICE), Client(server, BOB)
    voice = await Channel(alice, CHANNEL).connect(cls=connected_class(server))
    other = await Channel(bob, CHANNEL).connect(cls=connected_class(server))
    assert alice.mutes == [(False, True)]
    assert voice.is_connected()
    sink = MeasuringSink()
    other.listen(sink)
    source = AudioSource()
    await voice.play(source).wait()
    assert await asyncio.to_thread(source.cleaned.wait, 10)
    await voice.play(ToneSource(440, 0.2)).wait()
    await other.voice.wait_for(lambda: other.voice.stats.users[ALICE].packets >= 12)
    await other.voice.flush()
    assert sink.frequency(ALICE) == pytest.approx(440, abs=10)
    voice.play(ToneSource(440))
    voice.stop()
    assert voice.voice.player.playing is None
    await voice.move_to(Channel(alice, OTHER_CHANNEL))
    assert server.members(OTHER_CHANNEL) == [ALICE]
    assert voice.channel.id == OTHER_CHANNEL
    await voice.disconnect()
    assert not voice.is_connected()
    assert voice.cleaned_up == 1
    await bob.signalling.kick()
    await other.voice.wait_closed()
    assert isinstance(other.voice.error, Kicked)
    assert other.cleaned_up == 1  # the framework can join anew
    await other.disconnect(force=True)
    assert other.cleaned_up == 1


async def test_a_join_that_fails_cleans_up(server: VoiceServer) -> None:
    alice = Client(server, ALICE)
    alice.signalling.silent = True
    with pytest.raises(VoiceError):
        await Channel(alice, CHANNEL).connect(cls=connected_class(server), timeout=0.1)
    assert alice.voice_client.cleaned_up == 1
    await alice.voice_client.voice.close()


def test_short_frames_are_filled_and_opus_is_not_touched() -> None:
    ours = FrameworkSource(AudioSource())
    assert [len(ours.read()) for _ in range(3)] == [3840, 3840, 0]
    opus = FrameworkSource(types.SimpleNamespace(is_opus=lambda: True, read=lambda: b"\x78abc", cleanup=lambda: None))
    assert (opus.is_opus, opus.read()) == (True, b"\x78abc")


def test_a_missing_or_old_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VoiceError, match="pip install no-such-framework"):
        require("no_such_framework", "no-such-framework")
    monkeypatch.setitem(sys.modules, "old_framework", types.ModuleType("old_framework"))
    with pytest.raises(VoiceError, match="too old"):
        require("old_framework", "old-framework")
