"""`voicegw play`, `voicegw record` and the login under them, against the local main gateway."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import voicegw
from tests.conftest import ALICE, BOB
from tests.test_cli import call, finish, running
from voicegw.client import VoiceClient
from voicegw.errors import CertificateRefused, ConnectionFailed, InvalidEndpoint, LoginRefused, SignallingError
from voicegw.main_gateway import MainGateway
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.main_gateway import CHANNEL_IDS, GUILD_ID
from voicegw.server.main_gateway import MainGateway as LocalMainGateway

pytestmark = pytest.mark.loopback

SONG = Path(voicegw.__file__).parent / "media" / "demo.ogg"
TOKEN = f"{ALICE}.canary-token"


@pytest.fixture
async def server() -> AsyncIterator[VoiceServer]:
    async with VoiceServer(main_gateway=True) as running_server:
        yield running_server


def local(server: VoiceServer) -> LocalMainGateway:
    assert server.main_gateway is not None
    return server.main_gateway


def login(server: VoiceServer, token: str = TOKEN) -> MainGateway:
    return MainGateway(token, api=server.api, ca_pem=server.ca_pem)


def client_of(server: VoiceServer, gateway: MainGateway, **options: Any) -> VoiceClient:
    return VoiceClient(user_id=gateway.user_id, guild_id=GUILD_ID, signalling=gateway, **server.trust, **options)


async def test_a_bot_logs_in_joins_and_moves(server: VoiceServer) -> None:
    async with login(server) as gateway:
        assert gateway.state == "down"
        await gateway.login()
        assert (gateway.state, gateway.user_id) == ("ready", ALICE)
        assert (await gateway.channel(CHANNEL_IDS[0]))["name"] == "voice-1"
        async with client_of(server, gateway) as client:
            await client.connect(CHANNEL_IDS[0])
            await client.move_to(CHANNEL_IDS[1])
            assert server.members(CHANNEL_IDS[1]) == [ALICE]
            local(server).signalling(ALICE).move(CHANNEL_IDS[0])
            await server.wait_for(lambda: server.members(CHANNEL_IDS[0]) == [ALICE])
        await server.wait_for(lambda: server.members(CHANNEL_IDS[0]) == [])
    assert gateway.state == "down"
    await server.wait_for(lambda: local(server).bots == {})


async def test_a_login_that_is_lost_is_resumed_and_the_call_goes_on(server: VoiceServer) -> None:
    async with login(server) as gateway:
        await gateway.login()
        async with client_of(server, gateway) as client:
            await client.connect(CHANNEL_IDS[0])
            bot = local(server).bots[ALICE]
            before = bot.connection
            bot.reconnect()
            await server.wait_for(lambda: bot.connection not in (None, before))
            await client.wait_for(lambda: gateway.state == "ready")
            await client.move_to(CHANNEL_IDS[1])
            assert client.way("call").count("waiting.main_session") == 0


async def test_a_login_that_is_invalidated_brings_the_call_back(server: VoiceServer) -> None:
    async with login(server) as gateway:
        await gateway.login()
        async with client_of(server, gateway) as client:
            await client.connect(CHANNEL_IDS[0])
            await local(server).bots[ALICE].invalidate()
            await client.wait_for(lambda: client.states["call"] == "waiting.main_session")
            await client.wait_for(lambda: client.states["call"] == "connected", 15)
            assert gateway.state == "ready"
            assert server.members(CHANNEL_IDS[0]) == [ALICE]


async def test_a_gateway_that_does_not_answer_the_close_is_left(
    server: VoiceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = login(server)
    await gateway.login()
    deaf = asyncio.Event()

    async def receive(*arguments: Any, **more: Any) -> Any:
        deaf.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(aiohttp.web.WebSocketResponse, "receive", receive)
    await gateway.update_voice_state(GUILD_ID, None, self_mute=False, self_deaf=False)
    await deaf.wait()
    await asyncio.wait_for(gateway.close(), 20)
    assert gateway.state == "down"


async def test_what_is_refused_says_what_to_do(server: VoiceServer) -> None:
    local(server).refuse_tokens = True
    with pytest.raises(LoginRefused, match="bot token"):
        await login(server).login()
    local(server).refuse_tokens = False
    local(server).refuse_intents = True
    async with login(server) as gateway:
        with pytest.raises(LoginRefused, match="intents"):
            await gateway.login()
    local(server).refuse_intents = False
    local(server).forbidden.add(CHANNEL_IDS[0])
    async with login(server) as gateway:
        await gateway.login()
        for channel_id in (CHANNEL_IDS[0], 5):
            with pytest.raises(LoginRefused, match=f"channel {channel_id}"):
                await gateway.channel(channel_id)


async def test_the_token_goes_to_nobody_else(server: VoiceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VoiceServer, "gateway_url", "wss://gateway.example.com")
    with pytest.raises(InvalidEndpoint, match=r"gateway\.example\.com"):
        await login(server).login()
    with pytest.raises(ConnectionFailed, match=r"^127\.0\.0\.1 cannot be reached: Connection refused$"):
        await MainGateway(TOKEN, api="https://127.0.0.1:9/api/v10").login()
    with pytest.raises(CertificateRefused, match="unable to get local issuer certificate"):
        await MainGateway(TOKEN, api=server.api).login()
    for none in ("nonsense", "http://[a", "ftp://127.0.0.1/"):
        with pytest.raises(InvalidEndpoint, match="is not the base URL of a REST API"):
            MainGateway(TOKEN, api=none)
    gateway = login(server)
    assert "canary" not in repr(vars(gateway))
    with pytest.raises(SignallingError, match="not logged in"):
        await gateway.update_voice_state(GUILD_ID, None, self_mute=False, self_deaf=False)


# -- the commands


def place(server: VoiceServer, tmp_path: Path, *arguments: str, guild: int | str = GUILD_ID) -> list[str]:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(server.ca_pem)
    where = ["--guild", str(guild), "--channel", str(CHANNEL_IDS[0])]
    return [*arguments, *where, "--api", server.api, "--ca", str(ca), "--json"]


async def listener(server: VoiceServer) -> tuple[VoiceClient, MeasuringSink]:
    client = VoiceClient(user_id=BOB, guild_id=GUILD_ID, signalling=LocalSignalling(server, BOB), **server.trust)
    await client.connect(CHANNEL_IDS[0])
    return client, MeasuringSink()


async def test_play_plays_a_file_in_a_channel(
    server: VoiceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", f"{TOKEN}\n")  # as files have it
    other, sink = await listener(server)
    other.listen(sink)
    async with running(*place(server, tmp_path, "play", "tone:660", "--seconds", "0.5")) as process:
        done = await finish(process)
    assert done.code == 0, done.err
    assert (done.result["ok"], done.result["user_id"], done.result["played_s"]) == (True, str(ALICE), 0.5)
    await other.wait_for(lambda: other.stats.users[ALICE].packets >= 25)
    assert sink.frequency(ALICE) == pytest.approx(660, abs=10)
    assert "canary" not in done.err + done.out
    await other.close()


async def test_record_records_everybody_until_it_is_stopped(
    server: VoiceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    other, _ = await listener(server)
    recordings = tmp_path / "recordings"
    async with running(*place(server, tmp_path, "record", "--output", str(recordings))) as process:
        await server.wait_for(lambda: len(server.members(CHANNEL_IDS[0])) == 2)
        await other.play(ToneSource(440, 0.5)).wait()
        await other.wait_for(lambda: other.stats.packets >= 25)
        done = await finish(process, b"stop\n")
    assert done.code == 0, done.err
    assert done.result["files"] == {str(BOB): str(recordings / f"{BOB}.wav")}
    with wave.open(str(recordings / f"{BOB}.wav")) as file:
        assert file.getnframes() >= 25 * 960
    await other.close()


@pytest.mark.parametrize(
    ("what", "words"),
    [("token", "bot token"), ("intents", "intents"), ("channel", "may not see"), ("nothing", "DISCORD_TOKEN")],
)
async def test_what_fails_is_one_line(
    server: VoiceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    gateway = local(server)
    gateway.refuse_tokens, gateway.refuse_intents = what == "token", what == "intents"
    gateway.forbidden |= {CHANNEL_IDS[0]} if what == "channel" else set()
    if what == "nothing":
        monkeypatch.delenv("DISCORD_TOKEN")
    async with running(*place(server, tmp_path, "play", "tone:440")) as process:
        done = await finish(process)
    assert done.code == 1
    (line,) = done.err.strip().splitlines()
    assert line.startswith("voicegw: ")
    assert words in line
    assert "canary" not in line


@pytest.mark.parametrize(
    ("guild", "kind", "words"),
    [("5", 2, f"is in guild {GUILD_ID}, not in 5"), (str(GUILD_ID), 0, "is no voice channel")],
)
async def test_another_guild_or_kind_of_channel_is_said_at_once(
    server: VoiceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guild: int, kind: int, words: str
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    channel = {"id": str(CHANNEL_IDS[0]), "guild_id": str(GUILD_ID), "type": kind}
    monkeypatch.setattr("voicegw.server.main_gateway.channels", lambda full: [channel])
    async with running(*place(server, tmp_path, "record", guild=guild)) as process:
        done = await finish(process)
    what = f"channel {CHANNEL_IDS[0]} {words}"
    assert (done.code, done.err) == (1, f"voicegw: {what}\n")
    assert done.result == {"ok": False, "error": what}


async def on_a_terminal(*arguments: str, interrupted_at: bytes) -> tuple[int, str]:
    """What `voicegw` shows there, and its exit code; Ctrl+C comes as soon as it has shown `interrupted_at`."""
    import pty

    ours, theirs = pty.openpty()
    command = (sys.executable, "-m", "voicegw", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += await asyncio.to_thread(os.read, ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if interrupted_at and interrupted_at in shown:
            process.send_signal(signal.SIGINT)
            interrupted_at = b""
    os.close(ours)
    return await asyncio.wait_for(process.wait(), 30), shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
async def test_a_bar_shows_how_far_it_is_and_ctrl_c_ends_it(
    server: VoiceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    where = place(server, tmp_path, "play", str(SONG))[:-1]  # without --json
    code, shown = await on_a_terminal(*where, interrupted_at=b"[=")
    assert code == 0, shown
    assert "] 0:00 / 0:11  nobody else is here" in shown
    last = shown.strip().splitlines()
    assert re.fullmatch(r"played \d\.\d s in 0 packets", last[-2])
    assert last[-1] == "nobody else was in the channel, so nobody has heard it"


async def test_a_channel_that_may_not_be_joined_is_said(server: VoiceServer) -> None:
    """It can be seen, so nothing but silence answers the join."""
    async with login(server) as gateway:
        await gateway.login()
        local(server).forbidden.add(CHANNEL_IDS[0])
        client = client_of(
            server, gateway, deadlines={"join_unanswered": 0.2, "ghost_cleared": 0.2, "pair_timeout": 0.2}
        )
        with pytest.raises(SignallingError, match="may not connect"):
            await asyncio.wait_for(client.connect(CHANNEL_IDS[0]), 20)


def test_arguments_are_checked(capfd: pytest.CaptureFixture[str]) -> None:
    for command in (("play", "x.ogg"), ("record",), ("play", "x.ogg", "--guild", "a", "--channel", "1")):
        assert call(capfd, *command).code == 2
