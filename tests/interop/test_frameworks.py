"""Bots of other frameworks, unmodified, log in to the local main gateway and use voicegw for their voice."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.calls import ROOT, line, started
from voicegw import ToneSource, VoiceClient
from voicegw.media.sinks import MeasuringSink
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.main_gateway import CHANNEL_IDS, GUILD_ID

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
BOT, OTHER = 104694319306248192, 158533742254751744


@dataclass(frozen=True)
class Framework:
    """What to install, what to import, which of our modules serves it, and the bot that does."""

    package: str
    module: str
    adapter: str
    bot: str = "framework_bot.py"
    has_sources: bool = True


FRAMEWORKS = [
    Framework("discord.py", "discord", "discord_py"),
    Framework("py-cord", "discord", "py_cord"),
    Framework("nextcord", "nextcord", "nextcord"),
    Framework("disnake", "disnake", "disnake"),
    Framework("hikari", "hikari", "hikari", "hikari_bot.py", has_sources=False),
    Framework("interactions.py", "interactions", "interactions_py", "interactions_py_bot.py"),
    Framework("hata", "hata", "hata", "hata_bot.py", has_sources=False),
]


def python_with(framework: Framework, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the framework and voicegw, built unless VOICEGW_INTEROP_DIR has it."""
    given = os.environ.get("VOICEGW_INTEROP_DIR")
    directory = (Path(given) if given else tmp_path_factory.mktemp("frameworks")) / f"with_{framework.adapter}"
    interpreter = directory / "bin" / "python"
    if not (directory / "built").exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        command = [str(interpreter), "-m", "pip", "install", "--quiet", framework.package, "--editable", str(ROOT)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip could not install {framework.package} in time")
        if done.returncode:
            pytest.skip(f"pip could not install {framework.package}: {done.stderr.strip()[-300:]}")
        (directory / "built").touch()
    return interpreter


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.package)
async def test_a_bot_joins_plays_records_is_moved_and_kicked(
    framework: Framework, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = python_with(framework, tmp_path_factory)
    async with VoiceServer(main_gateway=True) as server:
        assert server.main_gateway is not None
        ca = tmp_path / "ca.pem"
        ca.write_bytes(server.ca_pem)
        other = VoiceClient(
            user_id=OTHER,
            guild_id=GUILD_ID,
            signalling=LocalSignalling(server, OTHER),
            ca_pem=server.ca_pem,
            allowed_hosts=(server.host,),
            allow_private_media=True,
        )
        sink = MeasuringSink()
        other.listen(sink)
        await other.connect(CHANNEL_IDS[0])
        playing = other.play(ToneSource(440))
        call = {
            "module": framework.module,
            "adapter": framework.adapter,
            "api": server.api,
            "gateway": server.gateway_url,
            "ca": str(ca),
            "token": f"{base64.b64encode(str(BOT).encode()).decode()}.token.of-a-bot",
            "recordings": str(tmp_path / "heard"),
        }
        driver = (python, HERE / framework.bot, json.dumps(call))
        async with started(*driver, cwd=tmp_path, SSL_CERT_FILE=str(ca)) as process:
            joined = await line(process)
            assert joined["event"] == "joined", joined
            if framework.has_sources:
                assert await line(process) == {"event": "cleaned up"}
            played = await line(process)
            assert played["event"] == "played", played
            assert played["code"] == other.privacy_code != ""
            heard = other.stats.users[BOT]
            await other.wait_for(lambda: heard.packets >= played["sent"])
            assert (heard.lost, heard.errors) == (0, 0)
            await other.flush()
            assert sink.frequency(BOT) == pytest.approx(660, abs=3)
            moved = await line(process)
            assert moved == {"event": "moved", "channel": CHANNEL_IDS[1], "connected": True}
            assert server.members(CHANNEL_IDS[1]) == [BOT]
            await server.main_gateway.signalling(BOT).kick()
            assert await line(process) == {"event": "kicked", "error": "Kicked"}
            assert await line(process) == {"event": "rejoined", "connected": True}
            assert await line(process) == {"event": "left", "connected": False, "clients": 0}
        playing.stop()
        await other.close()
        with wave.open(str(tmp_path / "heard" / f"{OTHER}.wav")) as file:
            assert file.getnframes() > 48_000
        assert server.session(BOT).counters["media in the clear"] == 0
