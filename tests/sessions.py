"""A call in virtual time that is ready, and what its bot has heard."""

from __future__ import annotations

from voicegw.effects import (
    Closed,
    Notice,
)
from voicegw.session import Options
from voicegw.testing.world import World


def ready(**options: object) -> World:
    world = World(Options(**options))  # type: ignore[arg-type]
    world.join()
    assert world.states["gateway"] == "ready"
    assert world.states["dave"] == "active"
    return world


def last_error(world: World) -> object:
    closed = [notice for notice in world.notices if isinstance(notice, Closed)]
    assert len(closed) == 1
    return closed[0].error


def noticed(world: World, kind: type[Notice]) -> list[Notice]:
    return [notice for notice in world.notices if isinstance(notice, kind)]
