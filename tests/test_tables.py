"""State tables: read, refused with the row's name, flattened, run on one shared machine, drawn."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import transitions
from hypothesis import given
from hypothesis import strategies as st

from voicegw.core.heartbeat import HeartbeatSession
from voicegw.core.machine_session import MachineSession
from voicegw.errors import EventNotAllowed, TableError
from voicegw.session import ALL_SESSIONS, SESSIONS, Options
from voicegw.tables import draw
from voicegw.tables.check import check_all, check_table, check_words
from voicegw.tables.flow import longest_round
from voicegw.tables.load import load_table, parse_table, table_names
from voicegw.tables.machine import Engine, engine
from voicegw.tables.model import Table
from voicegw.testing.chaos import Chaos
from voicegw.testing.world import World

DIAGRAMS = Path(__file__).parent.parent / "diagrams"

DOOR = """
machine = "door"
title = "A door"
text = "It opens, closes by itself, and can be walled up."
initial = "shut"
final = ["walled_up"]

[[deadline]]
name = "closer"
seconds = 5.0
text = "the closer's spring"

[[deadline]]
name = "draught"
seconds = 60.0
given_by = "wind"
text = "the wind"

[[state]]
name = "shut"
phase = "I"
rest = true
text = "nobody passes"

[[state]]
name = "open"
text = "a parent"

[[state]]
name = "open.ajar"
phase = "R"
deadline = "draught"
text = "a little"

[[state]]
name = "open.wide"
phase = "R"
deadline = "closer"
text = "all the way"

[[state]]
name = "walled_up"
phase = "X"
text = "for ever"

[[event]]
name = "pushed"
otherwise = "ignore"
text = "somebody pushes"

[[event]]
name = "bricked"
otherwise = "refuse"
text = "a mason comes"

[[transition]]
event = "pushed"
from = "shut"
to = "open.wide"
guard = "strong"
effects = ["creak", "bang"]
source = "physics"

[[transition]]
event = "pushed"
from = "shut"
to = "open.ajar"
guard = "!locked"
source = "physics"

[[transition]]
event = "pushed"
from = "shut"
effects = ["rattle"]
source = "physics"

[[transition]]
event = "pushed"
from = "open.wide"
to = "open.wide"
effects = ["creak"]
source = "held open"

[[transition]]
event = "pushed"
from = "open"
effects = ["creak"]
source = "physics"

[[transition]]
event = "bricked"
from = ["shut", "open.ajar"]
to = "walled_up"
source = "the mason"

[[transition]]
event = "closer"
from = "open.wide"
to = "shut"
source = "the spring"

[[transition]]
event = "draught"
from = "open.ajar"
to = "shut"
effects = ["bang"]
source = "the wind"
"""


@dataclass(frozen=True)
class Happened:
    name: str


class Door:
    """A session of the door's table."""

    __slots__ = ("is_locked", "is_strong", "log", "state")

    def __init__(self, strong: bool = False, locked: bool = False) -> None:
        self.state = "shut"
        self.log: list[str] = []
        self.is_strong, self.is_locked = strong, locked

    def strong(self, event: Happened) -> bool:
        return self.is_strong

    def locked(self, event: Happened) -> bool:
        return self.is_locked

    def bound(self, deadline: str) -> float:
        return door_table().deadlines[deadline].seconds

    def wind(self) -> float:
        return 7.0

    def creak(self, event: Happened) -> None:
        self.log.append(f"creak {event.name}")

    def bang(self, event: Happened) -> None:
        self.log.append("bang")

    def rattle(self, event: Happened) -> None:
        self.log.append("rattle")

    def arm(self, deadline: str, seconds: float) -> None:
        self.log.append(f"arm {deadline} {seconds:g}")

    def cancel(self, deadline: str) -> None:
        self.log.append(f"cancel {deadline}")

    def ignored(self, event: Happened) -> None:
        self.log.append(f"ignored {event.name}")


def door_table() -> Table:
    return parse_table(DOOR, "door")


# -- reading


def test_rows_are_flattened_to_leaves_in_their_order() -> None:
    table = door_table()
    assert check_table(table) == []
    assert check_words(table, Door) == []
    assert table.enabled("open.wide") == {"pushed", "closer"}
    assert [row.guard for row in table.rows_for("shut", "pushed")] == ["strong", "!locked", None]
    assert [row.to for row in table.rows_for("open.wide", "pushed")] == ["open.wide", None]
    assert [row.to for row in table.rows_for("open.ajar", "pushed")] == [None]
    assert table.leaves("*") == ("shut", "open.ajar", "open.wide", "walled_up")
    assert table.parents == {"open": "a parent"}
    assert longest_round(replace(table, begun_by=("pushed",)), 1).seconds == 0.0  # all its waiting is phase R


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('machine = "door"', 'machine = "gate"', "says that it is 'gate'"),
        ('machine = "door"', "machine = ", "not TOML"),
        ('title = "A door"', "title = 7", "'title' must be of type str"),
        ('title = "A door"', "", "'title' is missing"),
        ('initial = "shut"', 'initial = "shut"\ncolour = "red"', "unknown word 'colour'"),
        ("seconds = 5.0", "seconds = 0.0", "deadline closer: 'seconds' must be positive"),
        ("seconds = 5.0", "seconds = true", "deadline closer"),
        ('otherwise = "refuse"', 'otherwise = "panic"', "event bricked: 'otherwise' is ignore or refuse"),
        ('name = "bricked"', 'name = "pushed"', "'pushed' is there twice"),
        ('name = "walled_up"', 'name = "shut"', "'shut' is there twice"),
        ('name = "open.ajar"', 'name = "open.ajar.more"', "one level of children"),
        ('text = "a parent"', 'text = "a parent"\nrest = true', "a parent: unknown word 'rest'"),
        ('from = "open.ajar"', "from = 7", "row 8"),
        ('from = "open.ajar"', "from = []", "row 8"),
        ('effects = ["rattle"]', "effects = [7]", "row 3"),
        ('final = ["walled_up"]', "final = [7]", "'final' is a list of states"),
        ('[[state]]\nname = "shut"', '[state]\nname = "shut"', "not TOML"),
        ('guard = "strong"', "guard = true", "row 1"),
        ('source = "the wind"', "", "row 8 (draught from open.ajar): 'source' is missing"),
    ],
    ids=lambda value: value[:30],
)
def test_a_table_of_the_wrong_shape_is_refused(old: str, new: str, said: str) -> None:
    assert old in DOOR
    with pytest.raises(TableError) as caught:
        parse_table(DOOR.replace(old, new), "door")
    assert str(caught.value).startswith("door: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('initial = "shut"', 'initial = "open"', "initial: 'open' is not a leaf state"),
        ('final = ["walled_up"]', 'final = ["gone"]', "final: 'gone' is not a leaf state"),
        ('deadline = "closer"', 'deadline = "spring"', "state open.wide: unknown deadline 'spring'"),
        ('event = "bricked"', 'event = "painted"', "unknown event 'painted'"),
        ('from = ["shut", "open.ajar"]', 'from = ["shut", "porch"]', "unknown state 'porch'"),
        ('to = "walled_up"', 'to = "open"', "'to' must be a leaf state"),
        ('phase = "I"\nrest = true', 'phase = "I"', "state shut: must have a deadline, rest, or be final"),
        ('deadline = "closer"', 'deadline = "closer"\nrest = true', "state open.wide: must have a deadline, rest"),
        ('guard = "!locked"', 'guard = "strong"', "row 2: shut --pushed [strong]--> open.ajar: shadowed"),
        ('guard = "!locked"\n', "", "row 3: shut --pushed--> stays: shadowed"),
        ('effects = ["rattle"]', 'guard = "locked"', "the last row of pushed in shut is guarded"),
        ('from = "open.wide"\nto = "shut"', 'from = "open.wide"', "closer passes in open.wide and nothing is armed"),
        ('event = "closer"', 'event = "pushed"', "event closer: no row uses it"),
        (
            'event = "draught"\nfrom = "open.ajar"',
            'event = "draught"\nfrom = "shut"',
            "its deadline draught has no row",
        ),
        ('deadline = "draught"', 'deadline = "closer"', "deadline draught: no state waits with it"),
        (
            'to = "open.wide"\nguard = "strong"',
            'to = "open.ajar"\nguard = "strong"',
            "state open.wide: cannot be reached",
        ),
        ('from = ["shut", "open.ajar"]\nto = "walled_up"', 'from = "walled_up"', "state shut: has no way to an end"),
    ],
    ids=lambda value: value[:40],
)
def test_a_table_that_cannot_be_right_is_found_out(old: str, new: str, said: str) -> None:
    assert old in DOOR
    found = check_table(parse_table(DOOR.replace(old, new, 1), "door"))
    assert any(said in str(violation) for violation in found), [str(violation) for violation in found]


@pytest.mark.parametrize("word", ["strong", "creak", "wind"])
def test_unknown_guards_effects_and_methods_are_found_out(word: str) -> None:
    table = parse_table(DOOR.replace(f'"{word}"', '"mistyped"'), "door")
    (violation, *_) = check_words(table, Door)
    assert "Door has no 'mistyped'" in str(violation)


def test_the_most_specific_close_code_wins() -> None:
    table = load_table("gateway")
    assert table.close_event(4014).codes == (4014,) or 4014 in table.close_event(4014).codes
    assert table.close_event(4444).codes == ("4000-4999",)
    assert table.close_event(None).event == table.close_event(1006).event
    with pytest.raises(TableError):
        table.close_event(70000)


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(TableError, match="there is no machine 'door'; there are: call, dave, gateway"):
        load_table("door")


# -- running


def fire(door: Door, *names: str) -> list[bool]:
    running = Engine(door_table())
    return [running.fire(door, Happened(name)) is not None for name in names]


def test_effects_run_before_the_old_deadline_goes_and_the_new_one_comes() -> None:
    door = Door(strong=True)
    assert fire(door, "pushed", "closer") == [True, True]
    assert door.log == ["creak pushed", "bang", "arm closer 5", "cancel closer"]
    assert door.state == "shut"


def test_guards_are_tried_from_the_top() -> None:
    for door, state, log in (
        (Door(strong=True), "open.wide", ["creak pushed", "bang", "arm closer 5"]),
        (Door(), "open.ajar", ["arm draught 7"]),
        (Door(locked=True), "shut", ["rattle"]),
    ):
        fire(door, "pushed")
        assert (door.state, door.log) == (state, log)


def test_to_stay_leaves_the_deadline_and_to_return_arms_it_anew() -> None:
    door = Door()
    fire(door, "pushed", "pushed")
    assert door.log == ["arm draught 7", "creak pushed"]
    door = Door(strong=True)
    fire(door, "pushed", "pushed")
    assert door.log[2:] == ["arm closer 5", "creak pushed", "cancel closer", "arm closer 5"]


def test_what_no_row_decides_is_ignored_or_refused() -> None:
    door = Door(strong=True)
    running = Engine(door_table())
    running.fire(door, Happened("pushed"))
    before = list(door.log)
    with pytest.raises(EventNotAllowed) as caught:
        running.fire(door, Happened("bricked"))
    assert (caught.value.event, caught.value.state) == ("bricked", "open.wide")
    assert (door.state, door.log) == ("open.wide", before)
    assert running.fire(door, Happened("draught")) is None
    assert door.log[-1] == "ignored draught"


@given(st.lists(st.sampled_from(["pushed", "bricked", "closer", "draught"])), st.booleans(), st.booleans())
def test_the_machine_does_what_the_rows_say(names: list[str], strong: bool, locked: bool) -> None:
    table, door = door_table(), Door(strong, locked)
    running = engine_of_door()
    expected = "shut"
    for name in names:
        for row in table.rows_for(expected, name):
            guard = row.guard or ""
            agrees = not guard or getattr(door, guard.removeprefix("!"))(Happened(name)) != guard.startswith("!")
            if agrees:
                expected = row.to or expected
                break
        try:
            running.fire(door, Happened(name))
        except EventNotAllowed:
            assert table.rows_for(expected, name) == ()
        assert door.state == expected


_engine_of_door: list[Engine] = []


def engine_of_door() -> Engine:
    if not _engine_of_door:
        _engine_of_door.append(Engine(door_table()))
    return _engine_of_door[0]


class StockEvent(transitions.Event):
    """The library's own way through an event, which remembers the row that it took."""

    taken: object = None

    def trigger(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        self.taken = None
        return self.taken if super().trigger(model, *args, **kwargs) else None

    def _process(self, event_data: Any) -> Any:
        done = super()._process(event_data)
        if event_data.result:
            self.taken = event_data.transition.row
        return done


def test_our_way_through_an_event_does_what_the_librarys_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [Chaos(seed).go().trace_hash for seed in range(60)]
    for session in SESSIONS.values():
        monkeypatch.setattr(session, "engine", Engine(session.table, StockEvent))
    assert [Chaos(seed).go().trace_hash for seed in range(60)] == ours


def test_sessions_are_not_kept_by_the_machine() -> None:
    running = Engine(door_table())
    door = Door()
    running.fire(door, Happened("pushed"))
    assert running.machine.models == []
    assert not hasattr(door, "__dict__")
    assert engine("gateway") is engine("gateway")


# -- the tables


@pytest.mark.parametrize("name", table_names())
def test_the_machine_holds_exactly_the_tables_rows(name: str) -> None:
    table, machine = load_table(name), engine(name).machine
    expected = Counter((row.event, row.state, row.to, row.guard, row.effects) for row in table.transitions)
    found: Counter[Any] = Counter()
    for event in machine.events.values():
        for transition in machine.get_transitions(event.name):
            guards = [f"{'' if condition.target else '!'}{condition.func}" for condition in transition.conditions]
            assert len(guards) <= 1
            guard = guards[0] if guards else None
            found[(event.name, transition.source, transition.dest, guard, tuple(transition.before))] += 1
    assert found == expected
    assert set(machine.states) == set(table.states)
    assert machine.initial == table.initial


def test_the_gateways_life_has_its_five_states() -> None:
    assert set(load_table("gateway").parents) | {"ready"} == {
        "connecting",
        "identifying",
        "ready",
        "resuming",
        "closed",
    }


def test_all_tables_are_proved_with_their_sessions() -> None:
    report = check_all(ALL_SESSIONS, Options().max_attempts)
    assert report.violations == ()
    assert (report.states, report.rows) == (
        sum(len(load_table(name).states) for name in table_names()),
        sum(len(load_table(name).rows) for name in table_names()),
    )
    assert report.pairs > 1000
    assert 0 < report.bound_s < (load_table("call").gives_up_after or 0.0)


@pytest.mark.parametrize("name", table_names())
def test_sessions_have_no_words_that_no_row_uses(name: str) -> None:
    table, session = load_table(name), ALL_SESSIONS[name]
    used = {word for row in table.rows for word in row.effects}
    used |= {row.guard.removeprefix("!") for row in table.rows if row.guard}
    used |= {deadline.given_by for deadline in table.deadlines.values() if deadline.given_by}
    own = {word for word, value in vars(session).items() if callable(value) and not word.startswith("_")}
    # guards may build on each other; the gateway judges close codes for the door
    built_on = {"attempts_spent", "judge"}
    assert own - used - built_on == set()


def test_every_event_of_a_table_has_a_class() -> None:
    from voicegw import events
    from voicegw.core import lease, main_gateway, ownership, signals
    from voicegw.wire import payloads

    values = (
        value
        for module in (events, signals, payloads, main_gateway, lease, ownership)
        for value in vars(module).values()
    )
    names = {getattr(value, "name", None) for value in values if isinstance(value, type)}
    decided = {entry.event for name in table_names() for entry in load_table(name).close_codes}
    for name in table_names():
        for word in load_table(name).events:
            assert word in names | decided or word.startswith("lost_"), word


# -- drawing


@pytest.mark.parametrize("name", table_names())
def test_the_pages_in_diagrams_are_current(name: str) -> None:
    table = load_table(name)
    assert (DIAGRAMS / f"{name}.md").read_text(encoding="utf-8") == draw.to_markdown(table)
    picture = (DIAGRAMS / f"{name}.svg").read_text(encoding="utf-8")
    assert draw.drawn_from(picture) == draw.fingerprint(draw.to_dot(table))


@pytest.mark.parametrize("name", table_names())
def test_pictures_and_pages_have_every_state_and_row(name: str) -> None:
    table = load_table(name)
    mermaid, dot, page = draw.to_mermaid(table), draw.to_dot(table), draw.to_markdown(table)
    for state in table.states:
        identifier = state.replace(".", "__")
        assert f" as {identifier}\n" in mermaid
        assert f"    {identifier} [label=" in dot
        assert f"| `{state}` |" in page
    for row in table.rows:
        assert f"| {row.number} | `{row.event}` |" in page
        if row.to is not None:
            for source in row.sources:
                first = "anywhere" if source == "*" else source.replace(".", "__")
                assert f"    {first} --> {row.to.replace('.', '__')}: " in mermaid
    for entry in table.close_codes:
        assert f"| `{entry.event}` | {entry.meaning} |" in page


def test_a_lit_state_is_marked() -> None:
    table = load_table("gateway")
    assert "class ready lit" in draw.to_mermaid(table, "ready")
    assert draw.to_dot(table, "ready").count("#ffd54f") == 1
    assert "#ffd54f" in draw.to_svg(table, "ready")
    assert draw.to_png(table, "ready").startswith(b"\x89PNG")
    assert draw.to_dot(table) != draw.to_dot(table, "ready")


def test_a_changed_table_makes_the_pages_stale() -> None:
    table = door_table()
    changed = parse_table(DOOR.replace('to = "walled_up"', 'to = "open.wide"'), "door")
    assert draw.fingerprint(draw.to_dot(table)) != draw.fingerprint(draw.to_dot(changed))
    assert draw.to_markdown(table) != draw.to_markdown(changed)
    assert draw.drawn_from("<svg/>") is None
    assert copy.deepcopy(table) == table


def test_the_library_logs_nothing_of_our_machines(caplog: pytest.LogCaptureFixture) -> None:
    """A bot that listens at INFO would get a hundred lines a join."""
    caplog.set_level(logging.DEBUG)
    World().join()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("transitions")] == []


def test_a_session_has_its_machines_table_and_engine() -> None:
    class Another(HeartbeatSession):
        """Whatever the class above has is not enough."""

    assert vars(Another)["table"] is load_table("heartbeat")
    assert vars(Another)["engine"] is engine("heartbeat")


def test_a_session_without_its_tables_words_is_no_class() -> None:
    with pytest.raises(TableError, match="may_speak"):

        class _Careless(MachineSession):
            machine = "speech"
