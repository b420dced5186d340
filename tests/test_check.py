"""Each check of the tables finds what it is for: on a table, or a session, that is broken in just that way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from voicegw.core.call import CallSession
from voicegw.core.gateway import GatewaySession
from voicegw.core.heartbeat import HeartbeatSession
from voicegw.core.machine_session import MachineSession
from voicegw.errors import TableError
from voicegw.events import Event, JoinRequested, Stamped
from voicegw.session import ALL_SESSIONS, Options, VoiceSession
from voicegw.tables.check import CLOSE_CODES, Violation, check_all, check_table, reachable
from voicegw.tables.flow import longest_round, rounds, way_to
from voicegw.tables.load import flattened, load_table, parse_table, table_names, tables_directory
from voicegw.tables.machine import Engine
from voicegw.tables.model import Row, Table
from voicegw.testing.chaos import Chaos
from voicegw.testing.prove import interleaved, never_taken, not_in_the_tables, prove, put_to_the_engine

ATTEMPTS = Options().max_attempts


def text_of(name: str) -> str:
    return (tables_directory() / f"{name}.toml").read_text(encoding="utf-8")


def changed(name: str, old: str, new: str) -> Table:
    """A table with one piece of its text changed."""
    text = text_of(name)
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return parse_table(text.replace(old, new), name)


def with_row(name: str, which: Callable[[Row], bool], change: Callable[[Row], Row | None]) -> Table:
    """A table with one row changed, or dropped where `change` says None."""
    table = load_table(name)
    (wanted,) = (row for row in table.rows if which(row))
    rows = [change(row) if row is wanted else row for row in table.rows]
    return flattened(replace(table, rows=tuple(row for row in rows if row is not None)))


def found(table: Table, check: str) -> list[Violation]:
    violations = [violation for violation in check_table(table, ATTEMPTS) if violation.check == check]
    assert all(str(violation).startswith(f"{check} {table.machine}: ") for violation in violations)
    return violations


def is_row(event: str, source: str, guard: str | None = None) -> Callable[[Row], bool]:
    return lambda row: row.event == event and source in row.sources and row.guard == guard


# -- the tables as they are


def test_all_is_proved() -> None:
    report = check_all(ALL_SESSIONS, ATTEMPTS)
    proof = prove(kinds=60, runs=20)
    assert (*report.violations, *proof.violations) == ()
    assert report.pairs == sum(len(table.states) * len(table.vocabulary) for table in map(load_table, table_names()))
    assert proof.pairs > report.pairs  # where several rows decide, each is put to the engine
    assert proof.kinds >= 120
    assert not proof.complete


def test_the_longest_way_is_within_the_promised_time() -> None:
    for name in ("call", "gateway", "transport"):
        table = load_table(name)
        assert table.gives_up_after is not None
        assert 0 < longest_round(table, ATTEMPTS).seconds <= table.gives_up_after
    call = load_table("call")
    assert check_all(ALL_SESSIONS, ATTEMPTS).bound_s == longest_round(call, ATTEMPTS).seconds
    assert longest_round(call, 24).seconds > 1.9 * longest_round(call, 12).seconds


def test_ways_are_the_shortest() -> None:
    gateway = load_table("gateway")
    assert way_to(gateway, "closed.down") == ()
    assert way_to(gateway, "identifying.awaiting_ready") == ("connect_requested", "socket_opened", "hello_received")
    assert reachable(gateway, ["closed.down"]) == set(gateway.states)


# -- T01 to T06


def test_t01_a_pair_that_nothing_decides() -> None:
    table = with_row("speech", is_row("speech_started", "silent", None), lambda row: None)
    (violation,) = found(table, "T01")
    assert "the last row of speech_started in silent is guarded" in violation.what
    assert violation.events == ("speech_started",)


def test_t02_a_state_without_a_way_to_an_end() -> None:
    table = load_table("heartbeat")
    rows = tuple(replace(row, to="beating.resting") if row.to == "stopped" else row for row in table.rows)
    violations = found(flattened(replace(table, rows=rows)), "T02")
    assert violations
    assert all(violation.what == "has no way to an end" for violation in violations)
    assert violations[0].events[0] == "heart_started"


def test_t02_a_state_that_cannot_be_reached() -> None:
    table = with_row("call", is_row("lost_await_server", "connected"), lambda row: replace(row, to="waiting.verdict"))
    (violation,) = found(table, "T02")
    assert (violation.where, violation.what) == ("state waiting.server", "cannot be reached")


def test_t03_a_state_that_waits_for_ever() -> None:
    table = load_table("gateway")
    rows = tuple(row for row in table.rows if row.event != "ready_timeout")
    found_ = found(flattened(replace(table, rows=rows)), "T03")
    assert [violation.what for violation in found_] == ["its deadline ready_timeout has no row"]
    assert found_[0].events == ("connect_requested", "socket_opened", "hello_received", "ready_timeout")


def test_t03_a_deadline_that_passes_and_leaves_nothing_armed() -> None:
    table = with_row("call", is_row("join_unanswered", "joining.asking"), lambda row: replace(row, to=None))
    assert any("nothing is armed any more" in violation.what for violation in found(table, "T03"))


def test_t04_a_row_that_only_pushes_its_deadline() -> None:
    extra = Row(999, "main_session_lost", ("waiting.main_session",), "waiting.main_session", None, (), "broken")
    table = load_table("call")
    rows = (extra, *(row for row in table.rows if not is_row("main_session_lost", "waiting.main_session")(row)))
    (violation,) = found(flattened(replace(table, rows=rows)), "T04")
    assert "arms main_session_timeout anew in waiting.main_session and does nothing else" in violation.what
    assert violation.events[-1] == "main_session_lost"


def test_t04_a_row_for_a_deadline_that_its_state_does_not_have() -> None:
    table = with_row(
        "gateway",
        is_row("hello_timeout", "connecting.awaiting_hello"),
        lambda row: replace(row, sources=(*row.sources, "ready")),
    )
    (violation,) = found(table, "T04")
    assert "ready does not wait with hello_timeout" in violation.what


class Meddling(Engine):
    """An engine that arms a state's deadline anew with every event that it ignores."""

    def fire(self, session: Any, event: Any) -> Any:
        taken = super().fire(session, event)
        if taken is None:
            states: Any = self.machine.states
            states[session.state].come(session)
        return taken


def test_t04_an_engine_that_touches_deadlines_when_it_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeartbeatSession, "engine", Meddling(HeartbeatSession.table))
    _, violations = put_to_the_engine(HeartbeatSession)
    assert {violation.check for violation in violations} == {"T04"}
    assert any("is ignored, and yet: arm beat_due" in violation.what for violation in violations)


def test_t05_an_attempt_that_is_not_spent() -> None:
    """Each row of the call that spends, one at a time, spends no more."""
    table = load_table("call")
    spending = [row for row in table.rows if table.spends in row.effects]
    comes_round = []
    for row in spending:
        free = replace(row, effects=tuple(effect for effect in row.effects if effect != table.spends))
        broken = flattened(replace(table, rows=tuple(free if one is row else one for one in table.rows)))
        ways = [violation for violation in found(broken, "T05") if "a way round" in violation.what]
        comes_round.append(bool(ways))
        for violation in ways:
            assert row.event in violation.events
    assert sum(comes_round) >= 8, comes_round  # of the others some lead out of the resting state only
    assert len(spending) > sum(comes_round)


def test_t05_an_attempt_that_nothing_limits() -> None:
    table = with_row("call", is_row("endpoint_timeout", "waiting.endpoint", "attempts_spent"), lambda row: None)
    violations = found(table, "T05")
    assert "spends an attempt in waiting.endpoint and no row before it asks whether one is left" in violations[0].what
    assert violations[0].events[-1] == "endpoint_timeout"


def test_t05_a_new_endpoint_and_a_null_endpoint_that_alternate_for_ever() -> None:
    table = load_table("call")

    def free(row: Row) -> Row:
        if row.event != "voice_server_updated":
            return row
        return replace(row, effects=tuple(effect for effect in row.effects if effect != table.spends))

    broken = flattened(replace(table, rows=tuple(map(free, table.rows))))
    ways = [violation.events[-2:] for violation in found(broken, "T05")]
    assert ("voice_server_updated", "voice_server_updated") in ways


def test_t05_a_round_that_another_machine_did_not_begin() -> None:
    table = changed(
        "gateway",
        'begun_by = ["connect_requested", "dial_ahead_requested", "session_thawed"]',
        'begun_by = ["socket_opened"]',
    )
    assert any(events == ("connect_requested",) for _, events in rounds(table))
    assert any("connect_requested" in violation.what for violation in found(table, "T05"))


def test_t06_a_way_that_takes_longer_than_promised() -> None:
    table = load_table("gateway")
    longer = replace(table.deadlines["dial_timeout"], seconds=60.0)
    (violation,) = found(replace(table, deadlines={**table.deadlines, "dial_timeout": longer}), "T06")
    assert violation.what == "a round can last 202 s, the table promises 102 s"
    assert violation.events[:2] == ("dial_postponed", "dial_turn")
    endless = changed(
        "gateway",
        'begun_by = ["connect_requested", "dial_ahead_requested", "session_thawed"]',
        'begun_by = ["socket_opened"]',
    )
    assert longest_round(endless, ATTEMPTS).seconds == float("inf")


# -- T07 to T11


def test_t07_a_group_that_outlives_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewaySession, "end_session", lambda session, event: None)
    violations = [violation for violation in prove(kinds=250, runs=0).violations if violation.check == "T07"]
    shortest = min(violations, key=lambda violation: len(violation.events))
    assert "outlives" in shortest.what
    assert shortest.events == ("announced", "socket failed")


def test_t08_a_close_code_that_is_not_decided_or_twice() -> None:
    table = changed("gateway", 'codes = ["4000-4999"]', 'codes = ["4100-4999"]')
    assert any(violation.where == "close code 4000" for violation in found(table, "T08"))
    table = changed("gateway", "codes = [4006]", "codes = [4006, 4009]")
    assert [(one.where, one.what) for one in found(table, "T08")] == [("close code 4009", "is decided twice")]
    whole = load_table("gateway")
    assert all(whole.close_event(code) for code in (None, *CLOSE_CODES))


def test_t08_a_close_that_does_not_end_a_state() -> None:
    table = with_row(
        "gateway",
        is_row("closed_await", "resuming"),
        lambda row: replace(
            row, sources=tuple("resuming.dialling" if one == "resuming" else one for one in row.sources)
        ),
    )
    violations = found(table, "T08")
    assert {violation.where for violation in violations} == {
        "state resuming.backing_off",
        "state resuming.queued",
        "state resuming.dialling_in_turn",
        "state resuming.awaiting_resumed",
    }
    assert all("closed_await)" in one.what and one.events[-1] == "closed_await" for one in violations)


@pytest.mark.parametrize(
    ("machine", "row", "effect", "what"),
    [
        ("gateway", is_row("hello_timeout", "connecting.awaiting_hello"), "abort_socket", "the websocket is still"),
        ("gateway", is_row("hello_timeout", "connecting.awaiting_hello"), "end_session", "the voice session is still"),
        ("transport", is_row("discovery_unanswered", "discovering.eleventh"), "close_udp", "the UDP socket is still"),
        ("dave", is_row("recovery_timeout", "recovering"), "drop_group", "the group is still open"),
        ("speech", is_row("drain_timeout", "draining"), "hold_stream", "the stream is still open"),
        ("call", is_row("leave_requested", "connected"), "send_leave", "the membership is still open"),
        ("call", is_row("leave_requested", "connected"), "close_gateway", "the voice session is still open"),
    ],
)
def test_t09_what_is_opened_and_not_closed(machine: str, row: Callable[[Row], bool], effect: str, what: str) -> None:
    def without(one: Row) -> Row:
        assert effect in one.effects
        return replace(one, effects=tuple(other for other in one.effects if other != effect))

    violations = found(with_row(machine, row, without), "T09")
    assert any(what in violation.what for violation in violations), violations
    assert all(violation.events for violation in violations)


def test_t09_what_is_opened_twice() -> None:
    table = with_row(
        "gateway",
        is_row("heart_died", "ready"),
        lambda row: replace(row, effects=tuple(one for one in row.effects if one != "abort_socket")),
    )
    assert "opens the websocket in ready while it is open" in [violation.what for violation in found(table, "T09")]


def test_t10_an_engine_that_takes_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    other = with_row("heartbeat", is_row("gateway_interrupted", "beating"), lambda row: replace(row, effects=("x",)))
    monkeypatch.setattr(HeartbeatSession, "engine", Engine(other))
    _, violations = put_to_the_engine(HeartbeatSession)
    assert {violation.check for violation in violations} == {"T10"}
    assert all(violation.events[-1] == "gateway_interrupted" for violation in violations)


def test_t10_a_simulated_call_that_leaves_the_table() -> None:
    taken = {step for seed in range(20) for step in Chaos(seed).go().rows}
    assert not_in_the_tables(taken) == []
    assert 0 < len(never_taken(taken)) < sum(len(load_table(name).rows) for name in table_names())
    (violation,) = not_in_the_tables({*taken, ("speech", 1, "held", "speaking")})
    assert (violation.check, violation.machine, violation.where) == ("T10", "speech", "row 1")
    assert never_taken([])[0].startswith("gateway row 1: ")


def test_t11_an_older_socket_that_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def hear_all(session: VoiceSession, stamped: Stamped) -> Event:
        return stamped.event

    monkeypatch.setattr(VoiceSession, "_unstamp", hear_all)
    violations = [violation for violation in prove(kinds=60, runs=0).violations if violation.check == "T11"]
    assert "V04" in violations[0].what
    assert "of the websocket before" in violations[0].events[-1]


def test_t11_two_calls_that_share_what_they_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = {"of all calls": 0}

    def note_channel(session: CallSession, event: JoinRequested) -> None:
        session.shared.channel_id = event.channel_id
        attempts["of all calls"] = 0

    def spend(session: CallSession, event: object) -> None:
        attempts["of all calls"] += 1

    def spent(session: CallSession, event: object) -> bool:
        return attempts["of all calls"] + 1 >= session.shared.options.max_attempts

    monkeypatch.setattr(CallSession, "note_channel", note_channel)
    monkeypatch.setattr(CallSession, "spend_attempt", spend)
    monkeypatch.setattr(CallSession, "attempts_spent", spent)
    assert Chaos(3).go().trace_hash == Chaos(3).go().trace_hash
    violations = interleaved(range(40))
    assert violations
    assert all(violation.check == "T11" and violation.where.startswith("seed ") for violation in violations)
    assert all("beside another call: " in violation.what for violation in violations)


def test_two_calls_side_by_side_do_what_each_does_alone() -> None:
    assert interleaved(range(30)) == []


# -- reading the words


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "gateway",
            'begun_by = ["connect_requested", "dial_ahead_requested", "session_thawed"]',
            'begun_by = ["nothing"]',
            "begun_by: 'nothing' is in no row",
        ),
        (
            "gateway",
            'begun_by = ["connect_requested", "dial_ahead_requested", "session_thawed"]',
            "begun_by = [7]",
            "'begun_by' is a list of names",
        ),
        ("gateway", "gives_up_after = 102.0", 'gives_up_after = "soon"', "'gives_up_after' must be of type float"),
        ("gateway", 'opened_by = ["open_socket", ', 'opened_by = ["open_door", ', "'open_door' is in no row"),
        ("speech", 'name = "stream"', 'name = "stream"\ncolour = "red"', "resource stream: unknown word 'colour'"),
    ],
)
def test_wrong_words_are_refused(name: str, old: str, new: str, said: str) -> None:
    try:
        said_ = "; ".join(map(str, check_table(changed(name, old, new))))
    except TableError as error:
        said_ = str(error)
    assert said in said_


def test_a_session_that_is_missing_is_found_out() -> None:
    some: dict[str, type[MachineSession]] = {name: session for name, session in ALL_SESSIONS.items() if name != "dave"}
    assert [str(violation) for violation in check_all(some, ATTEMPTS).violations] == [
        "T01 dave: the table: no session carries it out"
    ]
