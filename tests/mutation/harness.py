"""Gives each mutant to the tests that look at it, until one fails.

The tests are imported and collected once. Each mutant gets a process that is forked from there, makes its change, and
runs one test after the other: those that killed its neighbours first, then one of each function, the quick ones first.
A mutant that is not noticed in a second of each kind of test, and five of those left, survives.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

import hypothesis
import pytest

from tests.mutation.mutant import Mutant, Trace
from tests.mutation.watch import Watch
from voicegw.errors import TableError

# What kind of test a file has, by the beginning of its path; the kinds are tried in this order.
KINDS = {
    "faults": ("tests/faults/",),
    "golden runs": ("tests/test_golden.py",),
    "proofs": ("tests/test_check.py", "tests/test_tables.py"),
}
STORIES, LOADING, NOBODY = "stories", "loading", "nobody"
KILLERS = (LOADING, STORIES, *KINDS)
# The tests of the core and of what it hands to the wire; those of sound and hosts take long and come by little of it.
ASKED = (
    "tests/test_dave_vectors.py",
    "tests/test_deadlines.py",
    "tests/test_encryption.py",
    "tests/test_expected.py",
    "tests/test_flight.py",
    "tests/test_frozen.py",
    "tests/test_invariants.py",
    "tests/test_lease.py",
    "tests/test_lease_model.py",
    "tests/test_login_session.py",
    "tests/test_losses.py",
    "tests/test_nonce_model.py",
    "tests/test_receiver.py",
    "tests/test_replay.py",
    "tests/test_ready.py",
    "tests/test_sender.py",
    "tests/test_sender_lease.py",
    "tests/test_session.py",
    "tests/test_session_attempts.py",
    "tests/test_session_closes.py",
    "tests/test_session_dave.py",
    "tests/test_session_dave_groups.py",
    "tests/test_session_handover.py",
    "tests/test_session_main_gateway.py",
    "tests/test_session_media.py",
    "tests/test_session_sockets.py",
    "tests/test_session_wishes.py",
    "tests/faults/test_dave.py",
    "tests/faults/test_dave_order.py",
    "tests/faults/test_dave_trust.py",
    "tests/faults/test_encryption.py",
    "tests/faults/test_playing_time.py",
    "tests/faults/test_process_app.py",
    "tests/faults/test_signalling.py",
    "tests/faults/test_signalling_moves.py",
    "tests/faults/test_signalling_servers.py",
    "tests/faults/test_udp_discovery.py",
    "tests/faults/test_udp_path.py",
    "tests/faults/test_websocket_close.py",
    "tests/faults/test_websocket_deadlines.py",
    "tests/faults/test_websocket_dial.py",
    "tests/faults/test_websocket_frames.py",
    "tests/faults/test_websocket_handshake.py",
    "tests/faults/test_websocket_heartbeat.py",
    "tests/faults/test_websocket_load.py",
    "tests/faults/test_websocket_resume.py",
    "tests/test_golden.py",
    "tests/test_check.py::test_all_is_proved",
    "tests/test_tables.py",
)
# They say that something is as it was drawn.
NOT_ASKED = (
    "tests/test_tables.py::test_the_pages_in_diagrams_are_current",
    "tests/test_tables.py::test_pictures_and_pages_have_every_state_and_row",
)
COLLECTED = ("-s", "-m", "not interop and not loopback", "-p", "no:cacheprovider", "-p", "no:terminal")
STRICT = ("--timeout=60", "--hypothesis-seed=1", "-W", "ignore::pytest.PytestAssertRewriteWarning")
# Seconds of the processor: of each kind of test, of those that are left, and what a test may take beyond its own.
KIND_S, LEFT_S, SLACK_S = 1.0, 5.0, 10.0
RECENT = 5


@dataclass(frozen=True)
class Verdict:
    """Who killed a mutant: a kind of `KILLERS` and the test, or nobody."""

    mutant: Mutant
    killer: str
    test: str = ""


@dataclass
class Harness:
    """A pytest plugin in the place of pytest's own loop. `told` hears each verdict as it comes."""

    mutants: Iterable[Mutant]
    files: Iterable[str]
    told: Callable[[Verdict], None]
    asked: Callable[[pytest.Item], bool] = lambda item: not item.nodeid.startswith(NOT_ASKED)
    chosen: Callable[[Mutant, pytest.Item], bool] = lambda mutant, item: True
    at_once: int = 1
    _items: dict[str, pytest.Item] = field(default_factory=dict)
    _watched: dict[str, set[Trace]] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _tests: dict[Trace, list[str]] = field(default_factory=dict)
    _recent: dict[str, list[str]] = field(default_factory=dict)

    def run(self, tests: tuple[str, ...] = ASKED) -> None:
        """Everything. Raises RuntimeError where the tests cannot be collected."""
        hypothesis.settings.register_profile(
            "mutants",
            database=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        hypothesis.settings.load_profile("mutants")
        code = pytest.main([*COLLECTED, *STRICT, *tests], plugins=[self])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise RuntimeError(f"pytest ends with {code}")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """What pytest calls where it would run the tests."""
        items = [item for item in session.items if self.asked(item)]
        self._items = {item.nodeid: item for item in items}
        gc.collect()
        gc.freeze()
        watched = _in_child(lambda: self._watch(items))
        self._watched, self._seconds, failed = pickle.loads(watched)
        for test in failed:
            print(f"fails without any change and can tell nothing: {test}", flush=True)
        for test in self._watched.keys() - set(failed):
            for trace in self._watched[test]:
                self._tests.setdefault(trace, []).append(test)
        self._all()
        return True

    def _watch(self, items: list[pytest.Item]) -> bytes:
        watch = Watch(self.files)
        items[0].config.pluginmanager.register(watch)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        watch.end()
        return pickle.dumps((watch.traces, watch.seconds, watch.failed))

    def _all(self) -> None:
        running: dict[int, tuple[Mutant, IO[bytes]]] = {}
        waiting: Iterator[Mutant] = iter(self.mutants)
        more = True
        while more or running:
            while more and len(running) < self.at_once:
                mutant = next(waiting, None)
                if mutant is None:
                    more = False
                    break
                tests = self._in_order(mutant)
                child, answer = _fork(lambda mutant=mutant, tests=tests: self._try(mutant, tests))  # type: ignore[misc]
                running[child] = (mutant, answer)
            if running:
                child, _ = os.wait()
                mutant, answer = running.pop(child)
                with answer:
                    answer.seek(0)
                    self._judge(mutant, answer.read().decode().splitlines())

    def _judge(self, mutant: Mutant, lines: list[str]) -> None:
        """The last line says which test was running, or how it ended."""
        last = lines[-1] if lines else ""
        if last in (LOADING, NOBODY):
            verdict = Verdict(mutant, last)
        elif last:
            verdict = Verdict(mutant, kind_of(last), last)
            recent = self._recent.setdefault(mutant.where, [])
            recent[:] = [last, *(test for test in recent if test != last)][:RECENT]
        else:
            raise RuntimeError(f"{mutant.name}: the process ended before it began")
        self.told(verdict)

    def _in_order(self, mutant: Mutant) -> list[str]:
        """Some seconds of each kind of test, then some of whatever is left."""
        tests = {test for trace in mutant.traces for test in self._tests.get(trace, ())}
        recent = set(self._recent.get(mutant.where, ()))
        met: Counter[str] = Counter()
        ranked: list[tuple[bool, int, float, str]] = []
        for seconds, test in sorted((self._seconds.get(test, 0.0), test) for test in tests):
            if self.chosen(mutant, self._items[test]):
                function = test.partition("[")[0]
                ranked.append((test not in recent, met[function], seconds, test))
                met[function] += 1
        ranked.sort()
        first = [
            test for kind in KILLERS for test in _within(KIND_S, [one for one in ranked if kind_of(one[-1]) == kind])
        ]
        return first + _within(LEFT_S, [one for one in ranked if one[-1] not in set(first)])

    def _try(self, mutant: Mutant, tests: list[str]) -> Iterator[str]:
        try:
            mutant.install()
        except TableError:
            yield LOADING
            return
        failures = _Failures()
        for number, test in enumerate(tests):
            yield test
            item = self._items[test]
            if number == 0:
                item.config.pluginmanager.register(failures)
            # of the processor's time, so that a busy machine kills nobody; the signal ends the process
            signal.setitimer(signal.ITIMER_VIRTUAL, SLACK_S * (1 + self._seconds.get(test, 0.0)))
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if failures.failed:
                return
        yield NOBODY


class _Failures:
    """Has a test failed?"""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What pytest calls three times a test."""
        self.failed = self.failed or report.failed


def _within(seconds: float, ranked: list[tuple[bool, int, float, str]]) -> list[str]:
    """As many of the tests as take so long, and one more; those that killed a neighbour lately are not counted."""
    spent, within = 0.0, list[str]()
    for fresh, _, takes, test in ranked:
        if spent > seconds:
            break
        spent += takes if fresh else 0.0
        within.append(test)
    return within


def kind_of(test: str) -> str:
    """The kind of a test, by its node id."""
    return next((kind for kind, paths in KINDS.items() if test.startswith(paths)), STORIES)


def _fork(work: Callable[[], Iterable[str]]) -> tuple[int, IO[bytes]]:
    """A process that writes a line for each string of `work` into the file: nobody reads a pipe before the end."""
    answer = tempfile.TemporaryFile()  # noqa: SIM115 - whoever judges closes it
    child = os.fork()
    if child:
        return child, answer
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        for line in work():
            os.write(answer.fileno(), f"{line}\n".encode())
    finally:
        os._exit(0)


def _in_child(work: Callable[[], bytes]) -> bytes:
    """What `work` returns, in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "wb") as answer:
                answer.write(work())
        except BaseException as error:
            print(f"the tests cannot be watched: {error!r}", file=sys.stderr)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        result = answer.read()
    os.waitpid(child, 0)
    return result
