"""A deadline lasts as long as the table says, or as the bot does."""

from __future__ import annotations

import math

import pytest

from voicegw.errors import InvalidDeadline
from voicegw.events import JoinRequested, VoiceServerUpdated
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.tables.load import load_table, table_names
from voicegw.testing.world import CHANNEL, World


def test_a_bot_can_choose_other_seconds() -> None:
    world = World(Options(deadlines={"endpoint_timeout": 2.0}))
    world.join()
    world.feed(VoiceServerUpdated(Secret("gone"), None))
    world.settle()
    world.unanswered.add("SendVoiceState")
    assert world.until(lambda: world.states["call"] == "joining.asking", 60) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("deadline", "seconds", "state", "waited_s"),
    [
        ("pair_timeout", 5.0, "closed", 5.0),
        ("pair_timeout", 20.0, "closed", 20.0),
        ("join_unanswered", 1.0, "joining.clearing", 1.0),
    ],
)
def test_what_is_counted_from_the_first_join_is_chosen_alike(
    deadline: str, seconds: float, state: str, waited_s: float
) -> None:
    world = World(Options(deadlines={deadline: seconds}))
    world.unanswered.add("SendVoiceState")
    world.feed(JoinRequested(CHANNEL))
    assert world.until(lambda: world.states["call"] == state, 60) == pytest.approx(waited_s)


def test_the_backoff_and_the_heart_take_it_as_their_bound() -> None:
    world = World(Options(deadlines={"backoff_over": 0.75, "beat_due": 1.5, "resume_backoff_over": 0.1}))
    world.session.call.attempts = 9
    assert world.session.call.backoff() == 0.75
    assert world.session.heartbeat.interval_s == 1.5
    assert world.session.gateway.resume_backoff() == 0.1


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidDeadline, match="hello_timeout"):
        Options(deadlines={"hello_timeout": seconds})


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidDeadline, match="hello_timeot") as caught:
        Options(deadlines={"hello_timeot": 1.0})
    assert "hello_timeout" in str(caught.value)


def test_no_two_tables_share_a_name() -> None:
    names = [name for machine in table_names() for name in load_table(machine).deadlines]
    assert len(names) == len(set(names))
