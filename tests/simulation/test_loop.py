"""The event loop in virtual time."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

import pytest

from voicegw.testing.loop import PROCESS, DeadEnd, Endless, Process, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop(policy="fifo")
    yield made
    made.close()


def test_a_day_passes_at_once(loop: VirtualLoop) -> None:
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.time() == pytest.approx(1000.0 + 86_400)


def test_a_run_that_waits_for_nothing_is_a_failure(loop: VirtualLoop) -> None:
    async def forgotten() -> None:
        await loop.create_future()

    with pytest.raises(DeadEnd, match=r"waiting: .*forgotten"):
        loop.run_until_complete(forgotten())


def test_a_run_that_never_ends_is_a_failure() -> None:
    async def ticking() -> None:
        while True:  # noqa: ASYNC110 - on purpose
            await asyncio.sleep(10)

    async def spinning() -> None:
        while True:  # noqa: ASYNC110 - on purpose
            await asyncio.sleep(0)

    for story, message in ((ticking, "nothing has ended the run"), (spinning, "steps at")):
        loop = VirtualLoop(limit_s=100)
        with pytest.raises(Endless, match=message):
            loop.run_until_complete(story())
        loop.close()


async def _race() -> list[int]:
    order: list[int] = []

    async def runner(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        order.append(number)

    await asyncio.gather(*(runner(number) for number in range(6)))
    return order


def race(seed: int, policy: str) -> list[int]:
    loop = VirtualLoop(seed, policy=policy)
    try:
        return loop.run_until_complete(_race())
    finally:
        loop.close()


@pytest.mark.parametrize("policy", ["shuffle", "priorities"])
def test_the_seed_draws_the_order_of_tasks(policy: str) -> None:
    orders = {tuple(race(seed, policy)) for seed in range(20)}
    assert len(orders) > 10
    assert [race(seed, policy) for seed in range(20)] == [race(seed, policy) for seed in range(20)]
    assert race(1, "fifo") == [0, 1, 2, 3, 4, 5]


def test_callbacks_keep_the_order_that_asyncio_promises() -> None:
    for seed in range(10):
        loop = VirtualLoop(seed, policy="shuffle")
        order: list[int] = []
        for number in range(10):
            loop.call_soon(order.append, number)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert order == list(range(10))


def test_a_frozen_process_runs_late_and_the_others_do_not(loop: VirtualLoop) -> None:
    process = Process()
    seen: list[tuple[str, float]] = []

    async def tick(name: str, owner: Process | None) -> None:
        PROCESS.set(owner)
        await asyncio.sleep(1)
        seen.append((name, loop.now - 1000.0))

    async def story() -> None:
        tasks = [loop.create_task(tick("frozen", process)), loop.create_task(tick("free", None))]
        await asyncio.sleep(0.5)
        loop.freeze(process, 10)
        await asyncio.wait(tasks)

    loop.run_until_complete(story())
    assert [name for name, _ in seen] == ["free", "frozen"]
    assert [at for _, at in seen] == pytest.approx([1.0, 10.5])


def test_a_suspended_process_does_not_see_the_time_pass(loop: VirtualLoop) -> None:
    process = Process()

    async def sleeper() -> tuple[float, float]:
        PROCESS.set(process)
        begin = loop.time()
        await asyncio.sleep(1)
        return loop.time() - begin, loop.now - 1000.0

    async def story() -> tuple[float, float]:
        task = loop.create_task(sleeper())
        await asyncio.sleep(0.5)
        loop.suspend(process, 3600)
        return await task

    own, world = loop.run_until_complete(story())
    assert own == pytest.approx(1.0)
    assert world == pytest.approx(3601.0)


def test_a_process_that_is_suspended_twice_sleeps_twice_as_long(loop: VirtualLoop) -> None:
    process = Process()

    async def sleeper() -> float:
        PROCESS.set(process)
        await asyncio.sleep(1)
        return loop.now - 1000.0

    async def story() -> float:
        task = loop.create_task(sleeper())
        await asyncio.sleep(0.5)
        loop.suspend(process, 60)
        loop.suspend(process, 3600)
        return await task

    assert loop.run_until_complete(story()) == pytest.approx(3661.0)


def test_what_asyncio_would_only_log_is_kept(loop: VirtualLoop) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    loop.call_soon(fail)
    loop.run_until_complete(asyncio.sleep(0))
    assert len(loop.problems) == 1
    assert "broken" in loop.problems[0]


def test_executors_run_between_two_steps(loop: VirtualLoop) -> None:
    assert loop.run_until_complete(loop.run_in_executor(None, sum, [1, 2, 3])) == 6
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(loop.run_in_executor(None, divmod, 1, 0))
