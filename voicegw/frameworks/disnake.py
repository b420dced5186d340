"""voicegw for disnake: `await channel.connect(cls=voicegw.frameworks.disnake.VoiceClient)`."""

from __future__ import annotations

from voicegw.frameworks.call import require
from voicegw.frameworks.voice_protocol import GuildVoiceClient

__all__ = ["VoiceClient"]

framework = require("disnake", "disnake")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of disnake."""
