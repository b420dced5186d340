"""A call of our client with a bot of discord.py on our voice server."""

from __future__ import annotations

import os
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.interop.calls import Place, call_of, check, joining, line, serving, started, talk
from tests.interop.page import FOREIGN, FOREIGN_STEPS
from tests.interop.results import note
from voicegw.wire.encryption import XCHACHA20_POLY1305

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

HERE = Path(__file__).parent
# Not the extra discord.py[voice]: with a modern PyNaCl it resolves to a discord.py from before E2EE.
PACKAGES = ("discord.py>=2.7", "davey>=0.1.7", "PyNaCl>=1.6", "opuslib-next-bundled>=0.1.1")


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with discord.py, built unless VOICEGW_INTEROP_DIR has it."""
    given = os.environ.get("VOICEGW_INTEROP_DIR")
    directory = (Path(given) if given else tmp_path_factory.mktemp("discord_py")) / "discord_py"
    interpreter = directory / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        try:
            done = subprocess.run(
                [interpreter, "-m", "pip", "install", "--quiet", *PACKAGES],
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip("pip could not install discord.py in time")
        if done.returncode:
            pytest.skip(f"pip could not install discord.py: {done.stderr.strip()[-300:]}")
    return interpreter


@asynccontextmanager
async def bot(place: Place, python: Path) -> AsyncIterator[Process]:
    """The other bot, once it is connected."""
    driver = HERE / "discord_py_bot.py"
    async with started(python, driver, call_of(place), SSL_CERT_FILE=str(place.ca)) as process:
        assert await line(process) == {"event": "ready"}
        yield process


async def test_it_joins_our_call(python: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as place, joining(place, tmp_path / "heard") as client, bot(place, python) as other:
        ours, theirs = await talk(client, other)
    check(ours, theirs, XCHACHA20_POLY1305)
    note(FOREIGN[0], theirs["version"], FOREIGN_STEPS)


async def test_we_join_its_call(python: Path, tmp_path: Path) -> None:
    async with serving(tmp_path) as place, bot(place, python) as other, joining(place, tmp_path / "heard") as client:
        ours, theirs = await talk(client, other)
    check(ours, theirs, XCHACHA20_POLY1305)
