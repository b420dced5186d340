"""voicegw for disnake: `await channel.connect(cls=voicegw.frameworks.disnake.VoiceClient)`."""

from __future__ import annotations

from voicegw.frameworks.voice_protocol import GuildVoiceClient, require

__all__ = ["VoiceClient"]

framework = require("disnake", "disnake")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of disnake."""
