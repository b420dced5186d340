"""What MkDocs asks while it builds: pages that are drawn from the project, so that they cannot say anything else.

The machines' pages come from `diagrams/` and `states/`, the command line from the commands' own help, the pictures
from the tables. Links are written as they lead from file to file; here they are turned to the pages of these files.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from voicegw.cli import make_parser
from voicegw.session import SESSIONS
from voicegw.tables.draw import to_overview_svg
from voicegw.tables.load import load_table, table_names

ROOT = Path(__file__).parent.parent
FILE = re.compile(r"<!-- the file (\S+) -->")
PROMISES = "<!-- the README's promises -->"
PICTURES = re.compile(r"```mermaid\n.*?^The same as a picture: [^\n]*\n", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
HELP = "<!-- every command's help -->"
# Files of the project that the site shows, under other names.
SHOWN = {"diagrams": "machines/index.md", "states/README.md": "machines/tables.md", "CHANGELOG.md": "changelog.md"}


def on_config(config: Any) -> Any:
    """Put a page of each machine into the navigation."""
    for section in config.nav:
        for title, entries in section.items():
            if title == "Machines":
                entries[1:1] = [{name: f"machines/{name}.md"} for name in sorted(table_names(), key=_by_importance)]
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
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in what other files say; links to files lead to their pages, or become the names of what they lead to."""
    here = page.file.src_uri

    def on_site(found: re.Match[str]) -> str:
        picture, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target or files.get_file_from_path(_joined(posixpath.dirname(here), target)) is not None:
            return found[0]
        path = _joined(_written_in(here), target)
        shown = SHOWN.get(path) or re.sub(r"^diagrams/", "machines/", path)
        if files.get_file_from_path(shown) is not None:
            return f"{picture}[{text}]({posixpath.relpath(shown, posixpath.dirname(here) or '.')}{anchor})"
        return text

    drawn = FILE.sub(lambda found: listing(found[1]), markdown.replace(PROMISES, promises()).replace(HELP, helps()))
    return LINK.sub(on_site, drawn)


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


def helps() -> str:
    """Every command's own help."""
    (choices,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return "\n\n".join(
        f"## voicegw {name}\n\n```text\n{help_of(command)}\n```" for name, command in choices.choices.items()
    )


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


def _written_in(page: str) -> str:
    """The directory of the project that a page's links start from."""
    drawn = {"machines/tables.md": "states", "changelog.md": ""}
    if page.startswith("machines/") and page not in ("machines/index.md", *drawn):
        return "diagrams"
    return drawn.get(page, _joined("docs", posixpath.dirname(page)))


def _joined(directory: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(directory, target))
