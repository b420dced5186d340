"""Bots of other frameworks, unmodified, log in to the local main gateway and use voicegw for their voice."""

from __future__ import annotations

import base64
import json
import shutil
import wave
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.calls import line, started
from tests.interop.frameworks import FRAMEWORKS, Framework, python_with
from tests.interop.results import note
from voicegw import ToneSource, VoiceClient
from voicegw.media.heard import UserStats
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import read_pcm
from voicegw.media.wav import WavWriter
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.guild import CHANNEL_IDS, GUILD_ID
from voicegw.server.main_gateway import Bot, MainGateway

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.package)

HERE = Path(__file__).parent
BOT, OTHER = 104694319306248192, 158533742254751744


@dataclass
class Stage:
    """A server, a listener of ours in its first channel, and the bot that logs in."""

    server: VoiceServer
    gateway: MainGateway
    other: VoiceClient
    sink: MeasuringSink
    process: Process
    version: str

    @property
    def bot(self) -> Bot:
        return self.gateway.bot(BOT)

    async def next(self, **expected: Any) -> dict[str, Any]:
        """The next thing that the bot says."""
        said = await line(self.process)
        assert {name: said.get(name) for name in expected} == expected, said
        return said

    @property
    def heard(self) -> UserStats:
        """What has been heard of the bot."""
        return self.other.stats.users.get(BOT, UserStats())

    async def hears(self, packets: int) -> None:
        """Until so many packets have been heard of the bot."""
        await self.other.wait_for(lambda: self.heard.packets >= packets, 20)

    async def hears_more(self) -> None:
        """The bot's speech goes on."""
        await self.hears(self.heard.packets + 25)


@asynccontextmanager
async def stage(
    framework: Framework, plan: str, python: Path, tmp_path: Path, *, sharded: bool = False
) -> AsyncIterator[Stage]:
    sound = tmp_path / "880.wav"
    with WavWriter(sound) as writer:
        writer.write(read_pcm(ToneSource(880, 1.0)))
    async with VoiceServer(main_gateway=True) as server:
        assert server.main_gateway is not None
        server.main_gateway.full.add(CHANNEL_IDS[1])
        ca = tmp_path / "ca.pem"
        ca.write_bytes(server.ca_pem)
        other = VoiceClient(user_id=OTHER, guild_id=GUILD_ID, signalling=LocalSignalling(server, OTHER), **server.trust)
        sink = MeasuringSink()
        call = {
            "plan": plan,
            "sharded": sharded,
            "package": framework.package,
            "module": framework.module,
            "adapter": framework.adapter,
            "api": server.api,
            "gateway": server.gateway_url,
            "ca": str(ca),
            "token": f"{base64.b64encode(str(BOT).encode()).decode()}.token.of-a-bot",
            "recordings": str(tmp_path / "heard"),
            "sound": str(sound) if shutil.which("ffmpeg") else "",
        }
        driver = (python, HERE / framework.bot, json.dumps(call))
        async with other, started(*driver, cwd=tmp_path, SSL_CERT_FILE=str(ca)) as process:
            other.listen(sink)
            await other.connect(CHANNEL_IDS[0])
            other.play(ToneSource(440))
            logged_in = await line(process)
            assert logged_in["event"] == "logged in", logged_in
            yield Stage(server, server.main_gateway, other, sink, process, logged_in["version"])
        assert server.session(BOT).counters["media in the clear"] == 0


@every_framework
async def test_a_bot_joins_plays_records_is_moved_and_kicked(
    framework: Framework, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with stage(framework, "sing", python_with(framework, tmp_path_factory), tmp_path) as on:
        refused = "VoiceError" if framework.joins_itself else "VoiceTimeout"
        await on.next(event="refused", error=refused, clients=0)
        on.gateway.full.clear()
        await on.next(event="joined", channel=CHANNEL_IDS[0])
        while (said := await on.next())["event"] == "played":
            assert said["code"] == on.other.privacy_code != ""
            await on.hears(said["sent"])
            await on.other.flush()
            assert on.sink.frequency(BOT) == pytest.approx(int(said["name"].split()[-1]), abs=3), said
            on.process.stdin.write(b"\n")  # type: ignore[union-attr]
        assert said == {"event": "played all"}
        assert (on.heard.lost, on.heard.errors) == (0, 0)
        await on.next(event="moved", channel=CHANNEL_IDS[1], connected=True)
        assert on.server.members(CHANNEL_IDS[1]) == [BOT]
        await on.gateway.signalling(BOT).kick()
        await on.next(event="kicked", error="Kicked", clients=0)
        await on.next(event="rejoined", connected=True)
        await on.next(event="left", connected=False, clients=0)
    with wave.open(str(tmp_path / "heard" / f"{OTHER}.wav")) as file:
        assert file.getnframes() > 48_000
    note(framework.package, on.version, ("login", "join", "play", "record", "move", "kick", "leave"))


@every_framework
async def test_a_call_outlives_its_websocket_and_the_bots(
    framework: Framework, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await outlive(framework, tmp_path, tmp_path_factory)


async def outlive(
    framework: Framework, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, *, sharded: bool = False
) -> None:
    python = python_with(framework, tmp_path_factory)
    async with stage(framework, "endure", python, tmp_path, sharded=sharded) as on:
        await on.next(event="joined", channel=CHANNEL_IDS[0])
        await on.hears_more()
        session = on.server.session(BOT)

        on.server.drop_socket(BOT)
        await on.next(event="resumed")
        await on.hears_more()
        assert (on.heard.lost, on.heard.errors) == (0, 0)
        assert on.server.session(BOT) is session

        if framework.resumes:
            for cut in ("drop", "reconnect"):
                bot, before = on.bot, on.bot.connection
                await bot.drop() if cut == "drop" else bot.reconnect()
                await on.server.wait_for(lambda: bot.connection not in (None, before))  # noqa: B023
                await on.hears_more()
            assert on.server.session(BOT) is session
            bot = on.bot
            await bot.drop()
            bot.signalling.move(CHANNEL_IDS[1])  # it hears of this when it is back
            await on.next(event="moved", channel=CHANNEL_IDS[1])
            bot.signalling.move(CHANNEL_IDS[0])
            await on.next(event="moved", channel=CHANNEL_IDS[0])
        else:
            await on.bot.drop()
            await on.next(event="connected", channel=CHANNEL_IDS[0])
        await on.hears_more()

        session = on.server.session(BOT)
        await on.bot.invalidate()
        await on.next(event="connected", channel=CHANNEL_IDS[0])
        await on.hears_more()
        assert on.server.session(BOT) is not session
        assert on.bot.signalling.requests == [CHANNEL_IDS[0]]
        assert on.server.members(CHANNEL_IDS[0]) == [OTHER, BOT]
        await on.gateway.signalling(BOT).kick()
        await on.next(event="kicked", error="Kicked")
    note(framework.package, on.version, ("reconnect",))


async def test_a_bot_with_shards_hears_of_its_own(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    await outlive(FRAMEWORKS[0], tmp_path, tmp_path_factory, sharded=True)
