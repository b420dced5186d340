"""Group A of the faults, joins: the two halves of a pair, repeated, lost, foreign, or never asked for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from tests.faults.cells import covers
from tests.faults.signalling import (
    ELSEWHERE,
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
from voicegw.client import VoiceClient
from voicegw.effects import Connected, FlagsChanged, OpenSocket, Report, SendVoiceState, Warned
from voicegw.errors import SignallingError, VoiceTimeout
from voicegw.events import SignallingFailed, VoiceServerUpdated
from voicegw.signalling import SignallingReceiver, VoiceFlags
from voicegw.testing.simulation import Simulation
from voicegw.testing.world import CHANNEL, GUILD, USER, World

# -- F01: pair in either order


@covers("F01")
@pytest.mark.parametrize("gap_s", [0.0, 0.2, 2.9, 3.1, 9.0])
@pytest.mark.parametrize("state_first", [True, False])
def test_a_pair_is_dialled_once_when_both_halves_came(phase: str, state_first: bool, gap_s: float) -> None:
    world = in_phase(phase)
    watch = Watch(world)
    first, second = voice_state(session_id="ours"), voice_server("its token")
    if not state_first:
        first, second = second, first  # type: ignore[assignment]
    world.feed(first)
    world.advance(gap_s)
    assert watch.dials == []
    world.feed(second)
    world.settle()
    assert [(dial.session_id.reveal(), dial.token.reveal()) for dial in watch.dials] == [("ours", "its token")]
    assert asked(world) == [CHANNEL]
    assert is_ready(world)


@covers("F01")
def test_a_half_of_the_join_before_completes_no_pair(phase: str) -> None:
    world = in_phase(phase)
    watch = Watch(world)
    world.until(lambda: world.states["call"] == "joining.clearing", 10)
    world.feed(voice_server("of the first join"))
    world.until(lambda: world.states["call"] == "joining.asking_again", 10)
    world.feed(voice_state())
    assert watch.dials == []
    world.feed(voice_server("of the second join"))
    assert [dial.token.reveal() for dial in watch.dials] == ["of the second join"]


# -- F02: one half never comes


@covers("F02")
@pytest.mark.parametrize("half", ["voice state", "voice server", "neither"])
def test_half_a_pair_fails_the_join_at_ten_seconds_with_a_leave(phase: str, half: str) -> None:
    world = in_phase(phase)
    if half != "neither":
        world.feed(voice_state() if half == "voice state" else voice_server())
    world.advance(9.999)
    assert phase_of(world) == phase
    world.advance(0.001)
    assert isinstance(end(world), SignallingError)
    assert ("in full" in str(end(world))) == (half != "neither")
    ghost = [CHANNEL, None] if half == "neither" else []  # nothing at all may be a ghost: leave, and join again
    assert asked(world) == [*ghost, CHANNEL, None]
    assert world.times(SendVoiceState)[-1] == pytest.approx(10.0)
    assert world.sent(OpenSocket) == []


@covers("F02")
def test_a_call_that_worked_before_backs_off_instead(phase: str) -> None:
    world = in_phase("R")
    world.unanswered.add("SendVoiceState")
    world.feed(voice_server("null", None))
    world.until(lambda: world.states["call"] == "joining.asking", 40)
    assert phase_of(world) == phase
    assert world.until(lambda: world.states["call"] == "waiting.backoff", 40) == pytest.approx(10.0)
    assert asked(world)[-2:] == [CHANNEL, None]
    world.unanswered.clear()
    world.until(lambda: is_ready(world), 60)


# -- F03: duplicate server update


@covers("F03")
def test_a_repeated_server_update_changes_nothing(phase: str, seed: int) -> None:
    world = in_phase(phase)
    if phase == "P":
        world.feed(voice_server())
    repeated, repeats = last_server(world), (1, 7, 50)[seed]
    assert repeated is not None
    before = (world.states, world.timers, world.session.call.attempts, len(world.effects))
    for _ in range(repeats):
        world.feed(repeated)
    assert (world.states, world.timers, world.session.call.attempts, len(world.effects)) == before
    assert world.session.shared.counters["ignored: duplicate server update"] == repeats
    assert [step.event for step in world.trace[-repeats:]] == ["voice_server_updated"] * repeats


@covers("F03", "E")
def test_the_server_that_went_away_is_no_replacement(phase: str) -> None:
    world = in_phase(phase)
    gone = next(event for _, event in world.heard if isinstance(event, VoiceServerUpdated))
    world.feed(gone)
    assert phase_of(world) == phase
    assert len(world.sent(OpenSocket)) == 1


# -- F04: a voice state update that changes nothing for us

FLAGS = (VoiceFlags(mute=True), VoiceFlags(deaf=True, self_mute=True), VoiceFlags(suppress=True, self_deaf=True))


@covers("F04")
def test_flags_are_shown_and_move_nothing(phase: str, seed: int) -> None:
    world = in_phase(phase)
    session_id = present_session(world)
    if phase in "PB":  # this join's first half; from then on it says nothing new
        world.feed(voice_state(session_id=session_id))
    before = (world.states, world.timers, world.session.call.attempts)
    known = len(world.effects)
    world.feed(voice_state(session_id=session_id, flags=FLAGS[seed]))
    world.feed(voice_state(session_id=session_id, flags=FLAGS[seed]))
    assert (world.states, world.timers, world.session.call.attempts) == before
    assert world.session.call.flags == FLAGS[seed]
    assert [effect for _, effect in world.effects[known:]] == [Report(FlagsChanged(FLAGS[seed]))]
    world.feed(voice_state(session_id=session_id))
    assert noticed(world, FlagsChanged)[-1] == FlagsChanged(VoiceFlags())


def client_of(world: World) -> VoiceClient:
    """A client in front of a world's core: what the main gateway says comes through the client's own doors."""

    class NoGateway:
        def attach(self, receiver: SignallingReceiver) -> None:
            pass

        async def update_voice_state(self, guild_id: int, channel_id: int | None, **flags: bool) -> None:
            raise AssertionError("the world answers")

    client = VoiceClient(user_id=USER, guild_id=GUILD, signalling=NoGateway())
    client.session = world.session
    client.feed = world.feed  # type: ignore[assignment]
    return client


@covers("F04", "R")
def test_the_client_reads_every_flag() -> None:
    world = in_phase("R")
    client = client_of(world)
    for name in ("mute", "deaf", "self_mute", "self_deaf", "suppress"):
        client.voice_state_update(
            {
                "guild_id": str(GUILD),
                "user_id": str(USER),
                "channel_id": str(CHANNEL),
                "session_id": present_session(world),
                "self_stream": True,
                name: True,
            }
        )
        assert client.flags == VoiceFlags(**{name: True})
    assert is_ready(world)


# -- F20: pair of another guild or user


@covers("F20")
def test_what_concerns_others_is_counted_and_ignored(phase: str) -> None:
    world = in_phase(phase)
    client = client_of(world)
    before = (world.states, world.timers, len(world.heard), len(world.effects))
    ours = {"guild_id": str(GUILD), "user_id": str(USER), "channel_id": str(ELSEWHERE), "session_id": "foreign"}
    client.voice_state_update({**ours, "user_id": str(USER + 1)})
    client.voice_state_update({**ours, "guild_id": str(GUILD + 1)})
    client.voice_state_update({**ours, "user_id": str(USER + 1), "channel_id": None})
    client.voice_state_update({})
    client.voice_server_update({"guild_id": str(GUILD + 1), "token": "foreign", "endpoint": None})
    client.voice_server_update({"token": "foreign", "endpoint": "example.com"})
    assert (world.states, world.timers, len(world.heard), len(world.effects)) == before
    assert world.session.shared.counters["foreign voice states"] == 4
    assert world.session.shared.counters["foreign voice servers"] == 2


@covers("F20")
def test_what_cannot_be_read_is_counted_and_ignored(phase: str) -> None:
    world = in_phase(phase)
    client = client_of(world)
    before = (world.states, world.timers, len(world.heard))
    ours = {"guild_id": str(GUILD), "user_id": str(USER), "session_id": "ours"}
    unreadable: list[object] = ["", "general", [], 1.5, True, "9" * 5000]
    for channel_id in unreadable:
        client.voice_state_update({**ours, "channel_id": channel_id})
    client.voice_state_update({**ours, "channel_id": str(CHANNEL), "session_id": None})
    for server in ({"token": 7, "endpoint": "x.discord.media"}, {"token": "t", "endpoint": 7}, {"endpoint": "x"}):
        client.voice_server_update({"guild_id": str(GUILD), **server})
    assert (world.states, world.timers, len(world.heard)) == before
    assert world.session.shared.counters["malformed voice states"] == 7
    assert world.session.shared.counters["malformed voice servers"] == 3


# -- F22: ghost from an earlier process


@covers("F22")
@pytest.mark.parametrize("leave_answered", [True, False])
def test_a_ghost_is_cleared_by_leaving_and_joining_once_more(phase: str, leave_answered: bool) -> None:
    world = in_phase(phase)
    world.advance(2.999)
    assert asked(world) == [CHANNEL]
    if leave_answered:
        world.unanswered.clear()
    world.advance(0.001)
    if not leave_answered:
        world.unanswered.clear()
        world.advance(1.0)
    world.until(lambda: is_ready(world), 5)
    assert asked(world) == [CHANNEL, None, CHANNEL]
    assert noticed(world, Connected) == [Connected(CHANNEL)]


@covers("F22")
def test_a_channel_that_never_answers_is_asked_twice(phase: str) -> None:
    world = in_phase(phase)
    world.advance(1000)
    assert asked(world) == [CHANNEL, None, CHANNEL, None]
    assert isinstance(end(world), SignallingError)


# -- F23: join request not sent


@covers("F23", "P")
def test_a_join_that_is_not_sent_is_said_and_tried_again_with_backoff(phase: str) -> None:
    world = in_phase(phase)
    for attempt in range(1, 13):
        world.until(lambda: world.states["call"] == "joining.asking", 60)
        world.feed(SignallingFailed("RuntimeError"))
        if attempt < 12:
            assert world.states["call"] == "waiting.backoff"
            warned = noticed(world, Warned)[-1]
            assert isinstance(warned, Warned)
            assert "RuntimeError" in warned.text
    assert isinstance(end(world), SignallingError)
    gaps = [later - earlier for earlier, later in itertools.pairwise(world.times(SendVoiceState))]
    assert gaps == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 6])


class FailingGateway:
    """A main gateway that raises, or hangs, and counts how often it was asked."""

    def __init__(self, *, hangs: bool, good: int = 0) -> None:
        self.hangs, self.good = hangs, good
        self.receiver: SignallingReceiver | None = None
        self.asked: list[int | None] = []
        self.inner: object = None

    def attach(self, receiver: SignallingReceiver) -> None:
        self.receiver = receiver

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        self.asked.append(channel_id)
        if len(self.asked) <= self.good:
            return
        if self.hangs:
            await asyncio.Event().wait()
        raise RuntimeError("not connected")


def told(story: Callable[[Simulation], Awaitable[None]]) -> None:
    Simulation(seed=1).run(story)


@covers("F23", "P")
@pytest.mark.parametrize("hangs", [True, False])
def test_a_connect_whose_join_is_not_sent_ends_in_time_with_the_reason(phase: str, hangs: bool) -> None:
    gateway = FailingGateway(hangs=hangs)

    async def story(sim: Simulation) -> None:
        client = sim.client(1, signalling=gateway)
        warned: list[str] = []
        client.add_listener(lambda notice: warned.append(notice.text) if isinstance(notice, Warned) else None)
        begin = sim.loop.time()
        with pytest.raises(VoiceTimeout) as caught:
            await client.connect(CHANNEL, timeout_s=30.0)
        assert sim.loop.time() - begin == pytest.approx(30.0, abs=0.1)
        assert isinstance(caught.value.__cause__, SignallingError)
        assert warned
        assert ("TimeoutError" if hangs else "RuntimeError") in warned[0]

    told(story)
    assert 2 <= gateway.asked.count(CHANNEL) <= 12


@covers("F23", "C")
@pytest.mark.parametrize("hangs", [True, False])
def test_a_leave_that_is_not_sent_does_not_hold_up_the_close(phase: str, hangs: bool) -> None:
    world = in_phase(phase)
    world.feed(SignallingFailed("RuntimeError"))
    world.until(lambda: world.states["call"] == "closed", 2)
    error = end(world)
    assert isinstance(error, SignallingError)
    assert "leave" in str(error)

    gateway = FailingGateway(hangs=hangs, good=1)

    async def story(sim: Simulation) -> None:
        client = sim.client(1, signalling=gateway)
        connecting = asyncio.create_task(client.connect(CHANNEL))
        await asyncio.sleep(0.1)
        begin = sim.loop.time()
        await client.close()
        assert sim.loop.time() - begin <= 2.0
        assert isinstance(client.error, SignallingError)
        with pytest.raises(SignallingError):
            await connecting

    told(story)
    assert gateway.asked == [CHANNEL, None]
