"""A voice server for demos and tests, on this host: what real clients accept, and faults on request."""

from voicegw.server.faults import Faults
from voicegw.server.server import VoiceServer
from voicegw.server.session import Record, ServerSession
from voicegw.server.signalling import LocalSignalling
from voicegw.signalling import Credentials

__all__ = ["Credentials", "Faults", "LocalSignalling", "Record", "ServerSession", "VoiceServer"]
