"""The mutators make what they say, and what is written down of their runs is about mutants that there are."""

from __future__ import annotations

import dataclasses

import pytest

from tests.mutation import of_tables
from tests.mutation.__main__ import EVERYTHING, mutants_of, where_of
from tests.mutation.of_code import mutants as mutants_of_code
from tests.mutation.page import PAGE, argued, guards, page, read_figures
from voicegw.core.call import CallSession
from voicegw.errors import TableError
from voicegw.session import ALL_SESSIONS
from voicegw.tables.load import load_table
from voicegw.tables.machine import Engine


@pytest.mark.parametrize("where", EVERYTHING)
def test_mutants_have_names_of_their_own(where: str) -> None:
    names = [mutant.name for mutant in mutants_of(where)]
    assert names
    assert len(set(names)) == len(names)
    assert all(where_of(name) == where for name in names)


@pytest.mark.parametrize("where", EVERYTHING)
def test_what_is_argued_is_a_mutant(where: str) -> None:
    known = {mutant.name for mutant in mutants_of(where)}
    assert {name for name in argued() if where_of(name) == where} <= known
    assert {name for name in argued() if where_of(name) not in EVERYTHING} == set()


def test_the_page_says_what_the_last_run_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.mutation --page"
    assert set(read_figures()) <= set(EVERYTHING)
    survived = sum(killers.get("nobody", 0) for kinds in read_figures().values() for killers in kinds.values())
    assert survived <= len(argued())


def test_the_guards_are_of_ten_faults_of_all_groups() -> None:
    from tests.faults.catalogue import FAULTS

    faults = [entry["fault"] for entry in guards()]
    known = {mutant.name for file in {where_of(entry["mutant"]) for entry in guards()} for mutant in mutants_of(file)}
    assert {entry["mutant"] for entry in guards()} <= known
    assert len(set(faults)) == 10
    assert set(faults) <= set(FAULTS)
    # the groups of the catalogue: signalling, websocket, UDP, encryption, media, E2EE, process, secrets
    firsts = [1, 24, 61, 78, 92, 108, 135, 153]
    assert {sum(int(fault[1:]) >= first for first in firsts) for fault in faults} == set(range(1, 9))


def test_a_tables_mutant_takes_the_tables_place() -> None:
    session = ALL_SESSIONS["heartbeat"]
    table = session.table
    kept = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    mutants = {mutant.name: mutant for mutant in of_tables.mutants("heartbeat")}
    try:
        mutants["heartbeat: deadline last_look_over: twice as long"].install()
        assert table.deadlines["last_look_over"].seconds == 2 * kept["deadlines"]["last_look_over"].seconds
        assert load_table("heartbeat") is table
    finally:
        for name, value in kept.items():
            object.__setattr__(table, name, value)
        Engine.__init__(session.engine, table)


def test_what_no_table_may_be_is_not_installed() -> None:
    table = load_table("heartbeat")
    rows = table.rows
    with pytest.raises(TableError):
        next(mutant for mutant in of_tables.mutants("heartbeat") if mutant.name.endswith(": rests")).install()
    assert table.rows is rows


def test_neighbours_that_touch_nothing_of_each_other_are_not_changed_about() -> None:
    names = [mutant.name for mutant in of_tables.mutants("call") if mutant.kind == "order"]
    assert any("dial before note_voice_state" in name for name in names)
    assert not any("close_gateway before note_lost" in name for name in names)


def test_a_mutant_of_code_takes_the_functions_place() -> None:
    before = CallSession.backoff.__code__
    mutants = {mutant.name: mutant for mutant in mutants_of_code("voicegw.core.call")}
    try:
        next(mutant for name, mutant in mutants.items() if "backoff: return" in name).install()
        assert CallSession.backoff(None) is None  # type: ignore[arg-type]
    finally:
        CallSession.backoff.__code__ = before
