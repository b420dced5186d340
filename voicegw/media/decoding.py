"""What the jitter buffer decided, made into sound: one decoder a stream, off the event loop."""

from __future__ import annotations

from typing import Final

from voicegw.errors import NotAudio
from voicegw.media.heard import HeardFrame, Provenance, UserStats
from voicegw.media.jitter import FADE_SAMPLES, GUESS_SAMPLES, Action, Turn
from voicegw.media.opus import FRAME_BYTES, OpusDecoder
from voicegw.media.opus_packets import FRAME_SAMPLES
from voicegw.media.pcm import cross_fade, fade

RESET_AFTER_ERRORS: Final = 5

_DECODE: Final = Action.DECODE  # looked up in a tenth of the time that its class takes
_BYTES_PER_SAMPLE: Final = FRAME_BYTES // FRAME_SAMPLES


def _level(made_up: int) -> float:
    """How loud a guess is after so many samples of guessing."""
    return min(1.0, max(0.0, 1.0 - (made_up - GUESS_SAMPLES) / FADE_SAMPLES))


class StreamDecoder:
    """Decodes one stream's turns, in order and one at a time. Its libopus state is there only while somebody speaks."""

    __slots__ = ("_decoder", "_errors", "_held", "_origin", "_packets", "_whole", "stats", "user_id")

    def __init__(self, user_id: int, stats: UserStats) -> None:
        self.user_id = user_id
        self.stats = stats
        self._decoder: OpusDecoder | None = None
        self._errors = 0
        self._held = b""  # sound of slots that are not complete
        self._packets: tuple[bytes, ...] = ()
        self._origin = Provenance.RECEIVED
        self._whole = b""

    def turn(self, turn: Turn, wants_pcm: bool) -> HeardFrame | None:
        """Take one turn; the frame of a slot that it completed. Nothing is raised."""
        _, slot, action, provenance, packet, _, samples, completes, _, _, missed = turn
        if action is _DECODE:
            pcm = self._decoded(packet, samples) if wants_pcm else b""
            if completes and not self._held and len(pcm) in (FRAME_BYTES, 0):
                packets = (*self._packets, packet) if self._packets else (packet,)
                self._packets = ()
                heard = (self.user_id, slot, pcm, provenance, packets, False, missed, b"")
                return tuple.__new__(HeardFrame, heard)  # one a packet: three times as fast as its own constructor
        elif action is Action.END:
            self._decoder = None
            self._held, self._packets = b"", ()
            return None
        else:
            pcm = self._sound(turn) if wants_pcm else b""
        return self._gather(turn, pcm, wants_pcm)

    def _gather(self, turn: Turn, pcm: bytes, wants_pcm: bool) -> HeardFrame | None:
        """Cut the sound of longer and shorter packets into slots."""
        if turn.action is not Action.GO_ON:
            self._origin = turn.provenance
        if turn.packet:
            self._packets += (turn.packet,)
        self._held += pcm
        if not turn.completes:
            return None
        sound, self._held = self._held[:FRAME_BYTES], self._held[FRAME_BYTES:]
        if wants_pcm and len(sound) < FRAME_BYTES:  # the packet began before anybody listened
            sound = sound.ljust(FRAME_BYTES, b"\0")
        packets, self._packets = self._packets, ()
        whole, self._whole = self._whole, b""
        return HeardFrame(self.user_id, turn.slot, sound, self._origin, packets, turn.awaited, turn.missed, whole)

    def _decoded(self, packet: bytes, samples: int) -> bytes:
        try:
            pcm = (self._decoder or self._decoding()).decode(packet)
        except NotAudio:
            return self._failed(samples)
        self._errors = 0
        return pcm

    def _sound(self, turn: Turn) -> bytes:
        action = turn.action
        try:
            if action is Action.GO_ON:
                return b""
            if action is Action.RECOVER:
                return self._decoding().decode_fec(turn.following, turn.samples)
            if action is Action.MERGE:
                first = self._decoding().decode(turn.packet)
                second = self._decoding().decode(turn.following)
                self._whole = first + second
                return cross_fade(first, second)
            if action is Action.MUTE:
                return bytes(turn.samples * _BYTES_PER_SAMPLE)
            pcm = self._decoding().conceal(turn.samples)
            end = turn.made_up + turn.samples
            return pcm if end <= GUESS_SAMPLES else fade(pcm, _level(turn.made_up), _level(end))
        except NotAudio:
            return self._failed(turn.samples)

    def _failed(self, samples: int) -> bytes:
        """A packet that looked right and was not: guess, and begin anew when it goes on."""
        self.stats.undecodable += 1
        self._errors += 1
        if self._errors >= RESET_AFTER_ERRORS:
            self._errors = 0
            self.stats.decoder_resets += 1
            self._decoder = None
        try:
            return self._decoding().conceal(samples)
        except NotAudio:
            return bytes(samples * _BYTES_PER_SAMPLE)

    def _decoding(self) -> OpusDecoder:
        if self._decoder is None:
            self._decoder = OpusDecoder()
        return self._decoder
