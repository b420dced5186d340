"""What listeners hear, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from voicegw.effects import Connected, Notice, Warned
from voicegw.notices import NoticeBoard


def test_a_listener_that_comes_in_the_middle_hears_of_what_comes_next() -> None:
    board = NoticeBoard()
    seen: list[tuple[str, Notice]] = []

    def first(notice: Notice) -> None:
        seen.append(("first", notice))
        if notice == Connected(1):
            board.add(lambda notice: seen.append(("second", notice)))

    board.add(first)
    board.put(Connected(1))
    board.put(Connected(2))
    board.tell()
    assert seen == [("first", Connected(1)), ("first", Connected(2)), ("second", Connected(2))]


def test_what_a_listener_brings_about_comes_after_what_it_was_told() -> None:
    board = NoticeBoard()
    seen: list[Notice] = []

    def brings_more(notice: Notice) -> None:
        if notice == Connected(1):
            board.put(Warned("more"))

    board.add(brings_more)
    board.add(seen.append)
    board.put(Connected(1))
    board.put(Connected(2))
    board.tell()
    assert seen == [Connected(1), Connected(2), Warned("more")]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
def test_what_a_listener_raises_is_its_own(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    board = NoticeBoard()
    seen: list[Notice] = []

    def fails(notice: Notice) -> None:
        raise error

    board.add(fails)
    board.add(seen.append)
    board.put(Connected(1))
    board.tell()
    assert seen == [Connected(1)]
    assert "a listener of the voice client failed" in caplog.text
