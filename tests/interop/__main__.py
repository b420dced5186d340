"""`python -m tests.interop --page docs/interop.md`: run the tests with other projects, and draw what they show."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.interop.page import PAGE, write
from tests.interop.results import RESULTS, read


def main() -> int:
    """The exit code of the tests; the page is drawn in any case."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="where to draw it (docs/interop.md)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.jsonl"
        results.touch()
        command = [sys.executable, "-m", "pytest", "-m", "interop", "-rs", str(Path(__file__).parent)]
        code = subprocess.run(command, env={**os.environ, RESULTS: str(results)}, check=False).returncode
        write(arguments.page, read(results))
    return code


sys.exit(main())
