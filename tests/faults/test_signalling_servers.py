"""Group A of the faults, voice servers: gone, given anew, handed over, or named in a way that must not be dialled."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.faults.cells import covers
from tests.faults.signalling import (
    ELSEWHERE,
    OTHER_ENDPOINT,
    TO_THE_SERVER,
    Watch,
    asked,
    end,
    is_ready,
    last_server,
    noticed,
    present_session,
    voice_server,
    voice_state,
)
from tests.faults.worlds import in_phase, phase_of
from voicegw.effects import (
    Closed,
    CloseUdp,
    Connected,
    DropKey,
    HoldStream,
    Moved,
    OpenUdp,
    Reconnecting,
    ReleaseStream,
    SendIdentify,
    UseKey,
)
from voicegw.errors import ConnectionFailed, InvalidEndpoint
from voicegw.events import SocketClosed, SocketFailed, SocketOpened, SpeechStarted, Stamped
from voicegw.media.sinks import MeasuringSink
from voicegw.media.sources import ToneSource
from voicegw.secret import Secret
from voicegw.session import SESSIONS, Options
from voicegw.signalling import Credentials, SignallingReceiver
from voicegw.tables.check import check_all
from voicegw.testing.simulation import GUILD, SimulatedClient, Simulation
from voicegw.testing.world import CHANNEL, ENDPOINT, World
from voicegw.wire.endpoint import parse_endpoint
from voicegw.wire.payloads import HelloReceived, ResumedReceived

# -- F05: null endpoint


@covers("F05")
@pytest.mark.parametrize("delay_s", [0.1, 3.0, 29.9])
def test_a_server_that_went_away_is_left_and_its_successor_dialled_whole(phase: str, delay_s: float) -> None:
    world = in_phase(phase)
    session_id = present_session(world)
    watch = Watch(world)
    world.feed(voice_server("of no endpoint", None))
    assert world.states["call"] == "waiting.endpoint"
    assert world.states["gateway"] == "closed.down"
    world.advance(delay_s)
    assert watch.dials == watch.identified == watch.resumed == []
    world.unanswered.clear()
    if phase in "PB":  # the voice state of this join is still to come
        world.feed(voice_state(session_id=session_id))
    world.feed(voice_server("the second", OTHER_ENDPOINT))
    world.settle()
    (dial,) = watch.dials
    assert (dial.token.reveal(), dial.endpoint) == ("the second", OTHER_ENDPOINT)
    assert dial.session_id.reveal() == session_id
    assert is_ready(world)
    assert watch.resumed == []


@covers("F05")
def test_nothing_is_said_to_a_server_that_went_away(phase: str) -> None:
    world = in_phase(phase, speaking=True)
    known = len(world.effects)
    world.feed(voice_server("of no endpoint", None))
    world.advance(29.0)
    assert [effect for _, effect in world.effects[known:] if isinstance(effect, TO_THE_SERVER)] == []


@covers("F05", "P")
def test_the_second_server_may_come_before_the_voice_state() -> None:
    world = in_phase("P")
    watch = Watch(world)
    world.feed(voice_server("of no endpoint", None))
    world.feed(voice_server("the second", OTHER_ENDPOINT))
    world.advance(1.0)
    assert watch.dials == []
    world.feed(voice_state())
    assert [(dial.token.reveal(), dial.endpoint) for dial in watch.dials] == [("the second", OTHER_ENDPOINT)]


@covers("F05")
def test_a_successor_after_a_minute_meets_a_call_that_has_gone_on(phase: str) -> None:
    world = in_phase(phase)
    watch = Watch(world)
    told = {"of no endpoint": None, "the second": OTHER_ENDPOINT}
    world.feed(voice_server("of no endpoint", None))
    world.advance(60.0)
    if world.states["call"] != "closed":
        world.feed(voice_server("the second", OTHER_ENDPOINT))
        world.unanswered.clear()
        world.until(lambda: is_ready(world) or world.states["call"] == "closed", 200)
    for dial in watch.dials:
        assert dial.endpoint == told.get(dial.token.reveal(), ENDPOINT)


# -- F06: null endpoint, nothing follows

BOUND_S = check_all(SESSIONS, Options().max_attempts).bound_s


@covers("F06")
def test_a_server_without_a_successor_is_given_up_in_time(phase: str) -> None:
    world = in_phase(phase)
    world.unanswered.add("SendVoiceState")
    assert world.until(lambda: world.states["call"] == "joining.asking", 60) == pytest.approx(30.0)
    assert 0 < world.until(lambda: world.states["call"] == "closed", BOUND_S) < BOUND_S
    assert isinstance(end(world), ConnectionFailed)
    assert asked(world)[-1] is None


@covers("F06")
def test_a_rejoin_ends_the_wait_where_the_main_gateway_answers(phase: str) -> None:
    world = in_phase(phase)
    assert world.until(lambda: is_ready(world), 60) == pytest.approx(30.0)
    assert world.session.call.attempts == 0


@covers("F06")
def test_servers_that_come_and_go_spend_the_attempts(phase: str) -> None:
    world = in_phase(phase)
    world.unanswered.add("SendIdentify")
    watch = Watch(world)
    attempts = [world.session.call.attempts]
    for number in range(1000):
        if world.states["call"] == "closed":
            break
        world.feed(voice_server(f"new {number}", OTHER_ENDPOINT))
        world.advance(0.1)
        world.feed(voice_server(f"null {number}", None))
        attempts.append(world.session.call.attempts)
    world.until(lambda: world.states["call"] == "closed", 5)
    assert attempts[:-1] == list(range(1, 12))
    assert len(watch.dials) == 11
    assert isinstance(end(world), ConnectionFailed)


# -- F07: endpoint port handling

GOOD = [
    ("c-ams20.discord.media", "c-ams20.discord.media", 443),
    ("c-ams20.discord.media:443", "c-ams20.discord.media", 443),
    ("c-ams20.discord.media:80", "c-ams20.discord.media", 80),
    ("c-ams20.discord.media:2048", "c-ams20.discord.media", 2048),
    ("c-ams20.discord.media:8080", "c-ams20.discord.media", 8080),
    ("c-ams20.discord.media:8443", "c-ams20.discord.media", 8443),
    ("c-ams20.discord.media:4430", "c-ams20.discord.media", 4430),
    ("c-ams20.discord.media:1", "c-ams20.discord.media", 1),
    ("c-ams20.discord.media:65535", "c-ams20.discord.media", 65535),
    ("[2001:db8::7]:2048", "2001:db8::7", 2048),
    ("[2001:db8::7]", "2001:db8::7", 443),
]
BAD = [
    "c-ams20.discord.media:0",
    "c-ams20.discord.media:65536",
    "c-ams20.discord.media:",
    "c-ams20.discord.media:https",
    "c-ams20.discord.media:-1",
    "c-ams20.discord.media:443:443",
    "c-ams20.discord.media:0443",
    "c-ams20.discord.media: 443",
    ":443",
    "[2001:db8::7",
    "[2001:db8::7]443",
]


class Announcing:
    """A main gateway that answers a join with a given endpoint, at once or after a null one."""

    def __init__(self, endpoint: str, *, null_first: bool) -> None:
        self._endpoint, self._null_first = endpoint, null_first
        self._receiver: SignallingReceiver | None = None

    def attach(self, receiver: SignallingReceiver) -> None:
        self._receiver = receiver

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        assert self._receiver is not None
        us = {"guild_id": str(guild_id), "user_id": "1", "session_id": "s"}
        self._receiver.voice_state_update({**us, "channel_id": str(channel_id) if channel_id else None})
        if channel_id is None:
            return
        if self._null_first:
            self._receiver.voice_server_update({"guild_id": str(guild_id), "token": "gone", "endpoint": None})
        self._receiver.voice_server_update({"guild_id": str(guild_id), "token": "t", "endpoint": self._endpoint})


def dialled(endpoint: str, phase: str) -> tuple[list[tuple[str, int]], Exception | None]:
    """The hosts and ports that a real client looks up or connects to, and what its connect raised."""
    found: list[tuple[str, int]] = []
    raised: list[Exception] = []

    async def story(sim: Simulation) -> None:
        look_up, dial = sim.network.look_up, sim.network.dial

        async def seen_look_up(name: str, port: int) -> list[object]:
            found.append((name, port))
            return await look_up(name, port)

        async def seen_dial(sock: object, address: tuple[str, int]) -> None:
            found.append((address[0], address[1]))
            await dial(sock, address)  # type: ignore[arg-type]

        sim.network.look_up = seen_look_up  # type: ignore[method-assign]
        sim.network.dial = seen_dial  # type: ignore[method-assign]
        signalling = Announcing(endpoint, null_first=phase == "E")
        client = sim.client(1, signalling=signalling, allowed_hosts=["2001:db8::7"], max_attempts=2)
        try:
            await client.connect(CHANNEL, timeout_s=5.0)
        except Exception as error:
            raised.append(error)
        assert ("waiting.endpoint" in client.way("call")) == (phase == "E")

    Simulation(seed=1).run(story)
    return found, raised[0] if raised else None


@covers("F07")
@pytest.mark.parametrize(("endpoint", "host", "port"), GOOD, ids=[endpoint for endpoint, _, _ in GOOD])
def test_the_port_that_was_announced_is_dialled(phase: str, endpoint: str, host: str, port: int) -> None:
    found, _ = dialled(endpoint, phase)
    assert found
    assert set(found) == {(host, port)}
    parsed = parse_endpoint(endpoint, ["2001:db8::7"])
    assert (parsed.host, parsed.port) == (host, port)


@covers("F07")
@pytest.mark.parametrize("endpoint", BAD)
def test_an_endpoint_that_is_not_host_and_port_is_refused(phase: str, endpoint: str) -> None:
    found, raised = dialled(endpoint, phase)
    assert found == []
    assert isinstance(raised, InvalidEndpoint)


# -- F08: same endpoint, new token


@covers("F08")
def test_another_token_of_the_same_server_is_another_session(phase: str) -> None:
    world = in_phase(phase, speaking=True)
    watch = Watch(world)
    known = len(world.effects)
    world.unanswered.clear()
    world.feed(voice_server("another", ENDPOINT))
    world.until(lambda: is_ready(world) and world.states["speech"] == "speaking", 5)
    assert [identify.token.reveal() for identify in watch.identified] == ["another"]
    assert watch.resumed == []
    keys = [effect for effect in world.sent(UseKey) if isinstance(effect, UseKey)]
    assert len(keys) == 2
    assert keys[0].secret_key != keys[1].secret_key
    new = [type(effect) for _, effect in world.effects[known:]]
    assert ReleaseStream not in new[: new.index(UseKey)]
    assert new.index(HoldStream) < new.index(UseKey)
    assert new.index(DropKey) < new.index(UseKey)


@covers("F08", "U")
def test_a_resume_under_way_is_given_up_for_the_new_token() -> None:
    world = in_phase("U")
    world.unanswered ^= {"OpenSocket", "SendResume"}
    world.server(SocketOpened(), numbered=False)
    world.server(HelloReceived(13.75, 8), numbered=False)
    assert world.states["gateway"] == "resuming.awaiting_resumed"
    watch = Watch(world)
    old = world._stamped(ResumedReceived(), numbered=False)
    world.feed(voice_server("another", ENDPOINT))
    world.feed(old)
    assert world.states["gateway"] == "connecting.dialling"
    world.settle()
    assert is_ready(world)
    assert len(watch.identified) == 1
    assert watch.resumed == []


# -- F09, F16: another server while ready

TARGET_S = 0.3  # of silence, where a round trip takes 40 ms


@covers("F09")
def test_a_hand_over_silences_the_stream_from_hello_to_the_group(phase: str, seed: int) -> None:
    world = World(latency_s=0.04)
    world.join()
    world.until(lambda: is_ready(world), 5)
    world.feed(SpeechStarted())
    world.until(lambda: world.states["speech"] == "speaking", 5)
    assert phase_of(world) == phase
    world.advance(random.Random(seed).uniform(0, 20))
    old = world._stamped(SocketClosed(4014), numbered=False)
    watch, known = Watch(world), len(world.effects)
    world.feed(voice_server("another", OTHER_ENDPOINT))
    world.feed(old)
    assert (world.states["gateway"], world.states["speech"]) == ("connecting.dialling", "speaking")
    assert world.session.heartbeat.state == "stopped"
    world.until(lambda: world.states["gateway"].startswith("identifying"), 5)
    assert (world.states["transport"], world.states["dave"]) == ("closed", "off")
    world.until(lambda: world.states["speech"] == "speaking", 5)
    during = world.effects[known:]
    begin = next(at for at, effect in during if isinstance(effect, HoldStream))
    assert next(at for at, effect in during if isinstance(effect, ReleaseStream)) - begin < TARGET_S
    switch = [type(effect) for _, effect in during if isinstance(effect, CloseUdp | OpenUdp | SendIdentify)]
    assert switch == [SendIdentify, CloseUdp, OpenUdp]
    assert [dial.endpoint for dial in watch.dials] == [OTHER_ENDPOINT]
    assert len(watch.identified) == 1
    assert watch.resumed == []
    assert noticed(world, Connected) == [Connected(CHANNEL)] * 2
    assert noticed(world, Moved) == noticed(world, Closed) == noticed(world, Reconnecting) == []


@covers("F09")
def test_a_hand_over_that_fails_ends_what_went_on(phase: str) -> None:
    world = in_phase(phase, speaking=True)
    world.unanswered.add("OpenSocket")
    world.feed(voice_server("another", OTHER_ENDPOINT))
    assert world.states["speech"] == "speaking"
    world.server(SocketFailed(ConnectionFailed("refused")), numbered=False)
    assert (world.states["transport"], world.states["dave"]) == ("closed", "off")
    assert world.states["speech"] != "speaking"
    world.unanswered.clear()
    world.until(lambda: world.states["speech"] == "speaking", 60)


@covers("F09", "R")
@covers("F16", "R")
@pytest.mark.parametrize("draw", range(3))
def test_a_listener_hears_a_hand_over_as_a_short_gap(draw: int) -> None:
    async def story(sim: Simulation) -> None:
        second = sim.voice_server("c-fra02-sim.discord.media", "66.22.197.1")
        await sim.start_server(second)
        alice, bob = sim.client(1), sim.client(2)
        await alice.connect(CHANNEL)
        await bob.connect(CHANNEL)
        await bob.wait_for(lambda: bob.privacy_code != "" and bob.privacy_code == alice.privacy_code)
        sent: list[tuple[float, str, int, int]] = []  # when, to which server, sequence, timestamp

        def tap_of(name: str):  # type: ignore[no-untyped-def]
            def tap(user_id: int, datagram: bytes) -> None:
                if user_id == 1 and datagram[1] & 0x7F == 0x78:
                    sequence, timestamp = int.from_bytes(datagram[2:4], "big"), int.from_bytes(datagram[4:8], "big")
                    sent.append((sim.loop.time(), name, sequence, timestamp))

            return tap

        sim.server.relay.tap, second.relay.tap = tap_of("first"), tap_of("second")
        sink = MeasuringSink()
        bob.listen(sink)
        playing = alice.play(ToneSource(440, 6))
        await asyncio.sleep(random.Random(draw).uniform(1, 4))
        for client in (alice, bob):
            announce(client, second)
        await playing.wait()
        names = [name for _, name, _, _ in sent]
        assert names == sorted(names)  # none to the first server once one went to the second
        assert set(names) == {"first", "second"}
        gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(sent)]
        assert max(gaps) < TARGET_S
        begin, _, _, first = sent[0]
        for at, _, _, timestamp in sent:
            elapsed = ((timestamp - first) & 0xFFFFFFFF) / 48000
            assert elapsed == pytest.approx(at - begin, abs=0.05)
        for (_, earlier_name, earlier, _), (_, name, sequence, _) in itertools.pairwise(sent):
            assert (sequence - earlier) & 0xFFFF == 1 or earlier_name != name
        await asyncio.sleep(0.2)
        bob.receiver.flush()
        assert sink.frequency(1) == pytest.approx(440, abs=3)

    Simulation(seed=draw).run(story)


def announce(client: SimulatedClient, server: object) -> None:
    """The main gateway hands a client over to another voice server, as a region change does."""
    credentials: Credentials = server.admit(  # type: ignore[attr-defined]
        guild_id=GUILD,
        channel_id=CHANNEL,
        user_id=client.user_id,
        session_id=client.credentials.session_id,
    )
    client.voice_server_update(
        {"guild_id": str(GUILD), "token": credentials.token.reveal(), "endpoint": credentials.endpoint}
    )


@covers("F16")
@pytest.mark.parametrize("code", [None, 1001, 4014, 4015, 4022])
@pytest.mark.parametrize("gap_s", [0.0, 0.3, 4.9])
def test_a_region_change_may_begin_with_a_close(phase: str, code: int | None, gap_s: float) -> None:
    world = in_phase(phase, speaking=True)
    watch = Watch(world)
    world.server(SocketClosed(code), numbered=False)
    world.advance(gap_s)
    world.feed(voice_server("another region", OTHER_ENDPOINT))
    world.until(lambda: is_ready(world) and world.states["speech"] == "speaking", 5)
    assert watch.dials[-1].endpoint == OTHER_ENDPOINT
    assert noticed(world, Closed) == noticed(world, Moved) == []
    assert noticed(world, Connected) == [Connected(CHANNEL)] * 2


# -- F10: server update during the handshake

AWAITS = {
    "D": ["connecting.dialling", "connecting.awaiting_hello"],
    "H": [
        "identifying.awaiting_ready",
        "identifying.discovering",
        "identifying.awaiting_session_description",
    ],
    "U": ["resuming.backing_off", "resuming.dialling", "resuming.awaiting_resumed"],
}


@covers("F10")
@pytest.mark.parametrize("whole", [True, False])
def test_a_newer_pair_replaces_the_dial_at_every_await(phase: str, whole: bool) -> None:
    for state in AWAITS[phase]:
        world = World(latency_s=0.05)
        world.join()
        if phase == "U":
            world.until(lambda world=world: is_ready(world), 5)  # type: ignore[misc]
            world.server(SocketClosed(1011 if state.endswith("backing_off") else 1006), numbered=False)
        world.until(lambda world=world, state=state: world.states["gateway"] == state, 5)  # type: ignore[misc]
        before = world.session.shared.socket_generation
        late = [Stamped("websocket", before, event) for event in (SocketOpened(), HelloReceived(1.0, 8))]
        watch = Watch(world)
        if whole:
            world.feed(voice_state(ELSEWHERE, "newer session"))
        world.feed(voice_server("newer", OTHER_ENDPOINT))
        stale = world.session.shared.counters["events of an older generation"]
        for event in late:
            world.feed(event)
        assert world.session.shared.counters["events of an older generation"] == stale + 2
        assert world.states["gateway"] == "connecting.dialling"
        world.until(lambda world=world: is_ready(world), 5)  # type: ignore[misc]
        assert [identify.token.reveal() for identify in watch.identified] == ["newer"]
        assert world.session.shared.credentials == watch.identified[0]
        assert len(watch.dials) == 1
        assert world.invariants.sockets == {world.session.shared.socket_generation}
        assert world.invariants.udp == {world.session.shared.udp_generation}


@covers("F10")
def test_newer_pairs_for_ever_spend_the_attempts(phase: str) -> None:
    world = in_phase(phase)
    world.unanswered |= {"SendIdentify", "OpenSocket"}
    watch = Watch(world)
    for number in range(100):
        if world.states["call"] == "closed":
            break
        world.feed(voice_server(f"newer {number}", OTHER_ENDPOINT))
        world.settle()
    world.until(lambda: world.states["call"] == "closed", 5)
    assert len(watch.dials) <= 12
    assert isinstance(end(world), ConnectionFailed)


# -- F19: stale session id or token reused


@covers("F19")
def test_a_refused_pair_is_never_used_again(phase: str) -> None:
    world = in_phase(phase)
    if phase == "U":
        world.unanswered ^= {"OpenSocket", "SendResume"}
        world.server(SocketOpened(), numbered=False)
        assert world.states["gateway"] == "resuming.awaiting_resumed"
    session_id, old = present_session(world), last_server(world)
    assert old is not None
    world.unanswered.add("SendVoiceState")
    watch = Watch(world)
    world.server(SocketClosed(4006), numbered=False)
    for _ in range(3):
        world.feed(voice_state(session_id=session_id))
        world.feed(old)
        world.advance(0.1)
    assert watch.dials == []
    world.unanswered.clear()
    world.until(lambda: is_ready(world), 60)
    assert len(watch.identified) == 1
    fresh = watch.identified[0]
    assert (fresh.session_id, fresh.token) != (Secret(session_id), old.token)
    assert watch.resumed == []


@covers("F19")
def test_sessions_that_are_refused_for_ever_are_each_tried_once(phase: str) -> None:
    world = in_phase(phase)
    if phase == "U":
        world.unanswered ^= {"OpenSocket", "SendResume"}
        world.server(SocketOpened(), numbered=False)
    watch = Watch(world)
    world.unanswered.add("SendIdentify")
    for _ in range(100):
        if world.states["call"] == "closed":
            break
        world.server(SocketClosed(4006), numbered=False)
        world.until(lambda: world.states["gateway"] == "identifying.awaiting_ready" or not world.timers, 60)
    assert isinstance(end(world), Exception)
    pairs = [(identify.session_id, identify.token) for identify in watch.identified]
    assert len(pairs) == len(set(pairs)) == 11
