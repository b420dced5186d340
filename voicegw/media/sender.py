"""The way out of one stream: number, encrypt end to end, seal, send. Nothing leaves while it is held."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from voicegw.errors import E2EEError, KeyExhausted
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.rtp import FRAME_TICKS, SILENCE_FRAME, pack_header

CHECK_WEAR_EVERY = 4096


class StreamSender:
    """Turns 20 ms Opus frames into datagrams of one SSRC.

    It is held from the start. `release` opens it with the end-to-end step that every frame must pass (None only where
    the call has version 0 and the policy allows it); `hold` closes it. Sequence and timestamp go on over resumes and
    keys.
    """

    __slots__ = (
        "_cipher",
        "_encrypt",
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
        self._cipher: TransportCipher | None = None
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._send: Callable[[bytes], None] | None = None
        self._ssrc = 0
        self._sequence = secrets.randbelow(1 << 16)
        self._timestamp = secrets.randbelow(1 << 32)
        self.open = False
        self.packets = 0
        self.bytes = 0
        self.held = 0
        self.errors = 0

    def configure(self, cipher: TransportCipher, ssrc: int, send: Callable[[bytes], None]) -> None:
        """Take key, SSRC and the socket's send; whether frames may leave is another matter."""
        self._cipher = cipher
        self._ssrc = ssrc
        self._send = send

    def drop(self) -> None:
        """Forget key and socket, and hold."""
        self.hold()
        self._cipher = None
        self._send = None

    def hold(self) -> None:
        """Nothing may leave."""
        self.open = False
        self._encrypt = None

    def release(self, encrypt: Callable[[bytes], bytes] | None) -> None:
        """Frames may leave through `encrypt`."""
        self._encrypt = encrypt
        self.open = True

    def send(self, frame: bytes) -> bool:
        """Send one 20 ms Opus frame; False where it did not leave, which is counted and never an error."""
        cipher, send = self._cipher, self._send
        if not self.open or cipher is None or send is None:
            self.held += 1
            return False
        header = pack_header(self._sequence, self._timestamp, self._ssrc)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._timestamp = (self._timestamp + FRAME_TICKS) & 0xFFFFFFFF
        try:
            datagram = cipher.seal(header, frame if self._encrypt is None else self._encrypt(frame))
            send(datagram)
        except E2EEError:
            self.held += 1
            return False
        except KeyExhausted:
            self.errors += 1
            self._on_key_worn()
            return False
        except OSError:
            self.errors += 1
            return False
        self.packets += 1
        self.bytes += len(datagram)
        if not self.packets % CHECK_WEAR_EVERY and cipher.worn:
            self._on_key_worn()
        return True

    def send_silence(self) -> bool:
        """Send one frame of silence, which tells receivers not to interpolate what came before."""
        return self.send(SILENCE_FRAME)

    def skip(self, frames: int) -> None:
        """Time went by without packets: the timestamp follows it, the sequence does not."""
        self._timestamp = (self._timestamp + frames * FRAME_TICKS) & 0xFFFFFFFF
