"""Streams from the web, for URLs that users give: http and https only, to public addresses only, redirects too.

The address that was judged is the one that is dialled, so that a name cannot answer differently the second time.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from voicegw.errors import InvalidEndpoint, SourceFailed, SourceRefused
from voicegw.wire.endpoint import check_media_address

SCHEMES: Final = {"http": 80, "https": 443}
TIMEOUT_S: Final = 15.0
MAX_REDIRECTS: Final = 5
MAX_URL: Final = 8192
AGENT: Final = "voicegw"
# What people type goes out in UTF-8 (RFC 3987 section 3.1); what is encoded already stays as it is.
_AS_IT_IS: Final = "".join(map(chr, range(33, 127)))

Resolve = Callable[[str, int], list[str]]


def check_url(url: str) -> SplitResult:
    """The parts of a URL that may be fetched.

    Raises:
        SourceRefused: another scheme, no host, a user in it, a control character.
    """
    if len(url) > MAX_URL or any(ord(letter) < 33 or ord(letter) == 127 for letter in url):
        raise SourceRefused("a URL must not be longer than 8192 letters or have spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SourceRefused("this is no URL") from None
    if parts.scheme not in SCHEMES:
        raise SourceRefused(f"only http and https are fetched, not {parts.scheme[:20] or 'this'!r}")
    if not parts.hostname or port == 0:
        raise SourceRefused("a URL needs a host")
    if parts.username is not None or parts.password is not None:
        raise SourceRefused("a URL with a user name or a password is not fetched")
    return parts


def addresses(host: str, port: int) -> list[str]:
    """What a name stands for."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise SourceFailed(f"{host[:80]!r} cannot be resolved") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Connection(http.client.HTTPConnection):
    """Dials the address that was judged, under the name that was asked for."""

    def __init__(self, parts: SplitResult, address: str, tls: ssl.SSLContext | None) -> None:
        assert parts.hostname is not None
        super().__init__(parts.hostname, parts.port or SCHEMES[parts.scheme], timeout=TIMEOUT_S)
        self._address, self._tls = address, tls
        self.dialled: socket.socket | None = None  # `sock` is forgotten with an answer of unknown length

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), TIMEOUT_S)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)
        self.dialled = self.sock


class WebStream(io.RawIOBase):
    """The body of one GET, as a file that cannot be sought; `content_type` is the server's word for it.

    `length` is None where it has no end that the server knows of, as a live stream.

    A server that says nothing for 15 s has failed. A file whose connection breaks is asked for again from where it
    was, where the server can do that.

    Raises:
        SourceRefused: the URL, or one it leads to, must not be fetched; nothing was connected to.
        SourceFailed: no answer, or another than 200.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        allow_private: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve = addresses,
    ) -> None:
        super().__init__()
        self._connection: _Connection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._url = url
        self._headers = {"User-Agent": AGENT, "Accept": "*/*", **(headers or {})}
        for name, value in self._headers.items():
            if not all(32 <= ord(letter) < 127 for letter in name + value):
                raise SourceRefused("a header must be of ASCII, without control characters")
        self._allow_private = allow_private
        self._tls = ssl_context
        self._resolve = resolve
        self._at = 0
        self._aborted = False
        check_url(url)
        self._body = self._get(0)
        self.content_type = self._body.headers.get_content_type()
        self.length = self._body.length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            count = self._body.readinto(buffer)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if self._aborted:
                return 0
            count = self._again(buffer, error)
        if not count and self._cut_off() and not self._aborted:
            count = self._again(buffer, None)
        self._at += count
        return count

    def abort(self) -> None:
        """End a `read` of another thread."""
        self._aborted = True
        sock = self._connection.dialled if self._connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        """An answer of unknown length holds the socket, whatever becomes of its connection."""
        for held in (self._response, self._connection):
            if held is not None:
                held.close()
        self._response = None

    def _cut_off(self) -> bool:
        return bool(self._body.length)

    def _again(self, buffer: memoryview, error: Exception | None) -> int:
        """Go on behind what came, once."""
        what = "the stream broke off" if error is None else f"the stream broke off: {type(error).__name__}"
        if self._body.headers.get("Accept-Ranges", "") != "bytes":
            raise SourceFailed(what) from error
        self._body = self._get(self._at)
        try:
            return self._body.readinto(buffer)
        except (OSError, http.client.HTTPException) as second:
            raise SourceFailed(what) from second

    def _get(self, start: int) -> http.client.HTTPResponse:
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(url, start)
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.headers.get("Location", ""))
                continue
            if response.status != (206 if start else 200):
                raise SourceFailed(f"the web server answered {response.status} {response.reason[:80]}")
            return response
        raise SourceFailed("the web server redirects without end")

    def _ask(self, url: str, start: int) -> http.client.HTTPResponse:
        parts = check_url(url)
        assert parts.hostname is not None
        tls = None
        if parts.scheme == "https":
            tls = self._tls = self._tls or ssl.create_default_context()
        self._hang_up()
        found = self._resolve(parts.hostname, parts.port or SCHEMES[parts.scheme])
        for address in found:
            try:
                check_media_address(address, self._allow_private)
            except InvalidEndpoint:
                raise SourceRefused(f"{parts.hostname[:80]!r} is not a public address") from None
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_AS_IT_IS)
        headers = {**self._headers, **({"Range": f"bytes={start}-"} if start else {})}
        failed: Exception | None = None
        for address in found[:4]:
            connection = self._connection = _Connection(parts, address, tls)
            try:
                connection.request("GET", path, headers=headers)
                self._response = connection.getresponse()
                return self._response
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                failed = error
        raise SourceFailed(f"the web server cannot be reached: {type(failed).__name__}") from failed
