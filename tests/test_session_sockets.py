"""The core in virtual time: how a voice websocket is dialled, interrupted and closed, and what is left of it then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sessions import noticed, ready
from tests.test_session_closes import CLOSES
from voicegw.effects import (
    AbortSocket,
    CloseSocket,
    DropKey,
    OpenSocket,
    Reconnecting,
    Resumed,
    SendResume,
    SendSelectProtocol,
)
from voicegw.errors import CertificateRefused, ConnectionFailed
from voicegw.events import (
    DialPostponed,
    Event,
    FreezeRequested,
    GroupRejected,
    IpDiscovered,
    KeyExhausted,
    LeaveRequested,
    PathMoved,
    ReaderFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
    UdpFailed,
    VoiceServerUpdated,
)
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.testing.world import ENDPOINT, World
from voicegw.wire.payloads import HelloReceived

FAILED = ConnectionFailed("not today")


def dialling() -> World:
    """The first dial of a call."""
    world = World()
    world.unanswered.add("OpenSocket")
    world.join()
    assert world.states["gateway"] == "connecting.dialling"
    return world


def identifying(**options: object) -> World:
    """A first session whose key is awaited; nobody answers a beat."""
    world = World(Options(**options))  # type: ignore[arg-type]
    world.heartbeat_interval_s = 1.0
    world.unanswered |= {"SendSelectProtocol", "SendHeartbeat"}
    world.join()
    assert world.states["gateway"] == "identifying.awaiting_session_description"
    return world


def resuming() -> World:
    """The websocket of a call that was ready is dialled again."""
    world = ready()
    world.unanswered.add("OpenSocket")
    world.server(SocketClosed(1006), numbered=False)
    assert world.states["gateway"] == "resuming.dialling"
    return world


# -- dials


@pytest.mark.parametrize(
    "failure",
    [
        SocketFailed(FAILED),
        SocketUnavailable(FAILED),
        SocketRateLimited(FAILED),
        SocketRefused(CertificateRefused("x")),
    ],
    ids=lambda event: event.name,
)
@pytest.mark.parametrize("make", [dialling, resuming])
def test_a_dial_that_fails_leaves_no_session_and_no_key(make: Callable[[], World], failure: Event) -> None:
    world = make()
    known = len(world.effects)
    world.unanswered.add("SendVoiceState")
    world.server(failure, numbered=False)
    assert (world.states["gateway"], world.states["transport"], world.states["dave"]) == (
        "closed.down",
        "closed",
        "off",
    )
    assert world.states["heartbeat"] == "stopped"
    said = [type(effect) for _, effect in world.effects[known:]]
    assert (DropKey in said, CloseSocket in said, AbortSocket in said) == (True, False, False)


@pytest.mark.parametrize(("make", "state"), [(dialling, "connecting"), (resuming, "resuming")])
def test_a_dial_that_must_wait_for_its_turn_is_made_when_it_comes(make: Callable[[], World], state: str) -> None:
    world = make()
    world.server(DialPostponed(5.0), numbered=False)
    assert world.states["gateway"] == f"{state}.queued"
    dialled, at = len(world.sent(OpenSocket)), world.now
    world.until(lambda: world.states["gateway"] == f"{state}.dialling_in_turn", 60)
    assert world.now - at == pytest.approx(5.0)
    last = world.sent(OpenSocket)[-1]
    assert isinstance(last, OpenSocket)
    assert (len(world.sent(OpenSocket)), last.in_turn) == (dialled + 1, True)


def test_a_server_that_says_no_hello_is_one_that_does_not_answer() -> None:
    world = dialling()
    world.server(SocketOpened(), numbered=False)
    world.until(lambda: world.states["gateway"] == "closed.down", 10)
    assert world.states["call"] == "waiting.backoff"
    assert "did not answer in time" in str(world.session.call.error)


def test_discovery_has_a_bound_of_its_own_and_ends_with_a_close() -> None:
    world = World(Options(deadlines={"discovery_timeout": 1.0}))
    world.unanswered |= {"SendDiscovery", "CloseSocket"}
    world.join()
    assert world.until(lambda: world.states["gateway"] != "identifying.discovering", 10) == pytest.approx(1.0)
    assert (world.states["gateway"], world.sent(CloseSocket)) == ("closed.closing", [CloseSocket(1000)])
    assert world.states["call"] == "waiting.backoff"


@pytest.mark.parametrize("socket", [True, False])
def test_a_call_without_udp_ends_its_websocket_with_a_close(socket: bool) -> None:
    world = World()
    world.unanswered |= {"SendDiscovery", "CloseSocket"}
    world.join()
    if not socket:
        world.udp(UdpFailed(FAILED))
    world.until(lambda: world.states["call"] != "connecting", 10)
    assert world.sent(CloseSocket) == [CloseSocket(1000)]


@pytest.mark.parametrize("make", [dialling, identifying, resuming])
def test_a_reader_that_fails_before_there_is_a_session_ends_the_attempt(make: Callable[[], World]) -> None:
    world = make()
    world.unanswered.add("SendVoiceState")
    world.server(ReaderFailed("a defect"), numbered=False)
    assert world.states["gateway"] == "closed.down"
    assert world.states["call"] in ("waiting.backoff", "joining.asking")
    assert world.session.call.attempts == 1


def test_a_heart_that_dies_before_there_is_a_session_ends_the_attempt() -> None:
    world = identifying(deadlines={"session_description_timeout": 60.0})
    world.until(lambda: world.states["gateway"] != "identifying.awaiting_session_description", 20)
    assert (world.states["gateway"], world.states["call"]) == ("closed.down", "waiting.backoff")
    assert world.session.call.attempts == 1


def test_another_server_while_one_identifies_ends_the_session_in_the_making() -> None:
    world = identifying()
    world.unanswered.add("OpenSocket")
    dropped = len(world.sent(DropKey))
    world.feed(VoiceServerUpdated(Secret("another"), ENDPOINT))
    assert (world.states["gateway"], world.states["transport"]) == ("connecting.dialling", "closed")
    assert len(world.sent(DropKey)) == dropped + 1


# -- interruptions


def close(world: World) -> None:
    world.server(SocketClosed(1006), numbered=False)


def close_for_later(world: World) -> None:
    world.server(SocketClosed(1011), numbered=False)


def fail_to_read(world: World) -> None:
    world.server(ReaderFailed("a defect"), numbered=False)


def die(world: World) -> None:
    world.unanswered.add("SendHeartbeat")
    world.until(lambda: world.states["gateway"] != "ready", 60)
    world.unanswered.remove("SendHeartbeat")


@pytest.mark.parametrize("interrupt", [close, close_for_later, fail_to_read, die])
def test_every_interruption_is_said_and_ends_with_one_resume(interrupt: Callable[[World], None]) -> None:
    world = ready()
    interrupt(world)
    assert world.states["gateway"].startswith("resuming")
    assert len(noticed(world, Reconnecting)) == 1
    assert world.states["heartbeat"] == "stopped"
    world.until(lambda: world.states["gateway"] == "ready", 30)
    assert (len(world.sent(OpenSocket)), len(world.sent(SendResume))) == (2, 1)
    assert len(noticed(world, Resumed)) == 1


def test_a_resume_with_another_address_is_said_like_any_other() -> None:
    world = resuming()
    world.unanswered.add("SendDiscovery")
    world.udp(PathMoved())
    world.udp(IpDiscovered("198.51.100.9", 7))
    world.server(SocketOpened(), numbered=False)
    world.server(HelloReceived(13.75, 8), numbered=False)
    world.settle()
    assert len(world.sent(SendSelectProtocol)) == 2
    assert len(noticed(world, Resumed)) == 1


# -- closes


def lose_e2ee(world: World) -> None:
    for number in range(4):
        world.feed(GroupRejected(number, "does not fit"))


def spend_key(world: World) -> None:
    world.unanswered.add("SendSelectProtocol")
    for _ in range(2):
        world.feed(KeyExhausted())


@pytest.mark.parametrize("end", [lose_e2ee, spend_key])
def test_a_session_that_we_end_ourselves_is_ended_with_a_close(end: Callable[[World], None]) -> None:
    world = ready()
    world.unanswered |= {"CloseSocket", "SendVoiceState", "ApplyCommit", "ApplyWelcome"}
    end(world)
    assert (world.states["gateway"], world.states["transport"]) == ("closed.closing", "closed")
    said = [effect for _, effect in world.effects if isinstance(effect, DropKey | CloseSocket)]
    assert said[-2:] == [DropKey(), CloseSocket(1000)]


@pytest.mark.parametrize("code", [1008, 4012, 4017, 4021])
def test_nothing_is_closed_where_the_server_has_closed(code: int) -> None:
    world = ready()
    world.server(SocketClosed(code), numbered=False)
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert (world.sent(CloseSocket), world.sent(AbortSocket)) == ([], [])


@pytest.mark.parametrize("code", [code for code, _ in CLOSES])
def test_whatever_code_answers_our_close_it_is_closed(code: int | None) -> None:
    world = ready()
    world.unanswered.add("CloseSocket")
    world.feed(LeaveRequested())
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("leaving.closing", "closed.closing")
    world.server(SocketClosed(code), numbered=False)
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")


@pytest.mark.parametrize("make", [dialling, resuming])
def test_a_dial_that_is_given_up_needs_no_close(make: Callable[[], World]) -> None:
    world = make()
    world.feed(LeaveRequested())
    world.settle()
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert (world.sent(CloseSocket), world.sent(AbortSocket)) == ([], [AbortSocket()])


def test_a_close_that_nobody_answers_is_cut_off() -> None:
    world = ready(deadlines={"closing_timeout": 0.5})
    world.unanswered.add("CloseSocket")
    world.feed(LeaveRequested())
    world.settle()
    assert world.until(lambda: world.states["call"] == "closed", 5) == pytest.approx(0.5)
    assert world.sent(AbortSocket) == [AbortSocket()]


def test_a_close_under_way_is_cut_off_where_the_call_goes_on_elsewhere() -> None:
    world = ready()
    world.unanswered |= {"CloseSocket", "SendVoiceState"}
    spend_key(world)
    assert world.states["gateway"] == "closed.closing"
    world.feed(FreezeRequested())
    assert (world.states["call"], world.states["gateway"]) == ("closed", "closed.down")
    assert world.sent(AbortSocket) == [AbortSocket()]
