"""What the tests have seen other projects do with voicegw, for the page that `python -m tests.interop` draws."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

COLUMNS = ("login", "join", "play", "record", "move", "kick", "leave", "reconnect")
RESULTS = "VOICEGW_INTEROP_RESULTS"


def note(project: str, version: str, steps: Iterable[str]) -> None:
    """These steps have gone well, if somebody wants to know."""
    if RESULTS in os.environ:
        with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"project": project, "version": version, "steps": list(steps)}) + "\n")


def read(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Version and steps of each project."""
    seen: dict[str, tuple[str, set[str]]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        _, steps = seen.get(line["project"], ("", set()))
        seen[line["project"]] = (line["version"], steps | set(line["steps"]))
    return seen
