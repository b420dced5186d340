"""Voice activity: tells speech from noise, by WebRTC's detector."""

from __future__ import annotations

import array
from typing import Any, Final

from voicegw.errors import AudioError
from voicegw.media.heard import HeardFrame, Provenance
from voicegw.media.opus import SAMPLE_RATE
from voicegw.media.sinks import Sink

MOST_USERS: Final = 1_000


class VoiceActivity:
    """`activity(frame)` says whether somebody speaks in a frame: for `SpeechSink`, or while iterating over frames.

    `aggressiveness` goes from 0, which lets much noise pass as speech, to 3, which takes quiet speech for noise. Each
    user has a detector of their own. Needs `pip install "voicegw[vad]"`.

    Raises:
        AudioError: it is not installed.
        ValueError: no such aggressiveness.
    """

    def __init__(self, aggressiveness: int = 2) -> None:
        try:
            import webrtcvad
        except ImportError as error:
            raise AudioError('voice activity needs webrtcvad: pip install "voicegw[vad]"') from error
        if aggressiveness not in (0, 1, 2, 3):
            raise ValueError(f"aggressiveness is 0, 1, 2 or 3, not {aggressiveness}")
        self._make = webrtcvad.Vad
        self._aggressiveness = aggressiveness
        self._detectors: dict[int, Any] = {}

    def __call__(self, frame: HeardFrame) -> bool:
        """Does the user speak in this frame?"""
        if frame.provenance is Provenance.SILENCE:
            return False
        detector = self._detectors.get(frame.user_id)
        if detector is None:
            if len(self._detectors) >= MOST_USERS:
                del self._detectors[next(iter(self._detectors))]
            detector = self._detectors[frame.user_id] = self._make(self._aggressiveness)
        mono = array.array("h", frame.pcm)[::2].tobytes()
        found: bool = detector.is_speech(mono, SAMPLE_RATE)
        return found


class SpeechSink:
    """Passes on only frames with speech, and those of the `hangover_s` seconds after it, so that words do not break."""

    def __init__(self, onward: Sink, activity: VoiceActivity | None = None, hangover_s: float = 0.3) -> None:
        self._onward = onward
        self._activity = activity if activity is not None else VoiceActivity()
        self._hangover = round(hangover_s * 50)
        self._until: dict[int, int] = {}

    def write(self, frame: HeardFrame) -> None:
        """Pass on, or not."""
        if self._activity(frame):
            self._until.pop(frame.user_id, None)  # who spoke last is forgotten last
            self._until[frame.user_id] = frame.slot + self._hangover
            if len(self._until) > MOST_USERS:
                del self._until[next(iter(self._until))]
        if frame.slot <= self._until.get(frame.user_id, -1):
            self._onward.write(frame)

    def close(self) -> None:
        """Close the other sink."""
        self._onward.close()
