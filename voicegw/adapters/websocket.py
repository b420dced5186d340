"""The voice websocket over aiohttp: verified TLS, no redirects, no proxy from the environment, frames to 1 MiB."""

from __future__ import annotations

import contextlib
import functools
import ssl
from types import SimpleNamespace

import aiohttp

from voicegw.adapters.failures import translate
from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.errors import CertificateRefused, ConnectionClosed, InvalidHandshake, MalformedFrame
from voicegw.secret import Secret

MAX_FRAME_BYTES = 1 << 20
NORMAL, NO_STATUS = 1000, 1005  # RFC 6455; the second is what a close frame without a code means


@functools.lru_cache(maxsize=16)
def tls_context(ca_pem: bytes | None = None) -> ssl.SSLContext:
    """The system's trust, and with `ca_pem` one more authority (for a server of your own).

    One context serves all calls: to read the system's authorities takes longer than all the rest of a connect.

    Raises:
        CertificateRefused: `ca_pem` holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_pem is not None:
        try:
            context.load_verify_locations(cadata=ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise CertificateRefused("the extra CA is not a PEM certificate") from error
    return context


def check_tls_context(context: ssl.SSLContext) -> None:
    """Refuse a context that would not notice a man in the middle.

    Raises:
        CertificateRefused: names or certificates are not checked.
    """
    if not context.check_hostname or context.verify_mode is not ssl.CERT_REQUIRED:
        raise CertificateRefused("the TLS context must check certificates and host names")


class VoiceWebSocket:
    """One open websocket. Reading and writing belong to one task each."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session = session
        self._socket = socket
        self._closing = False

    @classmethod
    async def connect(
        cls, url: str, context: ssl.SSLContext, system: System = THIS_SYSTEM, peer: str = "the voice server"
    ) -> VoiceWebSocket:
        """Dial `url`; errors speak of `peer`.

        Raises:
            CertificateRefused: the server's certificate is not valid for its name.
            InvalidHandshake: TLS or the upgrade failed; redirects are not followed.
            ConnectionFailed: no address, refused, unreachable.
        """
        check_tls_context(context)  # once more: it may have been changed since
        connector = aiohttp.TCPConnector(socket_factory=system.tcp_socket, resolver=aiohttp.ThreadedResolver())
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # whoever dials has a deadline
            trust_env=False,
            trace_configs=[_WITHOUT_REDIRECTS],
        )
        try:
            socket = await session.ws_connect(
                url,
                ssl=context,
                max_msg_size=MAX_FRAME_BYTES,
                autoping=True,
                autoclose=False,
            )
        except BaseException as error:
            await session.close()
            if isinstance(error, Exception):
                translate(error, peer)
            raise
        return cls(session, socket)

    async def receive(self) -> Secret[str] | bytes:
        """The next frame; a text frame may have a key in it, and is given out as a secret.

        Raises:
            ConnectionClosed: there is none; `code` is the close code: the peer's, or ours where the peer broke the
                websocket protocol (1002, 1007, 1009), None where no close frame came.
            MalformedFrame: a frame that is neither text nor binary.
        """
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            return Secret(message.data)
        if message.type is aiohttp.WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is aiohttp.WSMsgType.CLOSE:
            if not self._closing:
                await self.close(message.data or NORMAL)
            raise ConnectionClosed(message.data or NO_STATUS, "the voice websocket was closed")
        if message.type in (aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            raise ConnectionClosed(None, "the voice websocket ended without a close frame")
        if message.type is aiohttp.WSMsgType.ERROR:
            raise ConnectionClosed(self._socket.close_code, "the voice websocket broke")
        raise MalformedFrame("a websocket frame that is neither text nor binary")

    async def send(self, frame: str | bytes | Secret[str]) -> None:
        """Send one frame.

        Raises:
            ConnectionClosed: the websocket is closed or broke.
        """
        if self._closing:
            raise ConnectionClosed(None, "the voice websocket is closing")
        try:
            if isinstance(frame, Secret):
                await self._socket.send_str(frame.reveal())
            elif isinstance(frame, str):
                await self._socket.send_str(frame)
            else:
                await self._socket.send_bytes(frame)
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            raise ConnectionClosed(self._socket.close_code, "the voice websocket is closed") from error

    async def close(self, code: int = NORMAL) -> None:
        """Send a close frame; nothing is sent after it. The peer's is what `receive` brings last."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, RuntimeError):
            await self._socket.send_frame(code.to_bytes(2, "big"), aiohttp.WSMsgType.CLOSE)

    async def release(self) -> None:
        """Free what is left after the peer closed, or drop the connection without a close handshake."""
        await self._session.close()
        await self._socket.close()  # nothing leaves any more; it lets go of its buffers


async def _refuse_redirect(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams
) -> None:
    raise InvalidHandshake("the voice server redirects to another host; not followed")


_WITHOUT_REDIRECTS = aiohttp.TraceConfig()
_WITHOUT_REDIRECTS.on_request_redirect.append(_refuse_redirect)
