"""Every deadline of the websocket and its heart: an answer just before it counts, just after it comes too late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.worlds import in_phase
from voicegw.events import Event, IpDiscovered, LeaveRequested, SocketClosed, SocketOpened
from voicegw.session import SESSIONS
from voicegw.testing.world import MEDIA, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.payloads import HeartbeatAcked, HelloReceived, ReadyReceived, ResumedReceived

Case = tuple[str, float, Callable[[], World], Callable[[World], Event], str, str]


def dialling() -> World:
    return in_phase("D")


def awaiting_hello() -> World:
    world = in_phase("D")
    world.server(SocketOpened(), numbered=False)
    return world


def awaiting_ready() -> World:
    return in_phase("H")


def joined_without(effect: str) -> World:
    world = World()
    world.unanswered.add(effect)
    world.join()
    return world


def backing_off() -> World:
    world = in_phase("R")
    world.unanswered.add("OpenSocket")
    world.server(SocketClosed(1011), numbered=False)
    return world


def resuming() -> World:
    return in_phase("U")


def awaiting_resumed() -> World:
    world = in_phase("U")
    world.unanswered.add("SendResume")
    world.server(SocketOpened(), numbered=False)
    return world


def closing() -> World:
    return in_phase("C")


def unanswered_beats(count: int) -> World:
    world = in_phase("R")
    world.advance(1.0)
    world.unanswered.add("SendHeartbeat")
    world.advance(4.0)  # the first beat that nobody answers leaves here
    world.advance(5.0 * (count - 1))
    return world


def ready_received(world: World) -> Event:
    return ReadyReceived(1, MEDIA, 9, PREFERRED_MODES)


DEADLINES: list[Case] = [
    ("dial_timeout", 10.0, dialling, lambda world: SocketOpened(), "connecting.awaiting_hello", "closed.down"),
    ("dial_timeout", 10.0, resuming, lambda world: SocketOpened(), "resuming.awaiting_resumed", "closed.down"),
    (
        "hello_timeout",
        5.0,
        awaiting_hello,
        lambda world: HelloReceived(5, 8),
        "identifying.awaiting_ready",
        "closed.down",
    ),
    ("ready_timeout", 5.0, awaiting_ready, ready_received, "identifying.discovering", "closed.down"),
    (
        "session_description_timeout",
        5.0,
        lambda: joined_without("SendSelectProtocol"),
        lambda world: world.description(),
        "ready",
        "closed.down",
    ),
    ("resumed_timeout", 5.0, awaiting_resumed, lambda world: ResumedReceived(), "ready", "closed.down"),
    ("closing_timeout", 2.0, closing, lambda world: SocketClosed(1000), "closed.down", "closed.down"),
]


@pytest.mark.parametrize(
    ("deadline", "seconds", "made", "answer", "in_time", "late"),
    DEADLINES,
    ids=[f"{case[0]} in {case[4]}" for case in DEADLINES],
)
@pytest.mark.parametrize("off_s", [-0.001, 0.0, 0.001])
def test_an_answer_counts_up_to_the_deadline_and_not_after(
    deadline: str,
    seconds: float,
    made: Callable[[], World],
    answer: Callable[[World], Event],
    in_time: str,
    late: str,
    off_s: float,
) -> None:
    world = made()
    begin = world.timers[deadline] - seconds
    assert begin == pytest.approx(world.now, abs=1e-9)
    stays = world.states["gateway"]
    world.unanswered |= {"OpenSocket", "SendIdentify", "SendVoiceState", "SendDiscovery"}
    world.advance(seconds + off_s)
    fired = any(step.event == deadline for step in world.trace)
    assert fired == (off_s >= 0.0)  # at the limit itself, time is up
    assert world.states["gateway"] == (late if fired else stays)
    world.server(answer(world))
    assert world.states["gateway"] == (late if fired else in_time)


def test_discovery_has_five_seconds_at_most() -> None:
    for off_s in (-0.2, 0.0):
        world = joined_without("SendDiscovery")
        world.unanswered |= {"SendSelectProtocol", "OpenSocket", "SendVoiceState"}
        world.advance(5.0 + off_s)
        world.udp(IpDiscovered("203.0.113.7", 50004))
        if off_s:
            assert world.states["gateway"] == "identifying.awaiting_session_description"
        else:
            assert world.states["gateway"].startswith("closed")


def test_the_wait_before_a_resume_ends_after_a_second_at_the_latest() -> None:
    for off_s, state in ((-0.001, "resuming.backing_off"), (0.0, "resuming.dialling"), (0.001, "resuming.dialling")):
        world = backing_off()
        world.advance(1.0 + off_s)
        assert world.states["gateway"] == state


@pytest.mark.parametrize(
    ("beats", "seconds", "before", "after"),
    [
        (1, 5.0, "beating.awaiting_ack", "beating.overdue"),
        (2, 5.0, "beating.overdue", "beating.last_look"),
        (3, 0.5, "beating.last_look", "stopped"),
    ],
)
@pytest.mark.parametrize("off_s", [-0.001, 0.0, 0.001])
def test_a_heart_waits_for_each_answer_as_long_as_it_should(
    beats: int, seconds: float, before: str, after: str, off_s: float
) -> None:
    world = unanswered_beats(beats)
    world.unanswered.add("OpenSocket")
    assert world.states["heartbeat"] == before
    world.advance(seconds + off_s)
    assert world.states["heartbeat"] == (before if off_s < 0.0 else after)
    world.server(HeartbeatAcked(1), numbered=False)
    assert world.states["heartbeat"] == ("stopped" if after == "stopped" and off_s >= 0.0 else "beating.resting")


def test_the_deadlines_named_here_are_in_the_tables() -> None:
    tested = {case[0] for case in DEADLINES} | {
        "discovery_timeout",
        "resume_backoff_over",
        "beat_due",
        "last_look_over",
    }
    assert tested <= set(SESSIONS["gateway"].table.deadlines) | set(SESSIONS["heartbeat"].table.deadlines)
    world = in_phase("R")
    world.feed(LeaveRequested())
    world.settle()
    assert world.timers == {}
