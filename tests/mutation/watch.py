"""Which test comes by which rows and lines; a mutant is shown to these tests only.

| trace | a test has |
|---|---|
| `("taken", machine, row, leaf)` | taken the row in this state |
| `("declined", machine, row, leaf)` | asked the row's guard and gone on |
| `("unheard", machine, event)` | brought the event where no row was for it |
| `("waits", machine, state)` | entered a state that waits |
| `("close", machine, code)` | closed a websocket with the code |
| `("line", file, line)` | run the line |
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutation.mutant import Trace
from tests.mutation.of_code import ROOT
from voicegw.tables.machine import Engine, TableState
from voicegw.tables.model import Table


class Watch:
    """Runs with the tests, as a plugin, in a process of its own: what it puts in the way is never taken out again."""

    def __init__(self, files: Iterable[str]) -> None:
        self.traces: dict[str, set[Trace]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._now: set[Trace] = set()
        self._begun = 0.0
        self._coverage = coverage.Coverage(data_file=None, include=[str(ROOT / file) for file in files])
        self._put_in_the_way()
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """From here on it is this test."""
        self._now = self.traces.setdefault(nodeid, set())
        self._begun = time.process_time()
        self._coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """How long it took, of the processor's time."""
        self.seconds[nodeid] = time.process_time() - self._begun

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Whether it passed."""
        if report.failed:
            self.failed.append(report.nodeid)

    def end(self) -> None:
        """Put the lines to the rows."""
        self._coverage.stop()
        data = self._coverage.get_data()
        for measured in data.measured_files():
            file = str(Path(measured).relative_to(ROOT))
            for line, tests in data.contexts_by_lineno(measured).items():
                for test in tests:
                    if test in self.traces:
                        self.traces[test].add(("line", file, line))

    def _put_in_the_way(self) -> None:
        watch, fire, come, close_event = self, Engine.fire, TableState.come, Table.close_event

        def watched_fire(engine: Engine, session: Any, event: Any) -> Any:
            machine, before, name = engine.table.machine, session.state, event.name
            taken = None
            try:
                taken = fire(engine, session, event)
            finally:
                rows = engine.table.rows_for(before, name)
                if not rows:
                    watch._now.add(("unheard", machine, name))
                for row in rows:
                    if row is taken:
                        watch._now.add(("taken", machine, row.row.number, before))
                        break
                    watch._now.add(("declined", machine, row.row.number, before))
                    if taken is None:  # an effect raised: it may have been of any of them
                        watch._now.add(("taken", machine, row.row.number, before))
            return taken

        def watched_come(state: TableState, session: Any) -> None:
            watch._now.add(("waits", state.table.machine, state.name))
            come(state, session)

        def watched_close_event(table: Table, code: int | None) -> Any:
            watch._now.add(("close", table.machine, code))
            return close_event(table, code)

        Engine.fire = watched_fire  # type: ignore[method-assign,assignment]
        TableState.come = watched_come  # type: ignore[method-assign,assignment]
        Table.close_event = watched_close_event  # type: ignore[method-assign,assignment]
