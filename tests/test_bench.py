"""The benchmarks' runner: what it knows, how it compares, the page it writes. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from voicegw.cli import main

if not sys.platform.startswith("linux"):
    pytest.skip("benchmarks are for Linux", allow_module_level=True)

results: Any = importlib.import_module("bench.results")
runner: Any = importlib.import_module("bench.run")


def test_they_are_listed_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json"]) == 0
    names = json.loads(capsys.readouterr().out.splitlines()[-1])["benchmarks"]
    assert {"streams", "streams-dave", "packet", "lateness", "pcm", "encode", "memory", "connect", "core"} <= set(names)
    assert main(["bench", "nothing"]) == 2
    assert "no benchmark 'nothing'" in capsys.readouterr().err


def test_a_ratio_is_the_median_of_rounds_and_knows_its_target() -> None:
    result = results.Result("x", "X", "µs", {"voicegw": [2.0, 4.0, 9.0], "other": [4.0, 4.0, 4.0]})
    result.compare("other", 1.0, "less")
    result.compare("other", 2.0, "more")
    result.compare("absent", 2.0, "more")
    assert [(ratio.value, ratio.met) for ratio in result.ratios] == [(1.0, True), (1.0, False)]
    assert result.medians() == {"voicegw": 4.0, "other": 4.0}


def test_the_page_is_made_of_the_json_and_keeps_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, value: float) -> Any:
        def one(settings: Any) -> Any:
            """One."""
            result = results.Result(name, f"The {name}", "ms", {"voicegw": [value] * settings.rounds, "other": [10.0]})
            result.compare("other", 0.5, "less")
            return result

        return one

    monkeypatch.setattr(runner, "measures", lambda: {"first": measure("first", 2.0), "second": measure("second", 8.0)})
    monkeypatch.setitem(importlib.import_module("bench.page").EXPLAINED, "second", "second")
    page = tmp_path / "docs" / "speed.md"
    assert main(["bench", "first", "--rounds", "2", "--page", str(page)]) == 0
    assert main(["bench", "all", "--rounds", "3", "--page", str(page), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["name"] for result in said["results"]] == ["first", "second"]
    text = page.read_text(encoding="utf-8")
    assert "| [The first](#first) | voicegw / other | 0.2 | ≤ 0.5 | met | `voicegw bench first` |" in text
    missed = "**missed**, [why](#second)"
    assert f"| [The second](#second) | voicegw / other | 0.8 | ≤ 0.5 | {missed} | `voicegw bench second` |" in text
    drawn = ElementTree.parse(page.with_suffix("") / "first.svg").getroot()
    bars = [float(bar.get("width", "")) for bar in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars[0] / bars[1] == pytest.approx(0.2, rel=0.01)
    assert "![The first](speed/first.svg)" in text
    assert set(json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))) == {"first", "second"}
