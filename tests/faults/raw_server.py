"""A voice server that says just what a test tells it, byte by byte, and a real client brought before it.

async def story(sim: Simulation) -> None:
    async with scripted(sim) as server:
        call = await dialled(sim, server, phase)      # D: its first dial, U: the dial of its resume
        peer = await server.accept()
        await peer.upgrade()
        peer.say({"op": 8, "d": {"heartbeat_interval": 13750}})
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
import struct
from collections.abc import AsyncIterator
from typing import Any

from voicegw.testing.simulation import SERVER_ADDRESS, SERVER_NAME, SERVER_PORT, SimulatedClient, Simulation

ADDRESS = "66.22.196.66"
CHANNEL = 9
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HELLO: dict[str, Any] = {"op": 8, "d": {"v": 8, "heartbeat_interval": 13750}}


class Peer:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""

    async def request(self) -> bytes:
        """The client's upgrade request."""
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        return self.head

    async def upgrade(self) -> None:
        """Say yes to it."""
        key = next(
            line.partition(b":")[2].strip()
            for line in (await self.request()).split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.answer(101, b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n")

    def answer(self, status: int, headers: bytes = b"", body: bytes = b"") -> None:
        """An HTTP answer."""
        length = b"" if status == 101 else b"Content-Length: %d\r\n" % len(body)
        self.writer.write(b"HTTP/1.1 %d Said\r\n" % status + headers + length + b"\r\n" + body)

    def frame(self, opcode: int, payload: bytes, *, fin: bool = True, flags: int = 0) -> None:
        """One websocket frame, whatever it is."""
        size = len(payload)
        head = bytes(((0x80 if fin else 0) | flags | opcode,))
        if size < 126:
            head += bytes((size,))
        elif size < 1 << 16:
            head += bytes((126,)) + struct.pack(">H", size)
        else:
            head += bytes((127,)) + struct.pack(">Q", size)
        self.writer.write(head + payload)

    def say(self, message: str | bytes | dict[str, Any]) -> None:
        """One message of the voice gateway."""
        if isinstance(message, bytes):
            self.frame(BINARY, message)
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            self.frame(TEXT, text.encode("utf-8", "surrogatepass"))

    def close(self, code: int | None, reason: bytes = b"") -> None:
        """A close frame."""
        self.frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)

    async def next(self) -> tuple[int, bytes]:
        """The client's next frame; (8, b"") where the connection ended without one."""
        try:
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            mask = await self.reader.readexactly(4)
            data = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return CLOSE, b""
        return first & 0x0F, bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))

    async def heard(self, op: int) -> Any:
        """The `d` of the client's next message of this opcode.

        Raises:
            AssertionError: the connection ended before.
        """
        while True:
            opcode, data = await self.next()
            assert opcode != CLOSE, f"closed before op {op}: {data!r}"
            if opcode == TEXT and json.loads(data)["op"] == op:
                return json.loads(data)["d"]

    async def close_code(self) -> int | None:
        """The code that the client closes with, None where it only cuts the connection."""
        while True:
            opcode, data = await self.next()
            if opcode == CLOSE:
                return int.from_bytes(data[:2], "big") if data else None


class RawServer:
    """Listens where clients dial; each connection waits in a queue until it is accepted."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []
        self.dials: list[float] = []

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials.append(asyncio.get_running_loop().time())
        self._peers.append(Peer(reader, writer))
        self._waiting.put_nowait(self._peers[-1])

    async def accept(self) -> Peer:
        """The next connection."""
        return await self._waiting.get()

    def close(self) -> None:
        """End all connections."""
        for peer in self._peers:
            peer.writer.transport.abort()


@contextlib.asynccontextmanager
async def scripted(
    sim: Simulation, address: str = ADDRESS, context: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    """A raw server at `address`; `dialled` leads a client there."""
    server = RawServer()
    sim.network.host(address).set_delay(0.0)
    listener = await asyncio.start_server(server._serve, address, SERVER_PORT, ssl=context, limit=1 << 22)
    try:
        yield server
    finally:
        server.close()
        listener.close()


async def dialled(
    sim: Simulation, phase: str, *addresses: str, user_id: int = 1, **options: Any
) -> tuple[SimulatedClient, asyncio.Task[None]]:
    """A client that dials `addresses`: its first dial in phase D, the dial of its resume in phase U."""
    client = sim.client(user_id, **options)
    wanted = list(addresses or (ADDRESS,))
    if phase == "D":
        sim.network.names[SERVER_NAME] = wanted
        connecting = asyncio.create_task(client.connect(CHANNEL, timeout_s=3600.0))
    else:
        connecting = asyncio.create_task(client.connect(CHANNEL))
        await connecting
        sim.network.names[SERVER_NAME] = wanted
        sim.server.drop_socket(user_id)
        await client.wait_for(lambda: client.states["gateway"] == "resuming.dialling")
    connecting.add_done_callback(lambda done: done.exception())  # whoever looks at it looks later
    return client, connecting


def home_again(sim: Simulation) -> None:
    """The name leads to the good server again."""
    sim.network.names[SERVER_NAME] = [SERVER_ADDRESS]
