"""The wheel holds the tables and nothing importable but voicegw; the source distribution builds the same."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from voicegw.tables.load import table_names, tables_directory
from voicegw.view.server import PAGE

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a user would get it: from the source distribution."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_exactly_the_tables(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tables = {name for name in names if name.startswith("voicegw/states/")}
        assert tables == {f"voicegw/states/{name}.toml" for name in table_names()} | {"voicegw/states/README.md"}
        for name in table_names():
            ours = (tables_directory() / f"{name}.toml").read_bytes()
            assert archive.read(f"voicegw/states/{name}.toml") == ours
    assert "voicegw/py.typed" in names
    assert "voicegw/media/demo.ogg" in names


def test_the_wheel_holds_the_live_views_page_and_maps(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"voicegw/view/page/{name}" for name in PAGE} <= names
    maps = {name for name in names if name.startswith("voicegw/diagrams/")}
    assert maps == {f"voicegw/diagrams/{name}.map.svg" for name in table_names()}


def test_nothing_but_voicegw_is_importable_from_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"voicegw"}


def test_the_tables_load_from_the_wheel_and_not_from_a_package_named_states(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "__init__.py").write_text(
        "raise RuntimeError('a bot has its own states')\n", encoding="utf-8"
    )
    code = (
        "import voicegw, sys; from voicegw.tables.load import load_table, table_names;"
        "assert '.whl' in voicegw.__file__, voicegw.__file__;"
        "from voicegw.tables.load import map_of; assert '<svg' in map_of('call');"
        "print(*[load_table(name).machine for name in table_names()])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = [{str(wheel)!r}, {str(tmp_path)!r}]; {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == list(table_names()), done.stderr


def test_the_states_hold_data_only() -> None:
    kinds = {path.suffix for path in (ROOT / "states").iterdir()}
    assert kinds == {".toml", ".md"}


def test_dependencies_are_those_that_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        requirement.split(";")[0].split(">")[0].split("=")[0].split("[")[0] for requirement in project["dependencies"]
    }
    libraries = {"transitions", "aiohttp", "PyNaCl", "cryptography", "davey", "opuslib", "opuslib-next-bundled"}
    assert names == libraries | {"audioop-lts"}
    assert not any(
        "discord" in requirement for extra in project["optional-dependencies"].values() for requirement in extra
    )
