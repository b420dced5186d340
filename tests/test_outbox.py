"""What waits to leave on a voice websocket."""

from __future__ import annotations

import pytest

from voicegw.adapters.outbox import MOST_WAITING, Outbox


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(lambda: 0.0)


async def test_what_waits_follows_a_resume_and_is_forgotten_by_an_identify(outbox: Outbox) -> None:
    for first, follows in ((outbox.resume, ["opening", "waits"]), (outbox.identify, ["opening"])):
        outbox.begin()
        outbox.put("waits")
        first("opening")
        assert [await outbox.get() for _ in range(len(outbox))] == follows


async def test_too_much_is_forgotten_as_a_whole(outbox: Outbox) -> None:
    assert all(outbox.put("waits") for _ in range(MOST_WAITING))
    outbox.speaking("waits")
    assert not outbox.put("one too many")
    assert len(outbox) == 0
    outbox.resume("opening")
    assert await outbox.get() == "opening"
    assert outbox.put("the next")
    assert await outbox.get() == "the next"


async def test_nothing_follows_our_close_frame_until_another_websocket_is_dialled(outbox: Outbox) -> None:
    outbox.resume("opening")
    outbox.put("waits")
    outbox.end()
    outbox.heartbeat("late")
    outbox.speaking("late")
    outbox.resume("late")
    assert outbox.put("late")  # which is no reason to end the websocket once more
    assert len(outbox) == 0
    outbox.begin()
    outbox.resume("opening")
    assert await outbox.get() == "opening"


async def test_heartbeats_go_first_and_only_the_last_of_a_kind_goes(outbox: Outbox) -> None:
    outbox.resume("opening")
    for number in range(3):
        outbox.speaking(f"speaking {number}")
        outbox.put(f"other {number}")
        outbox.heartbeat(f"heartbeat {number}")
    expected = ["opening", "heartbeat 2", "other 0", "other 1", "other 2", "speaking 2"]
    assert [await outbox.get() for _ in range(len(outbox))] == expected
