"""What several fault tests look at."""

from __future__ import annotations

from typing import Any

import pytest

from voicegw.secret import Secret
from voicegw.wire.encryption import TransportCipher


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Every (key, nonce) that a client seals with, in order; none may come twice."""
    keys: dict[int, bytes] = {}
    kept: list[TransportCipher] = []
    used: list[tuple[bytes, bytes]] = []
    seen: set[tuple[bytes, bytes]] = set()
    make, seal = TransportCipher.__init__, TransportCipher.seal

    def noted(self: TransportCipher, mode: str, key: Secret[bytes], direction: Any = "client", **more: Any) -> None:
        make(self, mode, key, direction, **more)
        if direction == "client":
            keys[id(self)] = key.reveal()
            kept.append(self)  # so that no other cipher gets its id

    def counted(self: TransportCipher, *arguments: Any) -> bytes:
        datagram = seal(self, *arguments)
        if id(self) in keys:
            pair = (keys[id(self)], datagram[-4:])
            assert pair not in seen, "a nonce is used twice"
            seen.add(pair)
            used.append(pair)
        return datagram

    monkeypatch.setattr(TransportCipher, "__init__", noted)
    monkeypatch.setattr(TransportCipher, "seal", counted)
    return used
