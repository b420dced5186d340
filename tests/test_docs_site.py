"""The documentation is built without a warning, fetches nothing when it is read, and leaves no public name out.

Needs the extra `docs`; `.ci/run` installs it.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import voicegw
import voicegw.errors
import voicegw.fleet
import voicegw.server
import voicegw.testing
from voicegw.cli import make_parser
from voicegw.tables.load import load_table, table_names

pytest.importorskip("mkdocs", reason='needs pip install "voicegw[docs]"')

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"^\s*(?:[a-z]+:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)]*)|@import\s+['\"]?([^;]*//[^;]*)")
LOADING = {"src", "srcset", "poster", "data", "action"}
# What the theme's script would load, and why it never does.
CONDITIONAL = {
    "https://unpkg.com/mermaid": "for elements of the class mermaid; there are none",
    "https://unpkg.com/resize-observer-polyfill": "where ResizeObserver is missing; every browser since 2020 has it",
    "https://api.github.com/": "for the repository widget; there is none",
    "https://${": "for the repository widget, as above: a GitLab",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as CI does."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        ".ci/mkdocs.yml",
        "--strict",
        "--quiet",
        "--site-dir",
        str(target),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


class Loads(HTMLParser):
    """Collects the addresses that a browser fetches for a page, its classes and the ids in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: set[str] = set()
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.words |= {*given.get("class", "").split(), given.get("data-md-component", "")}
        self.ids.add(given.get("id", ""))
        self.addresses += [value for name, value in given.items() if name in LOADING]
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.addresses.append(given.get("href", ""))
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.addresses.append(given.get("content", "").partition("url=")[2])

    def handle_data(self, data: str) -> None:
        if self.get_starttag_text() in ("<style>", "<script>"):
            self.addresses += [found for pair in IN_STYLES.findall(data) for found in pair if found]


def test_nothing_is_fetched_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loads = Loads(page)
        assert [address for address in loads.addresses if OUTSIDE.match(address)] == [], page
        assert not loads.words & {"mermaid", "source"}, page
    for style in (*site.rglob("*.css"), *site.rglob("*.svg")):
        assert IN_STYLES.findall(style.read_text(encoding="utf-8")) == [], style
    for picture in site.rglob("*.svg"):
        assert not re.search(r"<script|href=\"(?!#|data:)", picture.read_text(encoding="utf-8")), picture
    scripts = [path.read_text(encoding="utf-8") for path in (site / "assets" / "javascripts").glob("*.js")]
    named = {address for script in scripts for address in re.findall(r"[\"'`](https?://[^\"'`]*)", script)}
    assert {address for address in named if not address.startswith(tuple(CONDITIONAL))} == set()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = set[str]().union(*(Loads(page).ids for page in (site / "api").glob("*.html")))
    names = {
        f"{module.__name__}.{name}"
        for module in (voicegw, voicegw.fleet, voicegw.server, voicegw.testing)
        for name in module.__all__
    }
    names |= {
        f"voicegw.errors.{name}"
        for name, found in inspect.getmembers(voicegw.errors, inspect.isclass)
        if issubclass(found, voicegw.VoiceError)
    }
    for path in (ROOT / "voicegw" / "frameworks").glob("*.py"):
        for name in re.findall(r'__all__ = \["(\w+)"\]', path.read_text(encoding="utf-8")):
            names.add(f"voicegw.frameworks.{path.stem}.{name}")
    names -= {"voicegw.server.Credentials", "voicegw.DaveNotFound", "voicegw.VoiceError"}  # under their other name
    assert sorted(names - ids) == []


def test_the_command_line_page_has_every_command_and_option(site: Path) -> None:
    text = (site / "commands.html").read_text(encoding="utf-8")
    (choices,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert len(choices.choices) >= 12
    for name, command in choices.choices.items():
        assert f"voicegw {name}" in text
        for action in command._actions:
            for option in action.option_strings:
                assert option in text, f"{name} {option}"


def test_every_machine_has_its_page_with_pictures_and_rows(site: Path) -> None:
    for name in table_names():
        text = (site / "machines" / f"{name}.html").read_text(encoding="utf-8")
        assert (site / "machines" / f"{name}.svg").stat().st_size > 1000
        assert (site / "machines" / f"{name}-overview.svg").stat().st_size > 1000
        assert text.count("<img") == 2
        assert all(f"<code>{state}</code>" in text for state in load_table(name).states)
