"""The transport encryption: every datagram of a session under one key, in one of two live modes.

The nonce is a 32-bit counter, sent as four bytes after the tag. Each direction of a key has its own half to begin in,
since client and server share the key: ours starts at 2**31 and is written little-endian, as the server's is. The
count belongs to the key, not to an object, a socket or a session: `KEYS` knows every key that was ever used, so
whatever is built anew goes on counting. Source: Discord voice docs, "Transport Encryption Modes"; a real client's
capture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from voicegw.errors import KeyExhausted, LeaseEnded, NoCommonMode, PacketRejected
from voicegw.secret import Secret

AES_256_GCM = "aead_aes256_gcm_rtpsize"
XCHACHA20_POLY1305 = "aead_xchacha20_poly1305_rtpsize"
PREFERRED_MODES = (AES_256_GCM, XCHACHA20_POLY1305)

TAG_BYTES = 16
SUFFIX_BYTES = 4
COUNTER_BITS = 32
KEYS_REMEMBERED = 65_536

Direction = Literal["client", "server"]


def choose_mode(offered: Iterable[str], refused: Collection[str] = ()) -> str:
    """The best mode that the server offers and has not refused.

    Raises:
        NoCommonMode: there is none.
    """
    names = set(offered)
    for mode in PREFERRED_MODES:
        if mode in names and mode not in refused:
            return mode
    raise NoCommonMode("the voice server offers no encryption mode that we know")


class NonceCounter:
    """The nonces of one key in one direction: `first`, one more, and so on round to the one before `first`.

    `uses` only grows: a nonce is spent when it is handed out, whatever becomes of the packet. One is never handed out,
    so that the count itself cannot come round. From `worn_at` on another key should be had.

    Where the key is handed from process to process, `lease` bounds what this one may hand out: whoever goes on begins
    where the lease ends, so that nothing depends on how far this one has come when it dies.
    """

    __slots__ = (
        "_apart",
        "_first",
        "_last",
        "_leap",
        "_lock",
        "_near",
        "_reach",
        "_retired",
        "_runs",
        "_start",
        "limit",
        "mask",
        "uses",
        "worn_at",
    )

    def __init__(self, first: int, bits: int = COUNTER_BITS) -> None:
        self._first = first
        self.mask = self._last = self.limit = (1 << bits) - 1
        self._apart = max(1, self._last >> 12)
        self._leap = max(1, self._last >> 4)
        self._lock = threading.Lock()
        self._runs: list[range] = []
        self._start = 0
        self._retired = False
        self.worn_at = 1 << (bits - 1)
        self._near = first - self._apart
        self._reach = self.worn_at + self._apart
        self.uses = 0

    @property
    def leaving(self) -> bool:
        """Have we come so far that the peer's first nonces are near?"""
        return self.uses > self.worn_at - self._apart

    def spend(self, count: int = 1) -> int:
        """The next nonce, and so many in all that are one more each; safe to call from any thread.

        Raises:
            KeyExhausted: so many are not left.
            LeaseEnded: so many are not left of those that were leased.
        """
        with self._lock:
            uses = self.uses
            if uses + count > self.limit:
                if self.limit < self._last:
                    raise LeaseEnded("the nonces that this process may use are spent until its lease is renewed")
                raise KeyExhausted("the transport key is spent; a new voice session brings another")
            self.uses = uses + count
        return (self._first + uses) & self.mask

    def lease(self, uses: int | None) -> None:
        """Hand out no nonce beyond the first `uses` of them; None for all that there are."""
        with self._lock:
            if not self._retired:
                self.limit = self._last if uses is None else min(uses, self._last)

    def retire(self) -> None:
        """Hand out none ever again."""
        with self._lock:
            self._retired, self.limit = True, 0

    def may_meet(self, theirs: int) -> bool:
        """Is `theirs`, a nonce of the peer under this key, in our half or near it, or are we leaving our half?"""
        return (theirs - self._near) & self.mask < self._reach or self.leaving

    def keep_apart(self, theirs: int) -> bool:
        """Leap beyond `theirs` where we would run into it.

        False where the two counts have met, or will soon, because the peer comes near to what we have used.
        """
        with self._lock:
            place = (theirs - self._first) & self.mask
            if self.uses <= place < self.uses + self._apart:
                self._runs.append(range(self._start, self.uses))
                self._start = self.uses = min(place + self._leap, self._last)
                return True
            for run in (*self._runs, range(self._start, self.uses)):
                if run and (place - run.start + self._apart) & self.mask < len(run) + self._apart:
                    return False
            return True


class KeyTable:
    """The nonce counter of every key that was used in this process, by the key's hash; the oldest are forgotten."""

    def __init__(self, bits: int = COUNTER_BITS, remembered: int = KEYS_REMEMBERED) -> None:
        self._bits = bits
        self._remembered = remembered
        self._counters: dict[tuple[bytes, Direction], NonceCounter] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._counters)

    def counter(self, key: Secret[bytes], direction: Direction = "client") -> NonceCounter:
        """The one counter of this key and direction. The client counts from the middle, the server from 0."""
        return self._counter(key.digest(), direction)

    def retire(self, digest: bytes) -> int:
        """Hand out no more of our nonces of the key with this digest, ever; how many were handed out."""
        counter = self._counter(digest, "client")
        counter.retire()
        return counter.uses

    def take_over(self, digest: bytes, uses: int) -> NonceCounter:
        """Go on with a key of which so many nonces were handed out elsewhere, or more here.

        Who held its counter in this process holds one that is retired.
        """
        uses = max(uses, self.retire(digest))
        with self._lock:
            del self._counters[digest, "client"]
        counter = self._counter(digest, "client")
        counter.uses = uses
        return counter

    def _counter(self, digest: bytes, direction: Direction) -> NonceCounter:
        name = (digest, direction)
        with self._lock:
            counter = self._counters.pop(name, None)
            if counter is None:
                counter = NonceCounter(1 << (self._bits - 1) if direction == "client" else 0, self._bits)
            self._counters[name] = counter  # the keys used last are remembered longest
            while len(self._counters) > self._remembered:
                del self._counters[next(iter(self._counters))]
        return counter


KEYS = KeyTable()


class TransportCipher:
    """Seals and opens datagrams under one key; safe to share between threads."""

    __slots__ = ("_decrypt", "_encrypt", "_padding", "_spend", "counter", "key_digest", "mode")

    def __init__(
        self, mode: str, secret_key: Secret[bytes], direction: Direction = "client", keys: KeyTable = KEYS
    ) -> None:
        """Take a 32-byte key; `keys` counts its uses.

        Raises:
            NoCommonMode: the mode is not one of the live ones.
        """
        self.mode = mode
        self._encrypt: Callable[[bytes, bytes, bytes], bytes]
        self._decrypt: Callable[[bytes, bytes, bytes], bytes]
        if mode == AES_256_GCM:
            gcm = AESGCM(secret_key.view())  # OpenSSL keeps the only other copy, and cleans it
            self._padding = bytes(8)
            self._encrypt = gcm.encrypt
            self._decrypt = gcm.decrypt
        elif mode == XCHACHA20_POLY1305:
            self._padding = bytes(20)
            key = Secret(secret_key.reveal())  # in no variable: what fails may be shown with all of them
            self._encrypt = lambda nonce, data, aad: crypto_aead_xchacha20poly1305_ietf_encrypt(
                data, aad, nonce, key.reveal()
            )
            self._decrypt = lambda nonce, data, aad: crypto_aead_xchacha20poly1305_ietf_decrypt(
                data, aad, nonce, key.reveal()
            )
        else:
            raise NoCommonMode(f"{mode!a} is no encryption mode that we know")
        self.key_digest = secret_key.digest()
        self.counter = keys.counter(secret_key, direction)
        self._spend = self.counter.spend

    @property
    def worn(self) -> bool:
        """Has the key been used so often that another one should be had?"""
        return self.counter.uses >= self.counter.worn_at

    def seal(self, header: bytes, plaintext: bytes) -> bytes:
        """The whole datagram; `header` goes in the clear and is authenticated.

        The nonce is spent even if sending fails.

        Raises:
            KeyExhausted: the key was used 2**32 - 1 times.
            LeaseEnded: this process may use no more nonces for now.
        """
        suffix = self._spend().to_bytes(4, "little")
        return b"".join((header, self._encrypt(suffix + self._padding, plaintext, header), suffix))

    def seal_all(self, headers: Sequence[bytes], plaintexts: Sequence[bytes]) -> list[bytes]:
        """As many datagrams at once, in two thirds of the time.

        Raises:
            KeyExhausted: the key has not so many uses left; none was spent.
            LeaseEnded: this process may use less nonces than that for now; none was spent.
        """
        encrypt, padding, mask = self._encrypt, self._padding, self.counter.mask
        nonce = self._spend(len(headers))
        made = []
        for header, plaintext in zip(headers, plaintexts, strict=True):
            suffix = (nonce & mask).to_bytes(4, "little")
            made.append(b"".join((header, encrypt(suffix + padding, plaintext, header), suffix)))
            nonce += 1
        return made

    def open(self, data: bytes, aad_length: int) -> bytes:
        """The plaintext of a whole datagram whose first `aad_length` bytes are clear.

        Raises:
            PacketRejected: too short, or not authentic.
        """
        if len(data) < aad_length + TAG_BYTES + SUFFIX_BYTES:
            raise PacketRejected("a datagram too short to be authentic")
        try:
            return self._decrypt(
                data[-SUFFIX_BYTES:] + self._padding, data[aad_length:-SUFFIX_BYTES], data[:aad_length]
            )
        except (InvalidTag, CryptoError) as error:
            raise PacketRejected("a datagram that is not authentic") from error
