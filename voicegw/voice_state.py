"""Our own voice state: op 4, what we ask of the main gateway, one wish after the other; and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from voicegw.core.shared import Shared
from voicegw.events import VoiceServerUpdated, VoiceStateUpdated
from voicegw.secret import Secret
from voicegw.signalling import Signalling, flags_of, snowflake_of

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


def voice_state_of(data: Mapping[str, Any], shared: Shared) -> VoiceStateUpdated | None:
    """The `d` of a VOICE_STATE_UPDATE, where it is ours and well formed; what is not is counted."""
    if snowflake_of(data.get("user_id")) != shared.user_id or snowflake_of(data.get("guild_id")) != shared.guild_id:
        shared.counters["foreign voice states"] += 1
        return None
    channel, session_id = data.get("channel_id"), data.get("session_id")
    channel_id = snowflake_of(channel)
    if channel is not None and (channel_id is None or not isinstance(session_id, str) or not session_id):
        shared.counters["malformed voice states"] += 1
        return None
    return VoiceStateUpdated(channel_id, Secret(str(session_id or "")), flags_of(data))


def voice_server_of(data: Mapping[str, Any], shared: Shared) -> VoiceServerUpdated | None:
    """The `d` of a VOICE_SERVER_UPDATE, where it is our guild's and well formed; what is not is counted."""
    if snowflake_of(data.get("guild_id")) != shared.guild_id:
        shared.counters["foreign voice servers"] += 1
        return None
    endpoint, token = data.get("endpoint"), data.get("token")
    if not isinstance(endpoint, str | None) or not isinstance(token, str | None) or (endpoint and not token):
        shared.counters["malformed voice servers"] += 1
        return None
    return VoiceServerUpdated(Secret(token or ""), endpoint)
