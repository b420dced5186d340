"""The voice layer of Discord for every Python bot: join, play, listen, record, end-to-end encrypted.

The public names are imported when they are first used: drawing a diagram does not need a websocket.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voicegw.client import VoiceClient
    from voicegw.core.dave import Verification
    from voicegw.effects import (
        Closed,
        Connected,
        DowngradeRefused,
        EncryptionChanged,
        FlagsChanged,
        HoldReason,
        IdentityChanged,
        MediaLost,
        MediaRestored,
        Moved,
        MoveFailed,
        Notice,
        PlaybackEnded,
        Reconnecting,
        Resumed,
        SpeakingChanged,
        UsersChanged,
        Warned,
    )
    from voicegw.errors import DaveNotFound, VoiceError
    from voicegw.frozen import FleetKey, FrozenCall
    from voicegw.gateway import DiscordGatewayVoice
    from voicegw.kokoro import Kokoro
    from voicegw.media.activity import SpeechSink, VoiceActivity
    from voicegw.media.heard import CallStats, HeardFrame, Provenance, UserStats
    from voicegw.media.listeners import FrameStream, Listening
    from voicegw.media.live import AsyncIteratorSource, IteratorSource, ReconnectingSource
    from voicegw.media.opening import open_source, open_url
    from voicegw.media.opus_files import OggOpusSource, WebmOpusSource
    from voicegw.media.playback import Playback
    from voicegw.media.recording import Recording
    from voicegw.media.sinks import SingleWavSink, Sink, WavSink
    from voicegw.media.sources import Source, SourceDescription, ToneSource, WavSource
    from voicegw.session import E2EEPolicy, Transition, VoiceSession
    from voicegw.signalling import Credentials, FixedSignalling, Signalling, SignallingReceiver, VoiceFlags
    from voicegw.snapshot import Announcement
    from voicegw.view.server import View, serve_view

__all__ = [
    "Announcement",
    "AsyncIteratorSource",
    "CallStats",
    "Closed",
    "Connected",
    "Credentials",
    "DaveNotFound",
    "DiscordGatewayVoice",
    "DowngradeRefused",
    "E2EEPolicy",
    "EncryptionChanged",
    "FixedSignalling",
    "FlagsChanged",
    "FleetKey",
    "FrameStream",
    "FrozenCall",
    "HeardFrame",
    "HoldReason",
    "IdentityChanged",
    "IteratorSource",
    "Kokoro",
    "Listening",
    "MediaLost",
    "MediaRestored",
    "MoveFailed",
    "Moved",
    "Notice",
    "OggOpusSource",
    "Playback",
    "PlaybackEnded",
    "Provenance",
    "Reconnecting",
    "ReconnectingSource",
    "Recording",
    "Resumed",
    "Signalling",
    "SignallingReceiver",
    "SingleWavSink",
    "Sink",
    "Source",
    "SourceDescription",
    "SpeakingChanged",
    "SpeechSink",
    "ToneSource",
    "Transition",
    "UserStats",
    "UsersChanged",
    "Verification",
    "View",
    "VoiceActivity",
    "VoiceClient",
    "VoiceError",
    "VoiceFlags",
    "VoiceSession",
    "Warned",
    "WavSink",
    "WavSource",
    "WebmOpusSource",
    "open_source",
    "open_url",
    "serve_view",
]

_MODULES = {
    "Announcement": "voicegw.snapshot",
    "AsyncIteratorSource": "voicegw.media.live",
    "CallStats": "voicegw.media.heard",
    "Closed": "voicegw.effects",
    "Connected": "voicegw.effects",
    "Credentials": "voicegw.signalling",
    "DaveNotFound": "voicegw.errors",
    "DiscordGatewayVoice": "voicegw.gateway",
    "DowngradeRefused": "voicegw.effects",
    "E2EEPolicy": "voicegw.session",
    "EncryptionChanged": "voicegw.effects",
    "FixedSignalling": "voicegw.signalling",
    "FlagsChanged": "voicegw.effects",
    "FleetKey": "voicegw.frozen",
    "FrameStream": "voicegw.media.listeners",
    "FrozenCall": "voicegw.frozen",
    "HeardFrame": "voicegw.media.heard",
    "HoldReason": "voicegw.effects",
    "IdentityChanged": "voicegw.effects",
    "IteratorSource": "voicegw.media.live",
    "Kokoro": "voicegw.kokoro",
    "Listening": "voicegw.media.listeners",
    "MediaLost": "voicegw.effects",
    "MediaRestored": "voicegw.effects",
    "MoveFailed": "voicegw.effects",
    "Moved": "voicegw.effects",
    "Notice": "voicegw.effects",
    "OggOpusSource": "voicegw.media.opus_files",
    "Playback": "voicegw.media.playback",
    "PlaybackEnded": "voicegw.effects",
    "Provenance": "voicegw.media.heard",
    "Reconnecting": "voicegw.effects",
    "ReconnectingSource": "voicegw.media.live",
    "Recording": "voicegw.media.recording",
    "Resumed": "voicegw.effects",
    "Signalling": "voicegw.signalling",
    "SignallingReceiver": "voicegw.signalling",
    "SingleWavSink": "voicegw.media.sinks",
    "Sink": "voicegw.media.sinks",
    "Source": "voicegw.media.sources",
    "SourceDescription": "voicegw.media.sources",
    "SpeakingChanged": "voicegw.effects",
    "SpeechSink": "voicegw.media.activity",
    "ToneSource": "voicegw.media.sources",
    "Transition": "voicegw.session",
    "UserStats": "voicegw.media.heard",
    "UsersChanged": "voicegw.effects",
    "Verification": "voicegw.core.dave",
    "View": "voicegw.view.server",
    "VoiceActivity": "voicegw.media.activity",
    "VoiceClient": "voicegw.client",
    "VoiceError": "voicegw.errors",
    "VoiceFlags": "voicegw.signalling",
    "VoiceSession": "voicegw.session",
    "Warned": "voicegw.effects",
    "WavSink": "voicegw.media.sinks",
    "WavSource": "voicegw.media.sources",
    "WebmOpusSource": "voicegw.media.opus_files",
    "open_source": "voicegw.media.opening",
    "open_url": "voicegw.media.opening",
    "serve_view": "voicegw.view.server",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'voicegw' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
