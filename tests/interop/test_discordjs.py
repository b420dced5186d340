"""A call of our client with a bot of @discordjs/voice on our voice server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from voicegw.server import VoiceServer
from voicegw.wire.encryption import AES_256_GCM, XCHACHA20_POLY1305

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GUILD, CHANNEL = "41771983423143937", "127121515262115840"
OURS, THEIRS = "104694319306248192", "158533742254751744"
OUR_HZ, THEIR_HZ = 440, 660
STEP_S = 30.0


@dataclass
class Place:
    """Where to join."""

    endpoint: str
    ca: Path


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
async def started(*command: str | Path, cwd: Path = ROOT, **more: str) -> AsyncIterator[Process]:
    """A program whose stdin and stdout are pipes; it has ended when the context ends."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env={**os.environ, **more}, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
        await process.communicate()


async def line(process: Process) -> dict[str, Any]:
    """The next line of stdout, which is JSON."""
    assert process.stdout is not None
    assert process.stderr is not None
    text = await asyncio.wait_for(process.stdout.readline(), STEP_S)
    if not text:
        pytest.fail(f"it ended early: {(await process.stderr.read()).decode()[-2000:]}")
    read: dict[str, Any] = json.loads(text)
    return read


async def until_said(process: Process, words: str) -> None:
    """Until stderr has a line with these words."""
    assert process.stderr is not None
    said: list[str] = []
    async with asyncio.timeout(STEP_S):
        while not said or words not in said[-1]:
            text = await process.stderr.readline()
            if not text:
                pytest.fail(f"it ended early: {''.join(said)[-2000:]}")
            said.append(text.decode())


async def result(process: Process, words: bytes = b"") -> dict[str, Any]:
    """Say `words`, close stdin, wait for the end; the last line of stdout."""
    out, err = await asyncio.wait_for(process.communicate(words), STEP_S)
    assert process.returncode == 0, err.decode()[-2000:]
    read: dict[str, Any] = json.loads(out.splitlines()[-1])
    return read


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Place]:
    """`voicegw serve`."""
    ca = directory / "ca.pem"
    arguments = ("--open", "--ca-out", ca, "--channel-id", CHANNEL, "--json")
    async with started(sys.executable, "-m", "voicegw", "serve", *arguments) as server:
        place = await line(server)
        yield Place(place["endpoint"], ca)


@asynccontextmanager
async def joining(place: Place, recordings: Path) -> AsyncIterator[Process]:
    """`voicegw join`, once it is connected; it plays until it is told to stop."""
    ids = ("--server-id", GUILD, "--channel-id", CHANNEL, "--user-id", OURS, "--session-id", "b" * 32)
    where = ("--endpoint", place.endpoint, "--token", "a" * 16, "--ca", place.ca)
    sound = ("--play", f"tone:{OUR_HZ}", "--record", recordings, "--duration", "60")
    async with started(sys.executable, "-m", "voicegw", "join", *where, *ids, *sound, "--json") as client:
        await until_said(client, "connected in")
        yield client


@asynccontextmanager
async def bot(place: Place, packages: Path) -> AsyncIterator[Process]:
    """The other bot, once it is connected."""
    call = {
        "endpoint": place.endpoint,
        "token": "c" * 16,
        "guild_id": GUILD,
        "channel_id": CHANNEL,
        "user_id": THEIRS,
        "session_id": "d" * 32,
        "peer_id": OURS,
    }
    node = shutil.which("node") or "node"
    arguments = (packages / "discordjs_bot.mjs", json.dumps(call))
    async with started(node, *arguments, cwd=packages, NODE_EXTRA_CA_CERTS=str(place.ca)) as process:
        assert await line(process) == {"event": "ready"}
        yield process


async def talk(client: Process, other: Process) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both play and listen; what each tells in the end. Ours leaves first."""
    assert await line(other) == {"event": "done"}
    ours = await result(client, b"stop\n")
    return ours, await result(other)


def check(ours: dict[str, Any], theirs: dict[str, Any], mode: str = AES_256_GCM) -> None:
    """One group, and each heard the other's tone, whole."""
    assert theirs["errors"] == []
    assert theirs["ok"] is True
    assert ours["ok"] is True
    assert ours["reconnects"] == 0
    assert (ours["mode"], theirs["mode"]) == (mode, mode)
    assert len(theirs["code"]) == 30
    assert ours["codes"][-1][1] == theirs["code"]

    assert list(ours["received"]) == [THEIRS]
    heard = ours["received"][THEIRS]
    assert heard["freq"] == pytest.approx(THEIR_HZ, abs=5)
    assert (heard["lost"], heard["concealed"], heard["errors"]) == (0, 0, 0)
    assert heard["packets"] == theirs["played_packets"]
    assert heard["packets"] >= 150

    assert theirs["freq"] == pytest.approx(OUR_HZ, abs=5)
    came = theirs["heard_packets"] + theirs["misread_packets"]
    assert ours["sent"] - 1 <= came <= ours["sent"]  # the last one may come after the word that we left
    assert theirs["heard_packets"] >= 100


async def test_it_joins_our_call(packages: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as place, joining(place, tmp_path / "heard") as client, bot(place, packages) as other:
        ours, theirs = await talk(client, other)
    check(ours, theirs)
    assert (tmp_path / "heard" / f"{THEIRS}.wav").stat().st_size > 2 * 48_000 * 4


async def test_we_join_its_call(packages: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as place, bot(place, packages) as other, joining(place, tmp_path / "heard") as client:
        ours, theirs = await talk(client, other)
    check(ours, theirs)


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
