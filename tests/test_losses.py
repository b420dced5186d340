"""However a voice session is lost: the call knows why, says so while it goes on, and is over at once where it ends."""

from __future__ import annotations

import itertools

import pytest

from voicegw.core.call import MAX_E2EE_FAILURES, CallSession
from voicegw.core.shared import Shared
from voicegw.core.signals import CloseRequested, GroupEstablished, SessionLost
from voicegw.effects import Closed, Reconnecting, Report
from voicegw.errors import ConnectionFailed
from voicegw.session import Options
from voicegw.testing.world import GUILD, USER

TABLE = CallSession.table
LOSSES = tuple(word for word in TABLE.events if word.startswith("lost_"))
HEARD = [(word, state) for word, state in itertools.product(LOSSES, TABLE.states) if TABLE.rows_for(state, word)]


def lost(word: str, state: str, *, spent: bool = False, rejoin: bool = False) -> tuple[CallSession, ConnectionFailed]:
    """A call in `state` whose voice session is lost; with `spent` nothing may be tried again."""
    session = CallSession(Shared(USER, GUILD, Options(rejoin_after_rate_limit=rejoin)))
    session.state = state
    session.ever_connected = True
    if spent:
        session.attempts = session.e2ee_failures = 99
        session.forgiven = session.complained = True
        session.shared.modes_refused = set(session.shared.options.modes)
    error = ConnectionFailed(f"lost by {word}")
    assert session.fire(SessionLost(word, error)) is not None
    return session, error


@pytest.mark.parametrize(("word", "state"), HEARD)
@pytest.mark.parametrize("spent", [False, True])
def test_the_call_remembers_why(word: str, state: str, spent: bool) -> None:
    session, error = lost(word, state, spent=spent, rejoin=True)
    assert session.error is error or str(error) in str(session.error)


@pytest.mark.parametrize(("word", "state"), HEARD)
def test_what_ends_the_call_ends_it_at_once(word: str, state: str) -> None:
    session, _ = lost(word, state, spent=True)
    closes = any(isinstance(signal, CloseRequested) for signal in session.shared.signals)
    assert closes == session.state.startswith("leaving")  # the gateway's word ends the call, not the 2 s of its own


@pytest.mark.parametrize(("word", "state"), [(word, state) for word, state in HEARD if state == "moving.announced"])
def test_a_session_lost_after_a_move_was_announced_waits_for_the_new_server(word: str, state: str) -> None:
    session, _ = lost(word, state)
    if session.state.startswith("leaving"):
        assert word in ("lost_for_good", "lost_rate_limited")
        return
    assert session.state in ("waiting.endpoint", "waiting.cool_down")
    notices = [effect.notice for effect in session.shared.effects if isinstance(effect, Report)]
    assert [type(notice) for notice in notices] == [Reconnecting]
    assert not any(isinstance(notice, Closed) for notice in notices)


def test_fresh_sessions_are_counted_from_the_last_group_that_worked() -> None:
    session = CallSession(Shared(USER, GUILD, Options()))
    for _ in range(2):
        ways = []
        for _ in range(MAX_E2EE_FAILURES):
            session.state = "connected"
            session.fire(SessionLost("lost_e2ee", ConnectionFailed("no group")))
            ways.append(session.state)
        assert ways == ["waiting.backoff"] * (MAX_E2EE_FAILURES - 1) + ["leaving.closing"]
        session.state = "connected"
        session.fire(GroupEstablished())
