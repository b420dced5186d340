"""What the bot's listeners hear of a call, and when: in order, and only once what brought it is done."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from voicegw.effects import Notice

_log = logging.getLogger("voicegw")


class NoticeBoard:
    """Notices wait here until `tell`; what a listener does wrong, or a cancellation that it leaks, is its own."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Notice], None]] = []
        self._waiting: deque[Notice] = deque()

    def add(self, listener: Callable[[Notice], None]) -> None:
        """Call `listener(notice)` for each from now on."""
        self._listeners.append(listener)

    def put(self, notice: Notice) -> None:
        """One more to be told."""
        self._waiting.append(notice)

    def tell(self) -> None:
        """Call the listeners for all that waits, also for what they bring about themselves."""
        while self._waiting:
            notice = self._waiting.popleft()
            for listener in tuple(self._listeners):
                try:
                    listener(notice)
                except (Exception, asyncio.CancelledError):
                    _log.exception("a listener of the voice client failed")
