"""TLS of the local server: a certificate authority that lives as long as the server, and a leaf for this host."""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

from voicegw.errors import VoiceError

if TYPE_CHECKING:
    import trustme


def make_authority() -> trustme.CA:
    """A fresh authority.

    Raises:
        VoiceError: the extra `demo` is not installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise VoiceError('the local voice server needs an extra: pip install "voicegw[demo]"') from error
    return trustme.CA(organization_name="voicegw local voice server")


@functools.lru_cache(maxsize=8)
def server_context(authority: trustme.CA, *hosts: str) -> ssl.SSLContext:
    """A context with a leaf for `hosts`, localhost and 127.0.0.1."""
    names = dict.fromkeys((*hosts, "localhost", "127.0.0.1"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
