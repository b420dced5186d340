"""What MkDocs asks while it builds: pages that are drawn from the project, so that they cannot say anything else.

The machines' pages come from `diagrams/` and `states/`, the command line from the commands' own help, the pictures
from the tables. Links of a page to files outside `docs/` become their names: the site holds nothing but pages.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from voicegw.cli import make_parser
from voicegw.session import SESSIONS
from voicegw.tables.draw import to_overview_svg
from voicegw.tables.load import load_table, table_names

ROOT = Path(__file__).parent.parent
ARRIVING = {"mutation.md", "speed.md", "view.md", "fleet.md"}
FILE = re.compile(r"<!-- the file (\S+) -->")
PROMISES = "<!-- the README's promises -->"
PICTURES = re.compile(r"```mermaid\n.*?^The same as a picture: [^\n]*\n", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put a page of each machine into the navigation, and leave out what has not been written yet."""
    for section in config.nav:
        for title, entries in section.items():
            if title == "Machines":
                entries[1:1] = [{name: f"machines/{name}.md"} for name in sorted(table_names(), key=_by_importance)]
            if isinstance(entries, list):
                section[title] = [entry for entry in entries if not _missing(entry)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are drawn."""
    for name in table_names():
        page = (ROOT / "diagrams" / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"machines/{name}.md", content=machine_page(name, page)))
        for picture in (f"{name}.svg", f"{name}.map.svg"):
            files.append(File.generated(config, f"machines/{picture}", abs_src_path=str(ROOT / "diagrams" / picture)))
        files.append(File.generated(config, f"machines/{name}-overview.svg", content=to_overview_svg(load_table(name))))
    tables = (ROOT / "states" / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "machines/tables.md", content=tables))
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in what other files say; links that lead out of the site become the names of what they lead to."""

    def inside(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or files.get_file_from_path(_joined(page.file.src_uri, target)) is not None:
            return found[0]
        table = re.fullmatch(r"(?:\.\./)*(?:states/)?(\w+)\.toml", target)
        if table and table[1] in table_names():
            return f"`{table[1]}.toml`"
        for outside, ours in (("states/README.md", "machines/tables.md"), ("diagrams", "machines/index.md")):
            if target.endswith(outside):
                return f"[{text}]({'../' * page.file.src_uri.count('/')}{ours}{anchor})"
        if target.startswith("../"):
            return text
        return found[0]

    drawn = FILE.sub(lambda found: listing(found[1]), markdown.replace(PROMISES, promises()))
    return LINK.sub(inside, drawn)


def listing(name: str) -> str:
    """A program of the project, whole."""
    return f"```python\n{(ROOT / name).read_text(encoding='utf-8')}```"


def promises() -> str:
    """The README's table of promises."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| promise |")[2].partition("\n\n")[0]
    return f"| promise |{table}".replace("(docs/", "(")


def machine_page(name: str, page: str) -> str:
    """A machine's page with pictures in the place of diagrams that a browser would have to draw."""
    pictures = (
        f"![the top states of {name}]({name}-overview.svg)\n\n"
        f"All states, without the events; [with them]({name}.svg) it is a large picture:\n\n"
        f"[![the states of {name}]({name}.map.svg)]({name}.svg)\n\n"
        f"Drawn by `voicegw diagram` from `states/{name}.toml`.\n"
    )
    return PICTURES.sub(lambda _: pictures, page, count=1)


def commands_page() -> str:
    """Every command's own help."""
    (choices,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        "# Command line",
        "What `voicegw COMMAND --help` says. Every command takes `--json`: then text goes to stderr, and the last line "
        "on stdout is one JSON object. The exit code is 0 only where what was asked has happened, 1 with one line that "
        "says what failed, 2 for arguments that cannot be. `python -m voicegw` is the same.",
    ]
    for name, command in choices.choices.items():
        parts += [f"## voicegw {name}", f"```text\n{help_of(command)}\n```"]
    return "\n\n".join(parts) + "\n"


def help_of(command: Any) -> str:
    """The help, as wide on every machine, in every environment."""
    make = command.formatter_class
    command.formatter_class = lambda prog: make(prog, width=100)
    try:
        text: str = command.format_help()
    finally:
        command.formatter_class = make
    return re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()


def _by_importance(name: str) -> int:
    """The machines of a call first."""
    return [*SESSIONS].index(name) if name in SESSIONS else len(SESSIONS)


def _missing(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry.values()) <= ARRIVING
        and not (ROOT / "docs" / next(iter(entry.values()))).exists()
    )


def _joined(page: str, target: str) -> str:
    parts = page.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
