"""Calls that outlive their process and spread over machines, on NATS JetStream; `pip install "voicegw[fleet]"`.

The names are imported when they are first used, and NATS with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voicegw.fleet.client import Fleet, FleetClient, connect
    from voicegw.fleet.playback import FleetPlayback
    from voicegw.fleet.player import FleetPlayer
    from voicegw.fleet.sources import Named, file, stored, url
    from voicegw.fleet.worker import Worker

__all__ = [
    "Fleet",
    "FleetClient",
    "FleetPlayback",
    "FleetPlayer",
    "Named",
    "Worker",
    "connect",
    "file",
    "stored",
    "url",
]

_MODULES = {
    "Fleet": "client",
    "FleetClient": "client",
    "FleetPlayback": "playback",
    "FleetPlayer": "player",
    "Named": "sources",
    "Worker": "worker",
    "connect": "client",
    "file": "sources",
    "stored": "sources",
    "url": "sources",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'voicegw.fleet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"voicegw.fleet.{_MODULES[name]}"), name)
