"""`voicegw diagram`: draw one machine or all."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from voicegw.cli.console import Commands, Console
from voicegw.errors import VoiceError
from voicegw.tables import draw
from voicegw.tables.load import load_table, table_names
from voicegw.tables.model import Table

FORMATS = ("mermaid", "dot", "svg", "png", "md", "map")
SUFFIXES = {"mermaid": "mmd", "dot": "dot", "svg": "svg", "png": "png", "md": "md", "map": "map.svg"}
DRAWN_FROM = {"svg": draw.to_dot, "map": draw.to_map_dot}
PAGES = "--format md,svg,map --output diagrams"


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "diagram",
        help="draw the state machines",
        description="Draw one machine or all. Text goes to stdout where no output is given; "
        f"{PAGES} writes the pages of the documentation and the live view's maps.",
    )
    command.add_argument("machine", nargs="?", choices=table_names(), metavar="MACHINE", help=", ".join(table_names()))
    command.add_argument(
        "--format",
        type=formats,
        default=("mermaid",),
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; several by commas",
    )
    command.add_argument("--output", type=Path, metavar="PATH", help="a file for one picture, else a directory")
    command.add_argument("--check", action="store_true", help="fail where the pages in diagrams/ are not current")
    return command


def formats(text: str) -> tuple[str, ...]:
    """The argument of --format."""
    names = tuple(text.split(","))
    if not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"formats are {', '.join(FORMATS)}")
    return names


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Draw, or compare."""
    tables = [load_table(name) for name in ([arguments.machine] if arguments.machine else table_names())]
    if arguments.check:
        return check(tables, arguments.output or Path("diagrams"), console)
    single = len(tables) == 1 and len(arguments.format) == 1
    written = []
    for table in tables:
        for form in arguments.format:
            content = render(table, form)
            if arguments.output is None:
                show(content, console)
                continue
            path: Path = arguments.output
            if not single or path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                path /= f"{table.machine}.{SUFFIXES[form]}"
            path.write_bytes(content)
            written.append(str(path))
            console.say(f"wrote {path}")
    console.result({"ok": True, "machines": [table.machine for table in tables], "written": written})
    return 0


def check(tables: list[Table], directory: Path, console: Console) -> int:
    """Are the pages in `directory` what the tables say? A picture is known by the text that it was drawn from."""
    stale = []
    for table in tables:
        page = directory / f"{table.machine}.md"
        if not page.is_file() or page.read_text(encoding="utf-8") != draw.to_markdown(table):
            stale.append(str(page))
        for form, to_dot in DRAWN_FROM.items():
            picture = directory / f"{table.machine}.{SUFFIXES[form]}"
            drawn = draw.drawn_from(picture.read_text(encoding="utf-8")) if picture.is_file() else None
            if drawn != draw.fingerprint(to_dot(table)):
                stale.append(str(picture))
    for path in stale:
        console.say(f"not current: {path}")
    if stale:
        console.say(f"voicegw diagram {PAGES} writes them anew")
    else:
        console.say(f"the pages of {len(tables)} machines are current")
    console.result({"ok": not stale, "stale": stale})
    return 1 if stale else 0


def render(table: Table, form: str) -> bytes:
    """One picture or page."""
    if form == "png":
        return draw.to_png(table)
    writers = {
        "mermaid": draw.to_mermaid,
        "dot": draw.to_dot,
        "svg": draw.to_svg,
        "md": draw.to_markdown,
        "map": draw.to_map,
    }
    return writers[form](table).encode()


def show(content: bytes, console: Console) -> None:
    """Print text; a picture of bytes is for a file or a pipe."""
    stream = sys.stderr if console.json else sys.stdout
    if content.startswith(b"\x89PNG") and stream.isatty():
        raise VoiceError("a PNG is not for a terminal; give --output FILE.png")
    stream.buffer.write(content)
    stream.flush()
