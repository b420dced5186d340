"""The core in virtual time: what it does after every close code, in each phase."""

from __future__ import annotations

import pytest

from tests.sessions import last_error, ready
from voicegw.effects import (
    SendResume,
    SendSelectProtocol,
)
from voicegw.errors import (
    ConnectionClosed,
    E2EERequired,
)
from voicegw.events import (
    SocketClosed,
)
from voicegw.session import E2EEPolicy, Options
from voicegw.testing.world import World
from voicegw.wire.encryption import PREFERRED_MODES

RESUME, RESUME_LATER, NEW_PAIR, PAIR_LATER, WAIT, WAIT_SERVER, END = range(7)
CLOSES: list[tuple[int | None, int]] = [
    (None, RESUME),
    (1000, RESUME),
    (1001, RESUME),
    (1002, PAIR_LATER),
    (1003, PAIR_LATER),
    (1005, RESUME),
    (1006, RESUME),
    (1007, PAIR_LATER),
    (1008, END),
    (1009, PAIR_LATER),
    (1010, PAIR_LATER),
    (1011, RESUME_LATER),
    (1012, RESUME_LATER),
    (1013, RESUME_LATER),
    (1014, RESUME_LATER),
    (4000, PAIR_LATER),
    (4001, PAIR_LATER),
    (4002, PAIR_LATER),
    (4003, NEW_PAIR),
    (4004, PAIR_LATER),
    (4005, PAIR_LATER),
    (4006, NEW_PAIR),
    (4008, END),
    (4009, NEW_PAIR),
    (4011, WAIT_SERVER),
    (4012, END),
    (4013, RESUME),
    (4014, WAIT),
    (4015, RESUME),
    (4016, PAIR_LATER),
    (4017, END),
    (4020, PAIR_LATER),
    (4021, END),
    (4022, WAIT),
    (4099, PAIR_LATER),
    (4999, PAIR_LATER),
]


@pytest.mark.parametrize(("code", "decision"), CLOSES, ids=lambda value: str(value))
def test_a_close_in_ready_is_decided_by_its_code(code: int | None, decision: int) -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendVoiceState"}
    world.server(SocketClosed(code), numbered=False)
    expected = {
        RESUME: ("resuming.dialling", "connected"),
        RESUME_LATER: ("resuming.backing_off", "connected"),
        NEW_PAIR: ("closed.down", "joining.asking"),
        PAIR_LATER: ("closed.down", "waiting.backoff"),
        WAIT: ("closed.down", "waiting.verdict"),
        WAIT_SERVER: ("closed.down", "waiting.server"),
        END: ("closed.down", "closed"),
    }[decision]
    assert (world.states["gateway"], world.states["call"]) == expected
    assert world.session.gateway.last_close_code == code


@pytest.mark.parametrize(("code", "decision"), CLOSES, ids=lambda value: str(value))
def test_a_close_before_ready_never_resumes(code: int | None, decision: int) -> None:
    world = World()
    world.unanswered |= {"SendIdentify"}
    world.join()
    world.unanswered |= {"SendVoiceState", "OpenSocket"}
    world.server(SocketClosed(code), numbered=False)
    assert world.states["gateway"] == "closed.down"
    expected = {WAIT: "waiting.verdict", WAIT_SERVER: "waiting.server", END: "closed"}.get(decision, "waiting.backoff")
    assert world.states["call"] == expected
    world.advance(120)
    assert world.sent(SendResume) == []


@pytest.mark.parametrize(("code", "decision"), CLOSES, ids=lambda value: str(value))
def test_a_close_that_answers_a_resume_never_resumes_again(code: int | None, decision: int) -> None:
    world = ready()
    world.unanswered.add("SendResume")
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    assert world.states["gateway"] == "resuming.awaiting_resumed"
    world.unanswered |= {"SendVoiceState", "OpenSocket"}
    world.server(SocketClosed(code), numbered=False)
    assert world.states["gateway"] == "closed.down"
    expected = {WAIT: "waiting.verdict", WAIT_SERVER: "waiting.server", END: "closed", PAIR_LATER: "waiting.backoff"}
    assert world.states["call"] == expected.get(decision, "joining.asking")
    world.advance(60)
    assert len(world.sent(SendResume)) == 1


@pytest.mark.parametrize("code", [4001, 4002, 4004, 4005, 4020, 4016, 1002])
def test_what_is_forgiven_once_ends_the_second_time(code: int) -> None:
    world = ready()
    world.server(SocketClosed(code), numbered=False)
    world.until(lambda: world.states["gateway"] == "ready", 60)
    if code == 1002:  # complaints count in a row, and ready ends the row
        return
    world.server(SocketClosed(code), numbered=False)
    world.until(lambda: world.states["call"] in ("closed", "connected"), 60)
    assert world.states["call"] == "closed"
    error = last_error(world)
    assert isinstance(error, ConnectionClosed)
    assert error.code == code


def test_protocol_complaints_end_after_two_in_a_row() -> None:
    world = World()
    world.unanswered.add("SendIdentify")
    world.join()
    world.server(SocketClosed(1002), numbered=False)
    world.until(lambda: world.states["gateway"] == "identifying.awaiting_ready", 60)
    world.server(SocketClosed(1002), numbered=False)
    world.until(lambda: world.states["call"] == "closed", 10)


def test_a_session_that_is_ready_ends_the_row_of_complaints() -> None:
    world = ready()
    for _ in range(3):
        world.server(SocketClosed(1002), numbered=False)
        world.until(lambda: world.states["gateway"] == "ready", 60)
    assert world.states["call"] == "connected"


def test_another_mode_is_used_after_4016() -> None:
    world = ready()
    world.server(SocketClosed(4016), numbered=False)
    world.until(lambda: world.states["gateway"] == "ready", 60)
    modes = [effect.mode for effect in world.sent(SendSelectProtocol) if isinstance(effect, SendSelectProtocol)]
    assert modes == list(PREFERRED_MODES)


def test_another_mode_is_no_attempt_beyond_the_last() -> None:
    world = World(Options(max_attempts=1))
    world.unanswered.add("SendSelectProtocol")
    world.join()
    world.server(SocketClosed(4016), numbered=False)
    world.until(lambda: world.states["call"] == "closed", 5)
    assert world.way("call")[-2:] == ["leaving.closing", "closed"]
    assert isinstance(last_error(world), ConnectionClosed)


def test_4017_names_what_is_missing() -> None:
    for policy, word in (("off", "'off'"), ("require", "davey")):
        world = World(Options(policy=E2EEPolicy(policy)))
        world.unanswered.add("SendIdentify")
        world.join()
        world.server(SocketClosed(4017), numbered=False)
        world.until(lambda world=world: world.states["call"] == "closed", 5)  # type: ignore[misc]
        error = last_error(world)
        assert isinstance(error, E2EERequired)
        assert word in str(error)
