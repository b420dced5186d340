"""Streams from the web, from a server on this host: passed through, resumed, redirected where that is allowed."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.webm import webm
from voicegw.errors import NotAudio, SourceFailed, SourceRefused
from voicegw.media.live import AsyncIteratorSource, IteratorSource, ReconnectingSource
from voicegw.media.ogg import OggOpusWriter
from voicegw.media.opening import open_url
from voicegw.media.opus import OpusEncoder
from voicegw.media.opus_files import OggOpusSource, WebmOpusSource
from voicegw.media.readahead import ReadAhead
from voicegw.media.sources import LimitedSource, Source, ToneSource
from voicegw.media.web import WebStream
from voicegw.media.workers import ThreadWorkers

pytestmark = pytest.mark.loopback

_encoder = OpusEncoder()
PACKETS = [_encoder.encode(frame) for frame in iter(ToneSource(440, 1.0).read, b"")]
SONG = webm(PACKETS)


class Site:
    """A web server; `cut` ends every answer after so many bytes."""

    def __init__(self) -> None:
        self.cut: int | None = None
        self.ranges = True
        self.hanging = threading.Event()
        self.asked: list[tuple[str, str | None]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers.get("Range")))
                if self.path.startswith("/to/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/to/"))
                    self.end_headers()
                    return
                if self.path == "/hang":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(b"hello")
                    site.hanging.wait(60)
                    return
                body = {"/a.webm": SONG, "/text": b"<html>"}.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
                self.send_response(206 if start else 200)
                if site.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Type", "audio/webm")
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                self.wfile.write(body[start:] if site.cut is None else body[start : start + site.cut])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def everything(source: Source) -> list[bytes]:
    found = [frame for frame in iter(source.read, b"") if frame is not None]
    source.close()
    return found


def test_opus_from_the_web_goes_out_as_it_is(site: Site) -> None:
    source = open_url(f"{site.url}/a.webm", allow_private=True)
    assert isinstance(source, WebmOpusSource)
    assert everything(source) == PACKETS


def test_a_stream_that_breaks_off_is_asked_for_again_from_there(site: Site) -> None:
    site.cut = 1000
    assert everything(open_url(f"{site.url}/a.webm", allow_private=True)) == PACKETS
    assert {path for path, _ in site.asked} == {"/a.webm"}
    assert [asked for _, asked in site.asked[:3]] == [None, "bytes=1000-", "bytes=2000-"]


def test_where_the_server_cannot_do_that_the_source_has_failed(site: Site) -> None:
    site.cut, site.ranges = len(SONG) - 500, False
    source = open_url(f"{site.url}/a.webm", allow_private=True)
    with pytest.raises(SourceFailed, match="broke off"):
        everything(source)
    source.close()


def test_redirects_are_followed_and_judged(site: Site) -> None:
    assert everything(open_url(f"{site.url}/to//a.webm", allow_private=True)) == PACKETS
    with pytest.raises(SourceRefused, match="only http and https"):
        open_url(f"{site.url}/to/file:///etc/passwd", allow_private=True)
    with pytest.raises(SourceFailed, match="without end"):
        open_url(f"{site.url}/to/" * 3 + "/to/" * 30, allow_private=True)
    with pytest.raises(SourceRefused, match="not a public address"):
        open_url(f"{site.url}/a.webm")


def test_a_url_as_people_write_it_is_asked_for_in_ascii(site: Site) -> None:
    with pytest.raises(SourceFailed, match="answered 404"):
        open_url(f"{site.url}/grün.webm?für=%C3%BC'", allow_private=True)
    assert [path for path, _ in site.asked] == ["/gr%C3%BCn.webm?f%C3%BCr=%C3%BC'"]
    for value in ("grün", "a\r\nb"):
        with pytest.raises(SourceRefused, match="header"):
            open_url(site.url, allow_private=True, headers={"X": value})


def test_answers_that_are_no_sound(site: Site) -> None:
    with pytest.raises(SourceFailed, match="answered 404"):
        open_url(f"{site.url}/nothing", allow_private=True)
    with pytest.raises(NotAudio, match="neither"):
        open_url(f"{site.url}/text", allow_private=True)
    with pytest.raises(SourceRefused, match="header"):
        open_url(f"{site.url}/a.webm", allow_private=True, headers={"X": "a\r\nHost: b"})
    site.server.shutdown()
    site.server.server_close()
    with pytest.raises(SourceFailed, match="cannot be reached"):
        open_url(f"{site.url}/a.webm", allow_private=True)


def test_a_read_that_blocks_can_be_ended(site: Site) -> None:
    stream = WebStream(f"{site.url}/hang", allow_private=True)
    assert stream.read(5) == b"hello"
    found: list[bytes | None] = []
    reader = threading.Thread(target=lambda: found.append(stream.read(1)))
    reader.start()
    stream.abort()
    reader.join(60)
    assert found == [b""]
    stream.close()
    assert stream._connection is not None
    assert stream._connection.dialled is not None
    assert stream._connection.dialled.fileno() == -1  # though the answer, whose length nobody knew, held it
    site.hanging.set()


def test_a_read_that_fails_because_it_was_ended_asks_for_nothing_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = WebStream(f"{site.url}/a.webm", allow_private=True)

    def shut_down(buffer: memoryview) -> int:
        raise OSError("shut down")

    monkeypatch.setattr(stream._body, "readinto", shut_down)
    stream.abort()
    assert stream.read(5) == b""
    assert len(site.asked) == 1
    stream.close()


def test_a_live_stream_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.live.BACKOFF_S", (0.0,))
    opened: list[int] = []

    def radio() -> Source:
        opened.append(len(opened))
        if len(opened) == 3:
            raise SourceFailed("the web server answered 503")
        out = io.BytesIO(webm(PACKETS[:20]))
        return WebmOpusSource(out)

    source = ReconnectingSource(radio, attempts=2)
    assert source.is_opus
    assert [source.read() for _ in range(60)] == PACKETS[:20] * 3
    assert (source.reconnects, str(source.last_error)) == (2, "the web server answered 503")
    source.close()
    assert source.read() == b""


def test_a_live_stream_that_does_not_come_back_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.live.BACKOFF_S", (0.0,))
    answers = iter([IteratorSource(PACKETS[:2], is_opus=True)])

    def radio() -> Source:
        for answer in answers:
            return answer
        raise SourceFailed("nobody there")

    source = ReconnectingSource(radio, attempts=3)
    assert [source.read(), source.read()] == PACKETS[:2]
    with pytest.raises(SourceFailed, match="did not come back: nobody there"):
        source.read()
    source.close()


def test_iterators_give_what_they_have_in_frames() -> None:
    pcm = bytes(range(256)) * 40
    frames = everything(IteratorSource(pcm[at : at + 1000] for at in range(0, len(pcm), 1000)))
    assert b"".join(frames) == pcm.ljust(3840 * 3, b"\0")
    with pytest.raises(NotAudio, match="20 ms"):
        everything(IteratorSource([b"\xf0\xff\xfe"], is_opus=True))
    with pytest.raises(NotAudio, match="not str"):
        everything(IteratorSource(["text"]))  # type: ignore[list-item]


async def test_an_async_iterator_is_asked_a_second_ahead_and_no_further() -> None:
    asked: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        for packet in PACKETS * 4:
            asked.append(packet)
            yield packet

    source = AsyncIteratorSource(pieces(), is_opus=True)
    more = asyncio.Event()
    source.bind(more.set)
    found: list[bytes] = []
    while (frame := source.read()) != b"":
        if frame is None:
            more.clear()
            await more.wait()
            continue
        found.append(frame)
        assert len(asked) - len(found) <= 51
        if len(found) % 10 == 0:
            await asyncio.sleep(0)
    assert found == PACKETS * 4
    source.close()


async def test_a_limited_async_iterator_is_asked_and_ended_through_the_limit() -> None:
    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            for packet in PACKETS:
                yield packet
                await asyncio.sleep(0)  # it has nothing for a while, again and again
            await asyncio.Event().wait()
        finally:
            closed.set()

    source = LimitedSource(AsyncIteratorSource(pieces(), is_opus=True), 0.06)
    more = asyncio.Event()
    source.bind(more.set)
    found: list[bytes] = []
    while (frame := source.read()) != b"":
        if frame is None:
            more.clear()
            await more.wait()
            continue
        found.append(frame)
    assert found == PACKETS[:3]
    source.abort()
    await asyncio.wait_for(closed.wait(), 20)


def test_an_ogg_stream_passes_too(tmp_path: Path) -> None:
    with OggOpusWriter(tmp_path / "a.ogg") as writer:
        for packet in PACKETS:
            writer.write(packet)
    source = OggOpusSource(io.BytesIO((tmp_path / "a.ogg").read_bytes()))
    assert source.is_opus
    assert everything(source) == PACKETS


def test_a_source_that_hangs_is_ended_when_nobody_reads_it_any_more() -> None:
    reading, ended, closed = threading.Event(), threading.Event(), threading.Event()

    class Hanging:
        is_opus = True

        def read(self) -> bytes:
            reading.set()
            assert ended.wait(60)
            return b""

        def abort(self) -> None:
            ended.set()

        def close(self) -> None:
            assert ended.is_set()

    ahead = ReadAhead(Hanging(), ThreadWorkers("test", 1), lambda: None)
    ahead.refill()
    assert reading.wait(20)
    ahead.close(closed.set)
    assert closed.wait(20)
    assert ahead.error is None
