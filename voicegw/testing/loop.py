"""An asyncio event loop in virtual time: deterministic, without a single system call, and with an opinion about order.

Time stands still while anything can run and then jumps to the next timer or arrival. What asyncio leaves to chance is
drawn from the seed: in which order the tasks that are ready take their steps (callbacks of the plumbing below tasks
keep theirs, since asyncio promises it). A loop on which nothing can happen any more raises `DeadEnd`: a call that
hangs is a failure, not a wait.

    loop = VirtualLoop(seed=1)
    loop.run_until_complete(story())

Every callback belongs to the process in whose context it was made (`PROCESS`). A process can be frozen for a while,
as by a stall or a suspend, and all others go on; arrivals wait for it in its sockets.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
import weakref
from asyncio import base_events, sslproto
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from voicegw.errors import VoiceError

if TYPE_CHECKING:
    from voicegw.testing.network import Network

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)

STEPS_AT_ONE_TIME = 200_000
DEMOTIONS = 3
LATE_S = 1e-8  # real timers fire a little late; one that fires early by a rounding error would fire for ever


class DeadEnd(VoiceError):
    """Nothing is ready, no timer is armed, nothing is under way: the run would wait for ever."""


class Endless(VoiceError):
    """The run goes on beyond its bounds: too much virtual time, or too many steps without any."""


class Process:
    """One of several processes on a loop: what it may not run yet, and how long it has slept.

    While it sleeps its monotonic clock stands still, as Linux's does.
    """

    def __init__(self) -> None:
        self.frozen_until = 0.0
        self.asleep_s = 0.0
        self.frozen_s = 0.0


class Schedule:
    """In which order ready tasks step: `shuffle` draws it, `priorities` ranks tasks and demotes one now and then.

    The second finds orders that need one task to be late for long, with a probability that can be told.
    """

    def __init__(self, seed: int, policy: str = "") -> None:
        self._random = random.Random(f"schedule {seed}")  # noqa: S311 - a simulation must be repeatable
        self.policy = policy or self._random.choice(("fifo", "shuffle", "priorities"))
        self._ranks: weakref.WeakKeyDictionary[asyncio.Task[Any], float] = weakref.WeakKeyDictionary()
        self._demote_in = self._random.randrange(50, 2000)
        self._demotions = DEMOTIONS

    def order(self, ready: deque[asyncio.Handle]) -> Iterable[asyncio.Handle]:
        """What was ready, in the order in which it shall run."""
        if self.policy == "fifo":
            return tuple(ready)
        places = [place for place, handle in enumerate(ready) if _task_of(handle) is not None]
        if len(places) < 2:
            return tuple(ready)
        ordered = list(ready)
        steps = [ordered[place] for place in places]
        if self.policy == "shuffle":
            self._random.shuffle(steps)
        else:
            steps.sort(key=self._rank)
        for place, step in zip(places, steps, strict=True):
            ordered[place] = step
        return ordered

    def _rank(self, handle: asyncio.Handle) -> float:
        task = _task_of(handle)
        assert task is not None
        self._demote_in -= 1
        if self._demote_in == 0 and self._demotions:
            self._demotions -= 1
            self._demote_in = self._random.randrange(50, 2000)
            self._ranks[task] = 1.0 + self._demotions
        if task not in self._ranks:
            self._ranks[task] = self._random.random()
        return self._ranks[task]


class VirtualLoop(base_events.BaseEventLoop):
    """See the module. `network` gives it streams and sockets; `limit_s` bounds the virtual time of a run.

    `before_step` sees each step of a task before it is taken, for tests that disturb one.
    """

    # asyncio's own, which its type hints leave out
    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _stopping: bool

    def __init__(self, seed: int = 0, *, policy: str = "", begin_s: float = 1000.0, limit_s: float = 1e9) -> None:
        super().__init__()
        self.schedule = Schedule(seed, policy)
        self.network: Network | None = None
        self.limit_s = begin_s + limit_s
        self.steps = 0
        self.now = begin_s
        self.problems: list[str] = []
        self.before_step: Callable[[asyncio.Task[Any], Process | None], None] | None = None
        self._arrivals: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._held: dict[Process, list[asyncio.Handle]] = {}
        self._steps_here = 0
        self._tasks_made = itertools.count(1)
        self.set_exception_handler(VirtualLoop._note_problem)

    # -- time

    def time(self) -> float:
        """The monotonic clock of the process that asks."""
        process = PROCESS.get()
        return self.now if process is None else self.now - process.asleep_s

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's; `when` is on the clock of the process that asks."""
        process = PROCESS.get()
        if process is not None:
            when += process.asleep_s
        return super().call_at(when, callback, *args, context=context)

    def arrive_at(self, when: float, callback: Callable[[], None]) -> None:
        """Something happens outside of all processes: a packet arrives, a link breaks."""
        heapq.heappush(self._arrivals, (when, next(self._order), callback))

    def freeze(self, process: Process, seconds: float) -> None:
        """`process` does not run for `seconds`; then it finds its arrivals first, and late timers after them."""
        process.frozen_s += seconds
        process.frozen_until = max(process.frozen_until, self.now + seconds)
        self._held.setdefault(process, [])
        self.arrive_at(process.frozen_until, lambda: None)

    def suspend(self, process: Process, seconds: float) -> None:
        """As `freeze`, and the monotonic clock of `process` stands still meanwhile: its timers move.

        A process that does not run already sleeps afterwards, so that no second is counted twice.
        """
        self.freeze(process, max(0.0, process.frozen_until - self.now) + seconds)
        process.asleep_s += seconds
        for handle in self._scheduled:
            if _process_of(handle) is process:
                handle._when += seconds
        heapq.heapify(self._scheduled)

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """What is armed."""
        return [handle for handle in self._scheduled if not handle._cancelled]

    def process(self) -> object:
        """Who runs now: a process, or the loop itself."""
        return PROCESS.get() or self

    # -- what runs next

    def _run_once(self) -> None:
        self._await_something()
        now = self.now
        while self._arrivals and self._arrivals[0][0] <= now:
            heapq.heappop(self._arrivals)[2]()
        if self._held:
            self._thaw()
        ready = self._ready
        scheduled = self._scheduled
        while scheduled and scheduled[0]._when <= now - LATE_S / 2:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                ready.append(timer)
        batch = self.schedule.order(ready) if len(ready) > 1 else tuple(ready)
        ready.clear()
        handle: asyncio.Handle | None
        for handle in batch:
            if handle._cancelled:
                continue
            if self._held and self._hold(handle):
                continue
            self.steps += 1
            self._steps_here += 1
            if self.before_step is not None and (task := _task_of(handle)) is not None:
                self.before_step(task, _process_of(handle))
                del task
            handle._run()
        del batch
        handle = None  # an exception may keep this frame, which must not keep the task that raised it
        if self._steps_here > STEPS_AT_ONE_TIME:
            raise Endless(f"{self._steps_here} steps at {self.now:.6f} s")

    def _await_something(self) -> None:
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if self._ready or self._stopping:
            return
        due = scheduled[0]._when if scheduled else None
        if self._arrivals and (due is None or self._arrivals[0][0] < due):
            due = self._arrivals[0][0]
        if due is None:
            waiting = sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks(self))  # type: ignore[union-attr]
            raise DeadEnd(f"at {self.now:.6f} s nothing can happen any more; waiting: {', '.join(waiting)}")
        if due > self.now - LATE_S / 2:
            if due > self.limit_s:
                raise Endless(f"nothing has ended the run by {self.now:.6f} s; the next thing comes at {due:.6f} s")
            if due > self.now + LATE_S:
                self._steps_here = 0
            self.now = due + LATE_S

    def _hold(self, handle: asyncio.Handle) -> bool:
        process = _process_of(handle)
        if process is None or process not in self._held or process.frozen_until <= self.now:
            return False
        self._held[process].append(handle)
        return True

    def _thaw(self) -> None:
        for process in [process for process in self._held if process.frozen_until <= self.now]:
            held = self._held.pop(process)
            timers = [handle for handle in held if isinstance(handle, asyncio.TimerHandle)]
            self._ready.extend(handle for handle in held if not isinstance(handle, asyncio.TimerHandle))
            self._ready.extend(timers)

    # -- what asyncio asks of a loop

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, **options: Any
    ) -> asyncio.Task[T]:
        """As asyncio's; tasks are named by the loop, not by a counter of the process, so that runs can be repeated."""
        return super().create_task(coro, name=name or f"Task-{next(self._tasks_made)}", **options)

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        """As asyncio's; only virtual sockets have something to read."""
        self._of_network.descriptors[fd].readable = asyncio.Handle(callback, args, self)
        self._of_network.descriptors[fd].wake()

    def remove_reader(self, fd: Any) -> bool:
        """As asyncio's."""
        there = self._of_network.descriptors.get(fd)
        if there is None or there.readable is None:
            return False
        there.readable.cancel()
        there.readable = None
        return True

    def ready(self, handle: asyncio.Handle) -> None:
        """`handle` can run, as after a poll."""
        self._ready.append(handle)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """There are no threads here: `func` runs between two other steps."""
        done: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if done.done():
                return
            try:
                done.set_result(func(*args))
            except Exception as error:
                done.set_exception(error)

        self.call_soon(run)
        return done

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """Ask the network's names."""
        return await self._of_network.look_up(host, port)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Dial through the network."""
        await self._of_network.dial(sock, address)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], host: Any = None, port: Any = None, **options: Any
    ) -> asyncio.AbstractServer:
        """Listen on the network."""
        return self._of_network.listen(protocol_factory, host, port or 0, options.get("ssl"))

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> Any:
        return sock.transport(protocol, waiter, extra)

    def _make_ssl_transport(
        self,
        rawsock: Any,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: Any = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        call_connection_made: bool = True,
    ) -> Any:
        if not self._of_network.tls:
            return rawsock.transport(protocol, waiter, {"sslcontext": sslcontext, **(extra or {})}, secured=True)
        tls = sslproto.SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,  # type: ignore[arg-type]
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        rawsock.transport(tls, None, extra)
        return tls._app_transport

    def _write_to_self(self) -> None:
        """Nobody sleeps in a poll, so nobody must be woken."""

    def _process_events(self, event_list: Any) -> None:
        raise NotImplementedError

    @property
    def _of_network(self) -> Network:
        assert self.network is not None, "this loop has no network"
        return self.network

    @staticmethod
    def _note_problem(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would only log is a failure of the run."""
        assert isinstance(loop, VirtualLoop)
        loop.problems.append(f"{context.get('message')}: {context.get('exception')!r}")


def _task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


def _process_of(handle: asyncio.Handle) -> Process | None:
    return handle._context.get(PROCESS)  # type: ignore[attr-defined, no-any-return]
