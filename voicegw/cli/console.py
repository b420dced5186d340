"""Where a command's words go: text for people, one JSON object for programs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[Any]"


class Console:
    """With `json` people's text goes to stderr and `result` prints the last line of stdout."""

    def __init__(self, json: bool) -> None:
        self.json = json

    def say(self, text: str = "") -> None:
        """One line for people."""
        print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def result(self, data: dict[str, object]) -> None:
        """What a program reads; nothing where no program asked."""
        if self.json:
            print(json.dumps(data), flush=True)


def count(text: str) -> int:
    """An argument that is a positive whole number."""
    return _whole(text, 1, 1 << 64, "a whole number above 0")


def several(text: str) -> int:
    """An argument that is a whole number above 1."""
    return _whole(text, 2, 1 << 64, "a whole number above 1")


def snowflake(text: str) -> int:
    """An argument that is an id of Discord."""
    return _whole(text, 1, 1 << 64, "an id")


def port(text: str) -> int:
    """An argument that is a port, 0 for a free one."""
    return _whole(text, 0, 1 << 16, "a port")


def positive(text: str) -> float:
    """An argument that is a positive number of seconds."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time above 0")
    return value


def seconds(text: str) -> float:
    """An argument that is a number of seconds, 0 among them."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def directory(text: str) -> Path:
    """An argument that is a directory."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    return path


def _whole(text: str, least: int, limit: int, what: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value < limit:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
