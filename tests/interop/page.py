"""The page on what other projects do with voicegw, from what the tests have seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.interop.calls import ROOT
from tests.interop.frameworks import FRAMEWORKS
from tests.interop.results import COLUMNS

PAGE = ROOT / "docs" / "interop.md"
FOREIGN = ("discord.py's own voice", "@discordjs/voice")
FOREIGN_STEPS = ("join", "play", "record", "leave")
DONE, FAILED, NOT_TRIED = "yes", "no", "-"
HEAD = """# With other projects

`python -m tests.interop --page docs/interop.md` runs the tests of this page and draws it anew;
`python -m pytest -m interop` only runs them. Each project comes from its registry into an environment of its own,
unmodified and without its voice extra.
"""
BOTS = """
## Bot frameworks

A bot of each logs in to the local main gateway (`voicegw serve --main-gateway`), joins a voice channel through its
module of `voicegw.frameworks`, plays sources of its framework's own to another member, records that member, is moved,
is kicked, joins again, leaves. For the last column its voice websocket is cut, its main gateway is cut and resumed, and
its login is begun anew, while it plays. Everything is end-to-end encrypted.
"""
CLIENTS = """
## Other voice clients

The voice clients of other projects in one call with ours, on our voice server: both play, both hear the other's tone
whole, both show the same privacy code.
"""


def page(seen: Mapping[str, tuple[str, set[str]]]) -> str:
    """The whole page; `seen` has the version and the steps of each project."""
    bots = [_row(framework.package, seen, COLUMNS) for framework in FRAMEWORKS]
    clients = [_row(name, seen, FOREIGN_STEPS) for name in FOREIGN]
    return "\n".join([HEAD + BOTS, *_head("framework"), *bots, CLIENTS, *_head("client"), *clients, ""])


def _head(what: str) -> list[str]:
    return [f"| {what} | version | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]


def _row(project: str, seen: Mapping[str, tuple[str, set[str]]], tried: tuple[str, ...]) -> str:
    version, steps = seen.get(project, ("", set[str]()))
    cells = [(DONE if step in steps else FAILED) if step in tried else NOT_TRIED for step in COLUMNS]
    return f"| {project} | {version} | {' | '.join(cells)} |"


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each project on a page."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in table if cells[1] != "version"}


def write(path: Path, seen: Mapping[str, tuple[str, set[str]]]) -> None:
    """Draw it."""
    path.write_text(page(seen), encoding="utf-8")
