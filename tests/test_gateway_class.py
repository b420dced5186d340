"""DiscordGatewayVoice, Kokoro and VoiceClient under their old names: each method is seen on the server's side."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, encrypted, pair
from voicegw.client import VoiceClient
from voicegw.effects import Notice, Resumed
from voicegw.errors import (
    ConnectionClosed,
    ConnectionFailed,
    EventNotAllowed,
    InvalidHandshake,
    VoiceError,
    WebSocketProtocolError,
)
from voicegw.gateway import DiscordGatewayVoice
from voicegw.kokoro import Kokoro
from voicegw.media.sources import ToneSource
from voicegw.server import VoiceServer
from voicegw.wire.opcodes import Opcode

pytestmark = pytest.mark.loopback


def asked(server: VoiceServer, op: int, user_id: int = ALICE) -> list[Any]:
    """What the server got from a user under one opcode."""
    return [record.data for record in server.records(user_id, op, "in")]


@pytest.fixture
async def client(server: VoiceServer, make_client: MakeClient) -> VoiceClient:
    connected = make_client(server, ALICE)
    await connected.connect(CHANNEL)
    return connected


def test_opcodes_have_their_names() -> None:
    for opcode in Opcode:
        if hasattr(DiscordGatewayVoice, opcode.name):
            assert getattr(DiscordGatewayVoice, opcode.name) == opcode
    old = {"INVALIDATE_SESSION": 9, "CLIENT_CONNECT": 12, "CLIENT_DISCONNECT": 13, "RESUMED": 9, "CLIENTS_CONNECT": 11}
    for name, value in old.items():
        assert getattr(DiscordGatewayVoice, name) == value
    named = {value for name, value in vars(DiscordGatewayVoice).items() if name.isupper()}
    assert named >= (set(range(32)) - {10})


async def test_start_and_connect(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE, channel_id=CHANNEL)
    gateway = client.gateway
    assert (gateway.client, gateway.kokoro, gateway.websocket) == (client, None, None)
    assert gateway.latency == Kokoro.DEFAULT_LATENCY
    await gateway.start(asyncio.get_running_loop())
    assert gateway.loop is asyncio.get_running_loop()
    assert isinstance(gateway.kokoro, Kokoro)
    assert not gateway.kokoro.beating
    await gateway.connect()
    assert server.members(CHANNEL) == [ALICE]
    assert gateway.websocket is not None
    assert gateway.kokoro.beating
    await server.wait_for(lambda: len(asked(server, Opcode.HEARTBEAT)) == 1)
    await client.wait_for(lambda: gateway.latency != Kokoro.DEFAULT_LATENCY)
    assert 0 <= gateway.latency < 5
    other = asyncio.new_event_loop()
    with pytest.raises(EventNotAllowed):
        await gateway.start(other)
    other.close()


async def test_connect_errors_are_what_the_old_names_say(make_client: MakeClient, server: VoiceServer) -> None:
    assert issubclass(ConnectionFailed, OSError)
    assert issubclass(ConnectionClosed, ConnectionError)
    for error in (ConnectionFailed, ConnectionClosed, WebSocketProtocolError, InvalidHandshake):
        assert issubclass(error, VoiceError)
    client = make_client(server, ALICE, channel_id=CHANNEL, ca_pem=None)
    with pytest.raises(OSError, match="certificate"):
        await client.gateway.connect()


async def test_close_leaves_the_channel(server: VoiceServer, client: VoiceClient) -> None:
    await client.gateway.close("arguments", mean="nothing")
    assert server.members(CHANNEL) == []
    assert client.gateway.websocket is None
    await client.gateway.close()


async def test_send_as_json_arrives_and_never_raises(
    server: VoiceServer, make_client: MakeClient, client: VoiceClient
) -> None:
    await client.gateway.send_as_json({"op": 16, "d": {"about": "this"}})
    await server.wait_for(lambda: asked(server, Opcode.VOICE_BACKEND_VERSION) == [{"about": "this"}])
    await client.close()
    await client.gateway.send_as_json({"op": 16, "d": {}})
    await make_client(server, BOB).gateway.send_as_json({"op": 16, "d": {}})
    assert len(asked(server, Opcode.VOICE_BACKEND_VERSION)) == 1


async def test_repr_says_where_it_is_and_nothing_secret(server: VoiceServer, client: VoiceClient) -> None:
    shown = repr(client.gateway)
    assert "ready" in shown
    assert str(GUILD) in shown
    assert "attempt 1" in shown
    credentials = client.credentials
    for text in (
        shown,
        repr(client),
        repr(credentials),
        repr(client.session.shared.credentials),
        repr(client.gateway.kokoro),
    ):
        for secret in (credentials.token.reveal(), credentials.session_id.reveal()):
            assert secret not in text


async def test_identify_sends_op_0(server: VoiceServer, client: VoiceClient) -> None:
    client.gateway._identify()
    await server.wait_for(lambda: len(asked(server, Opcode.IDENTIFY, 0)) + len(asked(server, Opcode.IDENTIFY)) >= 2)
    identify = server.records(op=Opcode.IDENTIFY, direction="in")[-1].data
    assert isinstance(identify, dict)
    assert identify["max_dave_protocol_version"] == 1
    assert (identify["server_id"], identify["user_id"]) == (str(GUILD), str(ALICE))
    await client.wait_for(lambda: client.session.gateway.last_close_code == 4005)


async def test_resume_sends_op_7(server: VoiceServer, client: VoiceClient) -> None:
    client.gateway._resume()
    await server.wait_for(lambda: len(server.records(op=Opcode.RESUME, direction="in")) == 1)
    data = server.records(op=Opcode.RESUME, direction="in")[0].data
    assert isinstance(data, dict)
    assert data["seq_ack"] == client.session.shared.sequence.last


async def test_select_protocol_sends_op_1(server: VoiceServer, client: VoiceClient) -> None:
    client.gateway._select_protocol("203.0.113.7", 50004)
    await server.wait_for(lambda: len(asked(server, Opcode.SELECT_PROTOCOL)) == 2)
    data = asked(server, Opcode.SELECT_PROTOCOL)[1]["data"]
    assert data == {"address": "203.0.113.7", "port": 50004, "mode": client.session.gateway.mode}
    await server.wait_for(lambda: len(server.records(ALICE, Opcode.SESSION_DESCRIPTION, "out")) == 2)


async def test_beat_sends_op_3(server: VoiceServer, client: VoiceClient) -> None:
    await server.wait_for(lambda: len(asked(server, Opcode.HEARTBEAT)) == 1)
    client.gateway._beat()
    await server.wait_for(lambda: len(asked(server, Opcode.HEARTBEAT)) == 2)
    first, second = asked(server, Opcode.HEARTBEAT)
    assert second["t"] > first["t"]
    assert second["seq_ack"] == client.session.shared.sequence.last


async def test_initial_connection_takes_ready_and_opens_the_path(server: VoiceServer, make_client: MakeClient) -> None:
    server.faults.withhold.add(Opcode.READY)
    client = make_client(server, ALICE)
    connecting = asyncio.create_task(client.connect(CHANNEL))
    await server.wait_for(lambda: bool(server.records(ALICE, Opcode.READY, "out")))
    assert client.states["gateway"] == "identifying.awaiting_ready"
    client.gateway._initial_connection(server.records(ALICE, Opcode.READY, "out")[0].data)
    await connecting
    assert server.session(ALICE).counters["discoveries"] == 1
    assert client.states["gateway"] == "ready"


async def test_send_silente_packet_is_one_frame_of_silence(server: VoiceServer, make_client: MakeClient) -> None:
    alice, _ = await pair(make_client, server)
    alice.gateway._send_silente_packet()  # held: nobody speaks
    playback = alice.play(ToneSource(440))
    await server.wait_for(lambda: server.session(ALICE).counters["media"] > 2)
    assert server.session(ALICE).counters["silence"] == 0
    alice.gateway._send_silente_packet()
    await server.wait_for(lambda: server.session(ALICE).counters["silence"] == 1)
    playback.stop()


async def test_set_speaking_sends_op_5(server: VoiceServer, client: VoiceClient) -> None:
    client.gateway._set_speaking(True)
    await server.wait_for(lambda: len(asked(server, Opcode.SPEAKING)) == 2)
    client.gateway._set_speaking(True)
    client.gateway._set_speaking(False)  # the one before has not left yet: only the last is worth sending
    ssrc = server.session(ALICE).ssrc
    expected = [{"speaking": flags, "delay": 0, "ssrc": ssrc} for flags in (0, 1, 0)]
    await server.wait_for(lambda: asked(server, Opcode.SPEAKING) == expected)


async def test_terminate_closes_the_websocket_and_the_call_comes_back(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    kept: list[Notice] = []
    alice.add_listener(kept.append)
    await alice.gateway._terminate(1001)
    await alice.wait_for(lambda: any(isinstance(notice, Resumed) for notice in kept))
    await encrypted(alice, bob)
    assert len(server.records(ALICE, Opcode.RESUMED, "out")) == 1
    await make_client(server, BOB).gateway._terminate()  # nothing to close is no error


async def test_poll_event_takes_one_frame_and_says_the_last(
    server: VoiceServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(server, ALICE)
    poll = client.gateway._poll_event
    assert await poll() is True
    ends: list[bool] = []

    async def watched() -> bool:
        ends.append(await poll())
        return ends[-1]

    monkeypatch.setattr(client.gateway, "_poll_event", watched)
    await client.connect(CHANNEL)
    outgoing = len(server.records(direction="out"))
    await client.wait_for(lambda: len(ends) >= outgoing)
    assert not any(ends)
    await server.close_socket(ALICE, 4012)
    await client.wait_closed()
    assert ends[-1] is True
    assert ends.count(True) == 1


async def test_received_message_is_answered(server: VoiceServer, client: VoiceClient) -> None:
    await server.wait_for(lambda: len(asked(server, Opcode.HEARTBEAT)) == 1)
    assert client.gateway._received_message('{"op":3,"d":null}') is False
    await server.wait_for(lambda: len(asked(server, Opcode.HEARTBEAT)) == 2)
    assert client.gateway._received_message("not JSON") is False
    assert client.gateway._received_message(b"\0") is False
    assert client.session.shared.counters["frames rejected"] == 2
    assert client.gateway._received_message('{"op":99,"d":{"anything":1}}') is False
    assert client.session.shared.counters["ignored: unlisted_received"] == 1
    assert client.states["gateway"] == "ready"


async def test_kokoro_beats_at_the_interval_of_hello(make_client: MakeClient) -> None:
    async with VoiceServer(heartbeat_interval_s=1.0) as server:
        client = make_client(server, ALICE)
        await client.connect(CHANNEL)
        kokoro = client.gateway.kokoro
        assert kokoro is not None
        assert kokoro.interval == 1.0
        await server.wait_for(lambda: len(asked(server, Opcode.HEARTBEAT)) == 3)
        await client.wait_for(lambda: kokoro.answers == 3)
        assert kokoro.beats == 3
        assert "latency" in repr(kokoro)
        before = kokoro.latency
        kokoro.answered(12345)  # nobody asked that
        kokoro.answered(None)
        assert kokoro.latency == before


async def test_client_properties(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE)
    with pytest.raises(EventNotAllowed):
        _ = client.credentials
    with pytest.raises(EventNotAllowed, match="without a channel"):
        await client.connect()
    await client.connect(CHANNEL)
    await client.connect(CHANNEL)
    assert client.users == frozenset()
    assert (client.epoch, client.privacy_code) == (0, "")
    assert client.stats.packets == 0
    assert client.way("call") == ["idle", "joining.asking", "joining.halved", "connecting", "connected"]
    assert client.way("gateway")[-1] == "ready"


async def test_others_events_of_the_main_gateway_are_ignored(server: VoiceServer, client: VoiceClient) -> None:
    client.voice_state_update({"guild_id": str(GUILD), "user_id": str(BOB), "channel_id": None, "session_id": "x"})
    client.voice_state_update({"guild_id": "1", "user_id": str(ALICE), "channel_id": None, "session_id": "x"})
    client.voice_server_update({"guild_id": "1", "token": "x", "endpoint": None})
    client.voice_server_update({})
    assert client.states["call"] == "connected"
    counters = client.session.shared.counters
    assert (counters["foreign voice states"], counters["foreign voice servers"]) == (2, 2)


async def test_a_listener_that_fails_harms_nobody(
    server: VoiceServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(server, ALICE)

    def broken(notice: Notice) -> None:
        raise RuntimeError("listener")

    client.add_listener(broken)
    await client.connect(CHANNEL)
    assert client.states["call"] == "connected"
    assert "a listener of the voice client failed" in caplog.text
