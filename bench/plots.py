"""Bars of a benchmark's medians with a dot for each round, as SVG that reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from bench.results import OURS, rounded

WIDTH, ROW, LEFT, RIGHT, TOP = 760, 26, 210, 90, 34
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600;font-size:13px}"
    ".bar{fill:#8c959f}.ours{fill:#0969da}.dot{fill:none;stroke:#57606a}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.bar{fill:#6e7681}.ours{fill:#58a6ff}.dot{stroke:#c9d1d9}}"
)


def bars(title: str, unit: str, values: Mapping[str, Sequence[float]], medians: Mapping[str, float]) -> str:
    """One bar for each who was measured; ours in colour."""
    most = max((abs(value) for each in values.values() for value in each), default=1.0) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + ROW * len(medians) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>',
        f'<text class="title" x="8" y="20">{escape(title)}, in {escape(unit)}</text>',
    ]
    for number, (who, median) in enumerate(medians.items()):
        y = TOP + ROW * number
        kind = "ours" if who.split(",")[0].startswith(OURS) else "bar"
        length = max(1.0, abs(median) * scale)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(who)}</text>')
        parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 10}" rx="2"/>')
        for value in values[who]:
            parts.append(f'<circle class="dot" cx="{LEFT + abs(value) * scale:.1f}" cy="{y + 11}" r="2.5"/>')
        end = LEFT + max(length, *(abs(value) * scale for value in values[who])) + 8
        parts.append(f'<text x="{end:.1f}" y="{y + 15}">{rounded(median)}</text>')
    return "\n".join([*parts, "</svg>", ""])
