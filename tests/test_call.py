"""Whole calls over TLS, UDP, Opus and MLS on 127.0.0.1."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import (
    ALICE,
    BOB,
    CAROL,
    CHANNEL,
    GUILD,
    MakeClient,
    encrypted,
    notices,
    pair,
    say,
    signalling_of,
)
from voicegw.client import VoiceClient
from voicegw.effects import Connected, DowngradeRefused, Reconnecting, Resumed, UsersChanged
from voicegw.errors import (
    CertificateRefused,
    ConnectionClosed,
    E2EERequired,
    InvalidEndpoint,
)
from voicegw.media.opening import open_source
from voicegw.media.opus_files import OggOpusSource
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import SILENCE_FRAME

pytestmark = pytest.mark.loopback

DEMO = Path(__file__).parent.parent / "voicegw" / "media" / "demo.ogg"


@pytest.mark.parametrize("mode", PREFERRED_MODES)
async def test_a_tone_arrives_end_to_end_encrypted(server: VoiceServer, make_client: MakeClient, mode: str) -> None:
    alice, bob = await pair(make_client, server, modes=(mode,))
    assert await say(alice, bob) == pytest.approx(440, abs=3)
    assert await say(bob, alice, 660) == pytest.approx(660, abs=3)
    assert alice.session.gateway.mode == mode
    assert len(alice.privacy_code) == 30
    for user_id in (ALICE, BOB):
        counters = server.session(user_id).counters
        assert counters["media"] > 15
        assert counters["media in the clear"] == 0
        assert counters["silence"] == 5


async def test_ogg_opus_packets_arrive_unchanged(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    heard: list[bytes] = []

    def decrypt(user_id: int, frame: bytes) -> bytes:
        heard.append(bob._group.decrypt(user_id, frame))
        return heard[-1]

    bob.receiver.use_decrypt(decrypt)
    source = OggOpusSource(DEMO)
    expected = []
    reading = OggOpusSource(DEMO)
    for _ in range(40):
        expected.append(reading.read())
    reading.close()
    playback = alice.play(source)
    await bob.wait_for(lambda: len(heard) >= 40)
    playback.stop()
    await alice.wait_for(lambda: alice.states["speech"] == "silent")
    await bob.wait_for(lambda: heard[-5:] == [SILENCE_FRAME] * 5)
    assert heard[:40] == expected


async def test_what_plays_to_nobody_ends_in_its_time(server: VoiceServer, make_client: MakeClient) -> None:
    alice = make_client(server, ALICE)
    await alice.connect(CHANNEL)
    await alice.wait_for(lambda: alice.states["dave"] == "waiting.alone")
    playback = alice.play(ToneSource(440, 0.2))
    await asyncio.wait_for(playback.wait(), 20)
    assert playback.position_s == pytest.approx(0.2)
    assert alice.stats.packets == 0


async def test_the_stream_is_held_until_somebody_can_decrypt_it(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = make_client(server, ALICE, real_time_while=()), make_client(server, BOB)
    await alice.connect(CHANNEL)
    playback = alice.play(ToneSource(440, 0.2))
    assert alice.states["speech"].startswith("held")
    sink = MeasuringSink()
    bob.listen(sink)
    await bob.connect(CHANNEL)
    await playback.wait()
    await alice.wait_for(lambda: alice.states["speech"] == "silent")
    await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].silence == 5)
    assert bob.stats.users[ALICE].packets == 10 + 5
    await bob.flush()
    assert sink.frequency(ALICE) == pytest.approx(440, abs=8)
    assert server.session(ALICE).counters["media in the clear"] == 0


async def test_a_third_member_joins_and_leaves(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    seen = notices(alice)
    code, epoch = alice.privacy_code, alice.epoch
    carol = make_client(server, CAROL)
    await carol.connect(CHANNEL)
    await encrypted(alice, bob, carol)
    assert alice.privacy_code != code
    assert alice.epoch > epoch
    assert alice.users == {BOB, CAROL}
    assert await say(carol, alice, 550) == pytest.approx(550, abs=3)
    code = alice.privacy_code
    await carol.close()
    await alice.wait_for(lambda: alice.users == {BOB})
    await alice.wait_for(lambda: alice.privacy_code != code)
    await encrypted(alice, bob)
    assert UsersChanged(joined=(CAROL,), left=()) in seen
    assert UsersChanged(joined=(), left=(CAROL,)) in seen
    assert await say(alice, bob) == pytest.approx(440, abs=3)


async def test_the_last_one_waits_and_begins_a_new_group(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    await bob.close()
    await alice.wait_for(lambda: alice.states["dave"] == "waiting.alone")
    carol = make_client(server, CAROL)
    await carol.connect(CHANNEL)
    await encrypted(alice, carol)
    assert await say(alice, carol) == pytest.approx(440, abs=3)


# -- E2EE policy


async def test_require_does_not_join_a_server_without_e2ee(make_client: MakeClient) -> None:
    async with VoiceServer(dave=False) as server:
        client = make_client(server, ALICE)
        with pytest.raises(E2EERequired, match="policy 'allow'"):
            await client.connect(CHANNEL)
        assert client.states["call"] == "closed"
        assert server.session(ALICE).counters["media"] == 0


async def test_allow_joins_a_server_without_e2ee(make_client: MakeClient) -> None:
    async with VoiceServer(dave=False) as server:
        alice, bob = (make_client(server, user, policy="allow") for user in (ALICE, BOB))
        await alice.connect(CHANNEL)
        await bob.connect(CHANNEL)
        assert await say(alice, bob) == pytest.approx(440, abs=3)
        assert server.session(ALICE).counters["media in the clear"] == 15
        assert alice.session.dave.version == 0


async def test_off_is_refused_where_discord_requires_e2ee(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE, policy="off")
    with pytest.raises(E2EERequired, match="'off'"):
        await client.connect(CHANNEL)
    assert client.session.gateway.last_close_code == 4017


async def test_a_downgrade_mutes_under_require_and_an_upgrade_ends_it(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    seen = notices(alice)
    playback = alice.play(ToneSource(440))
    await server.wait_for(lambda: server.session(ALICE).counters["media"] > 5)
    server.channel(CHANNEL).downgrade()
    await alice.wait_for(lambda: alice.states["speech"] == "held.not_ready")
    assert DowngradeRefused(0) in seen
    server.channel(CHANNEL).upgrade()
    await encrypted(alice, bob)
    await alice.wait_for(lambda: alice.states["speech"] == "speaking")
    media = server.session(ALICE).counters["media"]
    await server.wait_for(lambda: server.session(ALICE).counters["media"] > media + 5)
    playback.stop()
    assert server.session(ALICE).counters["media in the clear"] == 0


async def test_a_downgrade_goes_on_in_the_clear_under_allow(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server, policy="allow")
    server.channel(CHANNEL).downgrade()
    for client in (alice, bob):
        await client.wait_for(lambda client=client: client.session.dave.version == 0)  # type: ignore[misc]
    assert await say(alice, bob) == pytest.approx(440, abs=3)
    assert server.session(ALICE).counters["media in the clear"] > 0
    server.channel(CHANNEL).upgrade()
    await encrypted(alice, bob)
    clear = server.session(ALICE).counters["media in the clear"]
    assert await say(alice, bob, 550) == pytest.approx(550, abs=3)
    assert server.session(ALICE).counters["media in the clear"] == clear


@pytest.mark.parametrize("op", [Opcode.MLS_WELCOME, Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION])
async def test_an_invalid_commit_or_welcome_is_recovered_from(
    server: VoiceServer, make_client: MakeClient, op: Opcode
) -> None:
    alice, bob = await pair(make_client, server)
    code = alice.privacy_code
    server.session(BOB).send(op, (7).to_bytes(2, "big") + b"no MLS message")
    await server.wait_for(lambda: bool(server.records(BOB, Opcode.MLS_INVALID_COMMIT_WELCOME, "in")))
    await alice.wait_for(lambda: alice.privacy_code != code)
    await encrypted(alice, bob)
    assert await say(bob, alice) == pytest.approx(440, abs=3)
    assert await say(alice, bob, 550) == pytest.approx(550, abs=3)


# -- what the network does


async def test_a_broken_websocket_is_resumed_while_media_goes_on(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    seen = notices(alice)
    playback = alice.play(ToneSource(440))
    await server.wait_for(lambda: server.session(ALICE).counters["media"] > 5)
    session = server.session(ALICE)
    server.drop_socket(ALICE)
    await alice.wait_for(lambda: any(isinstance(notice, Resumed) for notice in seen))
    playback.stop()
    await alice.wait_for(lambda: alice.states["speech"] == "silent")
    assert server.session(ALICE) is session
    assert any(isinstance(notice, Reconnecting) for notice in seen)
    assert alice.way("gateway")[-4:] == ["ready", "resuming.dialling", "resuming.awaiting_resumed", "ready"]
    assert await say(alice, bob) == pytest.approx(440, abs=3)


async def test_what_was_missed_is_replayed_after_the_resume(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    server.faults.delay_s[Opcode.RESUMED] = 0.1
    server.drop_socket(ALICE)
    await alice.wait_for(lambda: alice.states["gateway"].startswith("resuming"))
    carol = make_client(server, CAROL)
    await carol.connect(CHANNEL)
    await encrypted(alice, bob, carol)
    assert alice.states["gateway"] == "ready"
    assert alice.users == {BOB, CAROL}
    resumes = server.records(ALICE, Opcode.RESUMED, "out")
    assert len(resumes) == 1


async def test_a_refused_resume_becomes_a_fresh_session(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    old = server.session(ALICE)
    server.faults.refuse_resume = True
    server.drop_socket(ALICE)
    await server.wait_for(lambda: server.session(ALICE) is not old)
    await alice.wait_for(lambda: alice.states["call"] == "connected" and alice.states["gateway"] == "ready")
    await encrypted(alice, bob)
    assert await say(alice, bob) == pytest.approx(440, abs=3)


async def test_a_silent_heart_resumes(make_client: MakeClient) -> None:
    async with VoiceServer(heartbeat_interval_s=1.0) as server:
        client = make_client(server, ALICE)
        await client.connect(CHANNEL)
        seen = notices(client)
        server.faults.ack_heartbeats = False
        await client.wait_for(lambda: any(isinstance(notice, Reconnecting) for notice in seen))
        server.faults.ack_heartbeats = True
        await client.wait_for(lambda: any(isinstance(notice, Resumed) for notice in seen))
        assert client.way("heartbeat").count("beating.overdue") == 1


async def test_lost_discovery_answers_are_asked_for_again(server: VoiceServer, make_client: MakeClient) -> None:
    server.faults.ignore_discovery = 1
    client = make_client(server, ALICE)
    await client.connect(CHANNEL)
    assert server.session(ALICE).counters["discoveries"] == 2


async def test_loss_reordering_and_duplicates_are_counted_and_covered(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    sink = MeasuringSink()
    bob.listen(sink)
    await say(alice, bob, seconds=0.1)
    bob.listen(sink)
    server.faults.lose, server.faults.reorder, server.faults.duplicate = 0.1, 0.1, 0.1
    await alice.play(ToneSource(440, 1.5)).wait()
    server.faults.lose = server.faults.reorder = server.faults.duplicate = 0.0
    await say(alice, bob, seconds=0.1)
    stats = bob.stats.users[ALICE]
    await bob.wait_for(lambda: stats.packets + stats.lost == alice.stats.packets)
    assert 0 < stats.concealed + stats.recovered <= stats.lost < 30
    assert bob.receiver.counters["replayed"] > 0
    assert stats.errors == 0
    await bob.flush()
    assert sink.frequency(ALICE) == pytest.approx(440, abs=5)


async def test_no_nonce_is_used_twice_over_resume_and_rejoin(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    used: list[tuple[str, bytes]] = []

    def tap(user_id: int, datagram: bytes) -> None:
        used.append((server.session(user_id).secret_key.reveal().hex(), datagram[-4:]))

    server.relay.tap = tap
    seen = notices(alice)
    await say(alice, bob)
    server.drop_socket(ALICE)
    await alice.wait_for(lambda: any(isinstance(notice, Resumed) for notice in seen))
    await say(alice, bob)
    signalling_of(alice).hand_over()
    await alice.wait_for(lambda: Connected(CHANNEL) in seen)
    await encrypted(alice, bob)
    await say(alice, bob)
    assert len(used) == len(set(used)) >= 60
    assert len({key for key, _ in used}) == 2


@pytest.mark.parametrize(
    "garbage",
    [
        "{",
        "[]",
        '{"op":4,"d":{}}',
        '{"op":11,"d":{"user_ids":7}}',
        b"\0",
        b"\0\1\x1b\2",
        b"\0\2\x1d\0",
        b"\0\3\x1b\0\x05\1",
    ],
    ids=repr,
)
async def test_garbage_on_the_websocket_changes_nothing(
    server: VoiceServer, make_client: MakeClient, garbage: str | bytes
) -> None:
    alice, bob = await pair(make_client, server)
    server.send_raw(ALICE, garbage)
    await alice.wait_for(lambda: alice.session.shared.counters["frames rejected"] == 1)
    assert alice.states["gateway"] == "ready"
    assert await say(alice, bob, seconds=0.1) > 0


async def test_garbage_datagrams_change_nothing(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    await say(alice, bob)
    packets = bob.stats.users[ALICE].packets
    forged = bytes((0x80, 0x78)) + bytes(6) + server.session(ALICE).ssrc.to_bytes(4, "big") + bytes(60)
    for data in (b"", b"\0", bytes(74), bytes(2000), forged, b"\x80\xc9" + bytes(40), b"\xb0" + bytes(40)):
        server.send_datagram(BOB, data)
    assert await say(alice, bob) == pytest.approx(440, abs=3)
    assert bob.stats.users[ALICE].packets == packets + 20
    assert bob.stats.users[ALICE].errors == 0
    assert bob.receiver.counters["rejected"] >= 2


# -- close codes


CLOSES: list[tuple[int, Callable[[VoiceClient], bool]]] = [
    (1001, lambda client: "resuming.awaiting_resumed" in client.way("gateway")),
    (4000, lambda client: client.way("call").count("connected") == 2),
    (4006, lambda client: client.way("call").count("connected") == 2),
    (4009, lambda client: "ready" in client.way("gateway")),
    (4015, lambda client: "resuming.awaiting_resumed" in client.way("gateway")),
    (4016, lambda client: client.session.gateway.mode == PREFERRED_MODES[1]),
]


@pytest.mark.parametrize(("code", "seen"), CLOSES, ids=lambda value: str(value) if isinstance(value, int) else "")
async def test_the_call_comes_back_after(
    server: VoiceServer, make_client: MakeClient, code: int, seen: Callable[[VoiceClient], bool]
) -> None:
    alice, bob = await pair(make_client, server)
    await server.close_socket(ALICE, code)
    await alice.wait_for(lambda: alice.states["gateway"] != "ready")
    await alice.wait_for(lambda: alice.states["gateway"] == "ready" and alice.states["call"] == "connected")
    await encrypted(alice, bob)
    assert seen(alice)
    assert await say(alice, bob) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("code", [4012, 4021])
async def test_the_call_ends_after(server: VoiceServer, make_client: MakeClient, code: int) -> None:
    client = make_client(server, ALICE)
    await client.connect(CHANNEL)
    await server.close_socket(ALICE, code)
    await client.wait_closed()
    assert isinstance(client.error, ConnectionClosed)
    assert client.error.code == code


# -- who may be dialled


async def test_an_unknown_authority_is_refused(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE, ca_pem=None)
    with pytest.raises(CertificateRefused, match="certificate"):
        await client.connect(CHANNEL)
    assert server.records() == []


async def test_an_unknown_host_is_not_dialled(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE, allowed_hosts=())
    with pytest.raises(InvalidEndpoint):
        await client.connect(CHANNEL)
    assert server.records() == []


async def test_an_inner_media_address_is_not_sent_to(server: VoiceServer) -> None:
    signalling = LocalSignalling(server, ALICE)
    client = VoiceClient(
        user_id=ALICE, guild_id=GUILD, signalling=signalling, ca_pem=server.ca_pem, allowed_hosts=(server.host,)
    )
    with pytest.raises(InvalidEndpoint, match="allow_private_media"):
        await client.connect(CHANNEL)
    assert server.session(ALICE).counters["discoveries"] == 0
    await client.close()


# -- playing


async def test_pause_stop_and_replacement(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    first = alice.play(ToneSource(440))
    await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].packets > 3)
    first.pause()
    await alice.wait_for(lambda: alice.states["speech"] == "silent")
    position = first.position_s
    first.resume()
    await alice.wait_for(lambda: alice.states["speech"] == "speaking")
    second = alice.play(open_source(str(DEMO)))
    assert first.done
    assert first.position_s >= position
    second.stop()
    await second.wait()
    await alice.wait_for(lambda: alice.states["speech"] == "silent")

    def flags() -> list[int]:
        return [record.data["speaking"] for record in server.records(ALICE, Opcode.SPEAKING, "in")]  # type: ignore[index]

    await server.wait_for(lambda: flags() == [0, 1, 0, 1, 0])


async def test_a_closed_client_ends_its_playback(server: VoiceServer, make_client: MakeClient) -> None:
    alice, _ = await pair(make_client, server)
    playback = alice.play(ToneSource(440))
    await alice.close()
    await playback.wait()
    assert server.members(CHANNEL) == [BOB]
    assert len(alice._clock) == 0
