"""A receiver with a sender at its other end, and a clock that is set by hand."""

from __future__ import annotations

import itertools

from voicegw.media.heard import HeardFrame, Provenance
from voicegw.media.jitter import Turn
from voicegw.media.opus import OpusEncoder
from voicegw.media.receiver import StreamReceiver
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import pack_header

_keys = itertools.count(2000)
ALICE, BOB = 11, 22
LETTERS = dict(zip(Provenance, ".rxs?e", strict=True))
SSRC = 9001
TONE = [OpusEncoder(64_000).encode(frame) for frame in iter(ToneSource(440, 0.5).read, b"")]


class Listening:
    """Time begins at 100 s; what is decoded is kept in `frames`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.key = Secret(next(_keys).to_bytes(32, "big"))
        self.sealer = TransportCipher(PREFERRED_MODES[0], self.key, "server")
        self.frames: list[HeardFrame] = []
        self.speaking: list[tuple[float, int, bool]] = []
        self.receiver = StreamReceiver(
            lambda: self.now, self.decode, lambda user, on: self.speaking.append((round(self.now - 100, 2), user, on))
        )
        self.receiver.use_key(TransportCipher(PREFERRED_MODES[0], self.key))

    def decode(self, turns: list[Turn]) -> None:
        for turn in turns:
            frame = turn.decoder.turn(turn, wants_pcm=True)
            if frame is not None:
                self.frames.append(frame)

    def packet(self, sequence: int, frame: bytes, ssrc: int = SSRC, ticks: int | None = None) -> bytes:
        return self.sealer.seal(pack_header(sequence, sequence * 960 if ticks is None else ticks, ssrc), frame)

    def take(self, sequence: int, frame: bytes | None = None, ssrc: int = SSRC) -> None:
        self.receiver.datagram(self.packet(sequence, TONE[sequence % len(TONE)] if frame is None else frame, ssrc))

    def wait(self, seconds: float) -> None:
        """Let time go by, in steps of 20 ms."""
        for _ in range(round(seconds / 0.02)):
            self.now += 0.02
            self.receiver.tick()

    def say(self, *sequences: int, ssrc: int = SSRC) -> None:
        """One packet every 20 ms; 0 is a packet that does not come."""
        for sequence in sequences:
            if sequence:
                self.take(sequence & 0xFFFF, ssrc=ssrc)
            self.wait(0.02)

    def heard(self, user_id: int = ALICE) -> str:
        """One letter a 20 ms slot: `.` as it came, `x` made up, `s` silence, `?` undecryptable, `e` early."""
        frames = [frame for frame in self.frames if frame.user_id == user_id]
        assert all(len(frame.pcm) == 3840 for frame in frames)
        assert [frame.slot for frame in frames] == sorted({frame.slot for frame in frames})
        return "".join(LETTERS[frame.provenance] for frame in frames)

    def drain(self) -> str:
        """All that was heard, the fading end after the last packet left out."""
        self.wait(0.5)
        assert not self.receiver.busy
        return self.heard().removesuffix("x" * 10)
