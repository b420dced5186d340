"""A fleet's way through NATS: two buckets that are written by expected revision, and sealed requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, Self
from urllib.parse import urlsplit

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy
from nats.js.client import JetStreamContext
from nats.js.kv import KeyValue

from voicegw.errors import FleetError, SourceFailed, VoiceError
from voicegw.fleet.notices import error_from, error_to
from voicegw.fleet.sealing import Seal
from voicegw.frozen import FleetKey

CONNECT_S: Final = 5.0
ANSWER_S: Final = 2.0  # the longest that an answer of JetStream is waited for
RECONNECT_S: Final = 0.1
CANCEL_S: Final = 0.25
CHECK: Final = "the-fleets-key"
REMOVALS: Final = ("DEL", "PURGE")
WRONG_REVISION: Final = (10071, 10164)

_log = logging.getLogger("voicegw")

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Overtaken(FleetError):
    """The key has another revision than was expected: somebody else has written it."""


class NoAnswer(FleetError):
    """NATS, or whoever was asked, did not answer in time; what was asked may have been done."""


class Nobody(FleetError):
    """Nobody listens to this subject now."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One revision of a key; `value` None says that it was removed."""

    key: str
    value: bytes | None
    revision: int


class Bucket:
    """A key-value bucket of JetStream, without any write that does not name the revision it builds on."""

    def __init__(self, js: JetStreamContext, kv: KeyValue, name: str) -> None:
        self._js = js
        self._kv = kv
        self._prefix = f"$KV.{name}."

    async def create(self, key: str, value: bytes) -> int:
        """The revision of a key that was not there.

        Raises:
            Overtaken: it was.
            NoAnswer: it may have been made.
        """
        try:
            revision: int = await _answered(self._kv.create(key, value))
        except nats.js.errors.KeyWrongLastSequenceError:
            raise Overtaken(f"{key} is there already") from None
        return revision

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """The next revision, after `revision`.

        Raises:
            Overtaken: `revision` was not the last.
            NoAnswer: it may have been written.
        """
        try:
            written: int = await _answered(self._kv.update(key, value, revision))
        except nats.js.errors.KeyWrongLastSequenceError:
            raise Overtaken(f"{key} has been written by somebody else") from None
        return written

    async def delete(self, key: str, revision: int) -> None:
        """Remove it.

        Raises:
            Overtaken: `revision` was not the last.
            NoAnswer: it may have been removed.
        """
        try:
            await _answered(self._kv.delete(key, revision))
        except nats.js.errors.APIError as error:
            if error.err_code in WRONG_REVISION:
                raise Overtaken(f"{key} has been written by somebody else") from None
            raise

    async def read(self, key: str) -> Entry | None:
        """The last revision, as the stream's leader has it; None where there is none.

        Raises:
            NoAnswer: NATS is away.
        """
        try:
            message = await _answered(self._js.get_msg(self._kv._stream, subject=self._prefix + key, direct=False))
        except nats.js.errors.NotFoundError:
            return None
        if message.headers and message.headers.get("KV-Operation") in REMOVALS:
            return None
        assert message.seq is not None
        return Entry(key, message.data or b"", message.seq)

    async def watch(self, take: Callable[[Entry], None], again: asyncio.Event, ready: asyncio.Event) -> None:
        """Give every change to `take`, first the last revision of each key, then set `ready`; until it is cancelled.

        When `again` is set it begins anew: a server that restarted has forgotten who watches.
        """

        async def changed(message: Msg) -> None:
            removed = message.headers is not None and message.headers.get("KV-Operation") in REMOVALS
            sequence, pending = message.metadata.sequence.stream, message.metadata.num_pending
            take(Entry(message.subject.removeprefix(self._prefix), None if removed else message.data, sequence))
            if not pending:
                ready.set()

        while True:
            again.clear()
            subscription = None
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                subscription = await self._js.subscribe(
                    f"{self._prefix}>",
                    stream=self._kv._stream,
                    cb=changed,
                    ordered_consumer=True,
                    deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                )
                info = await subscription.consumer_info()
                if not info.num_pending and not subscription.delivered:
                    ready.set()
                await again.wait()
            if subscription is not None:
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    await subscription.unsubscribe()
            _be_cancelled()
            await asyncio.sleep(RECONNECT_S)


class Bus:
    """One process's connection to the NATS of a fleet. `async with await Bus.connect(...)`, or `close` it."""

    def __init__(self, connection: Client, fleet: str, keys: Sequence[FleetKey]) -> None:
        self.connection = connection
        self.fleet = fleet
        self.seal = Seal(keys)
        self._js = connection.jetstream(timeout=ANSWER_S)
        self._watches: set[asyncio.Task[None]] = set()
        self._again: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.leases: Bucket
        self.documents: Bucket

    @classmethod
    async def connect(
        cls, servers: str | Sequence[str], keys: Sequence[FleetKey], *, fleet: str = "voicegw", replicas: int = 1
    ) -> Self:
        """Connect, and make the buckets where they are missing; `replicas` is how many servers keep them then.

        Raises:
            FleetError: in one line, what cannot be reached or had.
        """
        listed = [servers] if isinstance(servers, str) else list(servers)
        where = ", ".join(_shown(url) for url in listed)
        reasons: list[str] = []
        bus: Self | None = None

        async def failed(error: Exception) -> None:
            reasons.append(str(error) or type(error).__name__)
            _log.debug("NATS at %s: %s", where, type(error).__name__)

        async def reconnected() -> None:
            for event in bus._again if bus is not None else ():
                event.set()

        connection: Any = Client()  # its annotations take whole seconds only
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.connect(
                    listed,
                    name=f"voicegw {fleet}",
                    error_cb=failed,
                    reconnected_cb=reconnected,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_S,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    connect_timeout=2,
                )
        except (OSError, TimeoutError, nats.errors.Error, ValueError) as error:
            await _end(connection)
            why = reasons[-1] if reasons else str(error) or type(error).__name__
            raise FleetError(
                f"NATS at {where} cannot be reached ({why}); start one with `nats-server -js`, or give another --nats"
            ) from None
        bus = cls(connection, fleet, keys)
        try:
            bus.leases = await bus._bucket("leases", replicas)
            bus.documents = await bus._bucket("documents", replicas)
            await bus._check_key()
        except VoiceError:
            await bus.close()
            raise
        except (nats.errors.Error, TimeoutError) as error:
            await bus.close()
            raise FleetError(
                f"NATS at {where} gives no JetStream bucket ({type(error).__name__}); start it with `nats-server -js`"
            ) from None
        return bus

    async def close(self) -> None:
        """End the connection; harmless when ended."""
        tasks = {*self._watches, *self._tasks} - {asyncio.current_task()}
        while tasks:  # NATS's client swallows a cancellation here and there
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=CANCEL_S)
        await _end(self.connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def watch_leases(self, take: Callable[[Entry], None]) -> None:
        """Give every change of the leases' bucket to `take`; returns when `take` has what there was.

        Raises:
            NoAnswer: NATS is away.
        """
        again, ready = asyncio.Event(), asyncio.Event()
        self._again.append(again)
        task = asyncio.create_task(self.leases.watch(take, again, ready))
        self._watches.add(task)
        try:
            async with asyncio.timeout(CONNECT_S):
                await ready.wait()
        except TimeoutError:
            raise NoAnswer("NATS does not say what is in the fleet's bucket") from None

    async def fetch_object(self, bucket: str, name: str, into: IO[bytes]) -> None:
        """Write an object of an object store bucket to a file.

        Raises:
            SourceFailed: it cannot be had.
        """
        try:
            store: Any = await self._js.object_store(bucket)
            await store.get(name, writeinto=into)
        except (nats.errors.Error, TimeoutError) as error:
            raise SourceFailed(f"{name[:80]!r} of bucket {bucket!r} cannot be had: {type(error).__name__}") from None

    # -- messages

    def subject(self, *parts: str) -> str:
        """A subject of this fleet."""
        return ".".join((self.fleet, *parts))

    async def tell(self, subject: str, message: dict[str, Any]) -> None:
        """Send a message that nobody answers; lost where NATS is away."""
        with contextlib.suppress(nats.errors.Error):
            await self.connection.publish(subject, self.seal.close(message, subject))

    async def ask(self, subject: str, message: dict[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer of who listens to `subject`.

        Raises:
            Nobody: no one does.
            NoAnswer: they took too long.
            VoiceError: what the other end raised.
        """
        try:
            reply = await self.connection.request(subject, self.seal.close(message, subject), timeout=timeout_s)
        except nats.errors.NoRespondersError:
            raise Nobody(f"nobody answers to {subject}") from None
        except (nats.errors.Error, TimeoutError):
            _be_cancelled()
            raise NoAnswer(f"no answer to {subject} within {timeout_s:g} s") from None
        answer = self.seal.open(reply.data, f"answer to {subject}")
        if "error" in answer:
            error = error_from(answer["error"])
            assert error is not None
            raise error
        return answer

    async def serve(self, subject: str, handler: Handler) -> Callable[[], Awaitable[None]]:
        """Answer what is asked on `subject`; returns what ends that. A `VoiceError` of `handler` is the answer, too."""

        async def answer(message: Msg) -> None:
            try:
                asked = self.seal.open(message.data, subject)
            except FleetError as error:
                _log.warning("%s", error)
                return
            try:
                answered = await handler(asked)
            except VoiceError as error:
                answered = {"error": error_to(error)}
            if message.reply:
                with contextlib.suppress(nats.errors.Error):
                    await message.respond(self.seal.close(answered, f"answer to {subject}"))

        async def take(message: Msg) -> None:
            self.spawn(answer(message))

        subscription = await self.connection.subscribe(subject, cb=take)

        async def end() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return end

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Do something beside, for as long as this connection lives."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a fleet's task failed", exc_info=error)

    async def _check_key(self) -> None:
        """All of a fleet have one key: the first to come leaves a word that the others must be able to read."""
        with contextlib.suppress(Overtaken):
            await self.documents.create(CHECK, self.seal.close({"fleet": self.fleet}, CHECK))
            return
        entry = await self.documents.read(CHECK)
        if entry is not None and entry.value is not None:
            self.seal.open(entry.value, CHECK)

    async def _bucket(self, what: str, replicas: int) -> Bucket:
        name = f"{self.fleet}_{what}"
        try:
            kv = await self._js.key_value(name)
        except nats.js.errors.BucketNotFoundError:
            kv = await self._js.create_key_value(bucket=name, history=1, replicas=replicas)
        return Bucket(self._js, kv, name)


async def _end(connection: Any) -> None:
    with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
        async with asyncio.timeout(ANSWER_S):
            await connection.close()
    transport = connection._transport
    if transport is not None:  # one that was being opened is left open
        transport.close()


async def _answered(work: Awaitable[Any]) -> Any:
    try:
        answer = await work
        _be_cancelled()
        return answer
    except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.NotFoundError):
        raise
    except nats.js.errors.APIError as error:
        if error.err_code in WRONG_REVISION:
            raise
        raise NoAnswer(f"NATS answered: {error.description or type(error).__name__}") from None
    except (nats.errors.Error, TimeoutError) as error:
        _be_cancelled()
        raise NoAnswer(f"NATS did not answer ({type(error).__name__})") from None


def _be_cancelled() -> None:
    """NATS's client turns a cancellation into an error of its own, or swallows it where the answer has just come."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _shown(url: str) -> str:
    """A URL without the password that may be in it."""
    parts = urlsplit(url if "//" in url else f"nats://{url}")
    return f"{parts.hostname}:{parts.port or 4222}"
