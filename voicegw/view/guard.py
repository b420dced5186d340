"""Who may look at the view: who asks for localhost by name, or who has the token.

A page of somebody else's that is open in the same browser can send requests to this host's ports. It cannot read what
they bring, unless its own name is made to lead here (DNS rebinding): then the Host header is that name.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from voicegw.secret import Secret

LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_local(host: str) -> bool:
    """Can only this machine reach what listens on `host`?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """With a token who has it may look, as a cookie or a bearer; without, who asks this host under its own names.

    `cookie` is its name: a browser does not tell the ports of a host apart.
    """

    def __init__(self, host: str, token: Secret[str] | None) -> None:
        self.cookie = "voicegw-view"
        self._names = LOCAL | {host.lower()}
        self._token = token

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse, or hand on."""
        refused = self._refuse(request)
        if refused is not None:
            refused.headers.update(HEADERS)
            return refused
        return await handler(request)

    def _refuse(self, request: web.Request) -> web.Response | None:
        if self._token is None:
            if _name_of(request.headers.get("Host", "")) not in self._names:
                return web.Response(
                    status=403, text="this view answers to localhost only; for others give it a token\n"
                )
        elif not self._knows(request):
            if self._is_token(request.query.get("token", "")):  # once, from the URL that was handed out
                welcome = web.Response(status=303, headers={"Location": request.path})
                welcome.set_cookie(self.cookie, request.query["token"], httponly=True, samesite="Strict", path="/")
                return welcome
            return web.Response(status=401, text="this view wants its token\n", headers={"WWW-Authenticate": "Bearer"})
        return web.Response(status=403, text="another site may not ask this\n") if _foreign(request) else None

    def _knows(self, request: web.Request) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        bearer = given if kind.lower() == "bearer" else ""
        return self._is_token(bearer) or self._is_token(request.cookies.get(self.cookie, ""))

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(
            given.encode(errors="replace"), self._token.reveal().encode()
        )


def _foreign(request: web.Request) -> bool:
    """Does a page of another site ask, other than by a link that somebody has followed?"""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
        return True
    site, mode = (request.headers.get(f"Sec-Fetch-{name}") for name in ("Site", "Mode"))
    return site in ("cross-site", "same-site") and mode != "navigate"


def _name_of(host: str) -> str:
    """The name in a Host header, without the port; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
