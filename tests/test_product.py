"""All six machines together: no kind of call is forbidden, and what would be is found with the shortest way to it."""

from __future__ import annotations

import pytest

from voicegw.core.dave import DaveSession
from voicegw.core.gateway import GatewaySession
from voicegw.core.transport import TransportSession
from voicegw.events import JoinRequested, SocketOpened, Stamped, VoiceServerUpdated, VoiceStateUpdated
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy, VoiceSession
from voicegw.testing.product import clone, explore, happenings, kind_of
from voicegw.testing.world import CHANNEL, ENDPOINT, GUILD, USER

LIMIT = 600


@pytest.mark.parametrize("policy", [E2EEPolicy.REQUIRE, E2EEPolicy.ALLOW])
def test_the_first_kinds_of_calls_are_all_allowed(policy: E2EEPolicy) -> None:
    found = explore(policy, LIMIT)
    assert found.counterexamples == ()
    assert found.kinds >= LIMIT
    assert not found.complete
    assert found.steps > 10 * LIMIT


def test_a_clone_goes_its_own_way() -> None:
    session = VoiceSession(USER, GUILD)
    before = (kind_of(session), dict(session.shared.timers), session.shared.sequence.last)
    branch = clone(session)
    for event in (
        JoinRequested(CHANNEL),
        VoiceStateUpdated(CHANNEL, Secret("s")),
        VoiceServerUpdated(Secret("t"), ENDPOINT),
        Stamped("websocket", 1, SocketOpened(), 7),
    ):
        branch.receive(event, 0.0)
    assert branch.states["gateway"] == "connecting.awaiting_hello"
    assert branch.shared.sequence.last == 7
    assert (kind_of(session), dict(session.shared.timers), session.shared.sequence.last) == before
    assert kind_of(clone(branch)) == kind_of(branch) != before[0]
    assert "socket opened" in [name for name, _, _ in happenings(branch, 0.0)]


def shortest(what: str) -> tuple[str, ...]:
    examples = {example.what: example for example in explore(E2EEPolicy.REQUIRE, LIMIT).counterexamples}
    assert what in examples, list(examples)
    assert what in str(examples[what])
    return examples[what].events


def test_a_group_that_is_not_dropped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewaySession, "end_session", lambda session, event: None)
    way = shortest("V16: the UDP path outlives its voice session")
    assert way == ("thawed from active", "socket refused")


def test_speech_without_a_group_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DaveSession, "forbid_speech", DaveSession.allow_encrypted)
    assert "speech started" in shortest("V09: speech leaves while E2EE is not ready")


def test_an_exception_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: TransportSession, event: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(TransportSession, "open_udp", broken)
    assert shortest("V01: the core raises KeyError") == ("thawed from active",)


def test_a_timer_that_is_not_cancelled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from voicegw.core.machine_session import MachineSession

    monkeypatch.setattr(MachineSession, "cancel", lambda session, deadline: None)
    way = shortest("V02: armed timers are not the deadlines of the states")
    assert way[0] == "join"
    assert len(way) == 2
