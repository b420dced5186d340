"""What a mutant is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

Trace = Hashable
"""Something that a test comes by: a row that it takes or a line that it runs; see `watch.py`."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    `name` says it in words that stay true when other rows and lines move. `where` is the table or the module. `traces`
    are what a test must have come by to notice it. `install` makes the change in this process; it raises TableError
    where the table's own checks refuse it.
    """

    name: str
    where: str
    kind: str
    traces: frozenset[Trace]
    install: Callable[[], None]
