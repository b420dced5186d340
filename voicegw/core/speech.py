"""The stream's session: `states/speech.toml`."""

from __future__ import annotations

from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.core.signals import SpeechAllowed, SpeechForbidden
from voicegw.effects import DrainStream, HoldReason, HoldStream, ReleaseStream, SendSpeaking
from voicegw.wire.opcodes import Speaking


class SpeechSession(MachineSession):
    """What is announced, and whether frames may leave."""

    __slots__ = ("allowed", "encrypted", "reason")
    machine: ClassVar[str] = "speech"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.allowed = False
        self.encrypted = True
        self.reason = HoldReason.NOT_READY

    # guards

    def may_speak(self, event: Any) -> bool:
        """Has the dave machine allowed frames to leave?"""
        return self.allowed

    def alone(self, event: Any) -> bool:
        """Would nobody hear it?"""
        return self.reason is HoldReason.ALONE

    def unheard(self, event: SpeechForbidden) -> bool:
        """Must frames not leave because nobody is there to hear them?"""
        return event.reason is HoldReason.ALONE

    # effects

    def note_allowed(self, event: SpeechAllowed) -> None:
        """Frames may leave, in this way."""
        self.allowed, self.encrypted = True, event.encrypted

    def note_forbidden(self, event: SpeechForbidden) -> None:
        """Frames must not leave, and why."""
        self.allowed, self.encrypted, self.reason = False, True, event.reason

    def announce_speaking(self, event: Any) -> None:
        """Op 5 with the microphone flag; it comes before the first packet."""
        self.shared.effects.append(SendSpeaking(int(Speaking.MICROPHONE), self.shared.ssrc))

    def announce_silence(self, event: Any) -> None:
        """Op 5 with 0."""
        self.shared.effects.append(SendSpeaking(0, self.shared.ssrc))

    def release_stream(self, event: Any) -> None:
        """Open the way out."""
        self.shared.effects.append(ReleaseStream(self.encrypted))

    def hold_stream(self, event: Any) -> None:
        """Close the way out."""
        self.shared.effects.append(HoldStream(HoldReason.SILENT if self.allowed else self.reason))

    def drain_stream(self, event: Any) -> None:
        """Five frames of silence."""
        self.shared.effects.append(DrainStream())
