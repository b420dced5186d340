"""Op 4: what we ask of the main gateway about our own voice state, one wish after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from voicegw.signalling import Signalling

TIMEOUT_S = 1.5  # a wish that is not out by then counts as not sent


class VoiceStateWishes:
    """Sends wishes through the bot's gateway in their order; `failed(reason)` hears of one that could not be sent.

    `self_mute` and `self_deaf` are how we show ourselves from the next wish on.
    """

    def __init__(
        self, signalling: Signalling, guild_id: int, failed: Callable[[str], None], *, self_mute: bool, self_deaf: bool
    ) -> None:
        self.signalling = signalling
        self.self_mute = self_mute
        self.self_deaf = self_deaf
        self._guild_id = guild_id
        self._failed = failed
        self._turn = asyncio.Lock()

    async def send(self, channel_id: int | None) -> None:
        """Be in `channel_id`, or in no channel."""
        async with self._turn:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self.signalling.update_voice_state(
                        self._guild_id, channel_id, self_mute=self.self_mute, self_deaf=self.self_deaf
                    )
            except asyncio.CancelledError as error:
                if _cancelled_by_us():
                    raise
                self._failed(type(error).__name__)
            except Exception as error:  # whatever the framework's gateway raises, or that it hangs
                self._failed(type(error).__name__)


def _cancelled_by_us() -> bool:
    """Or is it a cancellation that leaks out of the framework?"""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
