"""voicegw for nextcord: `await channel.connect(cls=voicegw.frameworks.nextcord.VoiceClient)`."""

from __future__ import annotations

from voicegw.frameworks.call import require
from voicegw.frameworks.voice_protocol import GuildVoiceClient

__all__ = ["VoiceClient"]

framework = require("nextcord", "nextcord")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of nextcord."""
