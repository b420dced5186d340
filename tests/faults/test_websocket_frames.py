"""Faults of what the voice server says: unknown, malformed, hostile, truncated, in the wrong kind (F51 to F55)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import VECTORS
from tests.faults.cells import covers
from tests.faults.hands import says
from tests.faults.raw_server import CHANNEL, HELLO, TEXT, Peer, dialled, home_again, scripted
from tests.faults.worlds import in_phase
from voicegw.adapters.websocket import MAX_FRAME_BYTES
from voicegw.effects import CloseSocket
from voicegw.errors import MalformedFrame, WebSocketProtocolError
from voicegw.events import SocketOpened
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.world import World
from voicegw.wire import frames
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import BINARY_PAYLOADS, TEXT_PAYLOADS

SOON_S = 120.0


def listening(phase: str) -> World:
    """A world whose websocket is open in this phase: before Hello, before Ready, ready, before Resumed."""
    world = in_phase(phase)
    if phase in "DU":
        world.unanswered.add("SendResume")
        world.server(SocketOpened(), numbered=False)
    return world


def next_number(world: World) -> bytes:
    """The sequence number that a binary message must have now."""
    return ((world.session.shared.sequence.last + 1) & 0xFFFF).to_bytes(2, "big")


@contextlib.asynccontextmanager
async def wired(
    sim: Simulation, phase: str
) -> AsyncIterator[tuple[SimulatedClient, Callable[[str | bytes], None], Callable[[], Awaitable[None]]]]:
    """A real client in this phase, a way to say something to it, and the proof that it still listens and answers."""
    if phase in "DU":
        async with scripted(sim) as server:
            client, _ = await dialled(sim, phase)
            peer = await server.accept()
            await peer.upgrade()
            if phase == "U":
                await peer.heard(Opcode.RESUME)

            async def alive() -> None:
                peer.say(HELLO)
                await peer.heard(Opcode.IDENTIFY if phase == "D" else Opcode.HEARTBEAT)

            yield client, peer.say, alive
            home_again(sim)
        return
    if phase == "H":
        sim.server.faults.withhold.add(Opcode.READY)
    client = sim.client(1)
    connecting = asyncio.create_task(client.connect(CHANNEL, timeout_s=SOON_S))
    await sim.server.wait_for(lambda: bool(sim.server.records(1, Opcode.READY, "out")))
    if phase == "R":
        await connecting

    async def answers() -> None:
        beats = len(sim.server.records(1, Opcode.HEARTBEAT, "in"))
        sim.server.send_raw(1, '{"op":3,"d":null}')
        await sim.server.wait_for(lambda: len(sim.server.records(1, Opcode.HEARTBEAT, "in")) > beats, 0.5)

    yield client, lambda content: sim.server.send_raw(1, content), answers
    sim.server.faults.withhold.clear()
    await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
    await connecting


# -- F51: unknown and unlisted opcodes

KNOWN = {Opcode.READY, Opcode.HEARTBEAT, Opcode.SESSION_DESCRIPTION, Opcode.SPEAKING, Opcode.HEARTBEAT_ACK}
KNOWN |= {Opcode.HELLO, Opcode.RESUMED, Opcode.CLIENTS_CONNECT, Opcode.CLIENT_DISCONNECT}
KNOWN |= {Opcode.DAVE_PREPARE_TRANSITION, Opcode.DAVE_EXECUTE_TRANSITION, Opcode.DAVE_PREPARE_EPOCH}
BODIES: tuple[Any, ...] = (None, 0, -1, 1.5, "", "text", [], {}, [1, 2], {"user_id": "x"}, {"a": {"b": [None]}}, True)


@covers("F51")
def test_no_unlisted_opcode_does_anything(phase: str, seed: int) -> None:
    world = listening(phase)
    chance = random.Random(f"bodies {seed}")
    counters = world.session.shared.counters
    states, timers = world.states, world.timers
    seq = world.session.shared.sequence.last
    for op in range(256):
        if op not in KNOWN and op not in BINARY_PAYLOADS:
            seq += 1
            says(world, {"op": op, "d": chance.choice(BODIES), "seq": seq})
            assert world.session.shared.sequence.last == seq, op
        if op not in BINARY_PAYLOADS and op not in TEXT_PAYLOADS:
            seq += 1
            says(world, seq.to_bytes(2, "big") + bytes((op,)) + chance.randbytes(chance.randrange(40)))
            assert world.session.shared.sequence.last == seq, op
        assert (world.states, world.timers) == (states, timers), op
    assert counters["frames rejected"] == 0
    assert counters["ignored: unlisted_received"] > 400


@covers("F51")
def test_the_real_reader_lives_through_unlisted_opcodes(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        async with wired(sim, phase) as (client, say, alive):
            gateway = client.states["gateway"]
            for op in (10, 12, 14, 15, 16, 17, 18, 19, 20, 32, 33, 99, 255, 65_535):
                say(json.dumps({"op": op, "d": {"user_id": []}}))
                if op < 256:
                    say(b"\0\0" + bytes((op,)) + b"x" * 10)
            await alive()
            assert client.states["gateway"] == gateway or phase == "D"

    Simulation(seed=1).run(story)


# -- F52: malformed JSON

MALFORMED = [
    "",
    "{",
    "}",
    "nonsense",
    "null",
    "true",
    "7",
    '"text"',
    "[]",
    '[{"op":9}]',
    "{}",
    '{"d":{}}',
    '{"op":null,"d":{}}',
    '{"op":"9","d":{}}',
    '{"op":9.0,"d":{}}',
    '{"op":true,"d":{}}',
    '{"op":-1,"d":{}}',
    '{"op":65536,"d":{}}',
    '{"op":9,"op":9,"d":{}}',
    '{"op":9,"d":{"a":1,"a":2}}',
    '{"op":9,"d":NaN}',
    '{"op":9,"d":{"x":[Infinity]}}',
    '{"op":9,"d":-Infinity}',
    '{"op":9,"d":"\\ud800"}',
    '{"op":9,"d":{"\\uDC00":1}}',
    '{"op":9,"d":null}x',
    "{'op':9}",
    '{"op":9,"d":"\t"}',
    '{"op":9,"d":01}',
    '{"op":5,"d":null}',
    '{"op":5,"d":[]}',
    '{"op":5,"d":{"user_id":"1","ssrc":"2","speaking":1}}',
    '{"op":5,"d":{"user_id":"-1","ssrc":2,"speaking":1}}',
    '{"op":11,"d":{"user_ids":{}}}',
    '{"op":11,"d":{"user_ids":[true]}}',
    '{"op":13,"d":{"user_id":1.0}}',
    '{"op":21,"d":{"protocol_version":1,"transition_id":65536}}',
    '{"op":22,"d":{}}',
    '{"op":24,"d":{"protocol_version":"1","epoch":1}}',
]


@covers("F52")
def test_one_malformed_frame_is_counted_and_changes_nothing(phase: str) -> None:
    world = listening(phase)
    counters = world.session.shared.counters
    states, timers = world.states, world.timers
    for number, text in enumerate(MALFORMED, 1):
        says(world, text)
        assert counters["frames rejected"] == number, text
        assert (world.states, world.timers) == (states, timers), text
        says(world, {"op": 250, "d": None})  # a good one between, so that they are not many in a row
    assert world.sent(CloseSocket) == []


@covers("F52")
def test_whatever_the_text_is_nothing_but_our_error_comes_of_it(phase: str, seed: int) -> None:
    world = listening(phase)
    chance = random.Random(f"texts {phase} {seed}")
    gateway = world.states["gateway"]
    good = '{"op":11,"seq":5,"d":{"user_ids":["158533742254751744"]}}'
    for _ in range(300):
        text = list(good)
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(text) + 1)
            text[place : place + chance.randrange(3)] = chance.choice('{}[]:,"\\0x1eE-+.\0\u00e9\u2028')
        says(world, "".join(text))
        says(world, {"op": 250, "d": None})
        assert world.states["gateway"] == gateway


@covers("F52")
def test_many_in_a_row_close_the_connection_as_undecodable(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        async with wired(sim, phase) as (client, say, alive):
            for _ in range(9):
                say("{")
            await alive()
            if phase == "D":
                await client.wait_for(lambda: client.states["gateway"] == "identifying.awaiting_ready")
            say('{"op":250,"d":null}')
            for _ in range(10):
                say("{")
            await client.wait_for(lambda: client.states["gateway"].startswith("closed"))
            home_again(sim)
            sim.server.faults.withhold.clear()
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)
            assert isinstance(client.session.call.error, WebSocketProtocolError)

    Simulation(seed=1).run(story)
    world = listening(phase)
    for number in range(10):
        assert world.sent(CloseSocket) == [], number
        says(world, "{")
    assert world.sent(CloseSocket) == [CloseSocket(4002)]
    world.until(lambda: world.states["call"] in ("waiting.backoff", "joining.asking"), 5.0)


# -- F53: hostile sizes


def nested(levels: int) -> str:
    """A frame of so many levels."""
    return '{"op":250,"d":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def of_size(size: int) -> str:
    """A frame of so many bytes."""
    head, tail = '{"op":250,"d":"', '"}'
    return head + "a" * (size - len(head) - len(tail)) + tail


LIMITS: list[tuple[str, str, bool]] = [
    ("32 levels", nested(32), True),
    ("33 levels", nested(33), False),
    ("100,000 levels", nested(100_000), False),
    ("10,000 items", '{"op":250,"d":[' + "0," * 9_999 + "0]}", True),
    ("10,001 items", '{"op":250,"d":[' + "0," * 10_000 + "0]}", False),
    ("32,768 values", '{"op":250,"d":[' + ",".join(["[" + "0," * 8_191 + "0]"] * 4) + "]}", True),
    ("32,770 values", '{"op":250,"d":[' + ",".join(["[" + "0," * 8_191 + "0]"] * 4) + ",0,0]}", False),
    ("64 bits", f'{{"op":250,"d":{(1 << 64) - 1}}}', True),
    ("65 bits", f'{{"op":250,"d":{1 << 64}}}', False),
    ("64 bits below 0", f'{{"op":250,"d":{-(1 << 63)}}}', True),
    ("65 bits below 0", f'{{"op":250,"d":{-(1 << 63) - 1}}}', False),
    ("a million digits", '{"op":250,"d":' + "9" * 1_000_000 + "}", False),
    ("a huge user list", '{"op":11,"d":{"user_ids":[' + '"1",' * 200_000 + '"1"]}}', False),
]


@covers("F53")
@pytest.mark.parametrize(("text", "good"), [case[1:] for case in LIMITS], ids=[case[0] for case in LIMITS])
def test_json_is_taken_up_to_its_limits_and_not_beyond(phase: str, text: str, good: bool) -> None:
    world = listening(phase)
    states = world.states
    says(world, text)
    assert world.states == states
    assert world.session.shared.counters["frames rejected"] == (not good)


@covers("F53", "R")
@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_FRAME_BYTES,
        '{"a":' * (MAX_FRAME_BYTES // 5),
        "[" + "0," * (MAX_FRAME_BYTES // 2 - 2) + "0]",
        "[" + "[]," * (MAX_FRAME_BYTES // 3 - 2) + "[]]",
        '{"op":9,"d":' + "9" * (MAX_FRAME_BYTES - 20) + "}",
        '{"op":9,"d":0.' + "9" * (MAX_FRAME_BYTES - 20) + "}",
        '{"op":9,"d":"' + "\\u00e9" * (MAX_FRAME_BYTES // 6 - 5) + '"}',
        of_size(MAX_FRAME_BYTES),
    ],
    ids=["lists", "objects", "numbers", "empty lists", "digits", "fraction", "escapes", "text"],
)
def test_a_hostile_megabyte_takes_little_memory(text: str) -> None:
    tracemalloc.start()
    try:
        begin = tracemalloc.get_traced_memory()[0]
        with contextlib.suppress(MalformedFrame):
            frames.decode_text(text)
        assert tracemalloc.get_traced_memory()[1] - begin < 8 << 20
    finally:
        tracemalloc.stop()


def fragments(peer: Peer, size: int) -> None:
    """One text message of `size` bytes in many frames."""
    text = of_size(size).encode()
    parts = [text[place : place + 10_000] for place in range(0, len(text), 10_000)]
    for number, part in enumerate(parts):
        peer.frame(TEXT if number == 0 else 0, part, fin=number == len(parts) - 1)


@covers("F53")
@pytest.mark.parametrize("how", ["one frame", "many frames", "only a length", "compressed"])
def test_a_message_above_a_mebibyte_is_closed_with_1009(phase: str, how: str) -> None:
    """At the limit it is taken. No compression is offered, and a frame that says it is compressed breaks RFC 6455."""

    def say_too_much(peer: Peer) -> None:
        if how == "one frame":
            peer.say(of_size(MAX_FRAME_BYTES + 1))
        elif how == "many frames":
            fragments(peer, MAX_FRAME_BYTES + 10_000)
        elif how == "only a length":
            peer.writer.write(b"\x81\x7f" + (1 << 62).to_bytes(8, "big"))
        else:
            peer.frame(TEXT, b"\xaa\x56\xca\xcf\x2f\x50\xb2\x52\xb2\x34\xaa\x05\x00", flags=0x40)

    async def story(sim: Simulation) -> None:
        async with scripted(sim) as server:
            client, _ = await dialled(sim, "U" if phase in "RU" else "D")
            peer = await server.accept()
            await peer.upgrade()
            assert b"sec-websocket-extensions" not in peer.head.lower()
            if phase in "RU":
                await peer.heard(Opcode.RESUME)
            if phase != "D":
                peer.say(HELLO)
            if phase == "R":
                peer.say('{"op":9,"d":null}')
                await client.wait_for(lambda: client.states["gateway"] == "ready")
            if phase == "H":
                await peer.heard(Opcode.IDENTIFY)
            if phase == "D":
                await client.wait_for(lambda: client.states["gateway"] == "connecting.awaiting_hello")
            states = client.states["gateway"]
            if how == "one frame":
                peer.say(of_size(MAX_FRAME_BYTES - 1))
                peer.say('{"op":250,"d":null,"seq":77}')
                await client.wait_for(lambda: client.session.shared.sequence.last == 77)
            assert client.states["gateway"] == states
            say_too_much(peer)
            code = 1002 if how == "compressed" else 1009
            assert await peer.close_code() == code
            await client.wait_for(lambda: client.session.gateway.last_close_code == code)
            assert client.states["call"] == "waiting.backoff"  # a new pair; X after two in a row
            home_again(sim)
            await client.wait_for(lambda: client.states["gateway"] == "ready", SOON_S)

    Simulation(seed=1).run(story)


# -- F54: truncated binary frames

BINARIES = [
    bytes.fromhex(case["frame"]) for case in VECTORS["gateway_binary"]["frames"] if case["direction"] == "server"
]


@covers("F54")
def test_no_prefix_of_a_binary_message_has_a_partial_effect(phase: str) -> None:
    """A prefix is either refused, or a whole message with a shorter MLS part, which the group then refuses."""
    assert {frame[2] for frame in BINARIES} == {25, 27, 29, 30}
    for frame in BINARIES:
        refused = 0
        for length in range(min(len(frame), 3 + 40)):
            world = listening(phase)
            states, effects = world.states, len(world.effects)
            says(world, (next_number(world) + frame[2:])[:length])
            new = [type(effect).__name__ for _, effect in world.effects[effects:]]
            if world.session.shared.counters["frames rejected"]:
                refused += 1
                assert world.states == states
                assert new == []
            else:
                kind = {25: "ExternalSender", 27: "Proposals", 29: "Commit", 30: "Welcome"}[frame[2]]
                assert all(kind in name or "Timer" in name or name == "Report" for name in new), (length, new)
            says(world, {"op": 3, "d": None})  # and the reader lives
        assert refused >= {25: 4, 27: 40, 29: 6, 30: 6}[frame[2]]


@covers("F54")
def test_the_real_reader_lives_through_every_prefix(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        async with wired(sim, phase) as (client, say, alive):
            gateway = client.states["gateway"]
            for frame in BINARIES:
                for length in range(6 if frame[2] != 27 else 12):
                    if frame[2] != 25 or length < 4:
                        say(frame[:length])
                        say('{"op":250,"d":null}')
            await alive()
            assert client.states["gateway"] == gateway

    Simulation(seed=1).run(story)


# -- F55: the right message in the wrong kind of frame


@covers("F55")
def test_each_opcode_is_taken_in_one_kind_of_frame_only(phase: str) -> None:
    world = listening(phase)
    states, timers = world.states, world.timers
    counters = world.session.shared.counters
    bodies: dict[int, Any] = {
        Opcode.READY: {"ssrc": 7, "ip": "8.8.8.8", "port": 9, "modes": ["aead_aes256_gcm_rtpsize"]},
        Opcode.HELLO: {"heartbeat_interval": 1000},
        Opcode.CLIENTS_CONNECT: {"user_ids": ["7"]},
    }
    expected = 0
    for op in range(256):
        as_json = json.dumps({"op": op, "d": bodies.get(op)})
        if op in TEXT_PAYLOADS:
            for body in (b"", as_json.encode()):
                says(world, next_number(world) + bytes((op,)) + body)
                expected += 1
                says(world, {"op": 250, "d": None})
        elif op in BINARY_PAYLOADS:
            says(world, {"op": op, "d": {"data": "00", "transition_id": 1}})
            expected += 1
            says(world, {"op": 250, "d": None})
        else:
            says(world, next_number(world) + bytes((op,)) + as_json.encode())
        assert (world.states, world.timers) == (states, timers), op
        assert counters["frames rejected"] == expected, op
