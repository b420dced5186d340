"""The way out of one stream: number, encrypt end to end, seal, send. Nothing leaves while it is held."""

from __future__ import annotations

import secrets
import struct
import threading
from collections.abc import Callable
from typing import Final

from voicegw.errors import E2EEError, KeyExhausted
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.rtp import FRAME_TICKS, OPUS_PAYLOAD_TYPE, SAMPLE_RATE, SILENCE_FRAME

CHECK_WEAR_EVERY = 4096

_HEADER: Final = struct.Struct(">HHII")
_FIRST_WORD: Final = 0x8000 | OPUS_PAYLOAD_TYPE
_FIRST_WORD_MARKED: Final = _FIRST_WORD | 0x80


class StreamSender:
    """Turns 20 ms Opus frames into datagrams of one SSRC.

    It is held from the start. `release` opens it with the end-to-end step that every frame must pass (None only where
    the call has version 0 and the policy allows it); `hold` closes it. The timestamp follows the clock of the audio,
    over gaps, resumes and keys; the sequence counts what left. The first packet after a gap has the marker.

    The pacer sends from its own thread; everything else belongs to the event loop. `hold`, `drop` and `disconnect`
    return when no packet is under way any more.
    """

    __slots__ = (
        "_anchor",
        "_base",
        "_cipher",
        "_encrypt",
        "_first_word",
        "_lock",
        "_on_key_worn",
        "_send",
        "_sequence",
        "_ssrc",
        "_timestamp",
        "bytes",
        "errors",
        "held",
        "open",
        "packets",
    )

    def __init__(self, on_key_worn: Callable[[], None]) -> None:
        self._on_key_worn = on_key_worn
        self._lock = threading.Lock()
        self._cipher: TransportCipher | None = None
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._send: Callable[[bytes], bool] | None = None
        self._ssrc = 0
        self._sequence = secrets.randbelow(1 << 16)
        self._base = self._timestamp = secrets.randbelow(1 << 32)
        self._anchor: float | None = None
        self._first_word = _FIRST_WORD_MARKED
        self.open = False
        self.packets = 0
        self.bytes = 0
        self.held = 0
        self.errors = 0

    def configure(self, cipher: TransportCipher, ssrc: int, send: Callable[[bytes], bool] | None) -> None:
        """Take key, SSRC and the send of the socket, if there is one, which says whether a datagram left.

        Whether frames may leave is another matter.
        """
        with self._lock:
            self._cipher = cipher
            self._ssrc = ssrc
            self._send = send

    def connect(self, send: Callable[[bytes], bool] | None) -> None:
        """Send through another socket from now on; None before a socket is closed."""
        with self._lock:
            self._send = send

    def drop(self) -> None:
        """Forget key and socket, and hold."""
        self.hold()
        with self._lock:
            self._cipher = None
            self._send = None

    def hold(self) -> None:
        """Nothing may leave."""
        with self._lock:
            self.open = False
            self._encrypt = None

    def release(self, encrypt: Callable[[bytes], bytes] | None) -> None:
        """Frames may leave through `encrypt`."""
        with self._lock:
            self._encrypt = encrypt
            self.open = True

    def send(self, frame: bytes) -> bool:
        """Send one 20 ms Opus frame; False where it did not leave, which is counted and never an error.

        20 ms of the audio clock go by in any case.
        """
        with self._lock:
            timestamp = self._timestamp
            self._timestamp = (timestamp + FRAME_TICKS) & 0xFFFFFFFF
            cipher, send, encrypt = self._cipher, self._send, self._encrypt
            if not self.open or cipher is None or send is None:
                self.held += 1
                self._first_word = _FIRST_WORD_MARKED
                return False
            sequence = self._sequence
            try:
                if encrypt is not None:
                    frame = encrypt(frame)
                datagram = cipher.seal(_HEADER.pack(self._first_word, sequence, timestamp, self._ssrc), frame)
                if not send(datagram):
                    self.errors += 1
                    self._first_word = _FIRST_WORD_MARKED
                    return False
            except E2EEError:
                self.held += 1
                self._first_word = _FIRST_WORD_MARKED
                return False
            except KeyExhausted:
                self.errors += 1
                sent, worn = False, True
            else:
                self._first_word = _FIRST_WORD
                self._sequence = (sequence + 1) & 0xFFFF
                self.packets += 1
                self.bytes += len(datagram)
                if self.packets % CHECK_WEAR_EVERY:
                    return True
                sent, worn = True, cipher.worn
        if worn:
            self._on_key_worn()
        return sent

    def send_silence(self) -> bool:
        """Send one frame of silence, which tells receivers not to interpolate what came before."""
        return self.send(SILENCE_FRAME)

    def skip(self, frames: int) -> None:
        """Time went by without packets: the timestamp follows it, the sequence does not."""
        with self._lock:
            self._timestamp = (self._timestamp + frames * FRAME_TICKS) & 0xFFFFFFFF
            self._first_word = _FIRST_WORD_MARKED

    def align(self, due: float) -> None:
        """The next frame leaves at `due` seconds of the pacer's clock: so much time has passed for the audio, too."""
        if self._anchor is None:
            self._anchor = due
        timestamp = (self._base + round((due - self._anchor) * SAMPLE_RATE)) & 0xFFFFFFFF
        with self._lock:
            if FRAME_TICKS // 2 <= (timestamp - self._timestamp) & 0xFFFFFFFF < 1 << 31:
                self._first_word = _FIRST_WORD_MARKED
            self._timestamp = timestamp
