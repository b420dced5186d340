"""Group A of the faults, membership: moved, kicked, left, and what the bot's own main gateway goes through."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from tests.faults.cells import covers
from tests.faults.signalling import (
    ELSEWHERE,
    OTHER_ENDPOINT,
    Watch,
    asked,
    end,
    is_ready,
    noticed,
    present_session,
    voice_server,
    voice_state,
)
from tests.faults.worlds import in_phase, phase_of
from voicegw.effects import Closed, Connected, CreateGroup, Moved, OpenSocket
from voicegw.errors import EventNotAllowed, Kicked, VoiceError
from voicegw.events import (
    Event,
    MainSessionLost,
    MainSessionResumed,
    MainSessionStarted,
    SocketClosed,
    SocketOpened,
    Stamped,
)
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.testing.world import CHANNEL, World

GAPS_S = (0.0, 0.2, 2.5, 4.9)


def with_a_socket(phase: str) -> World:
    """Ready, or resuming with a websocket that a close can come on."""
    world = in_phase(phase)
    if phase == "U":
        world.unanswered ^= {"OpenSocket", "SendResume"}
        world.server(SocketOpened(), numbered=False)
        assert world.states["gateway"] == "resuming.awaiting_resumed"
    return world


# -- F11: moved by a moderator while ready


@covers("F11")
@pytest.mark.parametrize("code", [4014, 4022])
@pytest.mark.parametrize("same_session", [True, False])
@pytest.mark.parametrize("gap_s", GAPS_S)
@pytest.mark.parametrize("order", list(itertools.permutations(("close", "state", "server"))), ids="-".join)
def test_a_move_ends_ready_in_the_new_channel_in_whatever_order(
    phase: str, order: tuple[str, ...], gap_s: float, same_session: bool, code: int
) -> None:
    world = with_a_socket(phase)
    watch = Watch(world)
    session_id = present_session(world) if same_session else "of the move"
    close = world._stamped(SocketClosed(code), numbered=False)  # of the old websocket, whenever it comes
    happenings: dict[str, Event | Stamped] = {
        "close": close,
        "state": voice_state(ELSEWHERE, session_id),
        "server": voice_server("of the move", OTHER_ENDPOINT),
    }
    for name in order:
        world.advance(gap_s)
        world.feed(happenings[name])
    world.settle()
    assert is_ready(world)
    world.advance(10)
    assert is_ready(world)
    assert noticed(world, Moved) == [Moved(ELSEWHERE)]
    assert noticed(world, Closed) == []
    assert world.session.shared.channel_id == ELSEWHERE
    assert watch.identified[-1].channel_id == ELSEWHERE
    assert watch.resumed == []
    groups = [effect.channel_id for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
    assert groups[-1] == ELSEWHERE


@covers("F11", "R")
def test_a_move_without_a_server_asks_for_one() -> None:
    world = in_phase("R")
    world.feed(voice_state(ELSEWHERE, present_session(world)))
    assert phase_of(world) == "R"
    assert world.until(lambda: world.states["call"] == "joining.asking", 10) == pytest.approx(5.0)
    world.until(lambda: is_ready(world), 60)
    assert noticed(world, Moved) == [Moved(ELSEWHERE)]


@covers("F11", "R")
def test_another_end_of_the_old_session_does_not_stop_a_move() -> None:
    for code in (1002, 4001, 4006, 4011, 4016, 4999):
        world = in_phase("R")
        world.feed(voice_state(ELSEWHERE, present_session(world)))
        world.server(SocketClosed(code), numbered=False)
        assert world.states["call"] == "waiting.endpoint"
        world.feed(voice_server("of the move", OTHER_ENDPOINT))
        world.until(lambda world=world: is_ready(world), 5)  # type: ignore[misc]
        assert noticed(world, Moved) == [Moved(ELSEWHERE)]


# -- F12: moved while connecting


@covers("F12")
@pytest.mark.parametrize("same_session", [True, False])
@pytest.mark.parametrize("state_first", [True, False])
@pytest.mark.parametrize("gap_s", [0.0, 0.2, 0.9])
def test_the_newest_channel_wins(phase: str, state_first: bool, same_session: bool, gap_s: float) -> None:
    world = in_phase(phase)
    watch = Watch(world)
    session_id = present_session(world) if same_session else "of the move"
    world.unanswered.add("SendVoiceState")
    moved: list[Event] = [voice_state(ELSEWHERE, session_id), voice_server("of the move", OTHER_ENDPOINT)]
    for event in moved if state_first else reversed(moved):
        world.feed(event)
        world.advance(gap_s)
    world.unanswered.clear()
    world.until(lambda: is_ready(world), 60)
    told = [notice for notice in world.notices if isinstance(notice, Connected | Moved)]
    if phase == "E":  # the session before was of another channel; there may be one more of it before the move is told
        assert told[0] == Connected(CHANNEL)
        assert told[-1] == Moved(ELSEWHERE)
        assert noticed(world, Moved) == [Moved(ELSEWHERE)]
    else:
        assert told == [Connected(ELSEWHERE)]
    assert watch.identified[-1].channel_id == world.session.shared.channel_id == ELSEWHERE
    assert noticed(world, Closed) == []


@covers("F12", "PDH")
@pytest.mark.parametrize("server_first", [True, False])
def test_a_connect_that_is_moved_ends_once_where_the_main_gateway_has_us(server_first: bool) -> None:
    found = set()
    for step in range(40):

        async def story(sim: Simulation, step: int = step) -> None:
            client = sim.client(1)
            gateway: LocalSignalling = client.signalling
            gateway.server_first = server_first
            connecting = asyncio.create_task(client.connect(CHANNEL))
            await asyncio.sleep(0.001 + step * 0.01)
            found.add(client.states["gateway"])
            gateway.move(ELSEWHERE)
            await connecting
            await client.wait_for(lambda: client.states["call"] == "connected" and client.channel_id == ELSEWHERE)
            assert gateway.credentials is not None
            assert client.credentials == gateway.credentials

        Simulation(seed=step).run(story)
    assert {"connecting.dialling", "identifying.awaiting_ready", "identifying.discovering", "ready"} <= found


# -- F13: kicked


@covers("F13")
def test_a_kick_ends_the_call_within_one_event(phase: str) -> None:
    world = in_phase(phase)
    session_id = present_session(world)
    if phase == "P":
        world.feed(voice_state(session_id=session_id))
    dials, joins = len(world.sent(OpenSocket)), asked(world)
    world.feed(voice_state(None, session_id))
    assert world.states["call"] == "closed"
    assert world.states["gateway"] == "closed.down"
    assert isinstance(end(world), Kicked)
    assert world.timers == {}
    world.unanswered.clear()
    world.advance(1000)
    assert len(world.sent(OpenSocket)) == dials
    assert asked(world) == joins


# -- F14: kick against voice close race


def outcome(phase: str, happenings: list[str], gap_s: float, code: int) -> tuple[str, type[BaseException], str, int]:
    """How the call ended: its state, its error, and how many dials there were after the first."""
    world = with_a_socket(phase)
    session_id = present_session(world)
    dials = len(world.sent(OpenSocket))
    close = world._stamped(SocketClosed(code), numbered=False)
    for name in happenings:
        world.feed(close if name == "close" else voice_state(None, session_id))
        world.advance(gap_s)
    world.advance(30)
    error = end(world)
    assert error is not None
    return world.states["call"], type(error), str(error), len(world.sent(OpenSocket)) - dials


@covers("F14")
@pytest.mark.parametrize("code", [4014, 4022])
def test_a_kick_is_the_same_in_every_order_with_every_gap(phase: str, code: int) -> None:
    orders = (["close", "null"], ["null", "close"], ["close"], ["null"])
    outcomes = {
        outcome(phase, order, gap_s, code) for order in orders for gap_s in (0.0, 0.2, 2.0, 4.9, 5.1, 7.0, 10.0)
    }
    ((state, error, _, dials),) = outcomes
    assert (state, error, dials) == ("closed", Kicked, 0)


# -- F15: channel deleted or call ended


@covers("F15")
@pytest.mark.parametrize("code", [4014, 4022])
def test_the_end_of_a_call_is_believed_after_five_seconds(phase: str, code: int) -> None:
    world = with_a_socket(phase)
    dials, joins = len(world.sent(OpenSocket)), asked(world)
    world.server(SocketClosed(code), numbered=False)
    world.advance(4.999)
    assert world.states["call"] == "waiting.verdict"
    world.advance(0.001)
    assert isinstance(end(world), Kicked)
    assert "call is gone" in str(end(world))
    world.advance(1000)
    assert len(world.sent(OpenSocket)) == dials
    assert asked(world) == [*joins, None]


# -- F17: main gateway session invalidated


def has_a_socket(world: World) -> bool:
    return world.states["gateway"] not in ("closed.down", "closed.closing")


@covers("F17")
@pytest.mark.parametrize("code", [4014, 4006])
@pytest.mark.parametrize("close_at", ["before", "between", "after", "never"])
@pytest.mark.parametrize("gap_s", [0.0, 3.0, 119.9])
def test_a_lost_main_session_is_waited_for_and_joined_anew(phase: str, gap_s: float, close_at: str, code: int) -> None:
    world = in_phase(phase)
    old = present_session(world)
    close = world._stamped(SocketClosed(code), numbered=False)
    closes = close_at if has_a_socket(world) else "never"
    if closes == "before":
        world.feed(close)
        world.advance(1.0)
    watch = Watch(world)
    world.feed(MainSessionLost())
    assert world.states["call"] == "waiting.main_session"
    world.advance(gap_s / 2)
    if closes == "between":
        world.feed(close)
    world.feed(voice_state(None, old))  # the end of the dead session's membership is no kick
    world.feed(voice_state(CHANNEL, old))
    world.feed(voice_server("of the dead session"))
    world.advance(gap_s / 2)
    assert world.states["call"] == "waiting.main_session"
    joins = len(asked(world))
    world.unanswered.clear()
    world.feed(MainSessionStarted())
    if closes == "after":
        world.feed(close)
    world.until(lambda: is_ready(world), 60)
    assert asked(world)[joins:] == [CHANNEL]
    assert [identify.session_id.reveal() for identify in watch.identified] == [present_session(world)]
    assert present_session(world) != old
    assert watch.resumed == []


@covers("F17")
def test_a_main_session_that_was_replaced_unheard_is_joined_anew(phase: str) -> None:
    world = in_phase(phase)
    old, joins = present_session(world), len(asked(world))
    world.unanswered.clear()
    watch = Watch(world)
    world.feed(MainSessionStarted())
    world.until(lambda: is_ready(world), 60)
    assert asked(world)[joins:] == [CHANNEL]
    assert old not in [identify.session_id.reveal() for identify in watch.identified]


@covers("F17", "RU")
@pytest.mark.parametrize("gap_s", [0.0, 4.9])
def test_a_main_session_that_is_replaced_after_the_voice_close_is_no_kick(phase: str, gap_s: float) -> None:
    world = with_a_socket(phase)
    world.server(SocketClosed(4014), numbered=False)
    world.advance(gap_s)
    world.feed(MainSessionStarted())
    world.until(lambda: is_ready(world), 60)


@covers("F17")
def test_a_main_session_that_does_not_come_back_ends_the_call(phase: str) -> None:
    world = in_phase(phase)
    world.feed(MainSessionLost())
    joins = asked(world)
    world.advance(119.999)
    assert world.states["call"] == "waiting.main_session"
    world.advance(0.001)
    assert isinstance(end(world), VoiceError)
    assert asked(world) == joins


# -- F18: main gateway resumed


@covers("F18")
def test_a_main_gateway_that_resumed_changes_nothing(phase: str) -> None:
    world = in_phase(phase)
    before = (world.states, world.timers, world.session.call.attempts, len(world.effects))
    for _ in range(3):
        world.feed(MainSessionResumed())
    assert (world.states, world.timers, world.session.call.attempts, len(world.effects)) == before
    assert phase_of(world) == phase


# -- F21: leave then join at once


class SlowGateway(LocalSignalling):
    """Answers each op 4 after a while, in order, to whoever is attached by then."""

    def __init__(self, server: VoiceServer, user_id: int, delay_s: float) -> None:
        super().__init__(server, user_id)
        self._delay_s = delay_s

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        def answer() -> None:
            work = super(SlowGateway, self).update_voice_state(
                guild_id, channel_id, self_mute=self_mute, self_deaf=self_deaf
            )
            self._answering = asyncio.ensure_future(work)

        asyncio.get_running_loop().call_later(self._delay_s, answer)


def leave_and_join(seed: int, step_s: float, delay_s: float, close: Callable[[SimulatedClient], object]) -> None:
    """Join, leave, join, leave, join, `step_s` apart; the last wish must come true."""

    async def story(sim: Simulation) -> None:
        gateway = SlowGateway(sim.server, 1, delay_s)
        tasks: list[asyncio.Task[None]] = []
        for _ in range(2):
            client = sim.client(1, signalling=gateway)
            tasks.append(asyncio.create_task(client.connect(CHANNEL)))
            await asyncio.sleep(step_s)
            closing = close(client)
            if isinstance(closing, asyncio.Task):
                tasks.append(closing)
            elif closing is not None:
                await closing  # type: ignore[misc]
        last = sim.client(1, signalling=gateway)
        await last.connect(CHANNEL)
        await asyncio.sleep(5.0)
        assert (last.states["call"], last.states["gateway"]) == ("connected", "ready")
        assert last.error is None
        assert gateway.credentials == last.credentials
        for task in await asyncio.gather(*tasks, return_exceptions=True):
            assert task is None or isinstance(task, EventNotAllowed)

    Simulation(seed=seed).run(story)


STEPS_S = (0.0, 0.01, 0.1, 0.3, 0.5)
DELAYS_S = (0.0, 0.05, 0.3, 1.0)


@covers("F21", "P")
@pytest.mark.parametrize("step_s", STEPS_S)
@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_a_leave_is_answered_before_the_next_join(step_s: float, delay_s: float) -> None:
    leave_and_join(1, step_s, delay_s, lambda client: client.close())


@covers("F21", "C")
@pytest.mark.parametrize(
    ("step_s", "delay_s"), [(0.1, 0.0), (0.1, 0.05), (0.5, 0.05), (0.5, 0.3), (1.2, 1.0), (2.5, 1.0)]
)
def test_a_join_while_the_call_before_it_still_closes(step_s: float, delay_s: float) -> None:
    leave_and_join(1, step_s, delay_s, lambda client: asyncio.ensure_future(client.close()))


@covers("F21", "PC")
def test_the_late_answer_to_an_earlier_leave_is_no_kick(phase: str) -> None:
    world = in_phase(phase)
    if phase == "P":
        world.feed(voice_state(None))
        assert phase_of(world) == phase
        world.unanswered.clear()
        world.until(lambda: is_ready(world), 10)
    else:
        world.feed(voice_state())
        world.feed(voice_server("late"))
        assert phase_of(world) == phase
        world.feed(voice_state(None))
        world.until(lambda: world.states["call"] == "closed", 3)
        assert end(world) is None
