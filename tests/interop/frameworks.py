"""The bot frameworks that have an adapter, and environments with one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.calls import ROOT


@dataclass(frozen=True)
class Framework:
    """What to install, what to import, which of our modules serves it, and the bot that does.

    One that never `resumes` logs in anew after every loss of its main gateway's websocket. One that `joins_itself` asks
    for the voice session, and leaves it to us when it has it.
    """

    package: str
    module: str
    adapter: str
    bot: str = "framework_bot.py"
    resumes: bool = True
    joins_itself: bool = False


FRAMEWORKS = [
    Framework("discord.py", "discord", "discord_py"),
    Framework("py-cord", "discord", "py_cord"),
    Framework("nextcord", "nextcord", "nextcord"),
    Framework("disnake", "disnake", "disnake"),
    Framework("hikari", "hikari", "hikari", "hikari_bot.py", joins_itself=True),
    Framework("interactions.py", "interactions", "interactions_py", "interactions_py_bot.py"),
    Framework("hata", "hata", "hata", "hata_bot.py", resumes=False),
]


def python_with(framework: Framework, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the framework and voicegw, built unless VOICEGW_INTEROP_DIR has it."""
    given = os.environ.get("VOICEGW_INTEROP_DIR")
    directory = (Path(given) if given else tmp_path_factory.getbasetemp()) / f"with_{framework.adapter}"
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
