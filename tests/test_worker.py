from __future__ import annotations

import threading

import pytest

from voicegw.media import worker
from voicegw.media.worker import Strand, _Threads


def settled(strand: Strand[int]) -> threading.Event:
    done = threading.Event()
    strand.after(done.set)
    return done


def test_a_strand_keeps_its_order() -> None:
    seen: list[int] = []
    strand: Strand[int] = Strand(seen.append, 1000)
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

    strand: Strand[int] = Strand(work, 3, lambda: drops.append(1))
    strand.put(0)
    assert begun.wait(10)
    for item in range(1, 10):
        strand.put(item)
    done = settled(strand)
    free.set()
    assert done.wait(10)
    assert seen == [0, 7, 8, 9]
    assert (strand.dropped, drops) == (6, [1])


def test_strands_that_block_do_not_stop_others_and_threads_are_reused() -> None:
    free = threading.Event()

    def wait(item: int) -> None:
        free.wait()

    blocked: list[Strand[int]] = [Strand(wait, 1) for _ in range(4)]
    for strand in blocked:
        strand.put(0)
    other: Strand[int] = Strand(lambda item: None, 1)
    other.put(0)
    assert settled(other).wait(10)
    free.set()
    for strand in blocked:
        assert settled(strand).wait(10)
    before = worker.THREADS.count
    for _ in range(100):
        other.put(0)
        assert settled(other).wait(10)
    assert worker.THREADS.count <= before + 1


def test_jobs_beyond_the_last_thread_wait() -> None:
    threads, free, done = _Threads(), threading.Event(), threading.Semaphore(0)

    def job() -> None:
        free.wait()
        done.release()

    for _ in range(worker.MOST_THREADS + 8):
        threads.run(job)
    assert threads.count == worker.MOST_THREADS
    free.set()
    for _ in range(worker.MOST_THREADS + 8):
        assert done.acquire(timeout=10)
    threads.run(job)
    assert done.acquire(timeout=10)


def test_threads_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_S", 0.001)
    before = set(threading.enumerate())
    threads = _Threads()
    threads.run(lambda: None)
    for thread in set(threading.enumerate()) - before:
        assert thread.daemon
        thread.join(10)
        assert not thread.is_alive()
    assert threads.count == 0
    threads.run(lambda: None)
    assert threads.count <= 1
