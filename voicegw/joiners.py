"""Everybody who waits for one join or move: all get the same answer, and the last who gives up ends the attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voicegw.errors import VoiceError, VoiceTimeout


class Joiners:
    """`abandon(error)` is called when nobody waits any more; `describe()` says for errors what the call does now."""

    def __init__(self, abandon: Callable[[VoiceError | None], None], describe: Callable[[], str]) -> None:
        self._abandon = abandon
        self._describe = describe
        self._answer: asyncio.Future[None] | None = None
        self._waiting = 0

    def settle(self, error: VoiceError | None) -> None:
        """The join is done, or has failed; a second answer is none."""
        answer, self._answer = self._answer, None
        settle(answer, error)

    async def wait(self, ask: Callable[[], None], timeout_s: float, cause: Callable[[], VoiceError | None]) -> None:
        """Call `ask`, and wait for its answer.

        Raises:
            VoiceTimeout: there was none in time; its cause is the last thing that went wrong.
            VoiceError: the join has failed, or `ask` was refused.
        """
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        self._waiting += 1
        try:
            ask()
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(answer)
        except TimeoutError as error:
            if isinstance(error, VoiceError):
                raise
            late = VoiceTimeout(f"the voice session was not ready after {timeout_s:g} s ({self._describe()})")
            went_wrong = cause()  # giving up is what the call speaks of from then on
            self._give_up(answer, late)
            raise late from went_wrong
        except asyncio.CancelledError:
            self._give_up(answer, None)
            raise
        finally:
            self._waiting -= 1

    def _give_up(self, answer: asyncio.Future[None], error: VoiceError | None) -> None:
        if self._waiting == 1 and not answer.done():
            self._abandon(error)


def settle(answer: asyncio.Future[None] | None, error: VoiceError | None) -> None:
    """Give an answer that somebody may wait for; a second one is none."""
    if answer is None or answer.done():
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)
        answer.exception()  # nobody may be waiting
