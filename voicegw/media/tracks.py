"""One file of a recording, in three formats: sound is put at its slot, silence fills what is between."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Protocol

from voicegw.errors import AudioError
from voicegw.media.heard import HeardFrame, Provenance
from voicegw.media.ogg import OggOpusWriter
from voicegw.media.opus import FRAME_BYTES, SAMPLE_RATE, OpusEncoder
from voicegw.media.opus_packets import FRAME_SAMPLES
from voicegw.media.wav import WavWriter
from voicegw.wire.rtp import SILENCE_FRAME

MIX_BITRATE: Final = 96_000

_SILENCE_BLOCK: Final = 50


class Track(Protocol):
    """A file whose slots are 20 ms, counted from its beginning. What comes for a slot that is written is left out."""

    def write(self, slot: int, frame: HeardFrame) -> None:
        """20 ms of a user."""

    def write_pcm(self, slot: int, pcm: bytes) -> None:
        """20 ms of a mix."""

    def close(self, end: int) -> None:
        """Fill up to slot `end` and finish."""


class WavTrack:
    """PCM; silence takes no time to write, and no room where the file system has holes."""

    def __init__(self, path: Path) -> None:
        self._writer = WavWriter(path)
        self._next = 0

    def write(self, slot: int, frame: HeardFrame) -> None:
        """The frame's PCM."""
        self.write_pcm(slot, frame.pcm)

    def write_pcm(self, slot: int, pcm: bytes) -> None:
        """As it is."""
        if slot < self._next:
            return
        if slot > self._next:
            self._writer.skip((slot - self._next) * FRAME_SAMPLES)
        self._writer.write(pcm)
        self._next = slot + 1

    def close(self, end: int) -> None:
        """Fill and finish."""
        if end > self._next:
            self._writer.skip((end - self._next) * FRAME_SAMPLES)
        self._writer.close()


class OggTrack:
    """Opus packets as they came; a lost one is marked by an empty frame, which players conceal."""

    def __init__(self, path: Path) -> None:
        self._writer = OggOpusWriter(path, pre_skip=0)
        self._last = SILENCE_FRAME
        self._encoder: OpusEncoder | None = None

    def write(self, slot: int, frame: HeardFrame) -> None:
        """The frame's packets."""
        begin = slot * FRAME_SAMPLES
        ahead = self._writer.samples - begin
        if frame.packets:
            if ahead >= FRAME_SAMPLES:
                return
            self._writer.write_silence(-ahead)
            for packet in frame.packets:
                self._writer.write(packet)
            self._last = frame.packets[-1]
        elif frame.lost and ahead <= 0:
            self._writer.write_silence(-ahead)
            self._writer.write_lost(self._last)
        elif frame.provenance is Provenance.SILENCE:
            self._writer.write_silence(FRAME_SAMPLES - ahead)

    def write_pcm(self, slot: int, pcm: bytes) -> None:
        """Encoded."""
        missing = slot * FRAME_SAMPLES - self._writer.samples
        if missing < 0:
            return
        self._writer.write_silence(missing)
        if self._encoder is None:
            self._encoder = OpusEncoder(MIX_BITRATE)
        self._writer.write(self._encoder.encode(pcm))

    def close(self, end: int) -> None:
        """Fill and finish."""
        self._writer.write_silence(end * FRAME_SAMPLES - self._writer.samples)
        self._writer.close()


class FlacTrack:
    """FLAC, encoded by PyAV."""

    def __init__(self, path: Path) -> None:
        av = self.check()
        self._av = av
        # Without a flush after every packet a crash would take the last minute along.
        self._container = av.open(str(path), "w", format="flac", options={"flush_packets": "1"})
        self._stream: Any = self._container.add_stream("flac", rate=SAMPLE_RATE, layout="stereo", format="s16")
        self._next = 0

    @staticmethod
    def check() -> Any:
        """PyAV.

        Raises:
            AudioError: it is not installed.
        """
        try:
            import av
        except ImportError as error:
            raise AudioError('FLAC needs PyAV: pip install "voicegw[av]"') from error
        return av

    def write(self, slot: int, frame: HeardFrame) -> None:
        """The frame's PCM."""
        self.write_pcm(slot, frame.pcm)

    def write_pcm(self, slot: int, pcm: bytes) -> None:
        """Encoded."""
        if slot < self._next:
            return
        self._silence(slot)
        self._encode(pcm)
        self._next = slot + 1

    def close(self, end: int) -> None:
        """Fill and finish."""
        self._silence(end)
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()

    def _silence(self, until: int) -> None:
        while self._next < until:
            slots = min(until - self._next, _SILENCE_BLOCK)
            self._encode(bytes(slots * FRAME_BYTES))
            self._next += slots

    def _encode(self, pcm: bytes) -> None:
        samples = len(pcm) * FRAME_SAMPLES // FRAME_BYTES
        frame = self._av.AudioFrame(format="s16", layout="stereo", samples=samples)
        frame.planes[0].update(pcm)
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self._next * FRAME_SAMPLES
        frame.time_base = Fraction(1, SAMPLE_RATE)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
