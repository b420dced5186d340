"""Waiting for a condition that only events can change: it is asked again after each, never by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voicegw.errors import VoiceTimeout


class Waiters:
    """Everybody who waits on one thing; `notify` after each change."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def notify(self) -> None:
        """Something changed."""
        for changed in self._waiting:
            changed.set()

    async def wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> None:
        """Until `predicate()` holds.

        Raises:
            VoiceTimeout: it did not hold in time.
        """
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise VoiceTimeout(f"not seen within {timeout_s:g} s") from None
        finally:
            self._waiting.discard(changed)
