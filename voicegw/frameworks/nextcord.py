"""voicegw for nextcord: `await channel.connect(cls=voicegw.frameworks.nextcord.VoiceClient)`."""

from __future__ import annotations

from voicegw.frameworks.voice_protocol import GuildVoiceClient, require

__all__ = ["VoiceClient"]

framework = require("nextcord", "nextcord")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of nextcord."""
