"""What a fleet says by NATS about calls is sealed: tokens, session ids, what is played, speech."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voicegw.errors import FleetError, FrozenCallError
from voicegw.frozen import FleetKey

ENVIRONMENT: Final = "VOICEGW_FLEET_KEY"
NONCE_BYTES: Final = 12
_BLOB: Final = "\0blob"


class Seal:
    """Encrypts messages and documents under a key that is derived from the fleet's.

    What something is `about`, its subject or key, is authenticated with it: nothing can be put in another place.
    """

    def __init__(self, keys: Sequence[FleetKey]) -> None:
        self.keys = tuple(keys)
        self._ciphers = [AESGCM(_derived(key)) for key in self.keys]

    def close(self, message: dict[str, Any], about: str) -> bytes:
        """JSON, in which `bytes` values of the top level are carried as they are, sealed."""
        blobs = {name: value for name, value in message.items() if isinstance(value, bytes)}
        plain = {name: value for name, value in message.items() if name not in blobs}
        plain[_BLOB] = [(name, len(value)) for name, value in blobs.items()]
        head = json.dumps(plain, separators=(",", ":")).encode()
        nonce = secrets.token_bytes(NONCE_BYTES)
        content = b"".join((len(head).to_bytes(4, "big"), head, *blobs.values()))
        return nonce + self._ciphers[0].encrypt(nonce, content, about.encode())

    def open(self, data: bytes, about: str) -> dict[str, Any]:
        """The message.

        Raises:
            FleetError: it was not sealed under this key, or for another place.
        """
        content = None
        for cipher in self._ciphers:
            with contextlib.suppress(InvalidTag, ValueError):
                content = cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], about.encode())
                break
        if content is None:
            raise FleetError(f"{about}: not sealed with this fleet's key; do all of its parts have the same?")
        length = 4 + int.from_bytes(content[:4], "big")
        message: dict[str, Any] = json.loads(content[4:length])
        for name, size in message.pop(_BLOB):
            message[name] = content[length : length + size]
            length += size
        return message


def _derived(key: FleetKey) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"voicegw fleet messages").derive(key.secret.reveal())


def fleet_keys(file: Path | None = None) -> list[FleetKey]:
    """The keys in `file`, one a line, else in VOICEGW_FLEET_KEY; `voicegw fleet key` makes one.

    The first seals, all of them open: a new key is added behind the old one everywhere, then put first everywhere.

    Raises:
        FleetError: there is none, or it is none.
    """
    where = str(file) if file is not None else ENVIRONMENT
    text = file.read_text(encoding="utf-8") if file is not None else os.environ.get(ENVIRONMENT, "")
    lines = text.split()
    if not lines:
        raise FleetError(f"no fleet key in {where}; `voicegw fleet key` makes one")
    try:
        return [FleetKey.from_text(line) for line in lines]
    except FrozenCallError as error:
        raise FleetError(f"{where}: {error}") from None
