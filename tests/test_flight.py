"""The flight record: bounded, without secrets, runs again, tells in words; and what a call says that it waits for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ALICE, CHANNEL, MakeClient, pair, signalling_of
from tests.test_cli import Done, call, finish, joining, running, serving
from voicegw.core.heartbeat import HeartbeatSession
from voicegw.effects import SendHeartbeat
from voicegw.errors import EventNotAllowed
from voicegw.events import DeadlinePassed, Event, PathUnheard, SocketClosed, SpeechStarted, Stamped
from voicegw.flight import KEPT_BYTES, Entry, FlightRecorder, NotARecord, Record, read_record, replay
from voicegw.server import VoiceServer
from voicegw.session import Options, Transition
from voicegw.testing.chaos import Chaos
from voicegw.testing.world import GUILD, USER, World
from voicegw.why import explain, why
from voicegw.wire.payloads import ClientsConnected, TransitionPrepared


def recorded(world: World, kept: int = 5000) -> FlightRecorder:
    """Record a world from now on."""
    recorder = FlightRecorder(USER, GUILD, world.options, kept)
    receive, observer = world.session.receive, world.session.observer
    assert observer is not None

    class Recorded:
        def __getattr__(self, name: str) -> object:
            return getattr(session, name)

        def receive(self, event: Event | Stamped, now: float) -> object:
            try:
                effects = receive(event, now)
            except EventNotAllowed:
                recorder.note(now, event, [])
                raise
            recorder.note(now, event, effects)
            return effects

    session = world.session

    def step(transition: Transition) -> None:
        observer(transition)
        recorder.step(transition)

    session.observer = step
    world.session = Recorded()  # type: ignore[assignment]
    return recorder


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32))
def test_any_run_can_be_run_again(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    chaos = Chaos(seed)
    recorder = recorded(chaos.world)
    chaos.go()
    path = tmp_path_factory.mktemp("flight") / "record.jsonl"
    recorder.save(path)
    record = read_record(path)
    assert record.entries  # up to where the call is over, or goes on in another process
    assert record.options == chaos.world.options
    assert replay(record) is None
    told = list(explain(record))
    steps = [step for entry in record.entries for step in entry.steps]
    assert 0 < len(told) <= len(steps) + len(record.entries)
    for step in steps:
        machine, _, rest = step.partition(": ")
        if machine not in ("heartbeat", "transport"):
            after = rest.rpartition("--> ")[2]
            assert any(machine in line and after in line for line in told)
    text = path.read_text(encoding="utf-8")
    for secret in ("token ", "other ", "moved ", "\\u0000"):
        assert secret not in text


def test_a_core_that_does_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    recorder = recorded(world)
    world.join()
    world.advance(20)
    recorder.save(tmp_path / "record.jsonl")
    record = read_record(tmp_path / "record.jsonl")

    def beat_twice(session: HeartbeatSession, event: object) -> None:
        session.next_beat_at = session.shared.now + session.interval_s
        session.shared.effects += [SendHeartbeat(0), SendHeartbeat(0)]

    monkeypatch.setattr(HeartbeatSession, "send_beat", beat_twice)
    difference = replay(record)
    assert difference is not None
    assert "hello_received" in " ".join(difference.entry.steps)
    assert difference.replayed.count("SendHeartbeat") == 2
    assert difference.recorded.count("SendHeartbeat") == 1


def test_only_the_last_events_are_kept(tmp_path: Path) -> None:
    world = World()
    recorder = recorded(world, kept=10)
    world.join()
    world.advance(60)
    assert len(list(recorder.lines())) == 11
    recorder.save(tmp_path / "record.jsonl")
    record = read_record(tmp_path / "record.jsonl")
    assert record.dropped == recorder.dropped > 0
    assert "not in this record" in next(iter(explain(record)))
    with pytest.raises(NotARecord, match="dropped"):
        replay(record)


def test_a_record_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    world = World()
    recorder = recorded(world)
    world.join()
    for number in range(200):
        world.server(ClientsConnected(tuple(range(10**18 + number * 10_000, 10**18 + number * 10_000 + 9_000))))
    assert sum(map(len, recorder.lines())) < KEPT_BYTES + 10_000
    assert recorder.dropped > 100
    recorder.save(tmp_path / "record.jsonl")
    assert len(read_record(tmp_path / "record.jsonl").entries) > 10


def test_our_address_is_not_in_a_record() -> None:
    world = World()
    recorder = recorded(world)
    world.join()
    text = "\n".join(recorder.lines())
    assert "IpDiscovered" in text
    assert "203.0.113.7" not in text


def test_a_quiet_hour_is_told_in_a_few_lines_and_an_end_with_its_code(tmp_path: Path) -> None:
    world = World()
    recorder = recorded(world)
    world.join()
    world.advance(600)
    world.server(SocketClosed(4006), numbered=False)
    world.advance(600)
    world.server(SocketClosed(None), numbered=False)
    world.settle()
    recorder.save(tmp_path / "record.jsonl")
    record = read_record(tmp_path / "record.jsonl")
    told = list(explain(record))
    assert len(record.entries) > 250
    assert len(told) < 100
    assert sum("heartbeats and keepalives, in 59" in line for line in told) == 2
    assert any("[code 4006]" in line for line in told)
    assert any("[without a close frame]" in line for line in told)


def test_a_pulse_that_stops_is_told_among_those_that_go_on() -> None:
    quiet = Entry(
        1.0, DeadlinePassed("beat_due", 1.0), ("heartbeat: beating.resting --beat_due--> beating.awaiting_ack",), ()
    )
    late = ("heartbeat: beating.awaiting_ack --beat_due--> beating.overdue",)
    silent = ("transport: open --path_unheard--> checking",)
    entries = (
        quiet,
        quiet,
        Entry(2.0, DeadlinePassed("beat_due", 1.0), late, ()),
        quiet,
        Entry(3.0, PathUnheard(), silent, ()),
        quiet,
    )
    told = list(explain(Record(USER, GUILD, Options(), entries, 0)))
    counts = [line.partition("(")[2].split()[0] for line in told if "heartbeats and keepalives" in line]
    assert counts == ["2", "1", "1"]
    assert "beating.awaiting_ack > beating.overdue" in told[1]
    assert "open > checking" in told[3]
    assert len(told) == 5


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "[" * 100_000, "no JSON"),
        *('{"voicegw": 2}', '{"voicegw": 1}', '{"voicegw": 1, "options": {}}'),
        '{"voicegw": 1, "options": {}, "user_id": 1e999}',
    ],
    ids=range(8),
)
def test_another_file_is_no_record(tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NotARecord):
        read_record(path)
    for command in ("replay", "explain"):
        done = call(capfd, command, str(path))
        assert done.code == 1
        assert len(done.err.splitlines()) == 1
        assert call(capfd, command, str(tmp_path / "missing")).code == 1


@pytest.mark.loopback
async def test_a_real_call_is_recorded_and_told(server: VoiceServer, make_client: MakeClient, tmp_path: Path) -> None:
    alice, bob = await pair(make_client, server, keep_flight_record=True)
    server.drop_socket(ALICE)
    await alice.wait_for(lambda: alice.way("gateway").count("ready") == 2)
    signalling_of(alice).hand_over()
    await alice.wait_for(lambda: alice.way("gateway").count("ready") == 3)
    await alice.close()
    assert alice.flight_recorder is not None
    assert bob.flight_recorder is not None
    path = tmp_path / "record.jsonl"
    alice.flight_recorder.save(path)
    record = read_record(path)
    assert replay(record) is None
    told = "\n".join(explain(record))
    assert "ready > resuming.dialling" in told
    assert "resumed_received" in told
    text = path.read_text(encoding="utf-8")
    for record_ in server.records(op=0, direction="in"):
        assert record_.data is not None
    session = server.session(ALICE)
    for secret in (session.credentials.token, session.credentials.session_id):
        assert secret.reveal() not in text
    assert session.secret_key.reveal().hex() not in text
    assert json.loads(text.splitlines()[0])["voicegw"] == 1


@pytest.mark.loopback
async def test_the_command_line_records_replays_and_explains(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    async with serving(tmp_path) as served:
        arguments = joining(served, ALICE, "--duration", "0.3", "--flight-record", str(path))
        async with running(*arguments) as process:
            joined = await finish(process)
    assert joined.code == 0, joined.err
    done: dict[str, Done] = {}
    for command in ("replay", "explain"):
        async with running(command, str(path), "--json") as process:
            done[command] = await finish(process)
    assert done["replay"].code == 0, done["replay"].err
    assert done["replay"].result["difference"] is None
    assert done["explain"].result["steps"] > 15
    asked = (
        f"call       join_requested (the bot wants to be in a channel) [channel_id {CHANNEL}]; idle > joining.asking"
    )
    assert asked in done["explain"].err
    assert "policy 'require'" in done["explain"].err.splitlines()[0]
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [line for line in lines if "ready_received" not in line]
    path.write_text("\n".join(changed), encoding="utf-8")
    async with running("replay", str(path), "--json") as process:
        differs = await finish(process)
    assert differs.code == 1
    assert differs.result["difference"]["number"] > 3
    assert "recorded:" in differs.err


# -- why


def explained(prepare: Callable[[World], object]) -> str:
    world = World()
    prepare(world)
    return str(why(world.session, world.trace, world.now))


def test_a_call_says_what_it_waits_for() -> None:
    def unanswered(kind: str, seconds: float) -> Callable[[World], object]:
        def prepare(world: World) -> None:
            world.unanswered.add(kind)
            world.join()
            world.advance(seconds)

        return prepare

    said = explained(unanswered("SendIdentify", 2))
    assert said.startswith("gateway identifying.awaiting_ready for 2.0 s: Ready (op 2) is awaited")
    assert "missing: ready_received" in said
    assert "in 3.0 s: no answer to Identify; then closed.down" in said
    said = explained(unanswered("SendVoiceState", 1))
    assert said.startswith("call joining.asking for 1.0 s")
    assert "seen: join_requested" in said
    assert "then joining.clearing" in said
    said = explained(unanswered("SendKeyPackage", 7))
    assert said.startswith("dave waiting.group for 7.0 s")
    assert explained(lambda world: world.join()) == "it waits for nothing"
    assert explained(lambda world: None) == "it waits for nothing"


def test_a_call_that_is_held_says_why_nobody_hears_it() -> None:
    def alone(world: World) -> None:
        world.others = ()
        world.join()
        world.feed(SpeechStarted())
        world.advance(60)

    said = explained(alone)
    assert said.startswith("dave waiting.alone for 59.8 s: nobody else is in the call")
    assert "missing: clients_connected (op 11)" in said
    assert said.endswith("until then nothing leaves; then what there is to say is heard")

    def refused(world: World) -> None:
        world.join()
        world.feed(SpeechStarted())
        world.server(TransitionPrepared(0, 7))

    assert explained(refused).startswith("dave refused for 0.0 s: the server announced version 0 against our policy")


def test_a_resuming_call_says_so() -> None:
    def prepare(world: World) -> None:
        world.join()
        world.unanswered.add("SendResume")
        world.server(SocketClosed(1006), numbered=False)
        world.advance(1)

    said = explained(prepare)
    assert said.startswith("gateway resuming.awaiting_resumed for 1.0 s")
    assert "resumed_received" in said


@pytest.mark.loopback
async def test_a_client_says_why(server: VoiceServer, make_client: MakeClient) -> None:
    client = make_client(server, ALICE)
    assert str(client.why()) == "it waits for nothing"
    await client.connect(CHANNEL)
    await client.wait_for(lambda: client.states["dave"] == "waiting.alone")
    assert client.why().state is None
    assert Options().max_attempts == 12
