"""Imports point down only, and nothing in the core reads a clock, opens a socket or draws a number."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import voicegw

PACKAGE = Path(voicegw.__file__).parent
LAYERS: list[tuple[str, set[str]]] = [
    ("base", {"errors", "native", "secret", "value"}),
    ("tables", {"tables"}),
    ("wire", {"wire"}),
    ("core", {"signalling", "snapshot", "events", "effects", "session", "core", "flight", "why"}),
    ("media", {"media"}),
    ("adapters", {"adapters"}),
    (
        "bot",
        {
            "call_state",
            "client",
            "gateway",
            "hands",
            "joiners",
            "kokoro",
            "main_gateway",
            "notices",
            "path",
            "portable",
            "voice_state",
            "frozen",
        },
    ),
    ("server", {"server"}),
    ("doors", {"cli", "testing", "frameworks", "fleet", "view", "__main__"}),
]
LEVEL = {name: level for level, (_, names) in enumerate(LAYERS) for name in names}
MAY_IMPORT_MEDIA = {"bot", "doors"}
IMPURE = {"asyncio", "aiohttp", "socket", "ssl", "time", "random", "secrets", "threading", "os", "subprocess", "davey"}
PURE = {
    "tables": IMPURE - {"subprocess"},  # a picture is drawn by graphviz
    "wire": IMPURE - {"threading"},  # a lock keeps two threads from one nonce
    "core": IMPURE,
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of what a module imports when it runs; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("voicegw.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    for name in ours(path):
        assert LEVEL[name] <= LEVEL[own], f"{own} must not import {name}"
    if own in LAYERS[3][1]:
        assert "media" not in ours(path)
    if own == "adapters":
        assert "media" not in ours(path)
    if own == "media":
        assert not ours(path) & LAYERS[3][1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_layers_stay_pure(path: Path) -> None:
    layer = next(name for name, parts in LAYERS if part_of(path) in parts)
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & PURE.get(layer, set())


def test_every_module_has_a_layer() -> None:
    assert {part_of(path) for path in modules()} == set(LEVEL)


def test_only_adapters_know_their_libraries() -> None:
    homes = {
        "aiohttp": {"adapters", "server", "view"},
        "davey": {"adapters", "cli"},
        "transitions": {"tables"},
        "opuslib": {"media"},
        "nats": {"fleet"},
    }
    for path in modules():
        tops = {name.split(".")[0] for name in imports(path)}
        for library, parts in homes.items():
            assert library not in tops or part_of(path) in parts, f"{path.name} imports {library}"


def test_no_state_is_compared_outside_the_tables() -> None:
    """Where code decides by a state's name, a row is missing; what is shown or waited for is no decision."""
    for path in modules():
        if part_of(path) not in ("core", "session"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                assert not any(isinstance(side, ast.Attribute) and side.attr == "state" for side in sides), path
