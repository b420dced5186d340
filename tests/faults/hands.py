"""The real gateway class on a world in virtual time: raw frames go in through its decoder, effects come out encoded."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from voicegw.client import VoiceClient
from voicegw.gateway import DiscordGatewayVoice
from voicegw.testing.world import World


def hands(world: World) -> DiscordGatewayVoice:
    """The gateway's hands; what they are told is fed to the world."""
    client = SimpleNamespace(feed=world.feed, session=world.session, names_channel=False)
    return DiscordGatewayVoice(cast(VoiceClient, client))


def says(world: World, message: str | bytes | dict[str, Any]) -> None:
    """The voice server says something on the present websocket, byte for byte."""
    raw = json.dumps(message) if isinstance(message, dict) else message
    assert not hands(world)._received_message(raw, world._socket)
