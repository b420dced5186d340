"""What has been received once is not taken again: windows over the transport's nonces and over each stream's numbers.

AEAD tells that a packet is the server's, not that it is new. The nonces of a counting server and the sequence numbers
and timestamps of RTP tell that. Only authentic packets may be shown to a window. Source: RFC 3711, section 3.3.2.
"""

from __future__ import annotations

from typing import Literal

NONCE_WINDOW = 1024
SEQUENCE_WINDOW = 512
STREAMS_WATCHED = 4000
RECENT_TICKS = 60 * 48_000
PROOFS = 3
COUNTED_ANEW_AFTER = 50

Age = Literal["new", "seen", "old", "unknown"]


class Window:
    """The last `size` numbers modulo 2**bits, a bit each."""

    __slots__ = ("_bits", "_half", "_mask", "_seen", "_size", "newest")

    def __init__(self, size: int, bits: int) -> None:
        self._size = size
        self._bits = (1 << size) - 1
        self._mask = (1 << bits) - 1
        self._half = 1 << (bits - 1)
        self._seen = 0
        self.newest = 0

    def take(self, number: int) -> Age:
        """Note `number`. What is older than the window is "old" and not noted."""
        if number == self.newest + 1 and self._seen:
            self._seen = (self._seen << 1 & self._bits) | 1
            self.newest = number
            return "new"
        if not self._seen:
            self.restart(number)
            return "new"
        ahead = ((number - self.newest + self._half) & self._mask) - self._half
        if ahead > 0:
            self._seen = ((self._seen << ahead) & self._bits) | 1 if ahead < self._size else 1
            self.newest = number
            return "new"
        if ahead <= -self._size:
            return "old"
        bit = 1 << -ahead
        if self._seen & bit:
            return "seen"
        self._seen |= bit
        return "new"

    def near(self, number: int) -> bool:
        """Is `number` less than the size of the window away from the newest?"""
        if not self._seen:
            return False
        return (number - self.newest + self._size - 1) & self._mask < 2 * self._size - 1

    def restart(self, number: int) -> None:
        """Nothing is known but `number`."""
        self._seen = 1
        self.newest = number


class NonceWindow:
    """The nonces of one key, as they stand at the end of its packets.

    A server counts, but nothing says in which byte order; a few near neighbours in a row show it. Until then, and for a
    server that does not count at all, the age of a nonce is "unknown", but for repetitions.
    """

    __slots__ = ("_big", "_little", "_order", "_proofs", "_window", "old_in_row")

    def __init__(self) -> None:
        self._little = self._window = Window(NONCE_WINDOW, 32)
        self._big = Window(NONCE_WINDOW, 32)
        self._order: Literal["little", "big"] | None = None
        self._proofs = 0
        self.old_in_row = 0

    def take(self, suffix: bytes) -> Age:
        """Note a nonce."""
        if self._order is not None:
            return self._window.take(int.from_bytes(suffix, self._order))
        little, big = int.from_bytes(suffix, "little"), int.from_bytes(suffix, "big")
        proof = self._little.near(little) - self._big.near(big)
        self._proofs = self._proofs + proof if proof else 0
        ages = (self._little.take(little), self._big.take(big))
        if abs(self._proofs) == PROOFS:
            self._order, self._window = ("little", self._little) if proof > 0 else ("big", self._big)
        return "seen" if ages == ("seen", "seen") else "unknown"

    def note_passed(self, nonce: Age, suffix: bytes) -> None:
        """A packet passed with a nonce of that age. Where old ones go on passing, the server counts anew."""
        self.old_in_row = self.old_in_row + 1 if nonce == "old" else 0
        if self.old_in_row >= COUNTED_ANEW_AFTER and self._order is not None:
            self.old_in_row = 0
            self._window.restart(int.from_bytes(suffix, self._order))


class StreamWindow:
    """The sequence numbers and the newest timestamp of one SSRC."""

    __slots__ = ("_newest_ticks", "_sequences")

    def __init__(self, timestamp_ticks: int) -> None:
        self._sequences = Window(SEQUENCE_WINDOW, 16)
        self._newest_ticks = timestamp_ticks

    def take(self, sequence: int, timestamp_ticks: int, nonce: Age) -> bool:
        """Is this packet, whose nonce is so old, new to the stream?

        A new nonce proves a jump of the sequence genuine; without it the timestamp must have moved on, or both be near.
        A number that was there before passes only where the timestamp has moved on: the sender has moved back.
        """
        lag = (self._newest_ticks - timestamp_ticks) & 0xFFFFFFFF
        later = lag > 0x80000000
        if nonce != "new" and not later and not (lag < RECENT_TICKS and self._sequences.near(sequence)):
            return False
        age = self._sequences.take(sequence)
        if age == "seen" and not later:
            return False
        if age != "new":
            self._sequences.restart(sequence)
        if later:
            self._newest_ticks = timestamp_ticks
        return True


class StreamWindows:
    """All streams of a session; they outlive a key. The oldest of too many is forgotten."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[int, StreamWindow] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def take(self, nonces: NonceWindow, suffix: bytes, ssrc: int, sequence: int, timestamp_ticks: int) -> bool:
        """May this authentic packet pass? It is noted where it may."""
        nonce = nonces.take(suffix)
        if nonce == "seen":
            return False
        stream = self._streams.get(ssrc)
        if stream is None:
            if nonce == "old":
                return False
            if len(self._streams) >= STREAMS_WATCHED:
                del self._streams[next(iter(self._streams))]
            stream = self._streams[ssrc] = StreamWindow(timestamp_ticks)
            nonce = "new"
        if not stream.take(sequence, timestamp_ticks, nonce):
            return False
        if nonce != "new" or nonces.old_in_row:
            nonces.note_passed(nonce, suffix)
        return True

    def forget(self, ssrc: int) -> None:
        """The SSRC is somebody else's now."""
        self._streams.pop(ssrc, None)

    def clear(self) -> None:
        """The session is over."""
        self._streams.clear()
