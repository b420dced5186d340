"""voicegw for py-cord: `await channel.connect(cls=voicegw.frameworks.py_cord.VoiceClient)`."""

from __future__ import annotations

import importlib.util
from typing import Any

from voicegw.frameworks.call import require
from voicegw.frameworks.voice_protocol import GuildVoiceClient

__all__ = ["VoiceClient"]

STATE = ("session_id", "channel_id", "mute", "deaf", "self_mute", "self_deaf", "suppress")
SERVER = ("guild_id", "token", "endpoint")

require("discord", "py-cord", "Client")
moved = importlib.util.find_spec("discord.voice") is not None  # since py-cord 2.7
framework = require("discord.voice" if moved else "discord", "py-cord")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of py-cord, which since 2.7 hands objects over where others hand mappings."""

    async def on_voice_state_update(self, data: Any) -> None:
        """The bot's own voice state changed."""
        own = {"user_id": self.client.user.id, **_fields(data, STATE)} if hasattr(data, "session_id") else data
        await super().on_voice_state_update(own)

    async def on_voice_server_update(self, data: Any) -> None:
        """The guild's voice server changed."""
        await super().on_voice_server_update(_fields(data, SERVER) if hasattr(data, "token") else data)


def _fields(data: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(data, name) for name in names}
