"""The local voice server as a client of nobody's making sees it: the handshake, the close codes, what it replays."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, encrypted, pair
from voicegw.adapters.websocket import tls_context
from voicegw.errors import Kicked, VoiceError
from voicegw.secret import Secret
from voicegw.server import VoiceServer
from voicegw.signalling import Credentials
from voicegw.wire.discovery import discovery_request, parse_discovery
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import pack_header

pytestmark = pytest.mark.loopback


class RawClient:
    """A websocket on the server, with nothing that knows the protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, op: int, d: Any) -> None:
        await self.socket.send_str(json.dumps({"op": op, "d": d}))

    async def receive(self, op: int) -> Any:
        """The next message under `op`; others are passed over."""
        while True:
            message = await self.socket.receive(timeout=10)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            if message.type is aiohttp.WSMsgType.TEXT:
                data = json.loads(message.data)
                if data["op"] == op:
                    return data
            elif message.data[2] == op:
                return message.data

    async def closed(self) -> int:
        """The close code."""
        while True:
            message = await self.socket.receive(timeout=10)
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                assert self.socket.close_code is not None
                return self.socket.close_code

    async def identify(self, credentials: Credentials, **changed: Any) -> None:
        fields = {
            "server_id": str(credentials.guild_id),
            "user_id": str(credentials.user_id),
            "session_id": credentials.session_id.reveal(),
            "token": credentials.token.reveal(),
            "max_dave_protocol_version": 1,
        }
        await self.send(Opcode.IDENTIFY, {**fields, **changed})

    async def describe(self, mode: str = "aead_aes256_gcm_rtpsize") -> Any:
        data = {"address": "127.0.0.1", "port": 1, "mode": mode}
        await self.send(Opcode.SELECT_PROTOCOL, {"protocol": "udp", "data": data})
        return await self.receive(Opcode.SESSION_DESCRIPTION)


class Dialler:
    """Opens raw clients."""

    def __init__(self, server: VoiceServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def __call__(self, version: int = 8) -> RawClient:
        url = f"wss://{self.server.endpoint}/?v={version}"
        return RawClient(await self.session.ws_connect(url, ssl=tls_context(self.server.ca_pem)))

    def admit(self, user_id: int = ALICE) -> Credentials:
        return self.server.admit(guild_id=GUILD, channel_id=CHANNEL, user_id=user_id)

    async def identified(self, user_id: int = ALICE) -> tuple[RawClient, Credentials]:
        raw, credentials = await self(), self.admit(user_id)
        await raw.identify(credentials)
        await raw.receive(Opcode.READY)
        return raw, credentials


@pytest.fixture
async def dial(server: VoiceServer) -> AsyncIterator[Dialler]:
    async with aiohttp.ClientSession() as session:
        yield Dialler(server, session)


# -- the handshake


async def test_a_session_has_one_websocket(server: VoiceServer, make_client: MakeClient) -> None:
    """Whoever resumes it has it; the one before, which may not know yet that it lost it, is told."""
    alice = make_client(server, ALICE)
    await alice.connect(CHANNEL)
    before = server._connection(ALICE)
    credentials = alice.credentials
    async with aiohttp.ClientSession() as session:
        url = f"wss://{server.endpoint}/?v=8"
        async with session.ws_connect(url, ssl=alice.tls) as socket:
            asked = {
                "server_id": str(credentials.guild_id),
                "session_id": credentials.session_id.reveal(),
                "token": credentials.token.reveal(),
                "seq_ack": alice.session.shared.sequence.last,
            }
            await socket.send_json({"op": 7, "d": asked})
            while (await socket.receive_json())["op"] != Opcode.RESUMED:
                pass
            assert server._connection(ALICE) is not before
            await alice.wait_for(lambda: alice.session.gateway.last_close_code == 4006)


async def test_the_handshake_comes_in_the_order_that_clients_insist_on(dial: Dialler, server: VoiceServer) -> None:
    bob, _ = await dial.identified(BOB)
    await bob.describe()
    alice, credentials = await dial(), dial.admit()
    hello = await alice.receive(Opcode.HELLO)
    assert hello == {"op": 8, "d": {"v": 8, "heartbeat_interval": 13750.0}}
    await alice.identify(credentials)
    ready = await alice.receive(Opcode.READY)
    assert (ready["d"]["port"], ready["d"]["ip"], ready["seq"]) == (server.udp_port, "127.0.0.1", 1)
    assert ready["d"]["modes"] == ["aead_aes256_gcm_rtpsize", "aead_xchacha20_poly1305_rtpsize"]
    assert (await alice.receive(Opcode.CLIENTS_CONNECT))["d"] == {"user_ids": [str(BOB)]}
    description = await alice.describe()
    assert len(description["d"]["secret_key"]) == 32
    assert description["d"]["dave_protocol_version"] == 1
    external_sender = await alice.receive(Opcode.MLS_EXTERNAL_SENDER)
    assert external_sender[:3] == (4).to_bytes(2, "big") + bytes((25,))
    sent = [record.op for record in server.records(ALICE, direction="out")]
    assert sent == [2, 11, 4, 25]
    assert (await bob.receive(Opcode.CLIENTS_CONNECT))["d"] == {"user_ids": [str(ALICE)]}


async def test_heartbeats_are_echoed_before_and_after_identify(dial: Dialler) -> None:
    raw = await dial()
    await raw.send(Opcode.HEARTBEAT, {"t": 123, "seq_ack": -1})
    assert await raw.receive(Opcode.HEARTBEAT_ACK) == {"op": 6, "d": {"t": 123}}
    await raw.identify(dial.admit())
    await raw.send(Opcode.HEARTBEAT, {"t": 124})
    assert (await raw.receive(Opcode.HEARTBEAT_ACK))["d"] == {"t": 124}


async def test_speaking_is_passed_on_and_told_to_newcomers(dial: Dialler, server: VoiceServer) -> None:
    alice, _ = await dial.identified(ALICE)
    await alice.describe()
    bob, _ = await dial.identified(BOB)
    await bob.describe()
    await alice.send(Opcode.SPEAKING, {"speaking": 5, "delay": 0, "ssrc": 7})
    expected = {"speaking": 5, "ssrc": server.session(ALICE).ssrc, "user_id": str(ALICE)}
    assert (await bob.receive(Opcode.SPEAKING))["d"] == expected
    carol, _ = await dial.identified(3)
    await carol.describe()
    assert (await carol.receive(Opcode.SPEAKING))["d"] == expected


async def test_media_is_encrypted_anew_for_each_member(dial: Dialler, server: VoiceServer) -> None:
    paths, ciphers = [], []
    for user_id, mode in ((ALICE, server.modes[0]), (BOB, server.modes[1])):
        raw, _ = await dial.identified(user_id)
        key = bytes((await raw.describe(mode))["d"]["secret_key"])
        ciphers.append(TransportCipher(mode, Secret(key)))
        path = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        path.settimeout(5)
        path.connect(("127.0.0.1", server.udp_port))
        paths.append(path)
        path.send(discovery_request(server.session(user_id).ssrc))
    loop = asyncio.get_running_loop()
    for path, user_id in zip(paths, (ALICE, BOB), strict=True):
        answer = await loop.run_in_executor(None, path.recv, 2048)
        found = parse_discovery(answer, server.session(user_id).ssrc)
        assert found is not None
        assert (found.address, found.port) == path.getsockname()
    header = pack_header(7, 960, server.session(ALICE).ssrc)
    paths[0].send(ciphers[0].seal(header, b"an end-to-end frame, as far as the server knows"))
    data = await loop.run_in_executor(None, paths[1].recv, 2048)
    assert data[:12] == header
    assert ciphers[1].open(data, 12) == b"an end-to-end frame, as far as the server knows"
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.sendto(ciphers[0].seal(header, b"from another address"), ("127.0.0.1", server.udp_port))
    paths[0].send(bytes(40))
    paths[0].send(ciphers[0].seal(header, b"again"))
    data = await loop.run_in_executor(None, paths[1].recv, 2048)
    assert ciphers[1].open(data, 12) == b"again"
    for path in (*paths, stranger):
        path.close()


# -- close codes, each for its cause


CAUSES: list[tuple[int, str, Any]] = [
    (4001, "an unknown opcode", (77, {})),
    (4002, "no JSON", "{"),
    (4002, "no object", "[]"),
    (4002, "an empty binary frame", b""),
    (4001, "a binary frame of the server's", bytes((25, 1, 2))),
    (4005, "a second Identify", (0, {})),
    (4005, "a Resume after Identify", (7, {})),
    (4012, "an unknown protocol", (1, {"protocol": "webrtc", "data": {"mode": "aead_aes256_gcm_rtpsize"}})),
    (4016, "an unknown mode", (1, {"protocol": "udp", "data": {"mode": "plain"}})),
    (4020, "a heartbeat as before version 8", (3, 1501184119561)),
    (4020, "speaking without flags", (5, {})),
    (4020, "a transition that is no number", (23, {"transition_id": "7"})),
    (4020, "a key package that is none", bytes((26, 1, 2, 3))),
]


@pytest.mark.parametrize(("code", "cause", "message"), CAUSES, ids=[cause for _, cause, _ in CAUSES])
async def test_after_identify_the_socket_is_closed_for(dial: Dialler, code: int, cause: str, message: Any) -> None:
    raw, _ = await dial.identified()
    if isinstance(message, tuple):
        await raw.send(*message)
    elif isinstance(message, str):
        await raw.socket.send_str(message)
    else:
        await raw.socket.send_bytes(message)
    assert await raw.closed() == code


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        (4004, {"token": "wrong"}),
        (4004, {"user_id": str(BOB)}),
        (4006, {"session_id": "unknown"}),
        (4011, {"server_id": "1"}),
        (4017, {"max_dave_protocol_version": 0}),
        (4017, {"max_dave_protocol_version": None}),
    ],
    ids=str,
)
async def test_identify_is_refused_for(dial: Dialler, code: int, changed: dict[str, Any]) -> None:
    raw = await dial()
    await raw.identify(dial.admit(), **changed)
    assert await raw.closed() == code


async def test_other_causes(dial: Dialler, server: VoiceServer) -> None:
    early = await dial()
    await early.send(Opcode.SPEAKING, {"speaking": 1})
    assert await early.closed() == 4003
    binary = await dial()
    await binary.socket.send_bytes(bytes((26, 1)))
    assert await binary.closed() == 4003
    old = await dial(version=7)
    assert await old.closed() == 4020
    alice, credentials = await dial.identified()
    twin = await dial()
    await twin.identify(credentials)
    assert await twin.closed() == 4006
    hurried = await dial()
    for number in range(601):
        await hurried.send(Opcode.HEARTBEAT, {"t": number})
    assert await hurried.closed() == 4021
    await server.disconnect(ALICE)
    assert await alice.closed() == 4014
    bob, _ = await dial.identified(BOB)
    await server.delete_channel(CHANNEL)
    assert await bob.closed() == 4022
    carol, _ = await dial.identified(3)
    await server.crash()
    assert await carol.closed() == 4015


async def test_a_failure_of_the_server_is_4000(
    dial: Dialler, server: VoiceServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raw, _ = await dial.identified()

    def fail(*_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(server.channel(CHANNEL), "speak", fail)
    await raw.send(Opcode.SPEAKING, {"speaking": 1})
    assert await raw.closed() == 4000
    assert "the local voice server failed" in caplog.text


async def test_a_client_without_heartbeats_is_closed_with_4009() -> None:
    async with VoiceServer(heartbeat_interval_s=0.1) as server, aiohttp.ClientSession() as session:
        raw = await Dialler(server, session)()
        assert await raw.closed() == 4009


# -- resume


async def resumed(dial: Dialler, credentials: Credentials, seq_ack: int, **changed: Any) -> RawClient:
    raw = await dial()
    fields = {
        "server_id": str(credentials.guild_id),
        "session_id": credentials.session_id.reveal(),
        "token": credentials.token.reveal(),
        "seq_ack": seq_ack,
    }
    await raw.send(Opcode.RESUME, {**fields, **changed})
    return raw


async def test_a_resume_replays_what_was_missed_after_resumed(dial: Dialler, server: VoiceServer) -> None:
    alice, credentials = await dial.identified()
    await alice.describe()
    seen = int.from_bytes((await alice.receive(Opcode.MLS_EXTERNAL_SENDER))[:2], "big")
    server.drop_socket(ALICE)
    bob, _ = await dial.identified(BOB)
    await bob.describe()
    await bob.send(Opcode.SPEAKING, {"speaking": 1})
    await server.wait_for(lambda: bool(server.records(ALICE, Opcode.SPEAKING, "out")))
    again = await resumed(dial, credentials, seen)
    messages = [json.loads((await again.socket.receive(timeout=5)).data) for _ in range(4)]
    assert [message["op"] for message in messages] == [8, 9, 11, 5]
    assert [message.get("seq") for message in messages] == [None, None, seen + 1, seen + 2]


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        (4006, {"session_id": "unknown"}),
        (4004, {"token": "wrong"}),
        (4011, {"server_id": "1"}),
        (4006, {"seq_ack": 4000}),
    ],
    ids=str,
)
async def test_a_resume_is_refused_for(dial: Dialler, server: VoiceServer, code: int, changed: dict[str, Any]) -> None:
    _, credentials = await dial.identified()
    server.drop_socket(ALICE)
    again = await resumed(dial, credentials, **{"seq_ack": 1, **changed})
    assert await again.closed() == code


async def test_a_session_that_was_left_or_expired_is_not_resumed(dial: Dialler, server: VoiceServer) -> None:
    alice, credentials = await dial.identified()
    await alice.socket.close(code=1000)
    await server.wait_for(lambda: not server.members(CHANNEL))
    again = await resumed(dial, credentials, 1)
    assert await again.closed() == 4006
    async with VoiceServer(resume_window_s=0.05) as short, aiohttp.ClientSession() as session:
        other = Dialler(short, session)
        _, credentials = await other.identified()
        short.drop_socket(ALICE)
        await short.wait_for(lambda: not short.members(CHANNEL))
        late = await resumed(other, credentials, 1)
        assert await late.closed() == 4006


# -- the rest


async def test_open_takes_anybody(make_client: MakeClient) -> None:
    async with VoiceServer(open=True, channel_id=CHANNEL) as server, aiohttp.ClientSession() as session:
        dial = Dialler(server, session)
        raw = await dial()
        anybody = Credentials(GUILD, CHANNEL, ALICE, Secret("any session"), Secret("any token"), server.endpoint)
        await raw.identify(anybody)
        await raw.receive(Opcode.READY)
        assert server.members(CHANNEL) == [ALICE]
        named = await dial()
        await named.identify(anybody, user_id=str(BOB), session_id="other", channel_id="5")
        await named.receive(Opcode.READY)
        assert server.members(5) == [BOB]
        nobody = await dial()
        await nobody.identify(anybody, user_id="nobody")
        assert await nobody.closed() == 4004


async def test_a_page_request_gets_a_word(dial: Dialler, server: VoiceServer) -> None:
    async with dial.session.get(f"https://{server.endpoint}/", ssl=tls_context(server.ca_pem)) as response:
        assert response.status == 426


async def test_a_taken_port_is_our_error(server: VoiceServer) -> None:
    port = int(server.endpoint.rpartition(":")[2])
    for other in (VoiceServer(port=port), VoiceServer(udp_port=server.udp_port)):
        with pytest.raises(VoiceError, match="cannot listen"):
            await other.start()


async def test_a_server_that_crashes_is_come_back_to(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    await server.crash()
    for client in (alice, bob):
        await client.wait_for(lambda client=client: client.way("gateway").count("ready") == 2)  # type: ignore[misc]
    await encrypted(alice, bob)
    assert len(server.records(op=Opcode.RESUMED, direction="out")) == 2


async def test_a_deleted_channel_ends_the_call(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE)
    await client.connect(CHANNEL)
    await server.delete_channel(CHANNEL)
    await client.wait_closed()
    assert isinstance(client.error, Kicked)
    assert client.session.gateway.last_close_code == 4022
