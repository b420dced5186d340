"""What the receiving drivers have in common: sealed packets of many users, at the pace in which they were spoken."""

from __future__ import annotations

import json
import struct
import sys
from typing import Any

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

AES, XCHACHA = "aead_aes256_gcm_rtpsize", "aead_xchacha20_poly1305_rtpsize"
KEY = bytes(range(32))
SLOT_S = 0.02


def orders() -> dict[str, Any]:
    """What to do: `users`, `seconds`, `mode`, `packets` (a file of Opus packets in hex), `libopus`."""
    read: dict[str, Any] = json.loads(sys.argv[1])
    with open(read["packets"], encoding="ascii") as file:
        read["packets"] = [bytes.fromhex(line) for line in file]
    return read


def datagrams(told: dict[str, Any]) -> list[list[bytes]]:
    """For every 20 ms one datagram of each user."""
    if told["mode"] == AES:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        gcm = AESGCM(KEY)

        def seal(nonce: bytes, frame: bytes, header: bytes) -> bytes:
            return gcm.encrypt(nonce + bytes(8), frame, header)
    else:

        def seal(nonce: bytes, frame: bytes, header: bytes) -> bytes:
            return crypto_aead_xchacha20poly1305_ietf_encrypt(frame, header, nonce + bytes(20), KEY)

    packets, users, count = told["packets"], told["users"], 0
    rows = []
    for step in range(round(told["seconds"] / SLOT_S)):
        row = []
        for user in range(1, users + 1):
            header = struct.pack(">BBHII", 0x80, 0x78, step & 0xFFFF, step * 960 & 0xFFFFFFFF, user)
            nonce = count.to_bytes(4, "little")
            count += 1
            row.append(header + seal(nonce, packets[(step + user) % len(packets)], header) + nonce)
        rows.append(row)
    return rows
