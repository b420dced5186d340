"""Calls of our client with bots of other projects on our voice server: processes, and what must be true of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
GUILD, CHANNEL = "41771983423143937", "127121515262115840"
OURS, THEIRS = "104694319306248192", "158533742254751744"
OUR_HZ, THEIR_HZ = 440, 660
STEP_S = 30.0


@dataclass
class Place:
    """Where to join."""

    endpoint: str
    ca: Path


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


def call_of(place: Place) -> str:
    """What a bot of another project is told, as JSON."""
    return json.dumps(
        {
            "endpoint": place.endpoint,
            "token": "c" * 16,
            "guild_id": GUILD,
            "channel_id": CHANNEL,
            "user_id": THEIRS,
            "session_id": "d" * 32,
            "peer_id": OURS,
        }
    )


async def talk(client: Process, other: Process) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both play and listen; what each tells in the end. Ours leaves first."""
    assert await line(other) == {"event": "done"}
    ours = await result(client, b"stop\n")
    return ours, await result(other)


def check(ours: dict[str, Any], theirs: dict[str, Any], mode: str) -> None:
    """One group, and each heard the other's tone, whole."""
    assert theirs["errors"] == []
    assert theirs["ok"] is True
    assert ours["ok"] is True
    assert ours["reconnects"] == 0
    assert theirs["mode"] == mode
    assert len(theirs["code"]) == 30
    assert ours["codes"][-1][1] == theirs["code"]

    assert list(ours["received"]) == [THEIRS]
    heard = ours["received"][THEIRS]
    assert heard["freq"] == pytest.approx(THEIR_HZ, abs=5)
    assert (heard["lost"], heard["concealed"], heard["errors"]) == (0, 0, 0)
    # some count the five frames of silence at the end, and of those that do not, some may leave before they are sent
    assert theirs["played_packets"] in (heard["packets"], heard["packets"] - heard["silence"])
    assert heard["packets"] >= 150

    assert theirs["freq"] == pytest.approx(OUR_HZ, abs=5)
    came = theirs["heard_packets"] + theirs["misread_packets"]
    assert ours["sent"] - 1 <= came <= ours["sent"]  # the last one may come after the word that we left
    assert theirs["heard_packets"] >= 100
