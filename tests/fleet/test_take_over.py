"""Workers that are drained, killed, cut off, stopped; NATS that restarts: what listeners and the voice server see."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import nats
import pytest

from tests.fleet.conftest import StartTrial, nothing_forbidden
from voicegw.fleet.local_nats import free_port
from voicegw.fleet.trial import Trial
from voicegw.server.session import Record
from voicegw.wire.opcodes import Opcode

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.loopback,
    # NATS's client leaves the streams of attempts to reconnect to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_a_drained_worker_hands_its_calls_over_and_ends(fleet: StartTrial) -> None:
    async with fleet(calls=4, workers=2) as trial:
        name = trial.busiest
        bots = trial.of(name)
        async with trial.event(bots):
            trial.workers[name].send(signal.SIGTERM)
            assert await trial.workers[name].ended() == 0
            assert name not in trial.operator.view.workers
        assert trial.of(name) == []
        assert trial.counts["resumed"] == len(bots)
        nothing_forbidden(trial)


async def test_the_next_worker_dials_while_the_call_still_speaks(
    fleet: StartTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet(calls=1, workers=2) as trial:
        (bot_id,) = trial.heard
        heard_at: dict[int, int] = {}
        note = trial.server.note

        def noting(record: Record) -> None:
            heard_at[record.op] = len(trial.heard[bot_id].nonces)
            note(record)

        monkeypatch.setattr(trial.server, "note", noting)
        name = trial.busiest
        async with trial.event([bot_id]):
            trial.workers[name].send(signal.SIGTERM)
            assert await trial.workers[name].ended() == 0
        assert trial.counts["resumed"] == 1
        assert heard_at[Opcode.HELLO] < heard_at[Opcode.RESUME]
        nothing_forbidden(trial)


async def test_a_killed_workers_calls_are_taken_over_when_its_lease_is_over(fleet: StartTrial) -> None:
    async with fleet(calls=4, workers=3, lease_s=1.5) as trial:
        name = trial.busiest
        bots = trial.of(name)
        await trial.play(1)
        trial.workers[name].send(signal.SIGKILL)
        await trial.workers[name].ended()
        killed = time.monotonic()
        await trial.until(lambda: name not in trial.operator.view.workers)
        await trial.heard_again(killed, bots)
        assert all(trial.heard[bot_id].gap_s(killed - 1.0, time.monotonic()) > 0.5 for bot_id in bots)
        assert trial.counts["resumed"] == len(bots)
        nothing_forbidden(trial)


async def test_calls_go_on_while_nats_restarts(fleet: StartTrial) -> None:
    async with fleet(calls=3, workers=2, lease_s=15.0) as trial:
        owners = trial.owners
        await trial.nats.kill()
        await trial.nats.start()
        await trial.play(16)  # longer than a lease: it was renewed at the new server
        assert trial.owners == owners
        assert trial.counts["resumed"] == 0
        nothing_forbidden(trial)


async def leader(trial: Trial) -> str:
    """The server of NATS that leads the bucket of leases."""
    connection = await nats.connect(trial.nats.urls)
    info = await connection.jetstream().stream_info("KV_voicegw_leases")
    await connection.close()
    assert info.cluster is not None
    return str(info.cluster.leader)


async def test_calls_play_on_when_one_of_three_servers_of_nats_dies(fleet: StartTrial) -> None:
    """The one that leads the leases, and that their worker talks to."""
    async with fleet(calls=3, workers=1, lease_s=20.0, nats_servers=3) as trial:
        before = await leader(trial)
        await trial.start_worker("at-the-leader", nats_url=trial.nats.url(before))
        trial.workers["worker-1"].send(signal.SIGTERM)
        await trial.workers["worker-1"].ended()
        await trial.until(lambda: len(trial.of("at-the-leader")) == 3)
        await trial.start_worker("worker-2")
        await trial.heard_again(time.monotonic(), list(trial.heard))
        resumed = trial.counts["resumed"]
        await trial.nats.kill(before)
        killed = time.monotonic()
        await trial.until_renewed(["at-the-leader", "worker-2"])
        assert await leader(trial) != before
        assert set(trial.owners.values()) == {"at-the-leader"}
        assert trial.counts["resumed"] == resumed  # nobody had to take anything over
        await trial.heard_again(killed, list(trial.heard))
        trial.workers["at-the-leader"].send(signal.SIGTERM)  # and calls can be handed over as before
        assert await trial.workers["at-the-leader"].ended() == 0
        await trial.heard_again(time.monotonic(), list(trial.heard))
        assert set(trial.owners.values()) == {"worker-2"}
        nothing_forbidden(trial)


async def test_calls_are_silent_while_nats_is_away_for_longer_than_a_lease_and_come_back(fleet: StartTrial) -> None:
    async with fleet(calls=3, workers=2, lease_s=1.5) as trial:
        owners = trial.owners
        await trial.nats.kill()
        away = time.monotonic()
        await asyncio.wait_for(trial.falls_silent(), 30)  # the last lease is over
        await trial.nats.start()
        await trial.heard_again(away, list(trial.heard))
        await trial.until(lambda: None not in trial.owners.values())
        assert len(set(trial.owners.values())) <= len(set(owners.values()))
        nothing_forbidden(trial)


async def test_a_worker_that_is_cut_off_falls_silent_before_its_calls_are_taken_over(fleet: StartTrial) -> None:
    async with fleet(calls=2, workers=1, lease_s=2.0) as trial, Proxy(trial.nats.port) as proxy:
        await trial.start_worker("cut-off", nats_url=f"nats://127.0.0.1:{proxy.port}")
        trial.workers["worker-1"].send(signal.SIGTERM)
        await trial.workers["worker-1"].ended()
        await trial.until(lambda: len(trial.of("cut-off")) == 2)
        await trial.start_worker("worker-2")
        bots = list(trial.heard)
        await trial.heard_again(time.monotonic(), bots)
        proxy.cut()
        cut = time.monotonic()
        await trial.until(lambda: "cut-off" not in trial.operator.view.workers)
        ended = time.monotonic()
        await trial.heard_again(ended, bots)
        for bot_id in bots:
            before = [at for at in trial.heard[bot_id].times if cut < at < ended]
            assert ended - max(before) > 0.1  # it was silent when the others might speak
        assert set(trial.owners.values()) == {"worker-2"}
        nothing_forbidden(trial)
        assert trial.strays == 0
        proxy.mend()
        await trial.until(lambda: "cut-off" in trial.operator.view.workers)
        await trial.play(1)
        assert set(trial.owners.values()) == {"worker-2"}
        nothing_forbidden(trial)


async def test_a_worker_that_was_stopped_past_its_lease_says_nothing_when_it_wakes(fleet: StartTrial) -> None:
    async with fleet(calls=4, workers=2, lease_s=1.5) as trial:
        name = trial.busiest
        bots = trial.of(name)
        stopped = time.monotonic()
        trial.workers[name].send(signal.SIGSTOP)
        await trial.until(lambda: name not in trial.operator.view.workers)
        await trial.heard_again(stopped, bots)
        before = trial.strays
        trial.workers[name].send(signal.SIGCONT)
        await trial.until(lambda: name in trial.operator.view.workers)  # it has understood, and begun anew
        await trial.play(2)
        # A process can be stopped between looking at its lease and sending: then the frame of that slot leaves, which
        # the voice server refuses, as it comes from an address that is not the call's any more.
        assert trial.strays - before <= len(bots)
        assert trial.of(name) == []
        assert trial.counts["resumed"] == len(bots)
        nothing_forbidden(trial)


class Proxy:
    """A TCP way to a port of this host that can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = True
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = free_port()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._pipes:
            task.cancel()
        if self._pipes:
            await asyncio.wait(self._pipes)

    def cut(self) -> None:
        """Nothing passes, nobody is told."""
        self._open = False

    def mend(self) -> None:
        """Connections from before are dead; new ones pass."""
        self._open = True
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pipe(source, sink))
            self._pipes.add(task)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self._open:
                    sink.write(data)
        sink.close()
