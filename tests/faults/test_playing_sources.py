"""Sources that block, die, do not end, or are told to open what they must not (G and H of the catalogue)."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cells import covers
from tests.test_player import Frames, Stage, VirtualLoop, on_stage, open_sender
from voicegw.errors import NotAudio, SourceFailed, SourceRefused
from voicegw.media import ffmpeg
from voicegw.media.ffmpeg import FORMATS, FfmpegSource, arguments
from voicegw.media.formats import format_of
from voicegw.media.live import AsyncIteratorSource
from voicegw.media.opening import open_source, open_url
from voicegw.media.pacer import FRAME_S, pacer_of
from voicegw.media.player import Player
from voicegw.media.pyav import AvSource, have_pyav
from voicegw.media.sender import StreamSender
from voicegw.media.web import check_url
from voicegw.wire.rtp import SILENCE_FRAME

if sys.platform == "win32":
    pytest.skip("the stand-in for ffmpeg is a script with a first line", allow_module_level=True)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def program(place: Path, body: str) -> str:
    """A stand-in for ffmpeg that runs `body`, and notes its process id and its arguments."""
    script = place / "ffmpeg"
    notes = place / "started"
    script.write_text(
        f"#!{sys.executable}\nimport os, signal, sys, time\n"
        f"open({str(notes)!r}, 'a').write(repr((os.getpid(), sys.argv[1:])) + '\\n')\n"
        f"out = sys.stdout.buffer\n{body}\n"
    )
    script.chmod(0o755)
    return str(script)


def started(place: Path) -> list[tuple[int, list[str]]]:
    """Process ids and arguments of all that were started."""
    notes = place / "started"
    return [eval(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def gone(pid: int) -> bool:
    """Is there no such process, not even one that waits to be reaped?"""
    return not Path(f"/proc/{pid}").exists() if sys.platform == "linux" else True


SOUND = "out.write(bytes(3840 * 10)); out.flush()"


# -- F140: a source blocks


class Hesitant(Frames):
    """Has nothing for `pause_s` after ten frames; it says so, as a source does that must not block."""

    def __init__(self, loop: VirtualLoop, pause_s: float) -> None:
        super().__init__(40)
        self.loop, self.pause_s, self.given = loop, pause_s, 0
        self.until = 0.0
        self.on_more: Any = None

    def bind(self, on_more: Any) -> None:
        self.on_more = on_more

    def read(self) -> Any:
        if self.given == 10 and not self.until:
            self.until = self.loop.time() + self.pause_s
            self.loop.call_at(self.until, self.on_more)
        if self.loop.time() < self.until:
            return None
        self.given += 1
        return super().read()


@covers("F140")
@pytest.mark.parametrize("pause_s", [1.0, 7.013, 60.0])
def test_a_source_that_blocks_is_covered_by_silence_once_and_goes_on_at_its_pace(
    loop: VirtualLoop, pause_s: float
) -> None:
    stage = on_stage(loop, lambda stage: stage.player.play(Hesitant(loop, pause_s)).wait())
    frames = [frame for _, frame, _ in stage.sent]
    assert [int.from_bytes(frame[1:], "big") for frame in frames if frame != SILENCE_FRAME] == list(range(40))
    assert frames[10:15] == [SILENCE_FRAME] * 5
    assert SILENCE_FRAME not in frames[15:45]
    gaps = [after - before for before, after in zip(stage.times[14:], stage.times[15:], strict=False)]
    assert stage.times[15] == pytest.approx(pause_s, abs=2 * FRAME_S)
    assert gaps[1:] == pytest.approx([FRAME_S] * len(gaps[1:]))
    ticks = (stage.sent[15][2] - stage.sent[14][2]) & 0xFFFFFFFF
    assert ticks == round(gaps[0] * 48_000)
    assert stage.underruns == 1


def quiet(sender: StreamSender, on_underrun: Callable[[], None] = lambda: None) -> Player:
    """A player that nobody listens to."""
    return Player(sender, lambda: None, lambda: None, lambda: None, on_underrun)


@covers("F140")
async def test_a_source_that_blocks_its_thread_blocks_nobody_else() -> None:
    """With real threads: the event loop runs on, and another stream is read while this one hangs."""
    release, dry = threading.Event(), asyncio.Event()

    def hang(number: int) -> None:
        if number == 60:
            release.wait(60)

    sent: list[bytes] = []
    player = quiet(open_sender(sent.append), on_underrun=dry.set)
    others = [quiet(open_sender(lambda data: None)) for _ in range(3)]
    playback = player.play(Frames(70, hang))
    await asyncio.wait_for(dry.wait(), 60)
    assert sent.count(SILENCE_FRAME) == 5
    await asyncio.gather(*(other.play(Frames(60)).wait() for other in others))
    assert not playback.done
    release.set()
    await asyncio.wait_for(playback.wait(), 60)
    assert playback.error is None
    for one in (player, *others):
        one.close()
    assert pacer_of(asyncio.get_running_loop()).stats.skipped >= 0


# -- F141: a source dies or does not end


@covers("F141", "R")
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("sys.exit(0)", None),
        ("sys.stderr.write('no such stream\\n'); sys.exit(1)", "ended with exit code 1: no such stream"),
        ("sys.exit(183)", "ended with exit code 183"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9"),
        ("out.close(); os.close(1); time.sleep(60)", "was ended by signal 15"),
        ("sys.stderr.write('noise' * 100000); sys.exit(1)", "ended with exit code 1: "),
    ],
)
def test_how_a_decoder_ended_is_told_once(
    loop: VirtualLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, message: str | None
) -> None:
    monkeypatch.setattr(ffmpeg, "TERM_S", 0.2 if "sleep" in end else 10.0)
    source = FfmpegSource(tmp_path / "a.mp3", "mp3", program=program(tmp_path, f"{SOUND}\n{end}"))

    async def act(stage: Stage) -> None:
        playback = stage.player.play(source)
        if message is None:
            await playback.wait()
        else:
            with pytest.raises(SourceFailed, match=message):
                await playback.wait()
            assert playback.error is not None
        assert playback.position_s == pytest.approx(0.2)
        assert source.read() == b""

    stage = on_stage(loop, act)
    assert len(stage.sent) >= 10
    ((pid, _),) = started(tmp_path)
    assert gone(pid)


@covers("F141", "C")
@pytest.mark.parametrize("manners", ["pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_no_child_is_left_when_the_call_ends(
    loop: VirtualLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manners: str
) -> None:
    monkeypatch.setattr(ffmpeg, "TERM_S", 0.2)
    body = f"{manners}\nwhile True:\n    out.write(bytes(3840 * 100)); out.flush()"
    source = FfmpegSource(tmp_path / "a.mp3", "mp3", program=program(tmp_path, body))

    async def act(stage: Stage) -> None:
        playback = stage.player.play(source)
        await asyncio.sleep(0.5)
        stage.player.close()
        await playback.wait()

    on_stage(loop, act)
    ((pid, _),) = started(tmp_path)
    assert gone(pid)
    assert source.exit_code in (-15, -9)
    source.close()  # a dead process is not killed again


@covers("F141", "R")
def test_a_read_that_blocks_ends_with_the_playback(tmp_path: Path) -> None:
    source = FfmpegSource(tmp_path / "a.mp3", "mp3", program=program(tmp_path, f"{SOUND}\ntime.sleep(600)"))
    frames: list[bytes] = []
    reader = threading.Thread(target=lambda: frames.extend(iter(source.read, b"")))
    reader.start()
    while len(frames) < 10:
        reader.join(0.01)
    source.abort()
    reader.join(60)
    assert not reader.is_alive()
    source.close()
    ((pid, _),) = started(tmp_path)
    assert gone(pid)


@covers("F141", "R")
def test_what_an_iterator_raises_is_told_and_it_is_closed(loop: VirtualLoop) -> None:
    closed = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            for number in range(10):
                yield b"\x78" + number.to_bytes(3, "big")
            raise KeyError("radio")
        finally:
            closed.append(True)

    async def act(stage: Stage) -> None:
        playback = stage.player.play(AsyncIteratorSource(pieces(), is_opus=True))
        with pytest.raises(SourceFailed, match="KeyError: 'radio'"):
            await playback.wait()
        assert playback.position_s == pytest.approx(0.2)

    on_stage(loop, act)
    assert closed == [True]


# -- F160: URLs and options from users

HOSTILE_URLS = [
    "file:///etc/passwd",
    "file:/etc/passwd",
    "/etc/passwd",
    "concat:http://a.example/a|file:///etc/passwd",
    "subfile,,start,0,end,0,,:/etc/passwd",
    "data:audio/mpeg;base64,SUQz",
    "pipe:0",
    "gopher://127.0.0.1:6379/_SLAVEOF",
    "ftp://a.example/a.mp3",
    "rtmp://a.example/live",
    "crypto:file:///etc/passwd",
    "hls+http://a.example/a.m3u8",
    "-i",
    "-f lavfi",
    "-protocol_whitelist file,http",
    "http://",
    "http:///a.mp3",
    "http://user:secret@a.example/a.mp3",
    "http://a.example:0/a.mp3",
    "http://a.example/a b",
    "http://a.example/\r\nHost: inner",
    "http://a.example/\0",
    "http://[::1/a",
    "http://a.example/" + "a" * 9000,
    "",
]


@covers("F160")
@pytest.mark.parametrize("url", HOSTILE_URLS, ids=range(len(HOSTILE_URLS)))
def test_what_is_no_web_address_is_refused_before_anything_is_opened(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused):
        open_url(url, resolve=lambda host, port: pytest.fail("a name was looked up"))


def answer(found: list[str], host: str, port: int) -> list[str]:
    """What a name stands for, in a test."""
    return found


@covers("F160")
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "ff02::1",
    ],
)
def test_an_inner_address_is_not_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *args, **more: pytest.fail("it was connected to"))
    shown = f"[{address}]" if ":" in address else address
    for host, found in ((shown, [address]), ("radio.example", ["93.184.215.14", address])):
        with pytest.raises(SourceRefused, match="not a public address"):
            open_url(f"http://{host}/a.mp3", resolve=functools.partial(answer, found))


@covers("F160")
@pytest.mark.parametrize(
    "start",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://10.0.0.1/a.ts\n",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"[playlist]\nFile1=file:///etc/passwd\n",
        b"v=0\r\no=- 0 0 IN IP4 10.0.0.1\r\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"#!/bin/sh\n",
    ],
)
def test_a_playlist_in_disguise_reaches_no_decoder(
    start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *args, **more: pytest.fail("a process was started"))
    monkeypatch.setattr("voicegw.media.opening.have_pyav", lambda: False)
    (tmp_path / "song.mp3").write_bytes(start)
    assert format_of(start) is None
    with pytest.raises(NotAudio, match="neither"):
        open_source(tmp_path / "song.mp3")


@covers("F160")
@pytest.mark.parametrize("name", ["-i", "-f", "a.mp3", "concat:a|b", "http:x", "-y;rm -rf", "$(id)", "a\nb"])
def test_the_arguments_are_ours_whatever_the_file_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = FfmpegSource(Path(name), "mp3", program=program(tmp_path, SOUND))
    assert len(list(iter(source.read, b""))) == 10
    source.close()
    ((_, given),) = started(tmp_path)
    place = given[given.index("-i") + 1]
    assert place == f"file:{tmp_path / name}"
    assert given[given.index("-protocol_whitelist") + 1] == "file"
    assert given[given.index("-f") + 1] == "mp3"
    allowed = {*["-nostdin", "-hide_banner", "-loglevel", "-protocol_whitelist", "-f", "-i", "-map", "-ar", "-ac"]}
    assert {word for word in given if word.startswith("-")} == allowed


@covers("F160")
@pytest.mark.parametrize("format", ["hls", "concat", "lavfi", "dash", "image2", "mp3,hls", "-i", "", "sdp", "rtsp"])
def test_a_format_that_opens_others_is_refused_and_starts_nothing(format: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(SourceRefused):
        FfmpegSource(tmp_path / "a", format, program=program(tmp_path, SOUND))
    with pytest.raises(SourceRefused):
        AvSource(tmp_path / "a", format)
    assert started(tmp_path) == []


@covers("F160")
def test_a_stream_is_read_for_the_decoder_which_may_open_nothing(tmp_path: Path) -> None:
    class Song:
        left, closed = 3, False

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return b"x" * 1000 if self.left >= 0 else b""

        def close(self) -> None:
            self.closed = True

    song = Song()
    body = "data = sys.stdin.buffer.read()\nout.write(bytes(3840) * (len(data) // 1000))"
    source = FfmpegSource(song, "mp3", program=program(tmp_path, body))
    assert len(list(iter(source.read, b""))) == 3
    source.close()
    assert song.closed
    ((_, given),) = started(tmp_path)
    assert given[given.index("-i") + 1] == "pipe:0"
    assert given[given.index("-protocol_whitelist") + 1] == "pipe"
    assert "file" not in " ".join(given)


def test_every_format_that_is_told_apart_may_be_decoded() -> None:
    for start in (b"fLaC", b"ID3", b"OggS", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypM4A ", b"\xff\xfb\x90", b"\xff\xf1\x50"):
        found = format_of(start)
        assert found in FORMATS
        assert arguments("ffmpeg", str(found), None)[0] == "ffmpeg"
    assert check_url("https://radio.example:8443/live?x=1").hostname == "radio.example"


@pytest.mark.skipif(not have_pyav(), reason="PyAV is not installed")
def test_pyav_reads_and_seeks_what_the_core_does_not(tmp_path: Path) -> None:
    import av

    from voicegw.media.likeness import pcm_frequency
    from voicegw.media.sources import ToneSource

    pcm = b"".join(iter(ToneSource(440, 2.0).read, b""))
    for suffix, codec in (("flac", "flac"), ("mp3", "mp3"), ("m4a", "aac")):
        path = tmp_path / f"song.{suffix}"
        try:
            with av.open(str(path), "w") as out:
                stream: Any = out.add_stream(codec, rate=48_000, layout="stereo")
                frame = av.AudioFrame(format="s16", layout="stereo", samples=len(pcm) // 4)
                frame.planes[0].update(pcm)
                frame.sample_rate = 48_000
                fifo = av.AudioFifo()
                fifo.write(frame)
                for piece in [*fifo.read_many(1024), fifo.read()]:
                    out.mux(stream.encode(piece))
                out.mux(stream.encode(None))
        except (ValueError, av.FFmpegError):
            continue  # this build has no such encoder
        source = open_source(path)
        assert isinstance(source, AvSource)
        frames = list(iter(source.read, b""))
        assert len(frames) == pytest.approx(100, abs=4)
        assert pcm_frequency(b"".join(frames)) == pytest.approx(440, abs=1)
        source.seek(1.5)
        assert len(list(iter(source.read, b""))) == pytest.approx(25, abs=4)
        source.close()
        assert source.read() == b""
