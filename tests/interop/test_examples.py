"""The examples for frameworks, and the programs of the frameworks' pages, run unchanged on the local server."""

from __future__ import annotations

import base64
import json
import re
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.interop.calls import ROOT, started
from tests.interop.frameworks import FRAMEWORKS, Framework, python_with
from tests.interop.test_frameworks import BOT, OTHER
from voicegw import ToneSource, VoiceClient
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import read_pcm
from voicegw.media.wav import WavWriter
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.commands import Commands
from voicegw.server.main_gateway import CHANNEL_IDS, GUILD_ID

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

TOKEN = f"{base64.b64encode(str(BOT).encode()).decode()}.token.of-a-bot"


def framework(adapter: str) -> Framework:
    (found,) = (one for one in FRAMEWORKS if one.adapter == adapter)
    return found


@asynccontextmanager
async def somebody(server: VoiceServer) -> AsyncIterator[tuple[VoiceClient, MeasuringSink]]:
    """Another user in the first channel, who speaks all the time."""
    client = VoiceClient(user_id=OTHER, guild_id=GUILD_ID, signalling=LocalSignalling(server, OTHER), **server.trust)
    async with client:
        sink = MeasuringSink()
        client.listen(sink)
        await client.connect(CHANNEL_IDS[0])
        client.play(ToneSource(440))
        yield client, sink


@asynccontextmanager
async def running(server: VoiceServer, python: Path, program: Path, **more: str) -> AsyncIterator[Process]:
    """The program, on the local server, in its own directory."""
    directory = program.parent
    (directory / "ca.pem").write_bytes(server.ca_pem)
    place = {"ca": str(directory / "ca.pem"), "api": server.api, "gateway": server.gateway_url}
    (directory / "server.json").write_text(json.dumps(place), encoding="utf-8")
    command = (python, "-W", "ignore", "-m", "voicegw.testing.locally", "server.json", program.name)
    async with started(*command, cwd=directory, DISCORD_TOKEN=TOKEN, PYTHONPATH=str(ROOT), **more) as process:
        yield process


def copied(name: str, directory: Path) -> Path:
    """An example in a directory of its own, with something to play."""
    write_tone(directory / "song.ogg", 660, 30)
    target = directory / name
    target.write_bytes((ROOT / "examples" / name).read_bytes())
    return target


def write_tone(path: Path, hz: int, seconds: float) -> None:
    """A WAV file, whatever its name says."""
    writer = WavWriter(path)
    writer.write(read_pcm(ToneSource(hz, seconds)))
    writer.close()


async def registered(server: VoiceServer, name: str) -> Commands:
    """What the bot is asked, once it is logged in and has registered a command."""
    assert server.main_gateway is not None
    gateway = server.main_gateway
    await server.wait_for(lambda: name in gateway.commands.names(BOT) and BOT in gateway.bots, 40)
    return gateway.commands


async def test_the_music_bot(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = python_with(framework("discord_py"), tmp_path_factory)
    program = copied("music_bot.py", tmp_path)
    write_tone(tmp_path / "next.wav", 880, 30)
    async with (
        VoiceServer(main_gateway=True) as server,
        somebody(server) as (client, sink),
        running(server, python, program, MUSIC=str(tmp_path)),
    ):
        commands = await registered(server, "leave")

        async def ask(name: str, **options: str) -> str:
            return await commands.ask(BOT, OTHER, CHANNEL_IDS[0], name, **options)

        async def hears(hz: float) -> None:
            await client.wait_for(lambda: abs(sink.frequency(BOT) - hz) < 5, 20)

        assert await ask("now") == "No: nothing is playing"
        assert await commands.ask(BOT, 5, CHANNEL_IDS[0], "play", song="song.ogg") == "No: join a voice channel first"
        assert await ask("play", song="song.ogg") == "Playing: song.ogg"
        assert await ask("play", song="../next.wav") == "Queued: ../next.wav"
        assert await ask("play", song="none.ogg") == "No: there is no none.ogg"
        assert await ask("queue") == "../next.wav"
        await hears(660)
        assert (await ask("now")).startswith("Playing: song.ogg, 0:0")
        assert await ask("pause") == "Paused."
        assert await ask("pause") == "Going on."
        assert await ask("volume", percent="50") == "Volume: 50 %"
        assert await ask("skip") == "Skipped: song.ogg"
        await hears(880)
        assert await ask("queue") == "Nothing waits."
        assert server.main_gateway is not None
        await server.main_gateway.signalling(BOT).kick()
        await client.wait_for(lambda: BOT not in client.users)
        assert await ask("play", song="song.ogg") == "Playing: song.ogg"
        await hears(660)
        assert await ask("leave") == "Left."
        assert server.members(CHANNEL_IDS[0]) == [OTHER]


@pytest.mark.parametrize("ended_by", ["stop", "kick"])
async def test_the_recorder(ended_by: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = python_with(framework("disnake"), tmp_path_factory)
    async with (
        VoiceServer(main_gateway=True) as server,
        somebody(server) as (client, sink),
        running(server, python, copied("recorder.py", tmp_path)),
    ):
        commands = await registered(server, "stop")

        async def ask(name: str) -> str:
            return await commands.ask(BOT, OTHER, CHANNEL_IDS[0], name)

        assert await ask("stop") == "No: there is no recording"
        assert await ask("record") == "Recording."
        assert sink.frequency(BOT) == pytest.approx(880, abs=5)
        assert [text.partition(".")[0] for _, text in commands.messages] == ["This channel is being recorded"]
        assert await ask("record") == "No: there is a recording already"
        packets = client.stats.packets
        await client.wait_for(lambda: client.stats.packets > packets + 100)
        if ended_by == "stop":
            assert await ask("stop") == "Stopped."
        else:
            assert server.main_gateway is not None
            await server.main_gateway.signalling(BOT).kick()
        await server.wait_for(lambda: commands.messages[-1][1].startswith("Recorded"), 20)
        said = commands.messages[-1][1]
        assert re.fullmatch(rf"Recorded \d+\.\d s: {OTHER}\.ogg, mixed\.ogg", said), said
        (files,) = (tmp_path / "recordings").iterdir()
        assert {file.name for file in files.iterdir()} == {f"{OTHER}.ogg", "mixed.ogg"}
        assert (files / f"{OTHER}.ogg").stat().st_size > 5_000
        assert server.session(BOT).counters["media in the clear"] == 0


def program_of(page: Path) -> str:
    """The page's program: its one block of Python that runs a bot."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (program,) = (str(block) for block in blocks if "DISCORD_TOKEN" in block)
    return program


@pytest.mark.parametrize("one", FRAMEWORKS, ids=lambda one: one.package)
async def test_the_program_of_a_frameworks_page(
    one: Framework, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It joins the first channel, plays song.ogg, records whoever speaks meanwhile, and leaves."""
    python = python_with(one, tmp_path_factory)
    program = tmp_path / "bot.py"
    program.write_text(program_of(ROOT / "docs" / "frameworks" / f"{one.adapter}.md"), encoding="utf-8")
    write_tone(tmp_path / "song.ogg", 660, 2)
    async with (
        VoiceServer(main_gateway=True) as server,
        somebody(server) as (client, sink),
        running(server, python, program, GUILD=str(GUILD_ID), CHANNEL=str(CHANNEL_IDS[0])) as process,
    ):
        await client.wait_for(lambda: BOT in client.users, 40)
        await client.wait_for(lambda: abs(sink.frequency(BOT) - 660) < 5, 20)
        await client.wait_for(lambda: BOT not in client.users, 30)
        assert process.returncode is None or process.returncode == 0
        assert (tmp_path / "recordings" / f"{OTHER}.wav").stat().st_size > 48_000
        assert server.session(BOT).counters["media in the clear"] == 0
