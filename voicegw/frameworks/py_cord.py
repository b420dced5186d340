"""voicegw for py-cord: `await channel.connect(cls=voicegw.frameworks.py_cord.VoiceClient)`."""

from __future__ import annotations

from voicegw.frameworks.call import require
from voicegw.frameworks.voice_protocol import GuildVoiceClient

__all__ = ["VoiceClient"]

framework = require("discord", "py-cord")


class VoiceClient(GuildVoiceClient, framework.VoiceProtocol):  # type: ignore[misc, name-defined]
    """A voice protocol of py-cord."""
