"""Where a command's words go: text for people, one JSON object for programs."""

from __future__ import annotations

import argparse
import json
import sys
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
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def positive(text: str) -> float:
    """An argument that is a positive number of seconds."""
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def seconds(text: str) -> float:
    """An argument that is a number of seconds, 0 among them."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def snowflake(text: str) -> int:
    """An argument that is an id of Discord."""
    value = int(text)
    if not 0 < value < 1 << 64:
        raise ValueError(text)
    return value


def port(text: str) -> int:
    """An argument that is a port, 0 for a free one."""
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise ValueError(text)
    return value
