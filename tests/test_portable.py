"""A call that goes from one client to another, on a real voice server, while somebody listens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.conftest import ALICE, MakeClient, encrypted, pair, signalling_of
from voicegw import FleetKey, FrozenCall, ToneSource, VoiceClient
from voicegw.errors import PacketRejected
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import parse_rtp

KEY = FleetKey.generate()


@dataclass(frozen=True)
class Packet:
    """One datagram of the speaker, as the server has it."""

    at: float
    key: bytes
    nonce: int
    sequence: int
    timestamp_ticks: int


class Tap:
    """All that one user sends."""

    def __init__(self, server: VoiceServer, user_id: int) -> None:
        self.packets: list[Packet] = []
        self._server = server
        self._user_id = user_id
        self._before = b""
        assert server._relay is not None
        server._relay.tap = self._take

    def _take(self, user_id: int, data: bytes) -> None:
        if user_id != self._user_id:
            return
        view = parse_rtp(data)
        nonce, now = int.from_bytes(data[-4:], "little"), asyncio.get_running_loop().time()
        key = self._key(data, view.aad_length)
        self.packets.append(Packet(now, key, nonce, view.sequence, view.timestamp_ticks))

    def _key(self, data: bytes, aad_length: int) -> bytes:
        """Which of the session's keys opens it: the present one, or the one before."""
        session = self._server.session(self._user_id)
        try:
            TransportCipher(session.mode, session.secret_key, "server").open(data, aad_length)
        except PacketRejected:
            return self._before
        self._before = session.secret_key.digest()
        return self._before

    def check(self) -> None:
        """No nonce twice, no number twice."""
        spent = [(packet.key, packet.nonce) for packet in self.packets]
        assert len(set(spent)) == len(spent)
        steps = [(b.sequence - a.sequence) & 0xFFFF for a, b in zip(self.packets, self.packets[1:], strict=False)]
        assert all(0 < step < 1000 for step in steps)
        ticks = [
            (b.timestamp_ticks - a.timestamp_ticks) & 0xFFFFFFFF
            for a, b in zip(self.packets, self.packets[1:], strict=False)
        ]
        assert all(0 < step < 48_000 * 60 for step in ticks)


def leaves_seen(server: VoiceServer) -> int:
    return len(server.records(op=Opcode.CLIENT_DISCONNECT))


async def thawed(server: VoiceServer, frozen: FrozenCall, signalling: LocalSignalling) -> VoiceClient:
    """The bot's gateway gives its events to whoever has the call."""
    return await VoiceClient.thaw(frozen, signalling=signalling, ca_pem=server.ca_pem)


async def test_a_frozen_call_goes_on_in_another_client(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    tap = Tap(server, ALICE)
    alice.play(ToneSource(440))
    await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].packets > 20)
    data = (await alice.freeze()).to_bytes(KEY)
    left = len(tap.packets)
    assert alice.states["call"] == "closed"
    again = await thawed(server, FrozenCall.from_bytes(data, KEY), signalling_of(alice))
    try:
        await encrypted(again, bob)
        heard = bob.stats.users[ALICE].packets
        await bob.wait_for(lambda: bob.stats.users[ALICE].packets > heard + 20)
        assert len(tap.packets) > left
        assert again.player.playing is not None
        assert again.player.playing.position_s * 50 >= left
        assert leaves_seen(server) == 0
        tap.check()
        assert "identifying.awaiting_ready" not in again.way("gateway")
    finally:
        await again.close()
