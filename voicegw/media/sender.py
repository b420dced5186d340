"""The way out of one stream: number, encrypt end to end, seal, send. Nothing leaves while it is held."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Final

from voicegw.errors import E2EEError, KeyExhausted, LeaseEnded
from voicegw.wire.encryption import NonceCounter, TransportCipher
from voicegw.wire.rtp import FRAME_TICKS, OPUS_PAYLOAD_TYPE, SAMPLE_RATE, SILENCE_FRAME

CHECK_WEAR_EVERY = 4096
RENEW_AT = 0.5  # of a lease
KEYS_NAMED = 16
READY_FRAMES: Final = 10

_HEADER: Final = struct.Struct(">HHII")
_FIRST_WORD: Final = 0x8000 | OPUS_PAYLOAD_TYPE
_FIRST_WORD_MARKED: Final = _FIRST_WORD | 0x80

# Held while a datagram is on its way: by the pacer for a slot, by who changes a sender for a moment. One for all, since
# a lock of each stream's own would be memory that no cache has when its turn comes.
SENDING: Final = threading.RLock()
if hasattr(os, "register_at_fork"):  # nobody holds it in the child
    os.register_at_fork(before=SENDING.acquire, after_in_parent=SENDING.release, after_in_child=SENDING.release)


@dataclass(frozen=True, slots=True)
class StreamMark:
    """Where a stream's counters stand: the first nonce (as a count of uses), number and timestamp not yet used."""

    nonces: int
    sequence: int
    timestamp_ticks: int


class StreamSender:
    """Turns 20 ms Opus frames into datagrams of one SSRC.

    It is held from the start. `release` opens it with the end-to-end step that every frame must pass (None only where
    the call has version 0 and the policy allows it); `hold` closes it. The timestamp follows the clock of the audio,
    over gaps, resumes and keys; the sequence counts what left. The first packet after a gap has the marker.

    The pacer sends from its own thread; everything else belongs to the event loop. `hold`, `drop` and `connect` return
    when no packet is under way any more.

    `make_ready` seals the next frames ahead, several in the time that caches are warm, so that little is left to do
    when they are due. Whatever changes what a datagram would be, or whether it may leave, forgets those that are
    `ready`: the frames are numbered and sealed anew, with other nonces.

    With `lease_only` it uses nonces, numbers and timestamps only up to the mark of the last `lease` of the present key,
    and is held where that ends; `on_lease_low` is called, from any thread, when the lease should be renewed.
    """

    __slots__ = (
        "_anchor",
        "_base",
        "_cipher",
        "_encrypt",
        "_first_word",
        "_former",
        "_lease",
        "_look_at",
        "_octets",
        "_on_key_worn",
        "_on_lease_low",
        "_packets",
        "_released",
        "_send",
        "_sequence",
        "_ssrc",
        "_timestamp",
        "errors",
        "held",
        "open",
        "ready",
    )

    def __init__(self, on_key_worn: Callable[[], None]) -> None:
        self._on_key_worn = on_key_worn
        self._cipher: TransportCipher | None = None
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._send: Callable[[bytes], bool] | None = None
        self._ssrc = 0
        self._sequence = secrets.randbelow(1 << 16)
        self._base = self._timestamp = secrets.randbelow(1 << 32)
        self._anchor: float | None = None
        self._first_word = _FIRST_WORD_MARKED
        self._on_lease_low: Callable[[], None] | None = None
        self._lease: StreamMark | None = None
        self._former: dict[bytes, NonceCounter] = {}
        self._released = False
        self.ready: list[bytes] = []
        self.open = False
        self._packets = self._octets = 0  # with those that are ready
        self._look_at = CHECK_WEAR_EVERY
        self.held = 0
        self.errors = 0

    def configure(self, cipher: TransportCipher, ssrc: int, send: Callable[[bytes], bool] | None) -> None:
        """Take key, SSRC and the send of the socket, if there is one, which says whether a datagram left.

        Whether frames may leave is another matter.
        """
        with SENDING:
            self.forget()
            self._remember()
            self._cipher = cipher
            self._ssrc = ssrc
            self._send = send
            if self._on_lease_low is not None:
                self._lease = None
                cipher.counter.lease(cipher.counter.uses)
                self._starve()

    def connect(self, send: Callable[[bytes], bool] | None) -> None:
        """Send through another socket from now on; None before a socket is closed."""
        with SENDING:
            self.forget()
            self._send = send

    def drop(self) -> None:
        """Forget key and socket, and hold."""
        self.hold()
        with SENDING:
            self._remember()
            self._cipher = None
            self._send = None
            self._lease = None

    def hold(self) -> None:
        """Nothing may leave."""
        with SENDING:
            self.forget()
            self.open = self._released = False
            self._encrypt = None

    def release(self, encrypt: Callable[[bytes], bytes] | None) -> None:
        """Frames may leave through `encrypt`."""
        with SENDING:
            self.forget()
            self._encrypt = encrypt
            self.open = self._released = True
            if self._on_lease_low is not None and self._lease_left() <= 0:
                self._starve()

    def send(self, frame: bytes) -> bool:
        """Send one 20 ms Opus frame; False where it did not leave, which is counted and never an error.

        20 ms of the audio clock go by in any case.
        """
        with SENDING:
            self.forget()
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
            except LeaseEnded:
                self.held += 1
                self._starve()
                return False
            except KeyExhausted:
                self.errors += 1
                sent, worn = False, True
            else:
                self._first_word = _FIRST_WORD
                self._sequence = (sequence + 1) & 0xFFFF
                self._packets += 1
                self._octets += len(datagram)
                if self._packets < self._look_at:
                    return True
                sent, worn = True, self._look(cipher)
        if worn:
            self._on_key_worn()
        return sent

    def make_ready(self, frames: Sequence[bytes]) -> Callable[[bytes], bool] | None:
        """Make datagrams of the next frames, if they may leave, and tell where to send them.

        `ready` ends with the next frame then, and before it the datagram that was made of it. Whoever takes both sends
        the datagram at once, with `SENDING` held; if it is not the next frame any more, all is to be forgotten.
        """
        with SENDING:
            cipher, encrypt, ready = self._cipher, self._encrypt, self.ready
            if not self.open or cipher is None or self._send is None or self._first_word != _FIRST_WORD:
                return self._send
            most = READY_FRAMES if self._on_lease_low is None else min(READY_FRAMES, self._lease_left() - 1)
            first, begin, ssrc = self._sequence, self._timestamp, self._ssrc
            coming: list[bytes] = []
            made: list[bytes] = []
            # Frames may be forgotten elsewhere just now; of the rest `send` tells when the frame is due.
            with contextlib.suppress(IndexError, LeaseEnded, KeyExhausted):
                coming = plain = [frames[n] for n in range(len(ready) // 2, min(most, len(frames)))]
                if encrypt is not None:
                    plain = []
                    with contextlib.suppress(E2EEError):
                        plain.extend(map(encrypt, coming))
                headers = [
                    _HEADER.pack(_FIRST_WORD, (first + n) & 0xFFFF, (begin + n * FRAME_TICKS) & 0xFFFFFFFF, ssrc)
                    for n in range(len(plain))
                ]
                made = cipher.seal_all(headers, plain)
            self._sequence = (first + len(made)) & 0xFFFF
            self._timestamp = (begin + len(made) * FRAME_TICKS) & 0xFFFFFFFF
            self._packets += len(made)
            self._octets += sum(map(len, made))
            ready[:0] = chain.from_iterable(zip(reversed(made), reversed(coming[: len(made)]), strict=True))
            worn = self._packets >= self._look_at and self._look(cipher)
        if worn:
            self._on_key_worn()
        return self._send

    def forget(self) -> None:
        """What is ready does not leave: when its frames are due they are numbered and sealed anew."""
        ready = self.ready
        if ready:
            with SENDING:
                count = len(ready) // 2
                self._octets -= sum(map(len, ready[::2]))
                self._packets -= count
                self._sequence = (self._sequence - count) & 0xFFFF
                self._timestamp = (self._timestamp - count * FRAME_TICKS) & 0xFFFFFFFF
                ready.clear()

    def refused(self, datagram: bytes) -> None:
        """The kernel did not take one that was ready."""
        with SENDING:
            self.forget()
            self._sequence = (self._sequence - 1) & 0xFFFF
            self._packets -= 1
            self._octets -= len(datagram)
            self.errors += 1
            self._first_word = _FIRST_WORD_MARKED

    @property
    def packets(self) -> int:
        """How many have left."""
        with SENDING:
            return self._packets - len(self.ready) // 2

    @property
    def octets(self) -> int:
        """Of all that have left."""
        with SENDING:
            return self._octets - sum(map(len, self.ready[::2]))

    def send_silence(self) -> bool:
        """Send one frame of silence, which tells receivers not to interpolate what came before."""
        return self.send(SILENCE_FRAME)

    def skip(self, frames: int) -> None:
        """Time went by without packets: the timestamp follows it, the sequence does not."""
        with SENDING:
            self.forget()
            self._timestamp = (self._timestamp + frames * FRAME_TICKS) & 0xFFFFFFFF
            self._first_word = _FIRST_WORD_MARKED
            self._mind_lease()

    def align(self, due: float) -> None:
        """The next frame leaves at `due` seconds of the pacer's clock: so much time has passed for the audio, too."""
        if self._anchor is None:
            self._anchor = due
        timestamp = (self._base + round((due - self._anchor) * SAMPLE_RATE)) & 0xFFFFFFFF
        with SENDING:
            self.forget()
            if FRAME_TICKS // 2 <= (timestamp - self._timestamp) & 0xFFFFFFFF < 1 << 31:
                self._first_word = _FIRST_WORD_MARKED
            self._timestamp = timestamp
            self._mind_lease()

    # -- from process to process

    def mark(self, ahead: int = 0, now: float | None = None) -> StreamMark:
        """Where the counters stand, or will at most when so many frames have left; `now` is the pacer's clock.

        What goes by in silence counts for the timestamp, so that reaches twice as far.
        """
        with SENDING:
            timestamp = self._timestamp
            if now is not None and self._anchor is not None:
                there = (self._base + round((now - self._anchor) * SAMPLE_RATE)) & 0xFFFFFFFF
                timestamp = there if (there - timestamp) & 0xFFFFFFFF < 1 << 31 else timestamp
            uses = self._cipher.counter.uses if self._cipher is not None else 0
            return StreamMark(
                uses + ahead, (self._sequence + ahead) & 0xFFFF, (timestamp + 2 * ahead * FRAME_TICKS) & 0xFFFFFFFF
            )

    def keys(self, ahead: int = 0) -> tuple[tuple[bytes, int], ...]:
        """All keys by digest, and how often each was used; the present one, when so many frames more have left."""
        with SENDING:
            self._remember()
            present = self._cipher.counter if self._cipher is not None else None
            return tuple((key, one.uses + ahead * (one is present)) for key, one in self._former.items())

    def go_on(self, mark: StreamMark, now: float, former: Mapping[bytes, NonceCounter] = MappingProxyType({})) -> None:
        """Number on from where another process has come to, at `now` of the pacer's clock; before the first packet.

        `former` are the counters of the keys that were used there.
        """
        with SENDING:
            self._former.update(former)
            self._sequence = mark.sequence
            self._base = self._timestamp = mark.timestamp_ticks
            self._anchor = now

    def lease_only(self, on_lease_low: Callable[[], None]) -> None:
        """Send nothing from now on that no lease allows."""
        with SENDING:
            self.forget()
            self._on_lease_low = on_lease_low
            if self._cipher is not None:
                self._cipher.counter.lease(self._cipher.counter.uses)
                self._starve()

    def lease(self, mark: StreamMark) -> None:
        """What comes before `mark` may be used from now on; of the key that is in use."""
        with SENDING:
            if self._cipher is None or self._on_lease_low is None:
                return
            self._lease = mark
            self._mind_lease()
            left = self._lease_left()
            self._look_at = self._packets + max(1, min(CHECK_WEAR_EVERY, int(left * RENEW_AT)))
            self.open = self._released and left > 0

    def _remember(self) -> None:
        cipher = self._cipher
        if cipher is not None:
            self._former.pop(cipher.key_digest, None)
            self._former[cipher.key_digest] = cipher.counter
            while len(self._former) > KEYS_NAMED:
                del self._former[next(iter(self._former))]

    def _lease_left(self) -> int:
        cipher = self._cipher
        return 0 if cipher is None else cipher.counter.limit - cipher.counter.uses

    def _mind_lease(self) -> None:
        """No timestamp beyond the lease's: that shortens it, where time goes by without packets."""
        if self._on_lease_low is None or self._cipher is None:
            return
        counter, lease = self._cipher.counter, self._lease
        if lease is None:
            counter.lease(counter.uses)
            return
        ticks = (lease.timestamp_ticks - self._timestamp) & 0xFFFFFFFF
        frames = ticks // FRAME_TICKS if ticks < 1 << 31 else 0
        counter.lease(min(lease.nonces, counter.uses + frames))
        if self._lease_left() <= 0:
            self._starve()

    def _starve(self) -> None:
        """The lease has ended: what is played waits."""
        self.open = False
        self._first_word = _FIRST_WORD_MARKED
        if self._on_lease_low is not None:
            self._on_lease_low()

    def _look(self, cipher: TransportCipher) -> bool:
        """Now and then: is the key worn? And does the lease end soon, or here?"""
        self._look_at = self._packets + CHECK_WEAR_EVERY
        if self._on_lease_low is not None:
            left = self._lease_left()
            if left <= 0:
                self._starve()
            else:
                self._look_at = self._packets + min(left, CHECK_WEAR_EVERY)
                self._on_lease_low()
        return cipher.worn
