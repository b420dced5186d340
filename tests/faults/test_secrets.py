"""F157 to F159: secrets in logs, reprs, exceptions, tracebacks, pickles and memory, in every phase of a call."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import voicegw
from tests.faults.canaries import Canaries, forms
from tests.faults.cells import covers
from tests.faults.groups import ALICE, BOB, ROOM, hears, in_one_group, together, until
from tests.faults.worlds import PHASES, phase_of
from voicegw.effects import UseKey
from voicegw.events import SocketClosed, VoiceServerUpdated
from voicegw.frozen import FleetKey, FrozenCall
from voicegw.gateway import DiscordGatewayVoice
from voicegw.secret import Secret
from voicegw.testing.simulation import SERVER_NAME, SimulatedClient, Simulation

PACKAGE = Path(voicegw.__file__).parent
NOT_THE_CLIENT = ("server", "testing", "cli")

# Where a bare secret must be in a variable for a moment, because somebody else's code hands it over so.
HANDED_OVER = {
    ("secret.py", "__init__"),  # whoever makes a secret has it
    ("secret.py", "_as_bytes"),  # to compare two of them
    ("client.py", "voice_state_update"),  # the framework's own dict
    ("client.py", "voice_server_update"),
    ("voice_state.py", "voice_state_of"),  # they look into that dict
    ("voice_state.py", "voice_server_of"),
    ("signalling.py", "flags_of"),
    ("adapters/websocket.py", "receive"),  # aiohttp's message
    ("wire/frames.py", "_object"),  # json's pairs, until they are sealed
    ("wire/frames.py", "_sealed"),
    ("frozen.py", "_revived"),
}


async def every_phase(sim: Simulation) -> None:
    """A call that passes all phases; each listener fails once in a while, as bots' do."""
    alice, bob = sim.client(ALICE, keep_flight_record=True), sim.client(BOB)
    await bob.connect(ROOM)
    alice.signalling.silent = True
    joining = asyncio.ensure_future(alice.connect(ROOM))
    await asyncio.sleep(1)
    alice.signalling.silent = False
    alice.signalling.move(ROOM)
    await joining
    await until(sim, lambda: in_one_group(alice, bob))
    await hears(sim, alice, bob)
    sim.server.drop_socket(ALICE)
    await until(sim, lambda: alice.states["gateway"].startswith("resuming"))
    await until(sim, lambda: alice.states["gateway"] == "ready")
    alice.signalling.remove_server()
    await asyncio.sleep(1)
    alice.signalling.hand_over()
    await until(sim, lambda: in_one_group(alice, bob))
    names, sim.network.names[SERVER_NAME] = sim.network.names[SERVER_NAME], []
    sim.server.drop_socket(ALICE)
    await until(sim, lambda: phase_of(alice) == "B", seconds=60)  # type: ignore[arg-type]
    sim.network.names[SERVER_NAME] = names
    await until(sim, lambda: in_one_group(alice, bob), seconds=120)
    sim.server.session(ALICE).send(4, {"mode": "x", "secret_key": [1, 2], "dave_protocol_version": 1})
    sim.server.send_raw(ALICE, '{"op":4,"d":{"secret_key":' + repr(list(range(40, 72))))
    await asyncio.sleep(0.5)
    alice.feed(SocketClosed(4006))
    await alice.close()


class Shown:
    """What a client shows of itself after each event, by phase."""

    def __init__(self, sim: Simulation, canaries: Canaries) -> None:
        self.seen: set[str] = set()
        self.leaks: dict[str, list[str]] = defaultdict(list)
        self._canaries = canaries
        self._counts: dict[str, int] = defaultdict(int)
        sim.on_event = self._look

    def say(self, phase: str, what: str, text: str) -> None:
        if self._canaries.show_in(text):
            self.leaks[phase].append(what)

    def _look(self, client: SimulatedClient, event: object) -> None:
        if client.user_id != ALICE:
            return
        phase = phase_of(client)  # type: ignore[arg-type]
        self.seen.add(phase)
        self.say(phase, f"event {type(event).__name__}", repr(event))
        self._counts[phase] += 1
        if self._counts[phase] <= 5:
            for what, text in self._of(client):
                self.say(phase, what, text)

    def _of(self, client: SimulatedClient) -> Iterator[tuple[str, str]]:
        yield "client", repr(client) + repr(vars(client)) + repr(client.gateway) + repr(vars(client.gateway))
        yield "why", str(client.why()) + repr(client.why())
        yield "error", repr(client.error) + str(client.error)
        yield "shared", repr([getattr(client.session.shared, name) for name in type(client.session.shared).__slots__])
        for machine in client.session.machines:
            yield machine.machine, repr([getattr(machine, name, None) for name in type(machine).__slots__])
        assert client.flight_recorder is not None
        yield "flight record", "\n".join(client.flight_recorder.lines())


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """One run through all phases with logging at the lowest level: leaks by phase."""
    monkeypatch = pytest.MonkeyPatch()
    records: list[tuple[str, logging.LogRecord]] = []
    canaries = Canaries(monkeypatch)
    root, sim = logging.getLogger(), Simulation(1)
    shown = Shown(sim, canaries)

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((phase_of(sim.clients[0]) if sim.clients else "I", record))  # type: ignore[arg-type]

    keep, level = Keep(0), root.level
    root.addHandler(keep)
    root.setLevel(1)
    monkeypatch.setattr(logging.getLogger("voicegw"), "level", 1)
    try:
        sim.run(every_phase)
    finally:
        root.removeHandler(keep)
        root.setLevel(level)
        monkeypatch.undo()
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
    logs: dict[str, list[str]] = defaultdict(list)
    for phase, record in records:
        text = formatter.format(record) + repr(record.args) + repr(vars(record))
        if canaries.show_in(text):
            logs[phase].append(record.getMessage())
    return {"logs": logs, "shown": shown, "records": records, "canaries": canaries}


@covers("F157")
def test_no_log_line_shows_a_secret(phase: str, told: dict[str, Any]) -> None:
    assert len(told["canaries"].values) >= 8
    assert phase in told["shown"].seen
    assert any(name == phase for name, _ in told["records"])
    assert told["logs"][phase] == []


@covers("F158")
def test_nothing_that_can_be_printed_shows_a_secret(phase: str, told: dict[str, Any]) -> None:
    assert phase in told["shown"].seen
    assert told["shown"].leaks[phase] == []


class Dumped:
    """The variables of every line of the client that is run, as a crash reporter would send them."""

    def __init__(self, canaries: Canaries, times: int = 5) -> None:
        self.lines = 0
        self.leaks: dict[tuple[str, str], str] = {}
        self._canaries = canaries
        self._times = times
        self._counts: dict[tuple[str, int], int] = defaultdict(int)

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(str(PACKAGE)):
            return None
        name = path[len(str(PACKAGE)) + 1 :]
        if name.startswith(NOT_THE_CLIENT) or self._for_the_server(frame):
            return None
        if event in ("line", "return", "exception"):
            self._dump(name, frame, argument if event == "exception" else None)
        return self

    def _for_the_server(self, frame: FrameType) -> bool:
        """Does the server read a frame of its own with the client's functions?"""
        caller: FrameType | None = frame
        while caller is not None and "/wire/" in caller.f_code.co_filename:
            caller = caller.f_back
        return caller is not None and caller.f_code.co_filename.startswith(str(PACKAGE / "server"))

    def _dump(self, name: str, frame: FrameType, exception: object) -> None:
        place = (name, frame.f_lineno)
        self._counts[place] += 1
        if self._counts[place] > self._times:
            return
        self.lines += 1
        for variable, value in frame.f_locals.items():
            try:
                text = repr(value)
            except Exception:  # an object that is not made yet
                continue
            if self._canaries.show_in(text):
                self.leaks.setdefault((name, frame.f_code.co_name), variable)
        if exception is not None and self._canaries.show_in(repr(exception)):
            self.leaks.setdefault((name, frame.f_code.co_name), "an exception")


@covers("F158")
def test_no_line_that_raises_has_a_secret_in_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = Canaries(monkeypatch)
    dumped = Dumped(canaries)

    async def story(sim: Simulation) -> None:
        sys.settrace(dumped)
        try:
            await every_phase(sim)
        finally:
            sys.settrace(None)

    Simulation(1).run(story)
    assert dumped.lines > 3000
    assert dumped.leaks.keys() - HANDED_OVER == set()


@covers("F158")
def test_no_line_of_a_hand_over_has_a_secret_in_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = Canaries(monkeypatch)
    dumped = Dumped(canaries)

    async def write(frozen: FrozenCall) -> None:
        assert not canaries.show_in(repr(frozen))

    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        alice.keep_checkpoints(write)
        await together(sim, alice, bob)
        sys.settrace(dumped)
        try:
            key = FleetKey.generate()
            data = (await alice.freeze()).to_bytes(key)
            assert not canaries.show_in(repr(data))
            again = sim.client(ALICE, address="10.9.9.9", signalling=alice.signalling)
            await again.go_on(FrozenCall.from_bytes(data, key))
        finally:
            sys.settrace(None)
        await until(sim, lambda: in_one_group(again, bob))

    Simulation(1).run(story)
    assert dumped.lines > 1000
    assert dumped.leaks.keys() - HANDED_OVER == set()


@covers("F158")
def test_objects_with_secrets_are_neither_pickled_nor_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = Canaries(monkeypatch)

    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)
        for thing in (
            alice,
            alice.gateway,
            alice.session,
            alice.session.shared,
            alice.session.shared.credentials,
            alice.sender,
            alice.sender._cipher,
            alice._group,
            alice._path,
        ):
            with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
                pickle.dumps(thing)
            try:
                raise RuntimeError(thing)
            except RuntimeError as error:
                text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
                assert not canaries.show_in(text)
        for secretive in (alice.credentials, alice._path._key, VoiceServerUpdated(Secret("t"), "e")):
            with pytest.raises(TypeError):
                copy.deepcopy(secretive)
        for thing in gc.get_objects():
            module = getattr(type(thing), "__module__", None)
            if isinstance(module, str) and module.startswith("voicegw."):
                assert not canaries.show_in(repr(thing)), type(thing)

    Simulation(1).run(story)


# -- F159


@covers("F159")
def test_keys_that_are_replaced_or_dropped_are_overwritten() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await together(sim, alice, bob)

        def key_of(client: SimulatedClient) -> tuple[Secret[bytes], bytearray]:
            effect = client._path._key
            assert isinstance(effect, UseKey)
            buffer = effect.secret_key._value
            assert isinstance(buffer, bytearray)
            assert any(buffer)
            return effect.secret_key, buffer

        first = key_of(alice)
        alice.signalling.hand_over()
        await until(sim, lambda: not any(first[1]))
        await until(sim, lambda: alice._path._key is not None and in_one_group(alice, bob))
        second = key_of(alice)
        await hears(sim, bob, alice)
        await alice.close()
        for secret, buffer in (first, second):
            assert not any(buffer)
            assert secret.reveal() == b""
        assert alice.sender._cipher is None

    Simulation(1).run(story)


SCAN = """
import gc, json, os, re, secrets, sys
from voicegw.effects import UseKey
from voicegw.media.sender import StreamSender
from voicegw.wire import frames
from voicegw.wire.encryption import TransportCipher

mask = secrets.token_bytes(32)
masked = secrets.token_bytes(32)   # the key is masked ^ mask, and is never made but in the frame

def session():
    key = [a ^ b for a, b in zip(masked, mask)]
    text = json.dumps({"op": 4, "d": {"mode": sys.argv[1], "secret_key": key, "dave_protocol_version": 1}})
    del key
    payload = frames.decode_text(text).payload
    cipher = TransportCipher(payload.mode, payload.secret_key)
    for number in range(50):
        cipher.seal(bytes(12), b"frame")
    before = count()
    payload.secret_key.wipe()
    return before

def count():
    found = 0
    for line in open("/proc/self/maps"):
        span, rights = line.split()[:2]
        if not rights.startswith("rw") or "[v" in line:
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        with open("/proc/self/mem", "rb", 0) as memory:
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
        at = -1
        while (at := data.find(bytes((masked[0] ^ mask[0], masked[1] ^ mask[1])), at + 1)) >= 0:
            piece = data[at : at + 32]
            if len(piece) == 32 and all(piece[i] == masked[i] ^ mask[i] for i in range(32)):
                found += 1
        del data
    return found

before = session()
gc.collect()
print(before, count())
"""


@covers("F159")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is read by /proc")
@pytest.mark.parametrize(("mode", "bound"), [("aead_aes256_gcm_rtpsize", 1), ("aead_xchacha20_poly1305_rtpsize", 2)])
def test_what_is_left_of_a_key_in_memory_is_bounded(mode: str, bound: int) -> None:
    """What may be left are copies that Python freed without overwriting them, until the memory is used again."""
    scanned = subprocess.run([sys.executable, "-c", SCAN, mode], check=True, capture_output=True, text=True)
    before, after = map(int, scanned.stdout.split())
    assert before >= 1  # the scanner finds what is there
    assert after <= bound


def test_the_forms_of_a_canary_are_found() -> None:
    assert set(PHASES) == set("IPDHRUEBCX")
    value = bytes(range(100, 132))
    texts = (value.hex(), str(list(value)), repr(value), value[::-1].hex(), str(int.from_bytes(value, "big")))
    for text in texts:
        assert any(form in text for form in forms(value))
    assert DiscordGatewayVoice.IDENTIFY == 0
