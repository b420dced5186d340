"""The voice layer of Discord for every Python bot: join, play, listen, record, end-to-end encrypted."""

from voicegw.client import CallStats, VoiceClient
from voicegw.effects import (
    Closed,
    Connected,
    EncryptionChanged,
    Moved,
    Notice,
    Reconnecting,
    Resumed,
    UsersChanged,
    Warned,
)
from voicegw.errors import VoiceError
from voicegw.gateway import DiscordGatewayVoice
from voicegw.kokoro import Kokoro
from voicegw.media.player import Playback
from voicegw.media.receiver import UserStats
from voicegw.media.sinks import SingleWavSink, Sink, WavSink
from voicegw.media.sources import OggOpusSource, Source, ToneSource, WavSource, open_source
from voicegw.session import E2EEPolicy, Transition, VoiceSession
from voicegw.signalling import Credentials, FixedSignalling, Signalling, SignallingReceiver

__all__ = [
    "CallStats",
    "Closed",
    "Connected",
    "Credentials",
    "DiscordGatewayVoice",
    "E2EEPolicy",
    "EncryptionChanged",
    "FixedSignalling",
    "Kokoro",
    "Moved",
    "Notice",
    "OggOpusSource",
    "Playback",
    "Reconnecting",
    "Resumed",
    "Signalling",
    "SignallingReceiver",
    "SingleWavSink",
    "Sink",
    "Source",
    "ToneSource",
    "Transition",
    "UserStats",
    "UsersChanged",
    "VoiceClient",
    "VoiceError",
    "VoiceSession",
    "Warned",
    "WavSink",
    "WavSource",
    "open_source",
]
