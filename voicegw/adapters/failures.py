"""What aiohttp and the system say where a connection cannot be had, as our errors and in words."""

from __future__ import annotations

import os
import ssl
from typing import Any, NoReturn

import aiohttp

from voicegw.errors import CertificateRefused, ConnectionFailed, InvalidHandshake, VoiceError


def translate(error: Exception, peer: str) -> NoReturn:
    """Raise what `error` is in our tree; the words speak of `peer`.

    Raises:
        CertificateRefused: the peer's certificate is not valid for its name.
        InvalidHandshake: TLS failed, or the peer refused the websocket upgrade.
        ConnectionFailed: no address, refused, unreachable, silent.
        Exception: `error` itself, where it is ours already or none of these.
    """
    if isinstance(error, VoiceError):
        raise error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "not valid")
        raise CertificateRefused(f"{peer}'s certificate was refused: {reason}") from error
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        raise InvalidHandshake(f"TLS with {peer} failed") from error
    if isinstance(error, aiohttp.WSServerHandshakeError):
        what = f"{peer} refused the websocket upgrade (HTTP {error.status})"
        raise InvalidHandshake(what, error.status) from error
    if isinstance(error, aiohttp.ClientError | OSError):
        raise ConnectionFailed(f"{peer} cannot be reached: {_brief(error)}") from error
    raise error


def _brief(error: BaseException) -> str:
    inner: Any = getattr(error, "os_error", error)
    number = getattr(inner, "errno", None)
    if number is not None and number > 0:  # asyncio's own words name the call, not what happened
        return os.strerror(number)
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    return getattr(inner, "strerror", None) or type(inner).__name__
