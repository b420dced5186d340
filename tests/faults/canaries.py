"""Every secret of a run, in every form in which it could show."""

from __future__ import annotations

import base64
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from voicegw.secret import Secret

SHORTEST, LONGEST = 8, 100  # what is longer is a whole frame: its secrets are canaries of their own


def forms(value: str | bytes) -> Iterator[str]:
    """Plain, escaped, as hex and base64 at any place of a longer text, as a list of numbers, and all that reversed."""
    data = value.encode() if isinstance(value, str) else value
    for octets in (data, data[::-1]):
        yield octets.hex()
        yield octets.hex().upper()
        yield octets.hex(" ")
        yield octets.hex(":")
        yield repr(list(octets))[1:-1]
        yield ",".join(map(str, octets))
        yield repr(octets)[2:-1]
        yield urllib.parse.quote(octets)
        for shift in range(3):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                text = encode(bytes(shift) + octets).decode().rstrip("=")
                yield text[-(-shift * 8 // 6) : len(text) - 1]  # the parts that do not mix with what stands beside it
        text = octets.decode("latin-1")
        yield text
    if isinstance(value, bytes):
        yield str(int.from_bytes(value, "big"))


class Canaries:
    """What was ever put into a `Secret` while this watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: set[str | bytes] = set()
        self._forms: set[str] = set()
        make = Secret.__init__

        def watched(secret: Secret[Any], value: Any) -> None:
            make(secret, value)
            if SHORTEST <= len(value) <= LONGEST and value not in self.values:
                self.values.add(value)
                self._forms.update(form for form in forms(value) if len(form) >= SHORTEST)

        monkeypatch.setattr(Secret, "__init__", watched)

    def show_in(self, text: str) -> bool:
        """Does any of them?"""
        return any(form in text for form in self._forms)
