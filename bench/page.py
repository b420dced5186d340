"""The results page, its pictures, and the JSON they are made of."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import host
from bench.plots import bars
from bench.results import Settings, rounded

HEAD = """# Speed

Written by `voicegw bench all --page docs/speed.md`; do not edit it. It takes Linux, a C compiler, Node, two cores that
nobody else uses, and a quarter of an hour.

Sender and sink have a core each, the candidates take turns within a round, and every figure is the median of the
rounds, which are the dots in the pictures. Absolute figures are this machine's; the ratios are made within one run. The
others are driven by their own code for sending, receiving and connecting, in environments of their own, with only the
network's other end stubbed: {peers}. C is `bench/*.c`.

{host}. {rounds} rounds, windows of {seconds:g} s.

## In short

| measure | against | reached | target | | command |
|---|---|---|---|---|---|
"""
EXPLAINED = {
    "streams": "profile-paced",
    "streams-dave": "profile-paced",
    "packet": "profile-paced",
    "lateness": "slots",
    "pcm": "profile-pcm",
    "encode-threads": "encode-threads",
    "receive": "profile-receive",
    "connect": "profile-connect",
}
PEERS = "discord.py 2.7.1, py-cord 2.8.1, discord-ext-voice-recv 0.5.2a179, @discordjs/voice 0.19.2"


def write(path: Path, results: Sequence[Mapping[str, Any]], order: Sequence[str], settings: Settings) -> None:
    """The page, beside it the JSON and a directory of pictures. Results of other benchmarks stay."""
    data, pictures = path.with_suffix(".json"), path.with_suffix("")
    kept: dict[str, Any] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    kept |= {result["name"]: result for result in results}
    ordered = [kept[name] for name in order if name in kept]
    pictures.mkdir(parents=True, exist_ok=True)
    for result in ordered:
        drawn = bars(result["title"], result["unit"], result["values"], result["medians"])
        _put(pictures / f"{result['name']}.svg", drawn)
    _put(data, json.dumps({result["name"]: result for result in ordered}, indent=1) + "\n")
    _put(path, text(ordered, settings, pictures.name))


def text(results: Sequence[Mapping[str, Any]], settings: Settings, pictures: str) -> str:
    """The page, in Markdown, from what `as_json` gives."""
    lines = [HEAD.format(host=host(), rounds=settings.rounds, seconds=settings.seconds, peers=PEERS).rstrip()]
    names = [result["name"] for result in results]
    for result in results:
        for ratio in result["ratios"]:
            sign, mark = ("≥" if ratio["better"] == "more" else "≤"), "met" if ratio["met"] else "**missed**"
            if not ratio["met"] and EXPLAINED.get(result["name"]) in names:
                mark += f", [why](#{EXPLAINED[result['name']]})"
            target = f"{sign} {ratio['target']:.3g}"
            name = f"[{result['title']}](#{result['name']})"
            cells = (name, ratio["of"], rounded(ratio["value"]), target, mark, f"`{result['command']}`")
            lines.append(f"| {' | '.join(cells)} |")
    for result in results:
        name = result["name"]
        lines += ["", f"## {name}", "", f"{result['title']}, in {result['unit']}. `{result['command']}`", ""]
        lines += [f"![{result['title']}]({pictures}/{name}.svg)", "", "| | median | rounds |", "|---|---:|---|"]
        for who, value in result["medians"].items():
            every = ", ".join(rounded(one) for one in result["values"][who])
            lines.append(f"| {who} | {rounded(value)} | {every} |")
        for note in result["notes"]:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def _put(path: Path, content: str) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
