"""One target under atheris, which ends its process; `python -m tests.fuzz.guided TARGET CORPUS [OPTION ...]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["voicegw"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    atheris.Setup([sys.argv[0], *rest], TARGETS[name].run)
    atheris.Fuzz()
