"""What plays, as data: each source says how it is opened again, and is found where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from voicegw.errors import NotAudio, SourceFailed
from voicegw.media.ffmpeg import FfmpegSource
from voicegw.media.live import AsyncIteratorSource, IteratorSource, ReconnectingSource
from voicegw.media.opening import open_source
from voicegw.media.opus_files import OggOpusSource
from voicegw.media.playlist import OPENERS, Playlist, PlaylistItem, _open_at, open_described
from voicegw.media.readahead import ReadAhead
from voicegw.media.sources import (
    LimitedSource,
    Source,
    SourceDescription,
    ToneSource,
    WavSource,
    description_of,
    file_description,
)
from voicegw.media.wav import WavWriter
from voicegw.media.workers import readers_of

SONG = Path(__file__).parent.parent / "voicegw" / "media" / "demo.ogg"


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A file whose every 20 ms are of their number."""
    path = tmp_path / "counted.wav"
    with WavWriter(path) as writer:
        for number in range(100):
            writer.write(number.to_bytes(2, "little") * 1920)
    return path


def number_of(frame: bytes | None) -> int:
    assert frame
    return int.from_bytes(frame[:2], "little")


def test_every_source_that_can_be_opened_again_says_how(counted: Path, tmp_path: Path) -> None:
    sources: list[Source] = [
        WavSource(counted),
        open_source(counted),
        OggOpusSource(SONG),
        open_source(SONG),
        ToneSource(440, 1.0),
        LimitedSource(WavSource(counted), 1.0),
        ReconnectingSource(lambda: ToneSource(440)),
    ]
    for source in sources:
        description = description_of(source)
        assert description is not None, source
        again = open_described(description, OPENERS)
        assert type(again) is type(source)
        assert again.read() == source.read()
        assert description_of(again) == description
        again.close()
        source.close()


def test_what_only_this_process_has_says_so() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b""

    class Own:
        is_opus = False
        description = "nothing that we know"

        def read(self) -> bytes:
            return b""

        def close(self) -> None:
            """Nothing to close."""

    of_an_iterator = IteratorSource(iter([b""]))
    for source in (of_an_iterator, AsyncIteratorSource(pieces()), LimitedSource(of_an_iterator), Own()):
        assert description_of(source) is None


def test_a_path_means_the_same_from_everywhere(counted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(counted.parent)
    source = open_source(counted.name)
    source.close()
    monkeypatch.chdir("/")
    description = description_of(source)
    assert description is not None
    again = open_described(description, OPENERS)
    assert number_of(again.read()) == 0
    again.close()


def test_a_source_is_opened_where_it_was(counted: Path) -> None:
    source = _open_at(file_description(counted), 0.5, OPENERS)
    assert number_of(source.read()) == 25
    source.close()


def test_what_cannot_be_sought_is_read_to_its_place(counted: Path) -> None:
    class Unseekable:
        is_opus = False

        def __init__(self) -> None:
            self._source = WavSource(counted)

        def read(self) -> bytes:
            return self._source.read()

        def close(self) -> None:
            self._source.close()

    source = _open_at(SourceDescription("own", {}), 0.5, {"own": Unseekable})
    assert number_of(source.read()) == 25
    source.close()
    live = _open_at(SourceDescription("own", {}, live=True), 0.5, {"own": Unseekable})
    assert number_of(live.read()) == 0  # where it is now
    live.close()


def test_a_place_behind_the_end_is_the_end(counted: Path) -> None:
    class Unseekable(IteratorSource):
        def __init__(self) -> None:
            super().__init__(iter([bytes(3840)]))

    assert _open_at(SourceDescription("own", {}), 60.0, {"own": Unseekable}).read() == b""


@pytest.mark.parametrize(
    ("description", "error"),
    [
        (SourceDescription("bucket", {}), NotAudio),
        (SourceDescription("file", {"path": "/nowhere/song.wav"}), NotAudio),
        (SourceDescription("tone", {"hz": 0.0, "seconds": None}), NotAudio),
    ],
)
def test_what_cannot_be_had_is_said(description: SourceDescription, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_described(description, OPENERS)


def test_a_url_with_a_token_in_it_is_not_shown() -> None:
    description = SourceDescription("url", {"url": "https://a.example/?token=secret"})
    assert "secret" not in repr(PlaylistItem("AvSource", description))


def test_what_is_lost_is_listed_once_each() -> None:
    lost, kept = PlaylistItem("IteratorSource"), PlaylistItem("ToneSource", SourceDescription("tone", {"hz": 1.0}))
    assert Playlist(kept, (kept,), (kept,)).lost == ()
    assert len(Playlist(lost, (kept, lost), (lost,)).lost) == 3


def test_ffmpeg_and_files_are_described_alike(counted: Path) -> None:
    try:
        source = FfmpegSource(counted, "wav")
    except SourceFailed:
        pytest.skip("no ffmpeg on this host")
    assert description_of(source) == file_description(counted)
    source.close()


async def test_a_loop_is_frozen_at_its_place_in_the_round(counted: Path) -> None:
    """The reader is ahead: the place is that of what has left."""
    more, closed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_frames() -> None:
        loop.call_soon_threadsafe(more.set)

    def on_closed() -> None:
        loop.call_soon_threadsafe(closed.set)

    reader = ReadAhead(WavSource(counted), readers_of(loop), on_frames)
    reader.looped = True
    reader.bind()

    def taken() -> Iterator[int]:
        while reader.frames:
            frame = reader.frames.popleft()
            yield number_of(frame)

    seen = 0
    while seen < 230:
        await asyncio.wait_for(more.wait(), 10)
        more.clear()
        for number in taken():
            seen += 1
            assert reader.in_source(reader.taken) in (number + 1, 0 if number == 99 else -1)
        reader.refill()
    reader.close(on_closed)
    await asyncio.wait_for(closed.wait(), 10)
