from __future__ import annotations

import threading

import pytest

from voicegw.media import workers
from voicegw.media.strand import Strand
from voicegw.media.workers import ThreadWorkers

WORKERS = ThreadWorkers("test", 2)


def settled(strand: Strand[int]) -> threading.Event:
    done = threading.Event()
    strand.after(done.set)
    return done


def test_a_strand_keeps_its_order() -> None:
    seen: list[int] = []
    strand: Strand[int] = Strand(WORKERS, seen.append, 1000)
    for item in range(500):
        strand.put(item)
    assert settled(strand).wait(10)
    assert seen == list(range(500))


def test_a_full_strand_drops_its_oldest_and_says_so_once() -> None:
    seen: list[int] = []
    begun, free = threading.Event(), threading.Event()
    drops: list[int] = []

    def work(item: int) -> None:
        begun.set()
        free.wait()
        seen.append(item)

    strand: Strand[int] = Strand(WORKERS, work, 3, lambda: drops.append(1))
    strand.put(0)
    assert begun.wait(10)
    for item in range(1, 10):
        strand.put(item)
    done = settled(strand)
    free.set()
    assert done.wait(10)
    assert seen == [0, 7, 8, 9]
    assert (strand.dropped, drops) == (6, [1])


def test_strands_that_block_do_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STUCK_S", 0.0)
    free = threading.Event()

    def wait(item: int) -> None:
        free.wait()

    blocked: list[Strand[int]] = [Strand(WORKERS, wait, 1) for _ in range(4)]
    for strand in blocked:
        strand.put(0)
    other: Strand[int] = Strand(WORKERS, lambda item: None, 100)
    done = settled(other)
    while not done.is_set():
        other.put(0)
    free.set()
    for strand in blocked:
        assert settled(strand).wait(10)
