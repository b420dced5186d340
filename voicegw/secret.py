"""A value that never prints: tokens, session ids and keys live in it from the edge of the program on."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T", str, bytes)


class Secret(Generic[T]):
    """Holds a secret string or bytes; `reveal()` is the only way to read it.

    `repr`, `str`, `format` and logging show `<secret>`; pickling and copying raise TypeError. Two secrets compare in
    constant time; a secret never equals a bare value, so a comparison cannot leak it into an assertion's message.

    Bytes are kept in a buffer that `wipe` fills with zeros. A string, and whatever `reveal` gave out, is Python's: it
    goes when nobody holds it any more, and its memory is not overwritten.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value: Any = bytearray(value) if isinstance(value, bytes) else value

    def reveal(self) -> T:
        """The bare value, for the one place that puts it on the wire; never keep it in a variable."""
        return bytes(self._value) if isinstance(self._value, bytearray) else self._value  # type: ignore[return-value]

    def view(self) -> memoryview:
        """The bytes where they are, for a library that takes a key without a copy of ours."""
        return memoryview(self._value)

    def digest(self) -> bytes:
        """SHA-256 of it, to know it again by; a guessable secret can be guessed from it."""
        return hashlib.sha256(_as_bytes(self._value)).digest()

    def wipe(self) -> None:
        """The secret is not needed any more: it is empty from here on, its bytes are zeros."""
        if isinstance(self._value, bytearray):
            self._value[:] = bytes(len(self._value))
            self._value = bytearray()
        else:
            self._value = ""

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret) or type(self._value) is not type(other._value):
            return NotImplemented
        return hmac.compare_digest(_as_bytes(self._value), _as_bytes(other._value))

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled or copied")


def _as_bytes(value: str | bytearray) -> bytes | bytearray:
    return value.encode() if isinstance(value, str) else value
