"""A value is what a frozen dataclass is, but for the way it is made."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any, ClassVar

import pytest

from voicegw import effects, events
from voicegw.core import signals
from voicegw.effects import ArmTimer, CloseUdp, OpenSocket
from voicegw.events import DeadlinePassed, JoinRequested, UserVerified
from voicegw.value import value
from voicegw.wire import payloads

MODULES = (effects, events, payloads, signals)
CLASSES = [
    made
    for module in MODULES
    for made in vars(module).values()
    if inspect.isclass(made) and made.__module__ == module.__name__ and dataclasses.is_dataclass(made)
]
ARMED = ArmTimer("beat_due", 12.5, 2.5, True)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_made_as_a_frozen_dataclass_would_be(kind: Any) -> None:
    wanted = [(field.name, field.default) for field in dataclasses.fields(kind)]
    given = [object() for _ in wanted]
    made = kind(*given)
    assert [getattr(made, name) for name, _ in wanted] == given
    assert made == kind(**dict(zip((name for name, _ in wanted), given, strict=True)))
    parameters = inspect.signature(kind).parameters.values()
    assert [(one.name, one.default) for one in parameters] == [
        (name, inspect.Parameter.empty if default is dataclasses.MISSING else default) for name, default in wanted
    ]
    with pytest.raises(TypeError):
        kind(*given, None)
    for name, _ in wanted:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, None)
    assert not hasattr(made, "__dict__")


def test_fields_cannot_be_assigned_or_deleted() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARMED.at = 0.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del ARMED.at
    assert ARMED.at == 12.5


def test_a_value_is_equal_by_class_and_fields() -> None:
    assert ARMED == ArmTimer("beat_due", 12.5, 2.5, True) != ArmTimer("beat_due", 12.5, 2.5, False)
    assert JoinRequested(1) != UserVerified(1)  # type: ignore[comparison-overlap]
    assert len({ARMED, ArmTimer("beat_due", 12.5, 2.5, True), CloseUdp(), CloseUdp()}) == 2


def test_a_value_prints_matches_and_is_replaced_as_a_dataclass() -> None:
    assert repr(ARMED) == "ArmTimer(name='beat_due', at=12.5, after_s=2.5, jitter=True)"
    assert dataclasses.replace(ARMED, at=1.0) == ArmTimer("beat_due", 1.0, 2.5, True)
    assert dataclasses.asdict(DeadlinePassed("beat_due", 1.0)) == {"name": "beat_due", "at": 1.0}
    match ARMED:
        case ArmTimer(name, at, _, jitter=jitter):
            assert (name, at, jitter) == ("beat_due", 12.5, True)


def test_a_value_is_pickled_and_copied() -> None:
    for twin in (pickle.loads(pickle.dumps(ARMED)), copy.copy(ARMED), copy.deepcopy(ARMED)):
        assert twin == ARMED
        assert type(twin) is ArmTimer


def test_defaults_stand_where_nothing_is_given() -> None:
    assert OpenSocket(3) == OpenSocket(3, in_turn=False) == OpenSocket(generation=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'generation'"):
        OpenSocket()  # type: ignore[call-arg]


def test_a_field_without_default_cannot_follow_one_with() -> None:
    with pytest.raises(SyntaxError):

        @value
        class Wrong:
            first: int = 0
            second: int  # type: ignore[misc]


def test_what_belongs_to_the_class_is_no_field() -> None:
    @value
    class Fact:
        name: ClassVar[str] = "fact"
        text: str

    assert Fact("x").name == "fact"
    assert str(inspect.signature(Fact)) == "(text: 'str') -> None"
