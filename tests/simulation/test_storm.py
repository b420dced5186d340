"""Storms: whole calls through random faults, and that a broken client does not get through them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from voicegw.adapters.timers import Timers
from voicegw.adapters.udp import VoiceUdp
from voicegw.client import VoiceClient
from voicegw.events import Event, Stamped, VoiceServerUpdated
from voicegw.media.sender import StreamSender
from voicegw.testing.injectors import INJECTORS
from voicegw.testing.storm import Happening, Storm, plan_of, shrink
from voicegw.wire.encryption import KeyTable, NonceCounter

QUIET: tuple[Happening, ...] = ()
BUSY = (
    Happening(1.0, "app_speak", 1),
    Happening(3.0, "ws_drop", 2),
    Happening(5.0, "app_speak", 3),
    Happening(9.0, "gw_region", 4),
    Happening(14.0, "app_speak", 5),
)


@pytest.mark.parametrize("seed", range(40))
def test_every_call_survives_its_storm(seed: int) -> None:
    run = Storm(seed).go()
    assert run.violation is None, run.report()


@pytest.mark.parametrize("name", sorted(INJECTORS))
def test_every_call_survives_each_kind_of_fault(name: str) -> None:
    for draw in range(2):
        run = Storm(draw, [Happening(2.0 + draw, "app_speak", 7), Happening(2.1 + draw, name, draw)]).go()
        assert run.violation is None, run.report()


def test_the_same_seed_brings_the_same_storm() -> None:
    for seed in (3, 7, 11):
        assert Storm(seed).go().trace_hash == Storm(seed).go().trace_hash
    assert Storm(3).go().trace_hash != Storm(4).go().trace_hash


def nothing(*arguments: Any) -> None:
    """What a broken method does."""


def talkative(patch: pytest.MonkeyPatch) -> None:
    """The token goes to the log."""
    feed = VoiceClient.feed

    def feed_and_tell(self: VoiceClient, event: Event | Stamped) -> None:
        if isinstance(event, VoiceServerUpdated):
            logging.getLogger("voicegw").debug("the token is %s", event.token.reveal())
        feed(self, event)

    patch.setattr(VoiceClient, "feed", feed_and_tell)


BROKEN: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a nonce that stands still": ("V07", lambda patch: patch.setattr(NonceCounter, "spend", lambda self, count=1: 7)),
    "a timestamp without pauses": ("V11", lambda patch: patch.setattr(StreamSender, "align", nothing)),
    "timers that are not cancelled": ("V02", lambda patch: patch.setattr(Timers, "cancel", nothing)),
    "sockets that are not closed": ("V16", lambda patch: patch.setattr(VoiceUdp, "close", nothing)),
    "a secret that prints": ("V18", talkative),
    "a call that does not come back": ("V06", lambda patch: patch.setattr(VoiceClient, "voice_server_update", nothing)),
}


@pytest.mark.filterwarnings("ignore")  # what a broken client leaves open
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_client_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, break_it = BROKEN[what]
    break_it(monkeypatch)
    run = Storm(1, BUSY).go()
    assert run.kind == kind, run.report()


HANDED_OVER = (
    Happening(3.0, "app_speak", 1),
    Happening(3.2, "app_hand_over", 3),
    Happening(6.0, "app_speak", 2),
    Happening(6.2, "app_hand_over", 5),
    Happening(11.0, "app_store", 6),
    Happening(12.0, "app_speak", 4),
)
NOT_HANDED_OVER: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "nonces": ("V07", lambda patch: patch.setattr(KeyTable, "take_over", lambda *given: NonceCounter(1 << 31))),
    "numbers": ("V12", lambda patch: patch.setattr(StreamSender, "go_on", nothing)),
}


@pytest.mark.parametrize("seed", range(12))
def test_every_call_goes_from_process_to_process(seed: int) -> None:
    run = Storm(seed, HANDED_OVER).go()
    assert run.violation is None, run.report()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", NOT_HANDED_OVER)
def test_a_call_that_begins_to_count_anew_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, break_it = NOT_HANDED_OVER[what]
    break_it(monkeypatch)
    assert kind in {Storm(seed, HANDED_OVER).go().kind for seed in range(12)}


@pytest.mark.filterwarnings("ignore")
def test_a_failing_storm_is_shrunk_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_resume(self: VoiceClient) -> None:
        raise RuntimeError("simulated defect")

    monkeypatch.setattr("voicegw.gateway.DiscordGatewayVoice._resume", fail_to_resume, raising=True)
    monkeypatch.setattr("voicegw.kokoro.Kokoro.beat", fail_to_resume, raising=False)
    run = shrink(1, plan_of(2) + BUSY)
    assert run.violation is not None
    assert len(run.plan) <= 1
    assert f"seed 1: {run.violation}" in run.report()
