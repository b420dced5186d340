"""Whole calls on 127.0.0.1: what the bot's main gateway does to them."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import (
    ALICE,
    BOB,
    CAROL,
    CHANNEL,
    OTHER_CHANNEL,
    MakeClient,
    encrypted,
    notices,
    pair,
    say,
    signalling_of,
)
from voicegw.effects import Closed, Moved
from voicegw.errors import (
    ConnectionClosed,
    EventNotAllowed,
    Kicked,
    SignallingError,
    VoiceTimeout,
)
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.signalling import SignallingReceiver
from voicegw.wire.opcodes import Opcode

pytestmark = pytest.mark.loopback


async def test_moved_by_a_moderator(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    seen = notices(bob)
    signalling_of(bob).move(OTHER_CHANNEL)
    await bob.wait_for(lambda: Moved(OTHER_CHANNEL) in seen)
    await alice.wait_for(lambda: not alice.users)
    assert server.members(OTHER_CHANNEL) == [BOB]
    carol = make_client(server, CAROL)
    await carol.connect(OTHER_CHANNEL)
    await encrypted(bob, carol)
    assert await say(bob, carol) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("server_first", [False, True])
async def test_move_to_another_channel(server: VoiceServer, make_client: MakeClient, server_first: bool) -> None:
    client = make_client(server, ALICE)
    signalling_of(client).server_first = server_first
    await client.connect(CHANNEL)
    await client.move_to(OTHER_CHANNEL)
    assert server.members(OTHER_CHANNEL) == [ALICE]
    assert server.members(CHANNEL) == []
    assert client.states["call"] == "connected"


async def test_a_move_that_is_not_answered_leaves_the_call_as_it_is(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    signalling_of(alice).silent = True
    with pytest.raises(VoiceTimeout):
        await alice.move_to(OTHER_CHANNEL, timeout_s=0.1)
    assert await say(alice, bob) == pytest.approx(440, abs=3)
    await alice.connect(CHANNEL)


async def test_a_kick_ends_the_call(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE)
    await client.connect(CHANNEL)
    seen = notices(client)
    await signalling_of(client).kick()
    await client.wait_closed()
    assert isinstance(client.error, Kicked)
    assert isinstance(seen[-1], Closed)
    assert server.members(CHANNEL) == []
    with pytest.raises(EventNotAllowed):
        await client.connect(CHANNEL)


async def test_a_vanished_server_is_waited_for(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    signalling_of(alice).remove_server()
    await alice.wait_for(lambda: alice.states["call"] == "waiting.endpoint")
    signalling_of(alice).hand_over()
    await alice.wait_for(lambda: alice.states["call"] == "connected")
    await encrypted(alice, bob)
    assert await say(alice, bob) == pytest.approx(440, abs=3)


async def test_no_answer_to_a_join_is_a_timeout(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE)
    signalling_of(client).silent = True
    with pytest.raises(VoiceTimeout):
        await client.connect(CHANNEL, timeout_s=0.2)
    await client.close()
    assert signalling_of(client).requests == [CHANNEL, None]


async def test_a_cancelled_connect_leaves(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE)
    signalling_of(client).silent = True
    connecting = asyncio.create_task(client.connect(CHANNEL))
    await client.wait_for(lambda: client.states["call"] == "joining.asking")
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    await client.close()
    assert signalling_of(client).requests == [CHANNEL, None]


class BrokenSignalling:
    """A main gateway that is away."""

    def attach(self, receiver: SignallingReceiver) -> None:
        """Nobody will be told anything."""

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Fail."""
        raise RuntimeError("not connected")


async def test_a_main_gateway_that_is_away_is_said(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE, signalling=BrokenSignalling())
    with pytest.raises((SignallingError, VoiceTimeout)):
        await client.connect(CHANNEL, timeout_s=0.5)


class OtherToken(LocalSignalling):
    """Hands out a token that the server does not know."""

    def attach(self, receiver: SignallingReceiver) -> None:
        """Stand between server and client."""
        super().attach(_WrongToken(receiver))


class _WrongToken:
    def __init__(self, receiver: SignallingReceiver) -> None:
        self.voice_state_update = receiver.voice_state_update
        self._receiver = receiver

    def voice_server_update(self, data: object) -> None:
        assert isinstance(data, dict)
        self._receiver.voice_server_update({**data, "token": "wrong"})


async def test_a_wrong_token_is_tried_twice_and_said(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE, signalling=OtherToken(server, ALICE))
    with pytest.raises(ConnectionClosed) as caught:
        await client.connect(CHANNEL)
    assert caught.value.code == 4004
    assert len(server.records(op=Opcode.IDENTIFY, direction="in")) == 2
    assert "wrong" not in str(caught.value)
