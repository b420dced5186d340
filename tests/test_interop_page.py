"""The page on other projects has a row for each of them and says what the tests can have seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.frameworks import FRAMEWORKS
from tests.interop.page import FAILED, FOREIGN, FOREIGN_STEPS, NOT_TRIED, PAGE, page, rows
from tests.interop.results import COLUMNS, RESULTS, note, read

TEXT = PAGE.read_text(encoding="utf-8")
FRAMEWORK_MODULES = {"audio", "call", "voice_protocol"}


def test_every_framework_and_client_has_its_row() -> None:
    assert list(rows(TEXT)) == [*(framework.package for framework in FRAMEWORKS), *FOREIGN]
    adapters = Path(__file__).parent.parent / "voicegw" / "frameworks"
    modules = {path.stem for path in adapters.glob("[!_]*.py")} - FRAMEWORK_MODULES
    assert modules == {framework.adapter for framework in FRAMEWORKS}


def test_every_step_was_seen_with_a_version_and_no_date() -> None:
    for project, (version, *cells) in rows(TEXT).items():
        assert re.fullmatch(r"\d+(\.\d+)+", version), project
        assert len(cells) == len(COLUMNS)
        assert FAILED not in cells, project
        tried = FOREIGN_STEPS if project in FOREIGN else COLUMNS
        assert [step for step, cell in zip(COLUMNS, cells, strict=True) if cell != NOT_TRIED] == list(tried)
    assert not re.search(r"\b20\d\d\b", TEXT)


def test_the_page_is_drawn_from_what_was_seen() -> None:
    seen = {project: (version, _steps(cells)) for project, (version, *cells) in rows(TEXT).items()}
    assert page(seen) == TEXT
    seen["hata"] = ("1.0", {"login"})
    assert rows(page(seen))["hata"] == ["1.0", "yes", *[FAILED] * (len(COLUMNS) - 1)]


def test_steps_of_several_tests_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setenv(RESULTS, str(results))
    note("hikari", "2.0", ("login", "join"))
    note("hikari", "2.0", ("reconnect",))
    assert read(results) == {"hikari": ("2.0", {"login", "join", "reconnect"})}


def _steps(cells: list[str]) -> set[str]:
    return {step for step, cell in zip(COLUMNS, cells, strict=True) if cell == "yes"}
