"""What a running command is told: lines on stdin, and the signals that stop it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable


def watch_for_stop(stopped: asyncio.Event) -> None:
    """SIGINT, SIGTERM, or the line `stop` on stdin; a second Ctrl+C does not wait for the first."""
    on_signals(stopped.set)
    watch_lines(lambda line: stopped.set() if line == "stop" else None)


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGINT or SIGTERM; a second one ends the process as usual."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, told)


def watch_lines(take: Callable[[str], object]) -> None:
    """Call `take` on the event loop with each line of stdin, until it ends."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(ValueError, OSError, RuntimeError):  # stdin, or the loop, is closed
            for line in sys.stdin:
                loop.call_soon_threadsafe(take, line.strip())

    if sys.stdin is not None and not _in_background():
        threading.Thread(target=read, daemon=True, name="voicegw-stdin").start()


def _in_background() -> bool:
    """Would the terminal stop us for reading?"""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp()
    except (AttributeError, OSError, ValueError):  # no terminal, or no such thing
        return False
