"""voicegw for discord.py: `await channel.connect(cls=voicegw.frameworks.discord_py.VoiceClient)`."""

from __future__ import annotations

from voicegw.frameworks.call import require
from voicegw.frameworks.voice_protocol import GuildVoiceClient

__all__ = ["VoiceClient"]

framework = require("discord", "discord.py")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of discord.py."""
