"""What a bot does at the wrong time, and callbacks that misbehave: whole clients on simulated hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.faults.cells import covers
from tests.faults.phases import ALICE, CHANNEL, Call, in_call
from voicegw.effects import Notice
from voicegw.errors import EventNotAllowed, VoiceError
from voicegw.events import LeaveRequested
from voicegw.testing.bots import Frames
from voicegw.testing.simulation import Simulation

FAILED = "a listener of the voice client failed"


def raising(call: Call) -> Callable[[Notice], None]:
    def listen(notice: Notice) -> None:
        raise RuntimeError("the bot's own mistake")

    return listen


def cancelling(call: Call) -> Callable[[Notice], None]:
    def listen(notice: Notice) -> None:
        raise asyncio.CancelledError

    return listen


def entering_again(call: Call) -> Callable[[Notice], None]:
    def listen(notice: Notice) -> None:
        call.alice.feed(LeaveRequested())

    return listen


def hanging(call: Call) -> Callable[[Notice], None]:
    def listen(notice: Notice) -> None:
        call.host.stall(10)

    return listen


@pytest.mark.parametrize("make", [raising, cancelling, entering_again, hanging])
@covers("F139")
def test_a_listener_that_misbehaves_moves_nothing(phase: str, make: Callable[[Call], Callable[[Notice], None]]) -> None:
    async def story(call: Call) -> None:
        call.watch.expected_errors.add(FAILED)
        told: list[Notice] = []
        misbehave = make(call)

        def listen(notice: Notice) -> None:
            told.append(notice)
            misbehave(notice)

        call.alice.add_listener(listen)
        heard: list[Notice] = []
        call.alice.add_listener(heard.append)
        if phase == "R":
            call.sim.server.drop_socket(ALICE)
        call.let_go()
        await asyncio.sleep(1)
        await call.settle()
        await asyncio.sleep(60)
        assert told
        assert heard == told
        assert call.phase == ("X" if phase == "C" or make is entering_again else "R")
        reports = [line for line in call.watch.lines if FAILED in line]
        assert len(reports) == (len(told) if make in (raising, cancelling) else 0)

    in_call(phase, story)


@pytest.mark.parametrize("error", [RuntimeError("the framework's"), asyncio.CancelledError()])
def test_a_main_gateway_that_fails_is_an_answer(error: BaseException) -> None:
    async def story(call: Call) -> None:
        send = call.alice.signalling.update_voice_state
        calls = 0

        async def fail_once(*arguments: object, **flags: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise error
            await send(*arguments, **flags)

        call.alice.signalling.update_voice_state = fail_once
        await call.alice.connect(CHANNEL)
        assert calls == 2

    in_call("I", story)


@covers("F142")
def test_a_close_during_a_join_ends_it(phase: str, seed: int) -> None:
    async def story(call: Call) -> None:
        task = asyncio.ensure_future(call.alice.move_to(CHANNEL + 1)) if phase in "UE" else None
        await asyncio.sleep((0.0, 0.01, 0.1)[seed])
        left = call.leaves
        waiting = asyncio.ensure_future(call.alice.connect(CHANNEL)) if phase in "PDHB" else None
        await asyncio.sleep(0)
        await call.alice.close()
        assert call.phase == "X"
        assert call.leaves == left + 1
        for one in (task, waiting):
            if one is not None:
                with pytest.raises(VoiceError):
                    await one

    in_call(phase, story, seed)


@covers("F143")
def test_closes_at_once_all_end_and_leave_once(phase: str, seed: int) -> None:
    async def story(call: Call) -> None:
        left = 0 if phase in "CX" else call.leaves
        closes = [asyncio.ensure_future(call.alice.close()) for _ in range((2, 10, 100)[seed])]
        await asyncio.sleep(0.01)
        await asyncio.gather(*closes, call.alice.close())
        await call.alice.close()
        assert call.phase == "X"
        assert call.leaves == left + (0 if phase == "I" else 1)
        assert isinstance(call.alice.error, VoiceError | None)

    in_call(phase, story, seed)


@covers("F144")
def test_connects_at_once_share_one_attempt(phase: str, seed: int) -> None:
    async def story(call: Call) -> None:
        count = (2, 5, 10)[seed]
        connects = [asyncio.ensure_future(call.alice.connect(CHANNEL)) for _ in range(count)]
        await asyncio.sleep(0.05)
        call.let_go()
        answers = await asyncio.gather(*connects, return_exceptions=True)
        if phase in "CX":
            assert all(isinstance(answer, EventNotAllowed) for answer in answers)
            fresh = call.sim.client(ALICE)  # the slot is free
            await call.alice.close()
            await fresh.connect(CHANNEL)
            return
        assert answers == [None] * count
        await call.settle()
        assert call.phase == "R"
        assert call.alice.signalling.requests[0] == CHANNEL
        assert len(call.sim.server.records(ALICE, 0, "in")) <= (2 if phase == "E" else 1)

    in_call(phase, story, seed)


def test_a_failed_attempt_frees_its_place() -> None:
    async def story(sim: Simulation) -> None:
        alice = sim.client(ALICE)
        alice.signalling.silent = True
        answers = await asyncio.gather(*(alice.connect(CHANNEL, 5) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(answer, VoiceError) for answer in answers)
        await alice.wait_closed()
        alice.signalling.silent = False
        again = sim.client(ALICE, signalling=alice.signalling)
        await again.connect(CHANNEL)

    Simulation(seed=1).run(story)


@covers("F145")
def test_a_cancelled_waiter_takes_only_its_own_wish_back(phase: str, seed: int) -> None:
    async def story(call: Call) -> None:
        alice = call.alice
        if phase == "C":
            assert call.closing is not None
            call.closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.closing
            call.closing = None
            await alice.close()
            assert call.phase == "X"
            assert call.leaves == 1
            return
        works = [alice.wait_closed(), alice.wait_for(lambda: False, 60)]
        if phase in "RUE":
            works += [alice.move_to(CHANNEL + 1), alice.play(Frames(10_000)).wait()]
        tasks = [asyncio.ensure_future(work) for work in works]
        await asyncio.sleep((0.0, 0.03, 0.3)[seed])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        if phase in "PDHB" and seed:
            assert call.joining is not None
            other = asyncio.ensure_future(alice.connect(CHANNEL))
            await asyncio.sleep(0)
            call.joining.cancel()
            await asyncio.wait([call.joining])
            call.joining = None
            call.let_go()
            await other
            assert call.phase == "R"
            return
        if phase in "PDHB":
            assert call.joining is not None
            left = call.leaves
            call.joining.cancel()
            await asyncio.wait([call.joining])
            call.joining = None
            await alice.wait_closed()
            await alice.close()
            assert call.phase == "X"
            assert call.leaves == left + 1
            return
        call.let_go()
        await call.settle()
        assert call.phase == "R"

    in_call(phase, story, seed)


@covers("F146")
def test_a_close_that_nobody_answers_ends_all_the_same(phase: str, seed: int) -> None:
    async def hang(*arguments: object, **flags: object) -> None:
        await asyncio.sleep(3600)

    async def story(call: Call) -> None:
        begin = call.sim.loop.now
        if seed == 1:
            call.host.udp_out.down = call.host.udp_in.down = True
        assert call.closing is not None
        await call.closing
        assert call.sim.loop.now - begin <= 2

    async def hung(call: Call) -> None:
        call.alice.signalling.update_voice_state = hang
        for connection in call.sim.network.connections:
            connection.silence()
        begin = call.sim.loop.now
        await call.alice.close()
        assert call.phase == "X"
        assert call.sim.loop.now - begin <= 4
        assert call.alice.error is not None

    if seed == 2:
        in_call("R", hung, seed)
    else:
        in_call(phase, story, seed)
