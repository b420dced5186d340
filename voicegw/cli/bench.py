"""`voicegw bench`: the benchmarks of a checkout."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import voicegw
from voicegw.cli.console import Commands, Console, count, positive
from voicegw.errors import VoiceError

ALL = "all"


class NoBenchmarks(VoiceError):
    """They are not part of the installed package."""


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure this library beside others",
        description="Run one benchmark of bench/, or all; without a name it lists them. For a checkout on Linux.",
    )
    command.add_argument("name", nargs="?", help="a benchmark, or all")
    command.add_argument("--rounds", type=count, default=5, metavar="N", help="interleaved rounds (5)")
    command.add_argument("--seconds", type=positive, default=1.5, metavar="S", help="length of one window (1.5)")
    command.add_argument("--page", type=Path, metavar="FILE.md", help="write a results page, its JSON and pictures")
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run it; missed targets are no failure."""
    runner = _runner()
    names = list(runner.measures())
    if arguments.name is None:
        for name in names:
            console.say(name)
        console.result({"benchmarks": names})
        return 0
    if arguments.name not in (ALL, *names):
        print(f"voicegw bench: no benchmark {arguments.name!r}; there are {', '.join(names)}, {ALL}", file=sys.stderr)
        return 2
    results = importlib.import_module("bench.results")
    settings = results.Settings(arguments.rounds, arguments.seconds)
    found = runner.run(names if arguments.name == ALL else [arguments.name], settings, console.say, arguments.page)
    console.result({"host": importlib.import_module("bench.machine").host(), "results": found})
    return 0


def _runner() -> Any:
    """`bench.run` of the checkout that this package is imported from."""
    root = Path(voicegw.__file__).parent.parent
    if not (root / "bench" / "run.py").exists() or not sys.platform.startswith("linux"):
        raise NoBenchmarks("the benchmarks are in a checkout of the repository and need Linux")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("bench.run")
