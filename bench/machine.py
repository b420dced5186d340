"""The host: its cores, what a process used of them, and programs in C built for a benchmark."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

HERE = Path(__file__).parent
CACHE = HERE.parent / ".bench"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def host() -> str:
    """Processor, cores, system, Python."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def cores() -> tuple[int, int]:
    """One for the sender, one for the sink; the same where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def on_one_core(work: Callable[[], Made]) -> Made:
    """Do `work` on the first core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores()[0]})
    try:
        return work()
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    """Processor seconds of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError):
            continue
    return total / 1e9


def memory_kib(pid: int) -> float:
    """What a process holds of its own: private memory, without libraries it shares."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if ":" in line
    )
    return float(fields["Private_Clean"].split()[0]) + float(fields["Private_Dirty"].split()[0])


def threads(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def built(name: str, *libraries: str) -> Path | None:
    """The program of `name`.c, compiled once; None where there is no compiler or not what it needs."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    source, program = HERE / f"{name}.c", CACHE / name
    if compiler is None:
        return None
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(exist_ok=True)
        command = [compiler, "-O2", "-o", str(program), str(source), *(f"-l{library}" for library in libraries)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
    return program
