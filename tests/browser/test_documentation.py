"""The documentation as a browser reads it: nothing comes from elsewhere, and nothing is missing."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser.conftest import Page

pytest.importorskip("mkdocs", reason='needs pip install "voicegw[docs]"')
pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent.parent


class Quiet(SimpleHTTPRequestHandler):
    """Tells nobody what is asked for."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The site, built and served: its address and its directory."""
    directory = tmp_path_factory.mktemp("site")
    command = (
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        ".ci/mkdocs.yml",
        "--strict",
        "--quiet",
        "--site-dir",
        str(directory),
    )
    subprocess.run(command, cwd=ROOT, check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", directory
    server.shutdown()
    server.server_close()


def test_every_page_is_read_without_a_word_to_others(page: Page, site: tuple[str, Path]) -> None:
    address, directory = site
    pages = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.html"))
    assert len(pages) > 40
    for name in pages:
        page.open(address + name)
        page.until("document.readyState === 'complete'")
        loaded = page.ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert loaded
        assert [url for url in loaded if not url.startswith(address)] == [], name
        broken = page.ask("[...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)")
        assert broken == [], name
        if name != "404.html":
            assert page.complaints() == [], name


def test_the_search_finds_a_close_code(page: Page, site: tuple[str, Path]) -> None:
    page.open(site[0] + "index.html")
    page.click("input.md-search__input")
    page.press("4015")
    page.until("document.querySelector('.md-search-result__link')")
    found = page.ask("[...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)")
    assert any("troubleshooting" in url for url in found)
    loaded = page.ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [url for url in loaded if not url.startswith(site[0])] == []
