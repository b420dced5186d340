"""The hands: UDP, timers and the websocket's edge, where other libraries' errors become ours."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trustme
from aiohttp import web

from voicegw.adapters.timers import Timers
from voicegw.adapters.udp import VoiceUdp
from voicegw.adapters.websocket import MAX_FRAME_BYTES, VoiceWebSocket, check_tls_context, tls_context
from voicegw.effects import ArmTimer
from voicegw.errors import (
    CertificateRefused,
    ConnectionClosed,
    ConnectionFailed,
    InvalidHandshake,
    MalformedFrame,
    UdpBlocked,
)
from voicegw.secret import Secret
from voicegw.testing.loop import VirtualLoop

pytestmark = pytest.mark.loopback


# -- UDP


class Peer:
    """The other end."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5)
        self.address: tuple[str, int] = self.socket.getsockname()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.socket.close()


@pytest.mark.parametrize("proactor", [False, True])
async def test_datagrams_go_both_ways(peer: Peer, monkeypatch: pytest.MonkeyPatch, proactor: bool) -> None:
    loop = asyncio.get_running_loop()
    got: list[bytes] = []
    complete = asyncio.Event()

    def take(data: bytes) -> None:
        got.append(data)
        if len(got) == 500:
            complete.set()

    if proactor:

        def no_readers(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_reader", no_readers)
    path = VoiceUdp(loop, peer.address, take)
    monkeypatch.undo()
    assert path.send(b"hello")
    data, address = peer.socket.recvfrom(100)
    assert (data, address) == (b"hello", ("127.0.0.1", path.local_port))
    for number in range(500):  # far more than one a wake-up
        peer.socket.sendto(number.to_bytes(2, "big"), address)
    await asyncio.wait_for(complete.wait(), 10)
    assert got == [number.to_bytes(2, "big") for number in range(500)]
    assert path.received == 500
    path.close()
    path.close()
    assert not path.send(b"after the end")
    assert path.refused == {"EBADF": 1}


async def test_strangers_are_not_heard(peer: Peer) -> None:
    got: list[bytes] = []
    heard = asyncio.Event()

    def take(data: bytes) -> None:
        got.append(data)
        heard.set()

    path = VoiceUdp(asyncio.get_running_loop(), peer.address, take)
    stranger = Peer()
    stranger.socket.sendto(b"from a stranger", ("127.0.0.1", path.local_port))
    peer.socket.sendto(b"from the server", ("127.0.0.1", path.local_port))
    await asyncio.wait_for(heard.wait(), 5)
    assert got == [b"from the server"]
    stranger.socket.close()
    path.close()


async def test_a_closed_peer_is_survived(peer: Peer) -> None:
    path = VoiceUdp(asyncio.get_running_loop(), peer.address, lambda data: None)
    peer.socket.close()
    for _ in range(3):
        path.send(b"x")
        await asyncio.sleep(0)
    assert set(path.refused) <= {"ECONNREFUSED"}
    path.close()


async def test_no_socket_and_no_route_are_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(UdpBlocked, match="no UDP route") as blocked:
        VoiceUdp(loop, ("255.255.255.255", 9), lambda data: None)
    assert blocked.value.stage == "route"

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("voicegw.adapters.udp.socket.socket", none_left)
    with pytest.raises(ConnectionFailed, match="Too many open files"):
        VoiceUdp(loop, ("127.0.0.1", 9), lambda data: None)


# -- timers


async def test_timers_fire_once_with_the_time_that_they_were_armed_for() -> None:
    loop = asyncio.get_running_loop()
    fired: list[tuple[str, float]] = []
    done = asyncio.Event()

    def fire(name: str, at: float) -> None:
        fired.append((name, at))
        if name == "last":
            done.set()

    timers = Timers(loop, fire)
    now = loop.time()
    timers.arm(ArmTimer("replaced", now, 0.0, False))
    timers.arm(ArmTimer("replaced", now + 0.001, 0.001, False))
    timers.arm(ArmTimer("cancelled", now, 0.0, False))
    timers.arm(ArmTimer("spread", now + 0.002, 0.002, True))
    timers.arm(ArmTimer("last", now + 0.003, 0.003, False))
    timers.cancel("cancelled")
    timers.cancel("unknown")
    assert len(timers) == 3
    await asyncio.wait_for(done.wait(), 5)
    assert sorted(fired) == [("last", now + 0.003), ("replaced", now + 0.001), ("spread", now + 0.002)]
    timers.arm(ArmTimer("never", now + 1000, 1000, False))
    timers.cancel_all()
    assert len(timers) == 0


@pytest.mark.parametrize(("stall_s", "first"), [(5.0, "answer"), (0.5, "timeout")], ids=["a stall", "no stall"])
def test_a_timer_that_comes_late_gives_way_to_what_has_arrived(stall_s: float, first: str) -> None:
    loop = VirtualLoop(policy="fifo")
    seen: list[str] = []
    timers = Timers(loop, lambda name, at: seen.append(name))

    def stall() -> None:
        loop.now += stall_s  # meanwhile an answer has come, which its reader hands on in a step of its own
        loop.call_soon(loop.call_soon, seen.append, "answer")

    timers.arm(ArmTimer("timeout", loop.time() + 1.0, 1.0, False))
    loop.call_at(loop.time() + 0.5, stall)
    loop.run_until_complete(asyncio.sleep(10))
    assert seen[0] == first
    assert sorted(seen) == ["answer", "timeout"]
    assert len(timers) == 0
    loop.close()


# -- the websocket

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def serve(authority: trustme.CA) -> AsyncIterator[Serve]:
    """Serves one handler over TLS; gives its URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        application = web.Application()
        application.router.add_get("/", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        runners.append(runner)
        return f"wss://127.0.0.1:{runner.addresses[0][1]}/?v=8"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    return tls_context(authority.cert_pem.bytes())


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503, 200])
async def test_a_refused_upgrade_is_an_invalid_handshake(serve: Serve, trusting: ssl.SSLContext, status: int) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status, text="<html>no</html>")

    with pytest.raises(InvalidHandshake, match=str(status)):
        await VoiceWebSocket.connect(await serve(refuse), trusting)


async def test_a_redirect_is_not_followed(serve: Serve, trusting: ssl.SSLContext) -> None:
    visits = []

    async def other(request: web.Request) -> web.StreamResponse:
        visits.append(request)
        return web.Response()

    elsewhere = await serve(other)

    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(elsewhere.replace("wss", "https"))

    with pytest.raises(InvalidHandshake, match="redirects"):
        await VoiceWebSocket.connect(await serve(redirect), trusting)
    assert visits == []


async def test_an_unknown_authority_and_a_wrong_name_are_refused(serve: Serve, trusting: ssl.SSLContext) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        raise AssertionError("nothing may be asked before the certificate is checked")

    url = await serve(never)
    with pytest.raises(CertificateRefused, match="certificate was refused"):
        await VoiceWebSocket.connect(url, tls_context())
    with pytest.raises(CertificateRefused, match="certificate was refused"):
        await VoiceWebSocket.connect(url.replace("127.0.0.1", "localhost"), trusting)


async def test_nobody_there_is_a_failed_connection(trusting: ssl.SSLContext) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"wss://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(ConnectionFailed, match="cannot be reached") as caught:
            await VoiceWebSocket.connect(url, trusting)
    assert not isinstance(caught.value, InvalidHandshake)


async def test_a_server_without_tls_is_an_invalid_handshake(trusting: ssl.SSLContext) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"wss://127.0.0.1:{plain.sockets[0].getsockname()[1]}/"
    with pytest.raises(ConnectionFailed):
        await VoiceWebSocket.connect(url, trusting)
    plain.close()
    await plain.wait_closed()


async def test_frames_arrive_and_the_close_code_is_told(serve: Serve, trusting: ssl.SSLContext) -> None:
    async def talk(request: web.Request) -> web.StreamResponse:
        peer = web.WebSocketResponse()
        await peer.prepare(request)
        await peer.send_str("text")
        await peer.send_bytes(b"bytes")
        assert (await peer.receive()).data == "answer"
        assert (await peer.receive()).data == b"answer"
        await peer.close(code=4014)
        return peer

    websocket = await VoiceWebSocket.connect(await serve(talk), trusting)
    assert [await websocket.receive(), await websocket.receive()] == [Secret("text"), b"bytes"]
    await websocket.send("answer")
    await websocket.send(b"answer")
    with pytest.raises(ConnectionClosed) as caught:
        await websocket.receive()
    assert caught.value.code == 4014
    with pytest.raises(ConnectionClosed):
        await websocket.send("too late")
    await websocket.close()
    await websocket.release()


async def test_a_frame_above_the_limit_ends_the_connection(serve: Serve, trusting: ssl.SSLContext) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        peer = web.WebSocketResponse()
        await peer.prepare(request)
        await peer.send_str("a" * (MAX_FRAME_BYTES - 1))
        await peer.send_str("a" * (MAX_FRAME_BYTES + 1))
        await peer.receive()
        return peer

    websocket = await VoiceWebSocket.connect(await serve(flood), trusting)
    received = await websocket.receive()
    assert isinstance(received, Secret)
    assert len(received.reveal()) == MAX_FRAME_BYTES - 1
    with pytest.raises((ConnectionClosed, MalformedFrame)):
        await websocket.receive()
    await websocket.release()


def test_a_context_that_would_not_notice_is_refused() -> None:
    careless = ssl.create_default_context()
    careless.check_hostname = False
    with pytest.raises(CertificateRefused, match="must check"):
        check_tls_context(careless)
    careless.verify_mode = ssl.CERT_NONE
    with pytest.raises(CertificateRefused, match="must check"):
        check_tls_context(careless)
    check_tls_context(tls_context())


@pytest.mark.parametrize("pem", [b"no certificate", b"\xff\xfe", b""])
def test_an_authority_that_is_none_is_refused(pem: bytes) -> None:
    with pytest.raises(CertificateRefused, match="not a PEM certificate"):
        tls_context(pem)
