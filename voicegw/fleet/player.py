"""What a bot has in hand of all that a worker plays for it: as `Player`, but from afar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from voicegw.fleet.playback import FleetPlayback
from voicegw.fleet.sources import Named
from voicegw.media.sources import Source

if TYPE_CHECKING:
    from voicegw.fleet.client import FleetClient


class FleetPlayer:
    """What `VoiceClient.player` has beside `play`."""

    def __init__(self, client: FleetClient) -> None:
        self._client = client

    def queue(self, source: Source | Named, **how: Any) -> FleetPlayback:
        """Play `source` when everything before it has ended; `how` is what `Player.queue` takes."""
        return self._client.begin("queue", source, how)

    def play_over(self, source: Source | Named, **how: Any) -> FleetPlayback:
        """Mix `source` into what plays; `how` is what `Player.play_over` takes."""
        return self._client.begin("play over", source, how)

    def duck(self, level: float = 0.3) -> None:
        """Turn all down to `level`, while somebody speaks; 1 turns it up again."""
        self._client.command("duck", level=level)

    def set_bitrate(self, value: int) -> None:
        """Of what is encoded, in bit/s; that of the channel."""
        self._client.command("bitrate", value=value)
