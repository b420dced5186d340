"""A call of our client with a bot of @discordjs/voice on our voice server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.interop.calls import CHANNEL, THEIRS, Place, call_of, check, joining, line, serving, started, talk
from tests.interop.page import FOREIGN, FOREIGN_STEPS
from tests.interop.results import note
from voicegw.server import VoiceServer
from voicegw.wire.encryption import AES_256_GCM, XCHACHA20_POLY1305

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the driver and `node_modules`, installed unless VOICEGW_INTEROP_DIR has them built."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        pytest.skip("node is not installed")
    given = os.environ.get("VOICEGW_INTEROP_DIR")
    directory = Path(given) if given else tmp_path_factory.mktemp("discordjs")
    if not (directory / "node_modules" / "@discordjs" / "voice").is_dir():
        if npm is None:
            pytest.skip("npm is not installed")
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "package.json", directory)
        try:
            done = subprocess.run(
                [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"],
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip("npm could not install @discordjs/voice in time")
        if done.returncode:
            pytest.skip(f"npm could not install @discordjs/voice: {done.stderr.strip()[-300:]}")
    shutil.copy(HERE / "discordjs_bot.mjs", directory)
    return directory


@asynccontextmanager
async def bot(place: Place, packages: Path) -> AsyncIterator[Process]:
    """The other bot, once it is connected."""
    node = shutil.which("node") or "node"
    arguments = (packages / "discordjs_bot.mjs", call_of(place))
    async with started(node, *arguments, cwd=packages, NODE_EXTRA_CA_CERTS=str(place.ca)) as process:
        assert await line(process) == {"event": "ready"}
        yield process


async def test_it_joins_our_call(packages: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as place, joining(place, tmp_path / "heard") as client, bot(place, packages) as other:
        ours, theirs = await talk(client, other)
    check(ours, theirs, AES_256_GCM)
    assert (tmp_path / "heard" / f"{THEIRS}.wav").stat().st_size > 2 * 48_000 * 4
    installed = packages / "node_modules" / "@discordjs" / "voice" / "package.json"
    note(FOREIGN[1], json.loads(installed.read_text(encoding="utf-8"))["version"], FOREIGN_STEPS)


async def test_we_join_its_call(packages: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as place, bot(place, packages) as other, joining(place, tmp_path / "heard") as client:
        ours, theirs = await talk(client, other)
    check(ours, theirs, AES_256_GCM)


async def test_a_call_in_xchacha20(packages: Path, tmp_path: Path) -> None:
    async with VoiceServer(open=True, modes=(XCHACHA20_POLY1305,), channel_id=int(CHANNEL)) as server:
        place = Place(server.endpoint, tmp_path / "ca.pem")
        place.ca.write_bytes(server.ca_pem)
        async with bot(place, packages) as other, joining(place, tmp_path / "heard") as client:
            ours, theirs = await talk(client, other)
        check(ours, theirs, XCHACHA20_POLY1305)
        counters = server.session(int(THEIRS)).counters
        assert counters["media"] >= 150
        assert counters["media in the clear"] == 0
