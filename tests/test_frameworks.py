"""The body of the frameworks' voice clients, in a framework as small as can be; the real ones are interop tests."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import threading
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, OTHER_CHANNEL
from voicegw import frameworks
from voicegw.effects import Connected
from voicegw.errors import Kicked, SourceFailed, VoiceError
from voicegw.frameworks.audio import FrameworkSource
from voicegw.frameworks.voice_protocol import GuildVoiceClient
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer

pytestmark = pytest.mark.loopback


class Client:
    """A framework's client that is logged in, and its connection state, too."""

    def __init__(self, server: VoiceServer, user_id: int) -> None:
        self.user = types.SimpleNamespace(id=user_id)
        self.signalling = LocalSignalling(server, user_id)
        self.signalling.attach(self)
        self.voice_clients: dict[int, Any] = {}
        self.mutes: list[tuple[bool, bool]] = []
        self.tasks: list[asyncio.Future[None]] = []
        self.listeners: list[tuple[str, asyncio.Future[None], Any]] = []
        self.websocket = types.SimpleNamespace(session_id="of the login")
        self._connection = self

    def voice_state_update(self, data: Any) -> None:
        self.tasks.append(asyncio.ensure_future(self.voice_client.on_voice_state_update(data)))

    def voice_server_update(self, data: Any) -> None:
        self.tasks.append(asyncio.ensure_future(self.voice_client.on_voice_server_update(data)))

    @property
    def voice_client(self) -> Any:
        return self.voice_clients[GUILD]

    def get_channel(self, channel_id: int) -> Channel:
        return Channel(self, channel_id)

    # as all four have it

    def wait_for(self, event: str, *, check: Any) -> Any:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.listeners.append((event, future, check))
        return asyncio.wait_for(future, None)

    def dispatch(self, event: str, *arguments: Any) -> None:
        for name, future, check in list(self.listeners):
            if name == event and not future.cancelled():
                assert not check(*arguments)

    def _get_websocket(self, guild_id: int) -> Any:
        return self.websocket

    def _add_voice_client(self, guild_id: int, voice_client: Any) -> None:
        self.voice_clients[guild_id] = voice_client


class ShardedClient(Client):
    """One with several shards."""

    shards: ClassVar = {0: None, 1: None}


class Channel:
    """A framework's voice channel; it is its own guild, too."""

    bitrates: ClassVar = {CHANNEL: 64_000, OTHER_CHANNEL: 1}

    def __init__(self, client: Client, channel_id: int) -> None:
        self.client = client
        self.id = channel_id
        self.bitrate = self.bitrates[channel_id]
        self.guild = types.SimpleNamespace(id=GUILD, shard_id=1, change_voice_state=self._change_voice_state)

    async def connect(self, *, cls: Any, timeout: float = 20.0) -> Any:
        voice_client = cls(self.client, self)
        self.client._add_voice_client(GUILD, voice_client)
        await voice_client.connect(timeout=timeout, reconnect=True, self_deaf=True)
        return voice_client

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
        self.client.voice_clients.pop(GUILD, None)


def connected_class(server: VoiceServer) -> type:
    """A framework's voice client for a local server."""
    return type("Voice", (GuildVoiceClient, Protocol), {"options": server.trust})


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
    assert bob.voice_clients == {}  # so that the bot can connect again
    await other.disconnect(force=True)
    assert other.cleaned_up == 1


async def test_sound_is_encoded_at_the_channels_bitrate_or_the_bots(server: VoiceServer) -> None:
    voice = await Channel(Client(server, ALICE), CHANNEL).connect(cls=connected_class(server))
    assert voice.voice.player.bitrate == 64_000
    voice.voice.player.bitrate = 24_000
    voice.noted(Connected(CHANNEL))  # as after a new voice session there
    assert voice.voice.player.bitrate == 24_000
    await voice.move_to(Channel(voice.client, OTHER_CHANNEL))
    assert voice.voice.player.bitrate == 6_000
    await voice.disconnect()


async def test_a_join_that_fails_cleans_up(server: VoiceServer) -> None:
    alice = Client(server, ALICE)
    alice.signalling.silent = True
    with pytest.raises(VoiceError):
        await Channel(alice, CHANNEL).connect(cls=connected_class(server), timeout=0.1)
    assert alice.voice_clients == {}


async def test_a_moderators_move_and_a_bots_wish_show_in_the_channel(server: VoiceServer) -> None:
    alice = Client(server, ALICE)
    voice = await Channel(alice, CHANNEL).connect(cls=connected_class(server))
    alice.signalling.move(OTHER_CHANNEL)
    await voice.voice.wait_for(lambda: voice.channel.id == OTHER_CHANNEL)
    await voice.move_to(CHANNEL)
    assert (voice.channel.id, voice.guild.id, voice.user.id) == (CHANNEL, GUILD, ALICE)
    await voice.move_to(None)
    assert (voice.is_connected(), alice.voice_clients) == (False, {})


async def test_after_is_called_in_a_thread_that_may_play_on(server: VoiceServer) -> None:
    voice = await Channel(Client(server, ALICE), CHANNEL).connect(cls=connected_class(server))
    heard: list[Any] = []
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def after(error: Any) -> None:
        heard.append((error, threading.current_thread() is threading.main_thread()))
        voice.play(ToneSource(440))
        voice.pause()
        heard.append((voice.is_playing(), voice.is_paused()))
        voice.resume()
        heard.append((voice.is_playing(), voice.is_paused()))
        voice.stop()
        loop.call_soon_threadsafe(over.set)

    voice.play(AudioSource(), after=after)
    await asyncio.wait_for(over.wait(), 20)
    assert heard == [(None, False), (False, True), (True, False)]
    assert not voice.is_playing()
    assert not voice.is_paused()
    with pytest.raises(TypeError, match="function"):
        voice.play(AudioSource(), after="next")
    with pytest.raises(TypeError, match="open_source"):
        voice.play("song.ogg")
    await voice.disconnect()


async def test_after_is_told_what_ended_it_and_may_fail(server: VoiceServer, caplog: pytest.LogCaptureFixture) -> None:
    voice = await Channel(Client(server, ALICE), CHANNEL).connect(cls=connected_class(server))
    loop, told = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    broken = types.SimpleNamespace(is_opus=lambda: False, read=lambda: 1 / 0, cleanup=lambda: None)
    voice.play(broken, after=lambda error: loop.call_soon_threadsafe(told.set_result, error))
    assert isinstance(await asyncio.wait_for(told, 20), SourceFailed)
    failed = threading.Event()

    def after(error: Any) -> None:
        failed.set()
        raise RuntimeError("next song please")

    voice.play(AudioSource(), after=after)
    assert await asyncio.to_thread(failed.wait, 20)
    voice.play(ToneSource(440, 0.1))
    await voice.playing.wait()
    assert "next song please" in caplog.text
    ended = threading.Event()
    voice.play(ToneSource(440), after=lambda error: ended.set())
    await voice.disconnect()
    assert await asyncio.to_thread(ended.wait, 20)


async def test_a_source_can_be_wrapped_while_it_plays(server: VoiceServer) -> None:
    voice = await Channel(Client(server, ALICE), CHANNEL).connect(cls=connected_class(server))
    assert voice.source is None
    with pytest.raises(ValueError, match="plays"):
        voice.source = AudioSource()
    first = AudioSource()
    first.frames *= 400
    voice.play(first)
    assert voice.source is first
    wrapper = AudioSource()
    voice.source = wrapper
    assert voice.source is wrapper
    with pytest.raises(ValueError, match="kind"):
        voice.source = types.SimpleNamespace(is_opus=lambda: True)
    await voice.playing.wait()
    assert await asyncio.to_thread(wrapper.cleaned.wait, 10)
    assert not first.cleaned.is_set()
    await voice.disconnect()


async def test_members_and_ids_are_listened_to(server: VoiceServer) -> None:
    voice = await Channel(Client(server, ALICE), CHANNEL).connect(cls=connected_class(server))
    other = await Channel(Client(server, BOB), CHANNEL).connect(cls=connected_class(server))
    other.play(ToneSource(440))
    for member in (types.SimpleNamespace(id=BOB), BOB):
        frames = voice.frames(member)
        assert (await anext(frames)).user_id == BOB
    await other.disconnect()
    await voice.disconnect()


# -- the bot's own session


async def test_a_bot_that_logs_in_anew_takes_its_call_along(server: VoiceServer) -> None:
    alice = Client(server, ALICE)
    voice = await Channel(alice, CHANNEL).connect(cls=connected_class(server))
    alice.dispatch("disconnect")
    alice.dispatch("resumed")
    assert voice.is_connected()  # it may resume, and has
    alice.websocket.session_id = None  # the server has said that it may not
    alice.dispatch("disconnect")
    assert voice.voice.states["call"] == "waiting.main_session"
    alice.voice_clients.clear()  # as the frameworks do
    alice.signalling.forget()
    alice.dispatch("connect")
    assert alice.voice_client is voice
    await voice.voice.wait_for(voice.is_connected)
    await voice.disconnect()
    alice.dispatch("connect")
    assert alice.voice_clients == {}
    await asyncio.sleep(0)
    assert all(future.cancelled() for _, future, _ in alice.listeners)


async def test_only_the_guilds_own_shard_counts(server: VoiceServer) -> None:
    alice = ShardedClient(server, ALICE)
    voice = await Channel(alice, CHANNEL).connect(cls=connected_class(server))
    alice.dispatch("connect")
    alice.dispatch("shard_connect", 0)
    assert voice.is_connected()
    alice.signalling.forget()
    alice.dispatch("shard_connect", 1)
    assert voice.voice.states["call"] == "joining.asking"
    await voice.voice.wait_for(voice.is_connected)
    await voice.disconnect()


# -- sources


def test_short_frames_are_filled_and_opus_is_not_touched() -> None:
    ours = FrameworkSource(AudioSource())
    assert [len(ours.read()) for _ in range(3)] == [3840, 3840, 0]
    packets = [b"OpusHead..", b"OpusTags..", b"\x78abc", b""]
    opus = FrameworkSource(
        types.SimpleNamespace(is_opus=lambda: True, read=lambda: packets.pop(0), cleanup=lambda: None)
    )
    assert (opus.is_opus, opus.read(), opus.read()) == (True, b"\x78abc", b"")


def test_interactions_audio_is_waited_for_until_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    source_of = fake_framework(monkeypatch, "interactions_py").AudioSource
    frames = [b"", bytes(3840), b"", bytes(100)]
    audio = types.SimpleNamespace(needs_encode=True, locked_stream=False, audio_complete=False, cleanup=lambda: None)
    audio.read = lambda size: frames.pop(0) if frames else b""
    ours = source_of(audio)
    assert (ours.is_opus, len(ours.read()), len(ours.read())) == (False, 3840, 3840)
    audio.audio_complete = True
    assert ours.read() == b""
    audio.locked_stream = True  # which never ends by itself
    reading = threading.Thread(target=ours.read)
    reading.start()
    ours.abort()
    reading.join(10)
    assert not reading.is_alive()


# -- what is missing


MODULES = {
    "discord_py": ("discord", "discord.py"),
    "py_cord": ("discord", "py-cord"),
    "nextcord": ("nextcord", "nextcord"),
    "disnake": ("disnake", "disnake"),
    "hikari": ("hikari", "hikari"),
    "interactions_py": ("interactions", "interactions.py"),
    "hata": ("hata", "hata"),
}


def fresh(monkeypatch: pytest.MonkeyPatch, adapter: str) -> Any:
    """An adapter, imported as if for the first time."""
    monkeypatch.delitem(sys.modules, f"voicegw.frameworks.{adapter}", raising=False)
    return importlib.import_module(f"voicegw.frameworks.{adapter}")


def fake_framework(monkeypatch: pytest.MonkeyPatch, adapter: str) -> Any:
    """An adapter with a framework that has nothing but what it asks for."""
    monkeypatch.setitem(sys.modules, "interactions", types.SimpleNamespace(Listener=None))
    return fresh(monkeypatch, adapter)


@pytest.mark.parametrize("adapter", MODULES)
def test_a_missing_or_old_framework_is_named(monkeypatch: pytest.MonkeyPatch, adapter: str) -> None:
    module, package = MODULES[adapter]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VoiceError, match=f"^{re.escape(package)} is not installed: pip install {re.escape(package)}$"):
        fresh(monkeypatch, adapter)
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    with pytest.raises(VoiceError, match=f"this {re.escape(package)} is too old.*--upgrade {re.escape(package)}"):
        fresh(monkeypatch, adapter)


def test_every_adapter_is_asked_what_it_needs() -> None:
    here = Path(frameworks.__file__).parent
    assert {path.stem for path in here.glob("[!_]*.py")} - {"audio", "call", "voice_protocol"} == set(MODULES)
