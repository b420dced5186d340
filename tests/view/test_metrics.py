"""What a call tells Prometheus."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ALICE, BOB, MakeClient, pair
from tests.view.conftest import scraped, value_of
from voicegw.adapters.system import System
from voicegw.kokoro import Kokoro
from voicegw.media.sources import ToneSource
from voicegw.server import VoiceServer
from voicegw.session import SESSIONS
from voicegw.view.metrics import _latency, exposition
from voicegw.view.server import View

pytestmark = pytest.mark.loopback


async def test_metrics_are_named_as_in_the_tables(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice, bob = await pair(make_client, server, system=system)
    await alice.play(ToneSource(440, 0.3)).wait()
    await bob.wait_for(lambda: bob.stats.users.get(ALICE) is not None and bob.stats.users[ALICE].packets >= 15)
    await alice.wait_for(lambda: alice.states["speech"] == "silent")  # the silence after it has left, too
    server.drop_socket(BOB)
    await bob.wait_for(lambda: bob.states["gateway"] == "ready" and bob.tally.reconnects == 1)
    metrics = await scraped(view)
    for name, session in SESSIONS.items():
        states = {labels["state"]: value for labels, value in metrics["voicegw_calls"] if labels["machine"] == name}
        assert states.keys() == session.table.states.keys()
        assert sum(states.values()) == 2
        events = {labels["event"] for labels, _ in metrics["voicegw_transitions"] if labels["machine"] == name}
        assert events == {row.event for row in session.table.rows}
    assert value_of(metrics, "calls", machine="gateway", state="ready") == 2
    assert value_of(metrics, "transitions", machine="gateway", event="resumed_received") == 1
    assert metrics["voicegw_closes"] == [({"code": "none", "event": "closed_resumable"}, 1)]
    assert value_of(metrics, "reconnects") == 1
    assert value_of(metrics, "dave_epochs") == alice.tally.epochs + bob.tally.epochs >= 2
    assert value_of(metrics, "packets_sent") == alice.stats.packets + bob.stats.packets >= 15
    assert value_of(metrics, "packets_received") >= 15
    assert value_of(metrics, "packets_lost") == 0
    assert value_of(metrics, "dave_groups") == 2
    assert 0 < value_of(metrics, "heartbeat_latency_seconds", quantile="1") < 5

    sent, received = alice.stats.packets + bob.stats.packets, bob.stats.totals["received"]
    await alice.close()
    await bob.close()
    after = await scraped(view)
    assert value_of(after, "calls_ended") == 2
    assert value_of(after, "calls", machine="gateway", state="ready") == 0
    assert value_of(after, "packets_sent") >= sent  # what was counted stays counted
    assert value_of(after, "packets_received") >= received
    assert value_of(after, "transitions", machine="gateway", event="resumed_received") == 1


async def test_the_pacers_lateness_is_a_histogram(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice, _ = await pair(make_client, server, system=system)
    before = await scraped(view)
    await alice.play(ToneSource(440, 0.2)).wait()
    after = await scraped(view)
    bounds = [float(labels["le"]) for labels, _ in after["voicegw_pacer_lateness_seconds_bucket"]]
    counts = [count for _, count in after["voicegw_pacer_lateness_seconds_bucket"]]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    assert counts == sorted(counts)
    (_, count), (_, total) = (after[f"voicegw_pacer_lateness_seconds_{part}"][0] for part in ("count", "sum"))
    assert count == counts[-1] >= before["voicegw_pacer_lateness_seconds_count"][0][1] + 10
    assert total > 0


def test_the_guide_lists_every_metric(system: System) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "view.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(voicegw_\w+)` \| (\w+) \|", guide, re.MULTILINE))
    assert listed == dict(re.findall(r"^# TYPE (\w+) (\w+)$", exposition(system.calls), re.MULTILINE))


def test_latencies_are_told_by_their_quantiles() -> None:
    calls = [SimpleNamespace(latency=number / 100) for number in range(1, 101)]
    unknown = SimpleNamespace(latency=Kokoro.DEFAULT_LATENCY)
    told = [line.partition("latency_seconds")[2] for line in _latency([*reversed(calls), unknown])]  # type: ignore[list-item]
    expected = ['{quantile="0.5"} 0.51', '{quantile="0.9"} 0.91', '{quantile="0.99"} 1.0', '{quantile="1"} 1.0']
    assert told[2:] == expected
