"""A view of its own for each test, and how to ask it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from voicegw.adapters.system import System
from voicegw.view.follow import follow
from voicegw.view.server import View, serve_view

Metrics = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture
def system() -> System:
    """A host whose calls are those of the test alone."""
    return System()


@pytest.fixture
async def view(system: System) -> AsyncIterator[View]:
    async with await serve_view(system=system) as served:
        yield served


async def get(view: View, path: str, **options: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(view.url.partition("?")[0] + path, **options) as answer:
        return answer.status, await answer.text()


def port_of(view: View) -> int:
    return int(view.url.split(":")[2].partition("/")[0])


async def told(view: View, path: str) -> Any:
    status, text = await get(view, path)
    assert status == 200, text
    return json.loads(text)


async def lines_once(view: View, ready: Any) -> list[dict[str, Any]]:
    """The list, as soon as `ready` says that it is told."""
    async for _ in follow(view.url):
        lines: list[dict[str, Any]] = await told(view, "calls")
        if ready(lines):
            return lines
    raise AssertionError("the view has ended")


async def scraped(view: View) -> Metrics:
    """By family; counters lose their `_total`, as the parser names them, and a histogram's samples keep their names."""
    status, text = await get(view, "metrics")
    assert status == 200
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("gauge", "counter", "histogram")
        for sample in family.samples:
            name = sample.name if family.type == "histogram" else family.name
            found.setdefault(name, []).append((sample.labels, sample.value))
        if not family.samples:
            found.setdefault(family.name, [])
    return found


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    (value,) = [value for found, value in metrics[f"voicegw_{name}"] if found == labels]
    return value
