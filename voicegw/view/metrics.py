"""Metrics in Prometheus' text format, version 0.0.4, under the names that the tables have.

Source: Prometheus docs, "Exposition formats".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from voicegw.adapters.calls import Calls, Tally
from voicegw.client import VoiceClient
from voicegw.kokoro import Kokoro
from voicegw.media.pacer import LATENESS_MS, process_pacer
from voicegw.session import SESSIONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.5, 0.9, 0.99, 1.0)
FATES = {
    "sent": "Packets of speech and silence that left.",
    "held": "Frames that did not leave because end-to-end encryption was not ready.",
    "not_sent": "Packets that the host refused to send.",
    "received": "Packets that came in time.",
    "lost": "Packets that did not come in time.",
    "late": "Packets that came after their turn or twice.",
    "broken": "Packets that could not be decrypted or decoded.",
}

Labels = Mapping[str, str]


def exposition(calls: Calls) -> str:
    """All metrics of the process and of the calls of this host."""
    live = list(calls.live().values())
    total = Tally()
    total.add(calls.over)
    for client in live:
        total.add(client.tally)
        total.packets.update(client.stats.totals)
    return "".join(line + "\n" for line in _lines(calls, live, total))


def _lines(calls: Calls, live: list[VoiceClient], total: Tally) -> Iterator[str]:
    states = Counter((machine, state) for client in live for machine, state in client.states.items())
    yield from _metric(
        "calls",
        "gauge",
        "Calls under way, by the state of each of their machines.",
        (
            ({"machine": name, "state": state}, states[name, state])
            for name, session in SESSIONS.items()
            for state in session.table.states
        ),
    )
    yield from _metric("calls_ended_total", "counter", "Calls that are over.", [({}, calls.ended)])
    yield from _metric(
        "transitions_total",
        "counter",
        "Rows that were taken, by the event that came.",
        (
            ({"machine": name, "event": event}, total.transitions[name, event])
            for name, session in SESSIONS.items()
            for event in dict.fromkeys(row.event for row in session.table.rows)
        ),
    )
    gateway = SESSIONS["gateway"].table
    yield from _metric(
        "closes_total",
        "counter",
        "Closes of voice websockets by the server, by code and by what the gateway's table makes of them.",
        (
            ({"code": "none" if code is None else str(code), "event": gateway.close_event(code).event}, count)
            for code, count in sorted(total.closes.items(), key=lambda item: item[0] or 0)
        ),
    )
    yield from _metric(
        "reconnects_total",
        "counter",
        "Voice sessions that were lost: what came next is a resume or a fresh one.",
        [({}, total.reconnects)],
    )
    yield from _metric("dave_epochs_total", "counter", "Epochs of E2EE groups.", [({}, total.epochs)])
    encrypted = sum(client.privacy_code != "" for client in live)
    yield from _metric("dave_groups", "gauge", "Calls that have an E2EE group.", [({}, encrypted)])
    for fate, text in FATES.items():
        yield from _metric(f"packets_{fate}_total", "counter", text, [({}, total.packets[fate])])
    yield from _latency(live)
    yield from _pacer()


def _latency(live: list[VoiceClient]) -> Iterator[str]:
    known = sorted(client.latency for client in live if client.latency != Kokoro.DEFAULT_LATENCY)
    yield from _metric(
        "heartbeat_latency_seconds",
        "gauge",
        "Last heartbeat round trips of the calls under way: the quantiles of them.",
        (
            ({"quantile": f"{quantile:g}"}, known[min(len(known) - 1, int(quantile * len(known)))])
            for quantile in QUANTILES
            if known
        ),
    )


def _pacer() -> Iterator[str]:
    stats = process_pacer().stats
    yield from _metric("pacer_streams", "gauge", "Streams that are being sent.", [({}, stats.streams)])
    yield from _metric("pacer_load", "gauge", "Part of a core that pacing all of them takes.", [({}, stats.load)])
    yield from _metric(
        "pacer_skipped_frames_total", "counter", "Frames that stalls of the process cost.", [({}, stats.skipped)]
    )
    name = "voicegw_pacer_lateness_seconds"
    yield f"# HELP {name} How late frames left, against their turn."
    yield f"# TYPE {name} histogram"
    counted = 0
    for bound, count in zip((*(f"{ms / 1000:g}" for ms in LATENESS_MS), "+Inf"), stats.lateness.values(), strict=True):
        counted += count
        yield f'{name}_bucket{{le="{bound}"}} {counted}'
    yield f"{name}_sum {stats.late_s:.6f}"
    yield f"{name}_count {counted}"


def _metric(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# HELP voicegw_{name} {text}"
    yield f"# TYPE voicegw_{name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{key}="{label}"' for key, label in labels.items())  # names and numbers: nothing to escape
        yield f"voicegw_{name}{{{shown}}} {value}" if shown else f"voicegw_{name} {value}"
