"""`voicegw fleet demo`: a fleet on this host, a worker that is drained, a worker that is killed, and what was heard."""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from voicegw.cli.console import Console
from voicegw.fleet.trial import Trial

PLANNED_P50_MS: Final = 60.0
PLANNED_P99_MS: Final = 200.0
TAKE_OVER_MS: Final = 1000.0  # beyond the lease
MUST_BE_NONE: Final = ("calls_lost", "stale_packets_accepted", "nonces_repeated", "leaves_seen")


async def demo(arguments: argparse.Namespace, console: Console) -> int:
    """Run it, say how it went; 0 where no call was lost and nothing was sent twice or by the wrong worker."""
    with tempfile.TemporaryDirectory(prefix="voicegw-fleet-") as directory:
        trial = Trial(Path(directory), calls=arguments.calls, workers=arguments.workers, lease_s=arguments.lease)
        async with trial:
            console.say(
                f"NATS at {trial.nats.urls[0]}, {arguments.workers} workers with a lease of {arguments.lease:g} s"
            )
            await trial.begin_calls()
            console.say(f"{arguments.calls} calls play, each encrypted end to end: {_shares(trial)}")
            before = await trial.nats.traffic()
            await trial.play(arguments.seconds)
            traffic = (await trial.nats.traffic()).each(before, arguments.calls)
            console.say(
                "NATS: {messages_a_call_second:g} messages and {bytes_a_call_second:g} bytes a call and second".format(
                    **traffic
                )
            )
            planned = await _drained(trial, console)
            await trial.play(arguments.seconds)
            killed = await _killed(trial, console)
            await trial.play(arguments.seconds)
            await trial.heard_again(time.monotonic(), list(trial.heard))
            counts = trial.counts
    bad = [f"{counts[name]} {name.replace('_', ' ')}" for name in MUST_BE_NONE if counts[name]]
    console.say(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()))
    console.say(f"this went wrong: {', '.join(bad)}" if bad else "no call was lost, and nobody saw one leave")
    console.result(
        {
            "ok": not bad,
            "calls": arguments.calls,
            "workers": arguments.workers,
            "lease_s": arguments.lease,
            "planned": planned,
            "killed": killed,
            "nats": traffic,
            **counts,
        }
    )
    return 1 if bad else 0


async def _drained(trial: Trial, console: Console) -> dict[str, Any]:
    """SIGTERM: its calls are handed over; another worker takes its place."""
    name = trial.busiest
    async with trial.event(trial.of(name)) as figures:
        trial.workers[name].send(signal.SIGTERM)
        await trial.workers[name].ended()
    figures["within_targets"] = figures["gap_ms_p50"] <= PLANNED_P50_MS and figures["gap_ms_p99"] <= PLANNED_P99_MS
    _say(console, f"{name} was drained", figures)
    await trial.start_worker(f"worker-{len(trial.workers) + 1}")
    return figures


async def _killed(trial: Trial, console: Console) -> dict[str, Any]:
    """SIGKILL: its calls are taken over when its lease is over."""
    name = trial.busiest
    async with trial.event(trial.of(name)) as figures:
        trial.workers[name].send(signal.SIGKILL)
        await trial.until(lambda: name not in trial.operator.view.workers)
    figures["within_targets"] = figures["gap_ms_p99"] <= trial.lease_s * 1000 + TAKE_OVER_MS
    _say(console, f"{name} was killed", figures)
    return figures


def _say(console: Console, what: str, figures: dict[str, Any]) -> None:
    console.say(
        f"{what}; its {figures['calls']} calls were silent for {figures['gap_ms_p50']:g} ms (median), "
        f"{figures['gap_ms_p99']:g} ms (99th percentile)"
    )


def _shares(trial: Trial) -> str:
    return ", ".join(f"{calls} at {name}" for name, calls in sorted(trial.operator.calls.items()))
