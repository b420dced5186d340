"""A call that goes from one client to another, on a real voice server, while somebody listens."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, encrypted, pair, signalling_of
from voicegw import FleetKey, FrozenCall, IteratorSource, ToneSource, VoiceClient, Warned, open_source, portable
from voicegw.errors import EventNotAllowed, PacketRejected
from voicegw.flight import read_record, replay
from voicegw.media.wav import WavWriter
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.why import explain
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.opcodes import Opcode
from voicegw.wire.rtp import parse_rtp

pytestmark = pytest.mark.loopback

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


async def thawed(server: VoiceServer, frozen: FrozenCall, signalling: LocalSignalling, **options: Any) -> VoiceClient:
    """The bot's gateway gives its events to whoever has the call; the document goes through its bytes."""
    read = FrozenCall.from_bytes(frozen.to_bytes(KEY), KEY)
    client = await VoiceClient.thaw(read, signalling=signalling, ca_pem=server.ca_pem, **options)
    THAWED.append(client)
    return client


THAWED: list[VoiceClient] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    yield
    while THAWED:
        await THAWED.pop().close()


def packets(listener: VoiceClient) -> int:
    stats = listener.stats.users.get(ALICE)
    return 0 if stats is None else stats.packets


async def hears(listener: VoiceClient, count: int = 20) -> None:
    before = packets(listener)
    await listener.wait_for(lambda: packets(listener) >= before + count)


def nothing_in_the_clear(server: VoiceServer) -> bool:
    return server.session(ALICE).counters["media in the clear"] == 0


@pytest.mark.parametrize("keep_key", [False, True], ids=["another key", "the same key"])
async def test_a_frozen_call_goes_on_in_another_client(
    server: VoiceServer, make_client: MakeClient, keep_key: bool
) -> None:
    """Also where the voice server answers the new address with the key that the other process has used."""
    alice, bob = await pair(make_client, server)
    tap = Tap(server, ALICE)
    alice.play(ToneSource(440))
    await hears(bob)
    server.faults.keep_key = keep_key
    frozen = await alice.freeze()
    left = len(tap.packets)
    assert alice.states["call"] == "closed"
    assert alice.error is None
    again = await thawed(server, frozen, signalling_of(alice))
    await encrypted(again, bob)
    await hears(bob)
    assert len(tap.packets) > left
    assert {packet.key for packet in tap.packets[left:]} != {tap.packets[0].key} or keep_key
    assert again.player.playing is not None
    assert again.player.playing.position_s * 50 >= left
    assert leaves_seen(server) == 0
    assert nothing_in_the_clear(server)
    tap.check()
    assert "identifying.awaiting_ready" not in again.way("gateway")
    assert signalling_of(alice).requests == [CHANNEL]


async def test_a_wall_clock_that_has_jumped_moves_the_timestamp_by_a_minute_at_most(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    tap = Tap(server, ALICE)
    alice.play(ToneSource(440))
    await hears(bob)
    frozen = await alice.freeze()
    begin, left = frozen.stream.timestamp_ticks, len(tap.packets)
    jumped = dataclasses.replace(frozen, frozen_at_ms=frozen.frozen_at_ms - 10**9)
    await thawed(server, jumped, signalling_of(alice))
    await server.wait_for(lambda: len(tap.packets) > left, 20)
    assert 60 <= ((tap.packets[left].timestamp_ticks - begin) & 0xFFFFFFFF) / 48_000 < 80


async def test_a_frozen_client_is_over_and_sends_nothing_more(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    alice.play(ToneSource(440))
    await hears(bob)
    tap = Tap(server, ALICE)
    await alice.freeze()
    count = len(tap.packets)
    alice.sender.release(None)
    assert not alice.sender.send_silence()
    assert len(tap.packets) == count
    with pytest.raises(EventNotAllowed):
        await alice.freeze()
    with pytest.raises(EventNotAllowed):
        await alice.connect(CHANNEL)


async def test_a_call_that_is_being_left_is_not_frozen(server: VoiceServer, make_client: MakeClient) -> None:
    alice, _ = await pair(make_client, server)
    leaving = asyncio.ensure_future(alice.close())
    await asyncio.sleep(0)
    with pytest.raises(EventNotAllowed):
        await alice.freeze()
    await leaving


async def test_a_refused_resume_identifies_with_the_same_pair(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    alice.play(ToneSource(440))
    await hears(bob)
    frozen = await alice.freeze()
    server.faults.refuse_resume = True
    tap = Tap(server, ALICE)
    again = await thawed(server, frozen, signalling_of(alice))
    await encrypted(again, bob)
    await hears(bob)
    asked = [record.op for record in server.records(direction="in") if record.op in (Opcode.IDENTIFY, Opcode.RESUME)]
    assert asked == [Opcode.IDENTIFY, Opcode.IDENTIFY, Opcode.RESUME, Opcode.IDENTIFY]
    assert again.way("call") == ["idle", "thawing", "connecting", "connected"]
    assert signalling_of(alice).requests == [CHANNEL]  # no other join
    tap.check()


async def test_a_refused_identify_joins_afresh(server: VoiceServer, make_client: MakeClient) -> None:
    alice, bob = await pair(make_client, server)
    frozen = await alice.freeze()
    server.faults.refuse_resume = True
    server._admitted.clear()  # as a voice server that knows nothing of the pair any more
    again = await thawed(server, frozen, signalling_of(alice))
    await encrypted(again, bob)
    way = again.way("call")
    assert way[:4] == ["idle", "thawing", "connecting", "waiting.backoff"]
    assert way[-1] == "connected"
    assert signalling_of(alice).requests[-1] == CHANNEL
    assert len(signalling_of(alice).requests) > 1


async def test_a_call_without_a_session_joins_where_it_wanted_to_be(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice = make_client(server, ALICE)
    signalling_of(alice).silent = True
    joining = asyncio.ensure_future(alice.connect(CHANNEL))
    await alice.wait_for(lambda: alice.states["call"] == "joining.asking")
    frozen = await alice.freeze()
    assert not frozen.resumable
    with pytest.raises(EventNotAllowed):
        await joining
    signalling_of(alice).silent = False
    again = await thawed(server, frozen, signalling_of(alice))
    assert again.states["call"] == "connected"


async def test_a_call_alone_waits_and_is_heard_when_somebody_comes(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice = make_client(server, ALICE)
    await alice.connect(CHANNEL)
    await alice.wait_for(lambda: alice.states["dave"] == "waiting.alone")
    frozen = await alice.freeze()
    again = await thawed(server, frozen, signalling_of(alice))
    assert again.states["dave"] == "waiting.alone"
    bob = make_client(server, BOB)
    await bob.connect(CHANNEL)
    await encrypted(again, bob)
    again.play(ToneSource(440))
    await hears(bob)
    assert nothing_in_the_clear(server)


async def test_a_whole_group_is_frozen_and_thawed(server: VoiceServer, make_client: MakeClient) -> None:
    """Nobody is left who could welcome the others: they begin another group."""
    alice, bob = await pair(make_client, server)
    calls = [(await client.freeze(), signalling_of(client)) for client in (alice, bob)]
    first, second = [await thawed(server, frozen, signalling) for frozen, signalling in calls]
    await encrypted(first, second)
    first.play(ToneSource(440))
    await hears(second)
    assert leaves_seen(server) == 0
    assert nothing_in_the_clear(server)


async def test_frozen_again_and_again(server: VoiceServer, make_client: MakeClient) -> None:
    client, bob = await pair(make_client, server)
    signalling = signalling_of(client)
    server.faults.keep_key = True
    tap = Tap(server, ALICE)
    client.play(ToneSource(440))
    for _ in range(4):
        await hears(bob, 5)
        client = await thawed(server, await client.freeze(), signalling)
        await encrypted(client, bob)
    await hears(bob)
    assert leaves_seen(server) == 0
    assert nothing_in_the_clear(server)
    assert len({packet.key for packet in tap.packets}) == 1
    tap.check()


async def test_a_call_in_the_clear_goes_on_in_the_clear(make_client: MakeClient) -> None:
    async with VoiceServer(dave=False) as server:
        alice, bob = make_client(server, ALICE, policy="allow"), make_client(server, BOB, policy="allow")
        await alice.connect(CHANNEL)
        await bob.connect(CHANNEL)
        alice.play(ToneSource(440))
        await hears(bob)
        again = await thawed(server, await alice.freeze(), signalling_of(alice))
        assert again.states["dave"] == "clear.only"
        await hears(bob)
        assert leaves_seen(server) == 0


# -- checkpoints


async def test_a_checkpoint_is_taken_over(server: VoiceServer, make_client: MakeClient) -> None:
    """The first client is not dead, as a process is that was stopped and wakes; it cannot spend what the second has."""
    alice, bob = await pair(make_client, server)
    server.faults.keep_key = True
    tap = Tap(server, ALICE)
    written: list[FrozenCall] = []

    async def write(frozen: FrozenCall) -> None:
        written.append(frozen)

    alice.keep_checkpoints(write)
    alice.play(ToneSource(440))
    await hears(bob)
    signalling_of(alice).silent = True  # whoever has lost the call asks for nothing any more
    again = await thawed(server, written[-1], LocalSignalling(server, ALICE), write=write)
    await encrypted(again, bob)
    await hears(bob)
    tap.check()
    assert leaves_seen(server) == 0
    assert again.player.playing is not None


async def test_speech_is_held_while_no_checkpoint_can_be_written(
    server: VoiceServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "LEASE_FRAMES", 40)
    alice, bob = await pair(make_client, server)
    tap = Tap(server, ALICE)
    open_again = asyncio.Event()
    warned: list[Warned] = []
    alice.add_listener(lambda notice: warned.append(notice) if isinstance(notice, Warned) else None)
    writes = 0

    async def write(frozen: FrozenCall) -> None:
        nonlocal writes
        writes += 1
        if writes > 1 and not open_again.is_set():
            raise ConnectionError("the store is away")

    alice.keep_checkpoints(write, every_s=60.0)
    playback = alice.play(ToneSource(440))
    await alice.wait_for(lambda: alice.sender.packets > 0 and not alice.sender.open, 15.0)
    assert len(tap.packets) == 40
    held_at = playback.position_s
    open_again.set()
    await hears(bob)
    assert playback.position_s - held_at < 5.0  # what it would have played has waited
    assert "a checkpoint could not be written (ConnectionError)" in str(warned)
    tap.check()


async def test_a_new_key_is_not_used_before_a_checkpoint_names_it(server: VoiceServer, make_client: MakeClient) -> None:
    alice = make_client(server, ALICE)
    bob = make_client(server, BOB)
    first = asyncio.Event()
    tap_open: list[bool] = []

    async def write(frozen: FrozenCall) -> None:
        if frozen.resumable:
            tap_open.append(alice.sender.packets > 0)
            await first.wait()

    alice.keep_checkpoints(write)
    await alice.connect(CHANNEL)
    await bob.connect(CHANNEL)
    await encrypted(alice, bob)
    alice.play(ToneSource(440))
    await alice.wait_for(lambda: bool(tap_open))
    assert tap_open == [False]
    assert alice.sender.packets == 0
    first.set()
    await hears(bob)


CHILD = Path(__file__).parent / "portable_child.py"


async def test_a_process_that_is_killed_is_succeeded(
    server: VoiceServer, make_client: MakeClient, tmp_path: Path
) -> None:
    """`kill -9`; another process goes on from the last checkpoint, and the listener hears a gap, but no leave."""
    server.faults.keep_key = True
    bob = make_client(server, BOB)
    await bob.connect(CHANNEL)
    tap = Tap(server, ALICE)
    credentials = server.admit(guild_id=GUILD, channel_id=CHANNEL, user_id=ALICE)
    stored = tmp_path / "call"
    given = {
        "credentials": [credentials.session_id.reveal(), credentials.token.reveal(), credentials.endpoint],
        "place": [GUILD, CHANNEL, ALICE],
        "host": server.host,
        "ca": server.ca_pem.decode(),
        "store": str(stored),
        "key": KEY.to_text().reveal(),
    }
    child = await asyncio.create_subprocess_exec(sys.executable, str(CHILD), stdin=asyncio.subprocess.PIPE)
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(given).encode())
        child.stdin.close()
        await bob.wait_for(lambda: packets(bob) > 100, 30.0)
    finally:
        child.kill()
        await child.wait()
    left = len(tap.packets)
    frozen = FrozenCall.from_bytes(stored.read_bytes(), KEY)
    again = await thawed(server, frozen, LocalSignalling(server, ALICE))
    await encrypted(again, bob)
    await hears(bob)
    playing = again.player.playing
    assert playing is not None
    assert abs(playing.position_s * 50 - len(tap.packets)) < 250
    assert len(tap.packets) > left
    assert leaves_seen(server) == 0
    assert nothing_in_the_clear(server)
    assert len({packet.key for packet in tap.packets}) == 1
    tap.check()


async def test_a_thawed_calls_flight_record_runs_again(
    server: VoiceServer, make_client: MakeClient, tmp_path: Path
) -> None:
    """Neither the record before nor the one after has a secret in it."""
    alice, bob = await pair(make_client, server, keep_flight_record=True)
    assert alice.flight_recorder is not None
    frozen = await alice.freeze()
    again = await thawed(server, frozen, signalling_of(alice), keep_flight_record=True)
    await encrypted(again, bob)
    assert again.flight_recorder is not None
    assert frozen.session.secret_key is not None
    for number, recorder in enumerate((alice.flight_recorder, again.flight_recorder)):
        path = tmp_path / f"{number}.jsonl"
        recorder.save(path)
        assert replay(read_record(path)) is None
        text = path.read_text()
        for secret in (frozen.session.session_id, frozen.session.token):
            assert secret is not None
            assert secret.reveal() not in text
        assert str(frozen.session.selected[1]) in text or number == 0
        assert frozen.session.secret_key.reveal().hex() not in text
    told = "\n".join(explain(read_record(tmp_path / "1.jsonl")))
    assert "a call that another process has frozen goes on here" in told


# -- what is played


async def test_a_playlist_goes_on_where_it_was(server: VoiceServer, make_client: MakeClient, tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    with WavWriter(song) as writer:
        for frame in iter(ToneSource(440, 20).read, b""):
            writer.write(frame)
    alice, bob = await pair(make_client, server)
    playback = alice.play(open_source(song), volume=0.5, loop=True)
    alice.player.queue(ToneSource(220, 5), volume=0.25)
    alice.player.queue(IteratorSource(iter([bytes(3840)])))
    await hears(bob)
    warned: list[str] = []
    alice.add_listener(lambda notice: warned.append(notice.text) if isinstance(notice, Warned) else None)
    playback.pause()
    frozen = await alice.freeze()
    position = frozen.playlist.playing.position_s if frozen.playlist.playing is not None else 0.0
    assert 0.2 < position < 20
    assert [item.what for item in frozen.playlist.queue] == ["ToneSource", "IteratorSource"]
    assert any("IteratorSource" in text and "not taken along" in text for text in warned)

    again = await thawed(server, frozen, signalling_of(alice))
    playing = again.player.playing
    assert playing is not None
    assert (playing.volume, playing.loop, playing.paused) == (0.5, True, True)
    assert playing.position_s == pytest.approx(position, abs=0.03)
    assert [playback.volume for playback in again.player.queued] == [0.25]
    playing.resume()
    await encrypted(again, bob)
    await hears(bob)
    assert playing.source_position_s > position


async def test_a_file_that_is_gone_is_said_and_the_next_one_played(
    server: VoiceServer, make_client: MakeClient, tmp_path: Path
) -> None:
    song = tmp_path / "song.wav"
    with WavWriter(song) as writer:
        writer.write(bytes(3840 * 500))
    alice, _ = await pair(make_client, server)
    alice.play(open_source(song))
    alice.player.queue(ToneSource(220))
    frozen = await alice.freeze()
    song.unlink()
    again = await thawed(server, frozen, signalling_of(alice))
    assert again.player.playing is not None
    assert type(again.player.playing.source) is ToneSource
