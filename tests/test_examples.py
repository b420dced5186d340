"""The examples without a framework, and bots on the local server: commands, messages, and `voicegw.testing.locally`."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import ALICE, BOB
from voicegw.client import VoiceClient
from voicegw.errors import VoiceError
from voicegw.media.opening import open_source
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import LimitedSource, ToneSource, read_pcm
from voicegw.media.wav import WavWriter
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.main_gateway import CHANNEL_IDS, GUILD_ID
from voicegw.server.main_gateway import MainGateway as LocalMainGateway

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parent.parent
SONG = ROOT / "voicegw" / "media" / "demo.ogg"
TOKEN = f"{ALICE}.a-token"


@asynccontextmanager
async def somebody(server: VoiceServer) -> AsyncIterator[tuple[VoiceClient, MeasuringSink]]:
    """Another user in the first channel."""
    client = VoiceClient(user_id=BOB, guild_id=GUILD_ID, signalling=LocalSignalling(server, BOB), **server.trust)
    async with client:
        sink = MeasuringSink()
        client.listen(sink)
        await client.connect(CHANNEL_IDS[0])
        yield client, sink


@asynccontextmanager
async def locally(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> AsyncIterator[Process]:
    """`python -m voicegw.testing.locally`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "voicegw.testing.locally", *map(str, arguments)),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DISCORD_TOKEN": TOKEN, **environment},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    text = await asyncio.wait_for(process.stdout.readline(), 30)
    if not text:
        assert process.stderr is not None
        pytest.fail((await process.stderr.read()).decode()[-2000:])
    return text.decode().strip()


def example(name: str) -> Path:
    return ROOT / "examples" / name


async def test_the_soundboard_plays_what_a_line_names(local_discord: VoiceServer, place: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for name, hz in (("low", 330), ("high", 880)):
        with_tone = WavWriter(sounds / f"{name}.wav")
        with_tone.write(read_pcm(ToneSource(hz, 0.5)))
        with_tone.close()
    async with somebody(local_discord) as (client, sink):
        board = (place, example("soundboard.py"), str(GUILD_ID), str(CHANNEL_IDS[0]), sounds)
        async with locally(*board) as process:
            assert process.stdin is not None
            assert await line(process) == "sounds: high low"
            process.stdin.write(b"high\nbell\n")
            assert await line(process) == f"No: there is no 'bell' in {sounds}"
            await client.wait_for(lambda: ALICE in client.stats.users and client.stats.users[ALICE].silence >= 1, 20)
            assert sink.frequency(ALICE) == pytest.approx(880, abs=5)
            process.stdin.write(b"loop low\n")
            await client.wait_for(lambda: client.stats.users[ALICE].packets >= 80, 20)
            assert sink.frequency(ALICE) == pytest.approx(330, abs=5)
            process.stdin.write(b"stop\nquit\n")
            assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_the_transcription_hook_gets_each_utterance(local_discord: VoiceServer, place: Path) -> None:
    async with somebody(local_discord) as (client, _):
        hook = (place, example("transcription.py"), str(GUILD_ID), str(CHANNEL_IDS[0]))
        async with locally(*hook) as process:
            assert await line(process) == "listening"
            await client.wait_for(lambda: client.states["dave"] == "active", 20)
            await client.play(LimitedSource(open_source(SONG), 1.5)).wait()
            text = await line(process)
            assert text.startswith(f"{BOB} (")
            assert "s of speech, peak" in text
            await local_discord.disconnect(ALICE)


# -- commands, as a bot and a user see them


class Bot:
    """The little of a bot framework that answers slash commands."""

    def __init__(self, session: aiohttp.ClientSession, api: str) -> None:
        self.session = session
        self.api = api

    async def register(self, *commands: dict[str, Any]) -> None:
        async with self.session.put(f"{self.api}/applications/{ALICE}/commands", json=commands) as response:
            assert [command["name"] for command in await response.json()] == [command["name"] for command in commands]

    async def answer(self, socket: aiohttp.ClientWebSocketResponse, *replies: tuple[str, str, Any]) -> dict[str, Any]:
        """Take the next command and make these requests; what was asked."""
        while True:
            message = await asyncio.wait_for(socket.receive_json(), 10)
            if message["t"] == "INTERACTION_CREATE":
                break
        asked: dict[str, Any] = message["d"]
        for method, path, body in replies:
            where = path.format(id=asked["id"], token=asked["token"], application=ALICE)
            async with self.session.request(method, f"{self.api}/{where}", json=body) as response:
                assert response.status in (200, 204)
        return asked


@asynccontextmanager
async def connected(server: VoiceServer) -> AsyncIterator[tuple[Bot, aiohttp.ClientWebSocketResponse]]:
    trust = ssl.create_default_context(cadata=server.ca_pem.decode())
    headers = {"Authorization": f"Bot {TOKEN}"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), headers=headers) as session,
        session.ws_connect(server.gateway_url) as socket,
    ):
        await socket.send_json({"op": 2, "d": {"token": TOKEN}})
        while (await asyncio.wait_for(socket.receive_json(), 10))["t"] != "GUILD_CREATE":
            pass
        yield Bot(session, server.api), socket


def local(server: VoiceServer) -> LocalMainGateway:
    assert server.main_gateway is not None
    return server.main_gateway


PLAY = {"name": "play", "options": [{"name": "song", "type": 3}, {"name": "times", "type": 4}]}
CALLBACK = "interactions/{id}/{token}/callback"


async def test_a_command_reaches_the_bot_and_its_answer_comes_back(local_discord: VoiceServer) -> None:
    async with connected(local_discord) as (bot, socket):
        await bot.register(PLAY)
        asking = asyncio.create_task(
            local(local_discord).commands.ask(ALICE, BOB, CHANNEL_IDS[1], "play", song="a", times="3")
        )
        asked = await bot.answer(socket, ("POST", CALLBACK, {"type": 4, "data": {"content": "yes"}}))
        assert await asking == "yes"
        assert asked["channel_id"] == str(CHANNEL_IDS[1])
        assert asked["member"]["user"]["id"] == str(BOB)
        assert [option["value"] for option in asked["data"]["options"]] == ["a", 3]


async def test_an_answer_may_be_put_off(local_discord: VoiceServer) -> None:
    later = "webhooks/{application}/{token}/messages/@original"
    async with connected(local_discord) as (bot, socket):
        await bot.register(PLAY)
        asking = asyncio.create_task(local(local_discord).commands.ask(ALICE, BOB, CHANNEL_IDS[0], "play"))
        await bot.answer(
            socket, ("POST", CALLBACK, {"type": 5}), ("GET", later, None), ("PATCH", later, {"content": "at last"})
        )
        assert await asking == "at last"


async def test_who_tries_a_bot_gives_its_commands_from_outside(local_discord: VoiceServer, place: Path) -> None:
    async with somebody(local_discord), connected(local_discord) as (bot, socket):
        await bot.register({"name": "now"})
        async with locally(place, "/now") as process:
            reply = {"type": 4, "data": {"content": "nothing"}}
            asked = await bot.answer(socket, ("POST", CALLBACK, reply))
            assert await line(process) == "nothing"
            assert asked["member"]["user"]["id"] == str(BOB)
        async with locally(place, "/never") as process:
            _, told = await process.communicate()
            assert told.decode().strip() == "no bot has a command never"
            assert process.returncode == 1


async def test_what_is_missing_is_named_in_one_line() -> None:
    for arguments, said in (
        (("server.json",), "usage: python -m voicegw.testing.locally SERVER.json (BOT.py"),
        (("server.json", "no_bot.py"), "no bot no_bot.py; usage"),
        (("server.json", "/now", "song"), "no bot /now; usage"),
        (("no server.json", "/now"), "no server.json tells of no server that runs; in a terminal of its own"),
        ((SONG, "/now"), f"{SONG} tells of no server that runs"),
    ):
        async with locally(*arguments, cwd=ROOT) as process:
            _, told = await process.communicate()
        (line,) = told.decode().splitlines()
        assert line.startswith(said)
        assert process.returncode == 1


async def test_a_server_that_is_gone_is_named(local_discord: VoiceServer, place: Path) -> None:
    await local_discord.close()
    async with locally(place, "/now") as process:
        _, told = await process.communicate()
    assert told.decode().startswith(f"the server at {local_discord.api} is gone; in a terminal of its own")


async def test_commands_that_cannot_be_answered_say_so(
    local_discord: VoiceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voicegw.server.commands.ANSWER_S", 0.05)
    commands = local(local_discord).commands
    with pytest.raises(VoiceError, match="not logged in"):
        await commands.ask(ALICE, BOB, CHANNEL_IDS[0], "play")
    async with connected(local_discord) as (bot, _):
        with pytest.raises(VoiceError, match="it has none"):
            await commands.ask(ALICE, BOB, CHANNEL_IDS[0], "play")
        await bot.register(PLAY)
        with pytest.raises(VoiceError, match="it has play"):
            await commands.ask(ALICE, BOB, CHANNEL_IDS[0], "stop")
        with pytest.raises(VoiceError, match="does not answer play"):
            await commands.ask(ALICE, BOB, CHANNEL_IDS[0], "play")
        async with bot.session.post(f"{bot.api}/interactions/1/none/callback", json={"type": 4}) as response:
            assert response.status == 404


async def test_messages_of_bots_are_kept(local_discord: VoiceServer) -> None:
    async with connected(local_discord) as (bot, _):
        url = f"{bot.api}/channels/{CHANNEL_IDS[0]}/messages"
        async with bot.session.post(url, json={"content": "hear, hear"}) as response:
            assert (await response.json())["author"]["id"] == str(ALICE)
        form = aiohttp.FormData()
        form.add_field("payload_json", json.dumps({"content": "with a file"}))
        form.add_field("files[0]", b"abc", filename="a.txt")
        async with bot.session.post(url, data=form) as response:
            assert response.status == 200
        assert local(local_discord).commands.messages == [
            (CHANNEL_IDS[0], "hear, hear"),
            (CHANNEL_IDS[0], "with a file"),
        ]
