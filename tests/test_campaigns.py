"""Campaigns: each holds in a small size, the same seed brings the same, and one that cannot hold fails."""

from __future__ import annotations

import re

import pytest

from voicegw.cli.simulate import CAMPAIGNS as CHOICES
from voicegw.core import gateway
from voicegw.core.dave import DaveSession
from voicegw.core.transport import TransportSession
from voicegw.errors import PacketRejected
from voicegw.path import MediaPath
from voicegw.testing import client_campaigns, machine_campaigns
from voicegw.testing.campaign import CampaignRun
from voicegw.testing.campaigns import CAMPAIGNS, run_campaign
from voicegw.testing.client_campaigns import Cast, play_story
from voicegw.testing.machine_campaigns import Stage, long_haul
from voicegw.wire.encryption import TransportCipher


def test_the_campaigns_are_those_of_the_command() -> None:
    assert CAMPAIGNS == CHOICES


# -- the machines alone


@pytest.mark.parametrize("name", ["S01", "S02", "S03", "S07"])
def test_a_campaign_of_the_machines_holds(name: str) -> None:
    run = run_campaign((name, 3))
    assert run.violation is None
    assert run.figures["calls"] >= 1
    assert run.figures["clear speech"] == 0
    assert run.events > 1000
    assert run.trace_hash == run_campaign((name, 3)).trace_hash
    assert (run.trace_hash == run_campaign((name, 4)).trace_hash) == (name == "S01")  # quiet hours are alike


def test_two_days_of_the_long_haul_hold() -> None:
    stage = Stage(1)
    long_haul(stage, days=2)
    assert stage.notices


def test_an_outage_of_a_few_calls_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_campaigns, "CALLS", 6)
    run = run_campaign(("S13", 0))
    assert run.violation is None
    assert run.figures["calls"] == 6
    assert 600 < run.figures["back after, longest s"] < 720


def test_a_thousand_calls_come_back_from_an_outage_under_the_dial_budget_of_their_process() -> None:
    run = run_campaign(("S13", 1))
    assert run.violation is None
    assert run.figures["calls"] == 1000
    assert run.figures["dials in the busiest second"] <= 10
    assert 600 * 1000 / 300 < run.figures["back after, longest s"] < 3600


def test_a_campaign_of_the_machines_that_cannot_hold_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.GatewaySession, "start_heart", lambda session, event: None)
    run = run_campaign(("S01", 0))
    assert run.violation is not None
    assert run.violation.startswith("V02: ready, and no heart beats")


# -- whole clients


SMALL: dict[str, tuple[int, dict[str, int]]] = {
    "S04": (6, {"changes": 25}),
    "S05": (2, {"stretches": 6}),
    "S06": (2, {"sleeps": 2}),
    "S08": (2, {"seconds": 2, "forged_a_second": 2000}),
    "S09": (3, {"rounds": 6}),
    "S10": (2, {"rounds": 8}),
    "S11": (1, {"cycles": 60}),
}
"""Of each: how many bots, and how much of it."""


def small(name: str, seed: int) -> CampaignRun:
    story, policies = client_campaigns.STORIES[name]
    bots, size = SMALL[name]

    async def short(cast: Cast) -> None:
        await story(cast, **size)

    return play_story(short, policies[:bots], name, seed)


@pytest.mark.parametrize("name", client_campaigns.STORIES)
def test_a_campaign_of_clients_holds(name: str) -> None:
    run = small(name, 3)
    assert run.violation is None, run.tail
    assert run.figures["calls"] >= SMALL[name][0]
    assert run.faults.total() >= 2
    assert run.trace_hash == small(name, 3).trace_hash
    assert run.trace_hash != small(name, 4).trace_hash


def test_whoever_is_not_let_into_the_group_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DaveSession, "apply_welcome", lambda session, event: None)
    assert "has no group with the others" in str(small("S04", 3).violation)


def test_an_address_that_changed_is_noticed_where_nobody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransportSession, "probe_first", lambda session, event: None)
    monkeypatch.setattr(TransportSession, "probe_again", lambda session, event: None)
    monkeypatch.setattr(gateway.GatewaySession, "probe_path", lambda session, event: None, raising=False)
    assert small("S05", 3).violation is not None


def test_a_reader_that_stumbles_over_a_forgery_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = TransportCipher.open

    def stumble(cipher: TransportCipher, data: bytes, aad_length: int) -> bytes:
        try:
            return read(cipher, data, aad_length)
        except PacketRejected as error:
            raise ValueError("not expected") from error

    monkeypatch.setattr(TransportCipher, "open", stumble)
    assert "speech is heard meanwhile" in str(small("S08", 3).violation)


def test_a_key_that_changed_is_missed_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DaveSession, "report_identity_changed", lambda session, event: None)
    assert "a key that changed is told" in str(small("S09", 3).violation)


def test_a_socket_that_is_left_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MediaPath, "close", lambda path: None)
    assert re.search("V16|V05", str(small("S11", 3).violation))
