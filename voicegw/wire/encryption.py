"""The transport encryption: every datagram of a session under one key, in one of two live modes.

The nonce is a 32-bit counter, sent as four bytes after the tag. Each direction of a key has its own half to begin in,
since client and server share the key: ours starts at 2**31 and is written little-endian, as the server's is. The
count belongs to the key, not to an object, a socket or a session: whatever is built anew goes on counting. Source:
Discord voice docs, "Transport Encryption Modes"; a real client's capture.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from voicegw.errors import KeyExhausted, NoCommonMode, PacketRejected
from voicegw.secret import Secret

AES_256_GCM = "aead_aes256_gcm_rtpsize"
XCHACHA20_POLY1305 = "aead_xchacha20_poly1305_rtpsize"
PREFERRED_MODES = (AES_256_GCM, XCHACHA20_POLY1305)

TAG_BYTES = 16
SUFFIX_BYTES = 4
MAX_USES = 2**32 - 1
RENEW_AT_USES = 2**31
KEYS_REMEMBERED = 65_536

Direction = Literal["client", "server"]
FIRST_COUNTER: dict[Direction, int] = {"client": 2**31, "server": 0}


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


class _Counter:
    """How often a key was used in one direction; spending is atomic."""

    __slots__ = ("lock", "uses")

    def __init__(self) -> None:
        self.uses = 0
        self.lock = threading.Lock()


_counters: dict[tuple[bytes, Direction], _Counter] = {}
_counters_lock = threading.Lock()


def _counter_of(key: bytes, direction: Direction) -> _Counter:
    name = (hashlib.sha256(key).digest(), direction)
    with _counters_lock:
        counter = _counters.pop(name, None) or _Counter()
        _counters[name] = counter  # the keys used last are remembered longest
        while len(_counters) > KEYS_REMEMBERED:
            del _counters[next(iter(_counters))]
    return counter


class TransportCipher:
    """Seals and opens datagrams under one key; safe to share between threads."""

    __slots__ = ("_counter", "_decrypt", "_encrypt", "_first", "_padding", "mode")

    def __init__(self, mode: str, secret_key: Secret[bytes], direction: Direction = "client") -> None:
        """Take a 32-byte key.

        Raises:
            NoCommonMode: the mode is not one of the live ones.
        """
        key = secret_key.reveal()
        self.mode = mode
        self._encrypt: Callable[[bytes, bytes, bytes], bytes]
        self._decrypt: Callable[[bytes, bytes, bytes], bytes]
        if mode == AES_256_GCM:
            gcm = AESGCM(key)
            self._padding = bytes(8)
            self._encrypt = gcm.encrypt
            self._decrypt = gcm.decrypt
        elif mode == XCHACHA20_POLY1305:
            self._padding = bytes(20)
            self._encrypt = lambda nonce, data, aad: crypto_aead_xchacha20poly1305_ietf_encrypt(data, aad, nonce, key)
            self._decrypt = lambda nonce, data, aad: crypto_aead_xchacha20poly1305_ietf_decrypt(data, aad, nonce, key)
        else:
            raise NoCommonMode(f"{mode!a} is no encryption mode that we know")
        self._counter = _counter_of(key, direction)
        self._first = FIRST_COUNTER[direction]

    @property
    def uses(self) -> int:
        """How many packets this key has sealed in this direction, in this process."""
        return self._counter.uses

    def seal(self, header: bytes, plaintext: bytes) -> bytes:
        """The whole datagram;

        `header` goes in the clear and is authenticated. The nonce is spent even if sending fails.

        Raises:
            KeyExhausted: the key was used 2**32 - 1 times.
        """
        counter = self._counter
        with counter.lock:
            uses = counter.uses
            if uses >= MAX_USES:
                raise KeyExhausted("the transport key is spent; a new voice session brings another")
            counter.uses = uses + 1
        suffix = ((self._first + uses) & 0xFFFFFFFF).to_bytes(4, "little")
        return b"".join((header, self._encrypt(suffix + self._padding, plaintext, header), suffix))

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
