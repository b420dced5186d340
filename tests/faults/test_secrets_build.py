"""F162: what is installed is what was looked at."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.faults.cells import covers

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / ".ci" / "requirements.lock"


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Each entry of the lock: its requirement and its digests."""
    text = re.sub(r"^#.*\n", "", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    entries: dict[str, tuple[Requirement, list[str]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *digests = re.split(r"\s+--hash=", line)
        parsed = Requirement(requirement)
        entries[canonicalize_name(parsed.name)] = (parsed, digests)
    return entries


@covers("F162")
def test_every_dependency_is_locked_with_digests() -> None:
    lock = locked()
    for name, (requirement, digests) in lock.items():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), name
        assert digests, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        assert name in lock, f"{name} is not locked; see the head of {LOCK.name}"
        version = str(lock[name][0].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{name} {version} is locked, {requirement} is wanted"
        here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if name not in seen and here:
            seen.add(name)
            for text in importlib.metadata.requires(name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    wanted.append(needed)
    assert len(seen) > 10


def wheel_of(folder: Path, name: str) -> Path:
    """The smallest wheel that there is."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "WHOLE = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inner, text in files.items():
            wheel.writestr(inner, text)
        wheel.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


def install(folder: Path, lock: Path) -> subprocess.CompletedProcess[str]:
    """As the lock's head says, with nothing but a local folder of wheels."""
    options = ["--require-hashes", "--no-index", "--find-links", str(folder), "--target", str(folder / "installed")]
    quiet = ["--isolated", "--disable-pip-version-check", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *quiet, *options, "-r", str(lock)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@covers("F162")
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="an environment without pip")
def test_a_wheel_with_one_byte_changed_is_not_installed(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, "whole")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"whole==1.0 \\\n    --hash=sha256:{digest}\n", encoding="utf-8")
    done = install(tmp_path, lock)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "installed" / "whole.py").exists()
    changed = bytearray(wheel.read_bytes())
    changed[changed.index(b"True")] ^= 1
    wheel.write_bytes(changed)
    done = install(tmp_path, lock)
    assert done.returncode != 0
    assert "DO NOT MATCH" in done.stderr
    lock.write_text("whole==1.0\n", encoding="utf-8")  # and nothing is installed that has no digest
    assert install(tmp_path, lock).returncode != 0
