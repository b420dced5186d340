"""A fleet on this host for each test that asks: a NATS server, workers, calls that play; it ends with the test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

pytest.importorskip("nats", reason='pip install "voicegw[fleet]"')

from voicegw.fleet.trial import Trial

StartTrial = Callable[..., AbstractAsyncContextManager[Trial]]


@pytest.fixture
def fleet(tmp_path: Path) -> StartTrial:
    """`async with fleet(calls=4) as trial`: all calls play."""

    @contextlib.asynccontextmanager
    async def start(calls: int = 4, **options: float) -> AsyncIterator[Trial]:
        async with Trial(tmp_path, calls=calls, **options) as trial:  # type: ignore[arg-type]
            await trial.begin_calls()
            yield trial

    return start


def nothing_forbidden(trial: Trial) -> None:
    """What must not happen, whatever does."""
    counts = trial.counts
    assert counts["calls_lost"] == 0
    assert counts["stale_packets_accepted"] == 0
    assert counts["nonces_repeated"] == 0
    assert counts["leaves_seen"] == 0
    assert counts["joins_seen"] == 0
    assert counts["identified"] == 0
