"""A small immutable value: what a frozen dataclass with slots is, made in two thirds of the time.

Events, effects, payloads and signals are made several times for each thing that happens to a call. A frozen dataclass
pays for each field with `object.__setattr__`, which looks the field up by its name; here the constructor has the slots
at hand and sets them. All else is the dataclass: assignment raises, values compare, hash, print, pickle and match.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Make `cls` such a value; its fields are annotated as a dataclass's, and the last ones may have plain defaults."""
    made: Any = dataclass(frozen=True, slots=True, init=False)(cls)
    if fields(made):
        made.__init__ = _constructor(made)
    return made  # type: ignore[no-any-return]


def _constructor(made: Any) -> Any:
    known: dict[str, Any] = {}
    parameters, lines = [], []
    for field in fields(made):
        name = field.name
        known[f"set_{name}"] = vars(made)[name].__set__
        lines.append(f"    set_{name}(self, {name})")
        if field.default is not MISSING:
            known[f"default_{name}"] = field.default
        parameters.append(name if field.default is MISSING else f"{name}=default_{name}")
    text = "\n".join((f"def __init__(self, {', '.join(parameters)}):", *lines))
    exec(text, known)  # noqa: S102 - nothing but the class's own names; dataclasses do the same
    constructor = known["__init__"]
    constructor.__annotations__ = {**{field.name: field.type for field in fields(made)}, "return": None}
    constructor.__module__, constructor.__qualname__ = made.__module__, f"{made.__qualname__}.__init__"
    return constructor
