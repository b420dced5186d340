"""Draw a table: Mermaid and DOT as text, a Markdown page with every row, SVG and PNG through graphviz.

Pictures show what changes the state; rows that stay are on the page. `lit` fills one state. A map is the picture
without words on its arrows, small enough to be looked at while it changes: what is in it can be found by its id.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sysconfig
import textwrap
from collections.abc import Iterable

from voicegw.errors import VoiceError
from voicegw.tables.model import CloseCode, Row, Table

ANYWHERE = "*"
LABEL_EVENTS = 4
MAP_LETTERS = 11  # in a line of a state's name
FINGERPRINT = re.compile(r"<!-- drawn from ([0-9a-f]{64}) -->")


def to_mermaid(table: Table, lit: str | None = None) -> str:
    """A `stateDiagram-v2`."""
    lines = ["stateDiagram-v2", "    direction TB"]
    for parent, leaves in _families(table):
        if parent is None:
            lines += [f'    state "{leaf}" as {_identifier(leaf)}' for leaf in leaves]
            continue
        lines.append(f"    state {_identifier(parent)} {{")
        lines += [f'        state "{leaf.partition(".")[2]}" as {_identifier(leaf)}' for leaf in leaves]
        lines.append("    }")
    edges = _edges(table)
    if any(source == ANYWHERE for source, _ in edges):
        lines.append('    state "any state" as anywhere')
    lines.append(f"    [*] --> {_identifier(table.initial)}")
    for (source, target), events in edges.items():
        lines.append(f"    {_identifier(source)} --> {_identifier(target)}: {_label(events, '<br/>')}")
    lines += [f"    {_identifier(leaf)} --> [*]" for leaf in table.final]
    if lit is not None:
        lines += ["    classDef lit fill:#ffd54f,stroke:#5d4037", f"    class {_identifier(lit)} lit"]
    return "\n".join(lines) + "\n"


def to_overview(table: Table) -> str:
    """A `stateDiagram-v2` of the top states alone."""
    lines = ["stateDiagram-v2", "    direction LR", f"    [*] --> {table.states[table.initial].parent}"]
    lines += [
        f"    {source} --> {target}: {_label(events, '<br/>')}"
        for (source, target), events in _top_edges(table).items()
    ]
    return "\n".join(lines) + "\n"


def to_overview_dot(table: Table) -> str:
    """A graphviz digraph of the top states alone."""
    lines = [
        f"digraph {_identifier(table.machine)} {{",
        '    rankdir=LR; nodesep=0.5; ranksep=1.0; bgcolor="transparent";',
        '    node [shape=box, style="rounded,filled", fillcolor="#e8eef7", fontname="Helvetica", fontsize=13];',
        '    edge [fontname="Helvetica", fontsize=10, color="#44546a"];',
        "    start [shape=point, width=0.15];",
        f"    start -> {table.states[table.initial].parent};",
    ]
    for (source, target), events in _top_edges(table).items():
        label = _label(events, "\\n")
        lines.append(f'    {source} -> {target} [label="{label}"];')
    return "\n".join([*lines, "}"]) + "\n"


def to_dot(table: Table, lit: str | None = None) -> str:
    """A graphviz digraph; parents are clusters, and an edge of a parent starts at its cluster's first child."""
    lines = [
        f"digraph {_identifier(table.machine)} {{",
        f'    label="{_quoted(table.machine)}: {_quoted(table.title)}"; labelloc=t; fontname="Helvetica";',
        "    rankdir=TB; compound=true; nodesep=0.4; ranksep=0.7;",
        '    node [shape=box, style="rounded,filled", fillcolor="#e8eef7", fontname="Helvetica", fontsize=11];',
        '    edge [fontname="Helvetica", fontsize=9, color="#44546a"];',
        "    start [shape=point, width=0.15];",
    ]
    for parent, leaves in _families(table):
        if parent is not None:
            lines.append(f'    subgraph cluster_{_identifier(parent)} {{ label="{parent}"; style=rounded;')
        for leaf in leaves:
            shown = leaf.partition(".")[2] or leaf
            extra = ', fillcolor="#ffd54f"' if leaf == lit else ""
            extra += ", peripheries=2" if leaf in table.final else ""
            lines.append(f'    {_identifier(leaf)} [label="{shown.replace("_", " ")}"{extra}];')
        if parent is not None:
            lines.append("    }")
    edges = _edges(table)
    if any(source == ANYWHERE for source, _ in edges):
        lines.append('    anywhere [label="any state", shape=plaintext, style=""];')
    lines.append(f"    start -> {_identifier(table.initial)};")
    for (source, target), events in edges.items():
        first = source if source == ANYWHERE else table.leaves(source)[0]
        tail = f", ltail=cluster_{_identifier(source)}" if first != source else ""
        label = _label(events, "\\n")
        lines.append(f'    {_identifier(first)} -> {_identifier(target)} [label="{label}"{tail}];')
    return "\n".join([*lines, "}"]) + "\n"


def to_map_dot(table: Table) -> str:
    """A graphviz digraph of states and arrows alone, each with an id.

    `gateway.ready` is a state, `gateway.resuming` a parent, `gateway:ready:resuming.dialling` the arrow of the rows
    between the two; `*` stands for any state.
    """
    lines = [
        f"digraph {_identifier(table.machine)} {{",
        '    rankdir=TB; compound=true; nodesep=0.05; ranksep=0.28; bgcolor="transparent";',
        '    graph [fontname="Helvetica", fontsize=13];',
        '    node [shape=box, style="rounded,filled", fillcolor="#e8eef7", fontname="Helvetica", fontsize=14, '
        'margin="0.09,0.05", width=0.3, height=0.3];',
        '    edge [color="#44546a", arrowsize=0.6];',
        "    start [shape=point, width=0.12];",
    ]
    for parent, leaves in _families(table):
        if parent is not None:
            lines.append(f"    subgraph cluster_{_identifier(parent)} {{")
            lines.append(f'        id="{table.machine}.{parent}"; label="{parent}"; style=rounded;')
        for leaf in leaves:
            shown = (leaf.partition(".")[2] or leaf).replace("_", " ")
            label = "\\n".join(textwrap.wrap(shown, MAP_LETTERS, break_long_words=False))
            extra = ", peripheries=2" if leaf in table.final else ""
            lines.append(f'    {_identifier(leaf)} [id="{table.machine}.{leaf}", label="{label}"{extra}];')
        if parent is not None:
            lines.append("    }")
    edges = _edges(table)
    if any(source == ANYWHERE for source, _ in edges):
        lines.append('    anywhere [label="any state", shape=plaintext, style=""];')
    lines.append(f"    start -> {_identifier(table.initial)};")
    for source, target in edges:
        first = source if source == ANYWHERE else table.leaves(source)[0]
        tail = f", ltail=cluster_{_identifier(source)}, constraint=false" if first != source else ""
        arrow = f"{table.machine}:{source}:{target}"
        lines.append(f'    {_identifier(first)} -> {_identifier(target)} [id="{arrow}"{tail}];')
    return "\n".join([*lines, "}"]) + "\n"


def to_map(table: Table) -> str:
    """An SVG of `to_map_dot`, as `to_svg`."""
    return _marked(to_map_dot(table))


def to_markdown(table: Table) -> str:
    """The machine's page: picture, states, rows, deadlines, close codes."""
    parts = [
        f"# {table.machine}: {table.title}",
        _prose(table.text),
        f"```mermaid\n{to_overview(table)}```",
        "With all states:",
        f"```mermaid\n{to_mermaid(table)}```",
        "The same as a picture: "
        f"[{table.machine}.svg]({table.machine}.svg). Written by `voicegw diagram` from `states/{table.machine}.toml`.",
        "## States",
        _grid(
            ("state", "phase", "waits", "meaning"),
            (
                (f"`{state.name}`", state.phase, _waits(table, state.name), state.text)
                for state in table.states.values()
            ),
        ),
        "## Events",
        _grid(
            ("event", "without a row", "meaning"),
            (
                *((f"`{event.name}`", event.otherwise, event.text) for event in table.events.values()),
                *((f"`{deadline.name}`", "ignore", deadline.text) for deadline in table.deadlines.values()),
            ),
        ),
        "## Rows",
        "Rows of one event are tried from the top; the first whose guard agrees is taken. Effects run in order.",
        _grid(
            ("", "event", "from", "to", "guard", "effects", "deadline there", "source"),
            (_row_cells(table, row) for row in table.rows),
        ),
    ]
    if table.close_codes:
        parts += [
            "## Close codes",
            "A single code beats a range, a narrow range a wide one.",
            _grid(
                ("codes", "becomes", "meaning", "source"),
                ((_codes(entry), f"`{entry.event}`", entry.meaning, entry.source) for entry in table.close_codes),
            ),
        ]
    return "\n\n".join(parts) + "\n"


def to_overview_svg(table: Table) -> str:
    """The top states alone as an SVG picture.

    Raises:
        VoiceError: neither a `dot` program nor the extra `pictures` is there.
    """
    return _render(to_overview_dot(table), "svg").decode()


def to_svg(table: Table, lit: str | None = None) -> str:
    """An SVG picture; a comment in it says which DOT text it was drawn from.

    Raises:
        VoiceError: neither a `dot` program nor the extra `pictures` is there.
    """
    return _marked(to_dot(table, lit))


def _marked(dot: str) -> str:
    svg = _render(dot, "svg").decode()
    comment = f"<!-- drawn from {fingerprint(dot)} -->\n"
    return svg[: svg.index("<svg")] + comment + svg[svg.index("<svg") :]


def to_png(table: Table, lit: str | None = None) -> bytes:
    """A PNG picture.

    Raises:
        VoiceError: neither a `dot` program nor the extra `pictures` is there.
    """
    return _render(to_dot(table, lit), "png")


def fingerprint(dot: str) -> str:
    """What identifies a DOT text in a picture drawn from it: renderers differ, the text does not."""
    return hashlib.sha256(dot.encode()).hexdigest()


def drawn_from(svg: str) -> str | None:
    """The fingerprint that an SVG of ours carries."""
    found = FINGERPRINT.search(svg)
    return found.group(1) if found else None


def _render(dot: str, form: str) -> bytes:
    done = subprocess.run([_renderer(), f"-T{form}"], input=dot.encode(), capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise VoiceError(f"the diagram could not be rendered: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _renderer() -> str:
    """The extra's program first: it draws the same picture on every machine."""
    for name, path in (("graphviz-pure", sysconfig.get_path("scripts")), ("graphviz-pure", None), ("dot", None)):
        program = shutil.which(name, path=path)
        if program is not None:
            return program
    raise VoiceError('pictures need graphviz, or an extra: pip install "voicegw[pictures]"')


def _families(table: Table) -> list[tuple[str | None, list[str]]]:
    """Leaves by parent, in the table's order; None for those without."""
    families: dict[str | None, list[str]] = {}
    for state in table.states.values():
        families.setdefault(state.parent if "." in state.name else None, []).append(state.name)
    return list(families.items())


def _edges(table: Table) -> dict[tuple[str, str], list[str]]:
    edges: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        if row.to is None:
            continue
        for source in row.sources:
            label = f"{row.event} [{row.guard}]" if row.guard else row.event
            labels = edges.setdefault((source, row.to), [])
            if label not in labels:
                labels.append(label)
    return edges


def _label(events: list[str], newline: str) -> str:
    shown = events[:LABEL_EVENTS]
    if len(events) > LABEL_EVENTS:
        shown = [*events[: LABEL_EVENTS - 1], f"and {len(events) - LABEL_EVENTS + 1} more"]
    return newline.join(shown)


def _top_edges(table: Table) -> dict[tuple[str, str], list[str]]:
    """Between top states, with the events in the table's order."""
    edges: dict[tuple[str, str], list[str]] = {}
    for transition in table.transitions:
        source, target = table.states[transition.state].parent, table.states[transition.to or transition.state].parent
        events = edges.setdefault((source, target), [])
        if source != target and transition.event not in events:
            events.append(transition.event)
    return {edge: events for edge, events in edges.items() if events}


def _identifier(name: str) -> str:
    return "anywhere" if name == ANYWHERE else name.replace(".", "__")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _prose(text: str) -> str:
    return text.replace("\n", " ").replace("  ", " ")


def _waits(table: Table, name: str) -> str:
    state = table.states[name]
    if state.deadline is None:
        return "final" if name in table.final else "rests"
    deadline = table.deadlines[state.deadline]
    bound = "at most " if deadline.given_by else ""
    return f"{bound}{deadline.seconds:g} s (`{deadline.name}`)"


def _row_cells(table: Table, row: Row) -> Iterable[str]:
    target = table.states[row.to].deadline if row.to is not None else None
    return (
        str(row.number),
        f"`{row.event}`",
        ", ".join(f"`{source}`" if source != ANYWHERE else "any state" for source in row.sources),
        f"`{row.to}`" if row.to is not None else "stays",
        f"`{row.guard}`" if row.guard else "",
        ", ".join(f"`{effect}`" for effect in row.effects),
        f"`{target}`" if target else "",
        row.source,
    )


def _codes(entry: CloseCode) -> str:
    return ", ".join("no close frame" if code == "none" else str(code) for code in entry.codes)


def _grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
