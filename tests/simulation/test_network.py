"""The in-memory network: streams and datagrams, with what goes wrong on them."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from voicegw.testing.loop import VirtualLoop
from voicegw.testing.network import Host, Network

HERE, THERE = "10.0.0.1", "66.22.196.1"


@pytest.fixture
def network() -> Iterator[Network]:
    loop = VirtualLoop(policy="fifo", limit_s=10_000)
    made = Network(loop, seed=3)
    made.names["voice.test"] = [THERE]
    yield made
    loop.close()


def run(network: Network, story: Any) -> Any:
    """The story, and then an end to all that it left open."""

    async def whole() -> Any:
        result = await story
        for connection in list(network.connections):
            connection.reset()
        await asyncio.sleep(10)
        return result

    return network.loop.run_until_complete(whole())


async def echo(network: Network) -> asyncio.AbstractServer:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    network.host(THERE)
    return await asyncio.start_server(serve, THERE, 443)


async def dial(network: Network) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = network.host(HERE).tcp_socket((socket.AF_INET,))
    await network.loop.sock_connect(sock, (THERE, 443))
    return await asyncio.open_connection(sock=sock)


def test_a_stream_carries_bytes_both_ways_after_its_delay(network: Network) -> None:
    async def story() -> None:
        server = await echo(network)
        reader, writer = await dial(network)
        begin = network.loop.time()
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        assert len(await reader.read(-1)) == 1_000_000
        assert network.loop.time() - begin >= 0.04
        writer.close()
        await writer.wait_closed()
        server.close()
        await asyncio.sleep(1)
        assert network.open_sockets == []

    run(network, story())


def test_loss_delays_a_stream_and_loses_nothing(network: Network) -> None:
    async def story() -> float:
        await echo(network)
        reader, writer = await dial(network)
        network.host(HERE).tcp_out.loss = 0.3
        begin = network.loop.time()
        for number in range(50):
            writer.write(b"%03d" % number)
        writer.write_eof()
        assert await reader.read(-1) == b"".join(b"%03d" % number for number in range(50))
        writer.close()
        return network.loop.time() - begin

    assert run(network, story()) > 1.0


def test_a_reset_is_told_and_a_silence_is_not(network: Network) -> None:
    async def story() -> None:
        await echo(network)
        reader, writer = await dial(network)
        next(iter(network.connections)).reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
        reader, writer = await dial(network)
        next(reversed(network.connections)).silence()
        writer.write(b"anybody?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 60)
        with pytest.raises(OSError, match="timed out"):
            await reader.read(1)
        assert network.loop.now > 1900

    run(network, story())


def test_a_reader_that_does_not_read_stops_the_writer(network: Network) -> None:
    async def story() -> None:
        accepted: list[asyncio.StreamWriter] = []
        network.host(THERE)

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append(writer)
            writer.transport.pause_reading()  # type: ignore[attr-defined]

        await asyncio.start_server(accept, THERE, 443)
        _, writer = await dial(network)
        await asyncio.sleep(1)

        async def write_on() -> None:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write_on(), 30)
        assert writer.transport.get_write_buffer_size() < 200_000
        accepted[0].transport.resume_reading()  # type: ignore[attr-defined]
        await writer.drain()
        writer.close()

    run(network, story())


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda network: None, ConnectionRefusedError),
        (lambda network: network.black_holes.add(THERE), TimeoutError),
        (lambda network: network.host(HERE).fail("connect", errno.ENETUNREACH), OSError),
    ],
)
def test_dials_fail_as_they_do_in_the_world(network: Network, prepare: Any, error: type[Exception]) -> None:
    async def story() -> None:
        network.host(THERE)
        prepare(network)
        with pytest.raises(error):
            await dial(network)

    run(network, story())


def test_names_that_are_not_known_are_not_found(network: Network) -> None:
    async def story() -> None:
        assert (await network.loop.getaddrinfo("voice.test", 443))[0][4] == (THERE, 443)
        with pytest.raises(socket.gaierror):
            await network.loop.getaddrinfo("other.test", 443)

    run(network, story())


class Datagrams:
    """Two sockets, and what one heard of the other."""

    def __init__(self, network: Network) -> None:
        self.here, self.there = network.host(HERE), network.host(THERE)
        self.network = network
        self.listening: Any = self.there.udp_socket(socket.AF_INET)
        self.listening.bind((THERE, 0))
        self.sending: Any = self.here.udp_socket(socket.AF_INET)
        self.sending.connect(self.listening.getsockname())
        self.heard: list[tuple[bytes, tuple[str, int]]] = []
        network.loop.add_reader(self.listening.fileno(), lambda: self.heard.append(self.listening.recvfrom(2048)))

    async def send(self, count: int) -> list[int]:
        for number in range(count):
            self.sending.send(number.to_bytes(2, "big"))
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        return [int.from_bytes(data, "big") for data, _ in self.heard]


@pytest.mark.parametrize("kind", ["loss", "duplicate", "reorder", "burst", "corrupt", "jitter_s", "down"])
def test_datagrams_suffer_as_their_link_says(network: Network, kind: str) -> None:
    async def story() -> list[int]:
        pair = Datagrams(network)
        setattr(pair.here.udp_out, kind, True if kind == "down" else 0.3)
        return await pair.send(200)

    heard = run(network, story())
    expected = list(range(200))
    if kind == "down":
        assert heard == []
    elif kind in ("loss", "burst"):
        assert set(heard) < set(expected)
        assert (100 if kind == "loss" else 5) < len(heard) < 180
    elif kind == "duplicate":
        assert sorted(set(heard)) == expected
        assert 240 < len(heard) < 280
    elif kind == "corrupt":
        assert len(heard) == 200
        assert 40 < sum(one != other for one, other in zip(heard, expected, strict=True)) < 80
    else:
        assert sorted(heard) == expected
        assert heard != expected


def test_a_rebound_nat_shows_another_port_and_the_old_one_is_dead(network: Network) -> None:
    async def story() -> None:
        pair = Datagrams(network)
        await pair.send(1)
        pair.here.rebind()
        await pair.send(1)
        (_, before), (_, after) = pair.heard
        assert before[0] == after[0]
        assert before[1] != after[1]
        pair.listening.sendto(b"old", before)
        pair.listening.sendto(b"new", after)
        await asyncio.sleep(1)
        assert pair.sending.recv(10) == b"new"
        with pytest.raises(BlockingIOError):
            pair.sending.recv(10)

    run(network, story())


def test_a_connected_socket_does_not_hear_strangers(network: Network) -> None:
    async def story() -> None:
        pair = Datagrams(network)
        network.forge(("66.22.196.2", 1), pair.sending.getsockname(), b"forged")
        network.forge(pair.listening.getsockname(), pair.sending.getsockname(), b"spoofed source")
        await asyncio.sleep(1)
        assert pair.sending.recv(100) == b"spoofed source"
        assert network.counters["datagrams of strangers"] == 1

    run(network, story())


def test_calls_fail_as_often_as_they_are_told(network: Network) -> None:
    host: Host = network.host(HERE)
    host.fail("socket", errno.EMFILE, times=2, after=1)
    host.udp_socket(socket.AF_INET).close()
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files"):
            host.udp_socket(socket.AF_INET)
    host.udp_socket(socket.AF_INET).close()


def test_real_tls_runs_over_it(network: Network) -> None:
    import trustme

    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("voice.test").configure_cert(server_side)
    client_side = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    network.tls = True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    async def story() -> None:
        network.host(THERE)
        await asyncio.start_server(serve, THERE, 443, ssl=server_side)
        for name, good in (("voice.test", True), ("other.test", False)):
            sock = network.host(HERE).tcp_socket((socket.AF_INET,))
            await network.loop.sock_connect(sock, (THERE, 443))
            dialling = asyncio.open_connection(sock=sock, ssl=client_side, server_hostname=name)
            if not good:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await dialling
                continue
            reader, writer = await dialling
            writer.write(b"hello")
            assert await reader.read(-1) == b"hello"
            writer.close()
            await writer.wait_closed()

    run(network, story())
