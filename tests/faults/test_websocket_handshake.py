"""Faults of the handshake: Hello, Ready, Session Description, odd, bad, twice or never (faults F28 to F32)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.faults.hands import says
from tests.faults.raw_server import CHANNEL
from tests.faults.rekey import a_key, describe_again, pair
from tests.faults.worlds import in_phase
from voicegw.effects import CloseSocket, OpenUdp, SendDiscovery, SendHeartbeat, SendSelectProtocol, UseKey, Warned
from voicegw.errors import (
    InvalidEndpoint,
    NoCommonMode,
    VoiceError,
    VoiceTimeout,
    WebSocketProtocolError,
)
from voicegw.events import IpDiscovered, SocketOpened
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.testing.simulation import Simulation
from voicegw.testing.world import MEDIA, World
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.opcodes import Opcode

# -- F28: Hello

HELLOS: list[tuple[dict[str, Any], float, bool]] = [
    ({"v": 8, "heartbeat_interval": 0}, 1.0, True),
    ({"v": 8, "heartbeat_interval": -5000}, 1.0, True),
    ({"v": 8, "heartbeat_interval": 999}, 1.0, True),
    ({"v": 8, "heartbeat_interval": 1000}, 1.0, False),
    ({"v": 8, "heartbeat_interval": 1001.5}, 1.0015, False),
    ({"v": 8, "heartbeat_interval": 13750.25}, 5.0, False),
    ({"v": 8, "heartbeat_interval": 300_000}, 5.0, False),
    ({"v": 8, "heartbeat_interval": 300_001}, 5.0, True),
    ({"v": 8, "heartbeat_interval": 10**18}, 5.0, True),
    ({"v": 8, "heartbeat_interval": "2000"}, 5.0, True),
    ({"v": 8, "heartbeat_interval": None}, 5.0, True),
    ({"v": 8}, 5.0, True),
    ({}, 5.0, True),
]


def before_hello(phase: str) -> World:
    """A world in which the voice server is about to say Hello, for the first time in phase D."""
    world = in_phase(phase)
    if phase in "DU":
        world.unanswered |= {"SendIdentify", "SendResume"}
        world.server(SocketOpened(), numbered=False)
    return world


@covers("F28")
@pytest.mark.parametrize(("d", "interval_s", "odd"), HELLOS, ids=[str(d) for d, _, _ in HELLOS])
def test_an_odd_hello_is_clamped_and_said_and_one_heart_beats(
    phase: str, d: dict[str, Any], interval_s: float, odd: bool
) -> None:
    world = before_hello(phase)
    before = len([notice for notice in world.notices if isinstance(notice, Warned)])
    begin = world.now - 1000.0
    says(world, {"op": 8, "d": d})
    assert len([notice for notice in world.notices if isinstance(notice, Warned)]) - before == odd
    assert list(world.timers).count("beat_due") == 1
    world.advance(4.9)  # below every deadline of these states
    beats = [at - begin for at in world.times(SendHeartbeat) if at >= begin]
    expected = [number * interval_s for number in range(1 + int(4.9 / interval_s))]
    assert beats[-len(expected) :] == pytest.approx(expected)
    assert len(beats) - len(expected) <= 1  # in phases H and R the first Hello's beat may fall into the same moment


@covers("F28", "DHRU")
def test_a_second_and_a_late_hello_arm_one_timer_anew(phase: str) -> None:
    world = before_hello(phase)
    says(world, {"op": 8, "d": {"heartbeat_interval": 2000}})
    world.advance(0.5)
    for _ in range(20):
        says(world, {"op": 8, "d": {"heartbeat_interval": 1000}})
        assert list(world.timers).count("beat_due") == 1
    begin = world.now - 1000.0
    beats = len(world.sent(SendHeartbeat))
    world.advance(0.9)
    assert len(world.sent(SendHeartbeat)) == beats
    world.advance(3.2)  # with the 0.5 s before it less than any deadline of these states
    assert [at - begin for at in world.times(SendHeartbeat)[beats:]] == pytest.approx([1.0, 2.0, 3.0, 4.0])


@covers("F28", "D")
def test_a_hello_just_before_its_deadline_is_in_time() -> None:
    world = before_hello("D")
    world.advance(4.999)
    says(world, {"op": 8, "d": {"heartbeat_interval": 13750}})
    assert world.states["gateway"] == "identifying.awaiting_ready"


@covers("F28", "H")
def test_the_interval_in_ready_is_not_used() -> None:
    world = in_phase("H")
    begin = world.now - 1000.0
    says(world, {"op": 2, "seq": 1, "d": ready_of(heartbeat_interval=100)})
    world.advance(10.5)
    assert [at - begin for at in world.times(SendHeartbeat)] == pytest.approx([0.0, 5.0, 10.0])


# -- F29: Ready


def ready_of(**changed: Any) -> dict[str, Any]:
    """The `d` of a good Ready, changed."""
    good = {"ssrc": 7, "ip": MEDIA, "port": 50004, "modes": list(PREFERRED_MODES), "experiments": []}
    return {name: value for name, value in {**good, **changed}.items() if value is not ...}


@covers("F29", "H")
def test_a_ready_that_never_comes_ends_the_attempt_at_the_deadline() -> None:
    world = in_phase("H", Options(max_attempts=1))
    waited = world.until(lambda: world.states["gateway"] == "closed.down", 60)
    assert waited == pytest.approx(5.0)
    world.until(lambda: world.states["call"] == "closed", 10)
    assert isinstance(world.session.call.error, VoiceTimeout)
    assert world.sent(OpenUdp) == []


@covers("F29")
def test_a_second_ready_opens_no_second_path(phase: str) -> None:
    """In H it comes at every step of the handshake; everywhere it names another address, SSRC and mode."""
    world = in_phase(phase)
    if phase == "U":
        world.unanswered.add("SendResume")
        world.server(SocketOpened(), numbered=False)
    if phase == "H":
        world.unanswered |= {"SendDiscovery", "SendSelectProtocol"}
        says(world, {"op": 2, "seq": 1, "d": ready_of()})
    paths, ssrc, mode = len(world.sent(OpenUdp)), world.session.shared.ssrc, world.session.gateway.mode
    assert paths == 1

    def again() -> None:
        states, seq = world.states, world.session.shared.sequence.last + 1
        says(world, {"op": 2, "seq": seq, "d": ready_of(ip="9.9.9.9", ssrc=8, modes=[PREFERRED_MODES[1]])})
        assert world.states == states

    again()
    if phase == "H":
        world.udp(IpDiscovered("203.0.113.7", 50004))
        assert world.states["gateway"] == "identifying.awaiting_session_description"
        again()
    assert len(world.sent(OpenUdp)) == paths
    assert (world.session.shared.ssrc, world.session.gateway.mode) == (ssrc, mode)
    assert world.session.shared.counters["ignored: ready_received"] == (2 if phase == "H" else 1)


# -- F30: a Ready that cannot be used

BAD_READY: list[tuple[str, dict[str, Any], type[VoiceError]]] = [
    ("no mode at all", ready_of(modes=[]), NoCommonMode),
    ("no known mode", ready_of(modes=["xsalsa20_poly1305", "plain", 7, None]), NoCommonMode),
    ("modes no list", ready_of(modes="aead_aes256_gcm_rtpsize"), WebSocketProtocolError),
    ("modes missing", ready_of(modes=...), WebSocketProtocolError),
    ("port 0", ready_of(port=0), WebSocketProtocolError),
    ("port 65536", ready_of(port=65536), WebSocketProtocolError),
    ("port a string", ready_of(port="50004"), WebSocketProtocolError),
    ("port missing", ready_of(port=...), WebSocketProtocolError),
    ("ssrc 0", ready_of(ssrc=0), WebSocketProtocolError),
    ("ssrc of 33 bits", ready_of(ssrc=1 << 32), WebSocketProtocolError),
    ("ssrc missing", ready_of(ssrc=...), WebSocketProtocolError),
    ("host name", ready_of(ip="media.example.com"), WebSocketProtocolError),
    ("ip missing", ready_of(ip=...), WebSocketProtocolError),
    *[
        (address, ready_of(ip=address), InvalidEndpoint)
        for address in (
            "127.0.0.1",
            "169.254.169.254",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fc00::1",
            "::ffff:10.0.0.1",
        )
    ],
]


@covers("F30")
@pytest.mark.parametrize(("d", "error"), [case[1:] for case in BAD_READY], ids=[case[0] for case in BAD_READY])
def test_no_datagram_leaves_for_a_ready_that_cannot_be_used(d: dict[str, Any], error: type[VoiceError]) -> None:
    world = in_phase("H", Options(max_attempts=1))
    says(world, {"op": 2, "seq": 1, "d": d})
    assert [type(effect) for effect in world.sent(CloseSocket)] == [CloseSocket]
    world.until(lambda: world.states["call"] == "closed", 60)
    assert isinstance(world.session.call.error, error)
    assert world.sent(OpenUdp) == []
    assert world.sent(SendDiscovery) == []


@covers("F30", "H")
def test_a_private_address_is_sent_to_where_that_is_allowed() -> None:
    world = in_phase("H", Options(allow_private_media=True))
    says(world, {"op": 2, "seq": 1, "d": ready_of(ip="10.0.0.1")})
    assert [effect.ip for effect in world.sent(OpenUdp) if isinstance(effect, OpenUdp)] == ["10.0.0.1"]


@covers("F30", "H")
def test_the_real_client_opens_no_socket_to_a_refused_address() -> None:
    async def story(sim: Simulation) -> None:
        sim.server.faults.withhold.add(Opcode.READY)
        client = sim.client(1)
        connecting = asyncio.create_task(client.connect(CHANNEL))
        await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.READY, "out")))
        inner = sim.network.host("10.66.0.1")
        sim.server.send_raw(1, json.dumps({"op": 2, "d": ready_of(ip="10.66.0.1")}))
        with pytest.raises(InvalidEndpoint, match=r"10\.66\.0\.1"):
            await connecting
        assert client.system.udp_out.counters.total() == inner.udp_in.counters.total() == 0
        assert not [one for one in sim.network.open_sockets if "udp" in one and client.system.address in one]

    Simulation(seed=1).run(story)


# -- F31: a Session Description that cannot be used

KEY = list(range(32))


def description_of(**changed: Any) -> dict[str, Any]:
    """The `d` of a good Session Description, changed."""
    good = {"mode": PREFERRED_MODES[0], "secret_key": KEY, "dave_protocol_version": 1}
    return {name: value for name, value in {**good, **changed}.items() if value is not ...}


BAD_DESCRIPTION: list[tuple[str, dict[str, Any]]] = [
    ("31 bytes", description_of(secret_key=KEY[:31])),
    ("33 bytes", description_of(secret_key=[*KEY, 0])),
    ("no key", description_of(secret_key=...)),
    ("a string", description_of(secret_key="00" * 32)),
    ("256", description_of(secret_key=[256, *KEY[1:]])),
    ("-1", description_of(secret_key=[-1, *KEY[1:]])),
    ("a float", description_of(secret_key=[1.0, *KEY[1:]])),
    ("true", description_of(secret_key=[True, *KEY[1:]])),
    ("another mode", description_of(mode=PREFERRED_MODES[1])),
    ("a mode nobody knows", description_of(mode="plain")),
    ("no mode", description_of(mode=...)),
    ("a version that is no number", description_of(dave_protocol_version="1")),
    ("d is a list", {}),
]


def awaiting_description(options: Options) -> World:
    """A world that has selected its protocol."""
    world = World(options)
    world.unanswered.add("SendSelectProtocol")
    world.join()
    assert world.states["gateway"] == "identifying.awaiting_session_description"
    return world


@covers("F31")
@pytest.mark.parametrize("d", [case[1] for case in BAD_DESCRIPTION], ids=[case[0] for case in BAD_DESCRIPTION])
def test_no_key_is_taken_from_a_description_that_cannot_be_used(d: dict[str, Any]) -> None:
    world = awaiting_description(Options(max_attempts=1))
    says(world, {"op": 4, "seq": 2, "d": d or []})
    assert [type(effect) for effect in world.sent(CloseSocket)] == [CloseSocket]
    world.until(lambda: world.states["call"] == "closed", 60)
    assert isinstance(world.session.call.error, WebSocketProtocolError)
    assert world.sent(UseKey) == []


@covers("F31", "H")
def test_a_description_that_never_comes_ends_the_attempt_at_the_deadline() -> None:
    world = awaiting_description(Options(max_attempts=1))
    assert world.until(lambda: world.states["gateway"] == "closed.down", 60) == pytest.approx(5.0)
    world.until(lambda: world.states["call"] == "closed", 10)
    assert isinstance(world.session.call.error, VoiceTimeout)
    assert world.sent(UseKey) == []


@covers("F31", "H")
def test_a_description_before_we_asked_for_one_is_ignored() -> None:
    world = in_phase("H")
    says(world, {"op": 4, "seq": 1, "d": description_of()})
    assert world.states["gateway"] == "identifying.awaiting_ready"
    assert world.sent(UseKey) == world.sent(SendSelectProtocol) == []


# -- F32: a repeated Session Description is a re-key


@covers("F32", "R")
def test_no_nonce_repeats_over_equal_and_new_keys(sealed: list[tuple[bytes, bytes]], seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        first = sim.server.session(1).secret_key.reveal()
        playback = alice.play(ToneSource(440, 60))
        keys = [first, a_key(1), first, a_key(2), a_key(1)]
        for number in range(20):
            describe_again(sim, 1, keys[sim.loop.schedule._random.randrange(len(keys))] if number else first)
            await asyncio.sleep(0.1)
        assert alice.states["gateway"] == "ready"
        heard = bob.stats.users[1].packets
        await asyncio.sleep(1.0)
        assert bob.stats.users[1].packets - heard >= 45  # the last key is in use at both ends
        playback.stop()
        assert len({key for key, _ in sealed}) >= 2

    Simulation(seed).run(story)


@covers("F32", "R")
def test_both_keys_are_good_for_receiving_during_the_overlap() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = await pair(sim)
        alice.play(ToneSource(440, 60))
        await bob.wait_for(lambda: 1 in bob.stats.users and bob.stats.users[1].packets > 5)
        session = sim.server.session(2)
        # Bob is told of a new key, the server goes on with the old one: nothing is lost, for 10 s
        key = a_key(3)
        session.send(
            Opcode.SESSION_DESCRIPTION,
            {"mode": session.mode, "secret_key": list(key), "dave_protocol_version": 1},
        )
        await asyncio.sleep(1.0)
        rejected, heard = bob.receiver.counters["rejected"], bob.stats.users[1].packets
        await asyncio.sleep(8.0)
        assert bob.receiver.counters["rejected"] == rejected
        assert bob.stats.users[1].packets - heard > 390
        session.secret_key = Secret(key)
        session.cipher = TransportCipher(session.mode, session.secret_key, "server")
        await asyncio.sleep(4.0)
        assert bob.receiver.counters["rejected"] == rejected
        assert bob.stats.users[1].packets - heard > 590

    Simulation(seed=1).run(story)


@covers("F32", "H")
@pytest.mark.parametrize("same", [True, False])
def test_a_description_that_comes_twice_in_the_handshake_is_a_rekey(same: bool) -> None:
    world = awaiting_description(Options())
    keys = [KEY, KEY if same else [9] * 32, KEY]
    for seq, key in enumerate(keys, 2):
        says(world, {"op": 4, "seq": seq, "d": description_of(secret_key=key)})
    world.settle()
    used = [effect.secret_key.reveal() for effect in world.sent(UseKey) if isinstance(effect, UseKey)]
    assert used == [bytes(key) for key in keys]  # an equal key keeps its counter: the cipher's key table sees to that
    assert world.states["gateway"] == "ready"
    assert len([step for step in world.trace if step.event == "gateway_ready"]) == 1
    assert not [step for step in world.trace if step.event == "lost_new_pair"]


@covers("F32", "H")
def test_the_first_packets_after_a_repeated_description_use_fresh_nonces(sealed: list[tuple[bytes, bytes]]) -> None:
    async def story(sim: Simulation) -> None:
        sim.server.faults.delay_s[Opcode.SESSION_DESCRIPTION] = 0.1
        alice, bob = sim.client(1), sim.client(2)
        alice.play(ToneSource(440, 5))
        connecting = asyncio.create_task(alice.connect(CHANNEL))
        await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.SESSION_DESCRIPTION, "out")))
        first = sim.server.session(1).secret_key.reveal()
        for key in (first, a_key(4), first):
            describe_again(sim, 1, key)
        await connecting
        await bob.connect(CHANNEL)
        await bob.wait_for(lambda: 1 in bob.stats.users and bob.stats.users[1].packets > 20, 20)
        assert len({key for key, _ in sealed}) >= 1

    Simulation(seed=1).run(story)
