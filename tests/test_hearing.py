"""Listeners: off the loop, in order, bounded, and none of them can hurt the call or another one."""

from __future__ import annotations

import asyncio
import threading

import pytest

from voicegw.media.heard import SLOT_S, HeardFrame, Provenance
from voicegw.media.hearing import Hearing
from voicegw.media.listeners import QUEUE_FRAMES, FrameStream
from voicegw.media.opus import OpusEncoder
from voicegw.media.sources import ToneSource
from voicegw.media.strand import finished

ALICE, BOB = 11, 22
TONE = [OpusEncoder(64_000).encode(frame) for frame in iter(ToneSource(440, 0.5).read, b"")]


class Ears:
    """A hearing whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.warnings: list[str] = []
        self.hearing = Hearing(lambda: self.now, lambda user, on: None, self.warnings.append, lambda: None)
        self.hearing._next_tick = lambda: None  # type: ignore[method-assign]
        for ssrc, user in enumerate((ALICE, BOB)):
            self.hearing.receiver.map_ssrc(ssrc, user)

    def say(self, first: int, count: int, users: int = 2) -> None:
        for sequence in range(first, first + count):
            for ssrc in range(users):
                self.hearing.receiver.packet(ssrc, sequence, TONE[sequence % len(TONE)])
            self.now += SLOT_S
            self.hearing.receiver.tick()


def wait(event: threading.Event) -> None:
    event.wait()


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.frames: list[HeardFrame] = []
        self.threads: set[int] = set()

    def write(self, frame: HeardFrame) -> None:
        self.frames.append(frame)
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        """Nothing to close."""


async def test_sinks_are_called_off_the_loop_in_order() -> None:
    ears, sink = Ears(), Kept()
    listening = ears.hearing.listen(sink)
    ears.say(1, 50)
    await ears.hearing.flush()
    assert threading.get_ident() not in sink.threads
    assert [frame.user_id for frame in sink.frames[:4]] == [ALICE, BOB, ALICE, BOB]
    slots = [frame.slot for frame in sink.frames]
    assert slots == sorted(slots)
    assert len(sink.frames) == 100
    assert {frame.provenance for frame in sink.frames} == {Provenance.RECEIVED}
    assert sink.frames[0].packets == (TONE[1],)
    assert sink.frames[0].at_s == pytest.approx(100.04, abs=0.021)
    await listening.stop()
    ears.say(51, 10)
    await ears.hearing.flush()
    assert len(sink.frames) == 100


async def test_whoever_listens_already_is_not_called_twice() -> None:
    ears, sink = Ears(), Kept()
    assert ears.hearing.listen(sink) is ears.hearing.listen(sink)
    assert ears.hearing.listen(sink.write) is ears.hearing.listen(sink.write)
    ears.say(1, 3, users=1)
    await ears.hearing.flush()
    assert len(sink.frames) == 3 + 3


async def test_a_function_may_listen() -> None:
    ears = Ears()
    heard: list[HeardFrame] = []
    ears.hearing.listen(heard.append)
    ears.say(1, 3, users=1)
    await ears.hearing.flush()
    assert [frame.user_id for frame in heard] == [ALICE] * 3


async def test_what_cannot_take_sound_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="is no sink"):
        Ears().hearing.listen("talk.wav")  # type: ignore[arg-type]


async def test_nothing_is_decoded_for_sinks_that_want_packets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ears, sink = Ears(), Kept()
    sink.needs_pcm = False  # type: ignore[attr-defined]
    monkeypatch.setattr("voicegw.media.decoding.OpusDecoder", None)
    ears.hearing.listen(sink)
    ears.say(1, 5, users=1)
    await ears.hearing.flush()
    assert [(frame.pcm, frame.packets) for frame in sink.frames] == [(b"", (TONE[n],)) for n in range(1, 6)]


async def test_who_begins_to_listen_inside_a_long_packet_gets_whole_frames() -> None:
    ears, sink = Ears(), Kept()
    long = b"\x18" + bytes(40)  # 60 ms
    for sequence in range(1, 20):
        ears.hearing.receiver.packet(0, sequence, long)
        for step in range(3):
            if (sequence, step) == (5, 1):
                ears.hearing.listen(sink)
            ears.now += SLOT_S
            ears.hearing.receiver.tick()
    await ears.hearing.flush()
    assert len(sink.frames) > 40
    assert {len(frame.pcm) for frame in sink.frames} == {3840}


async def test_a_sink_that_raises_is_reported_once_and_called_on(caplog: pytest.LogCaptureFixture) -> None:
    ears, kept, calls = Ears(), Kept(), 0

    def broken(frame: HeardFrame) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    listening = ears.hearing.listen(broken)
    ears.hearing.listen(kept)
    ears.say(1, 5, users=1)
    await ears.hearing.flush()
    await asyncio.sleep(0)
    assert calls == listening.errors == 5
    assert isinstance(listening.error, OSError)
    assert ears.warnings == ["a sink failed: OSError: [Errno 28] No space left on device"]
    assert len(caplog.records) == 1
    assert len(kept.frames) == 5


async def test_a_sink_that_hangs_loses_its_oldest_sound_and_hurts_nobody() -> None:
    ears, kept, free = Ears(), Kept(), threading.Event()
    slow = Kept()
    began = threading.Event()

    def hang(frame: HeardFrame) -> None:
        began.set()
        free.wait()
        slow.write(frame)

    listening = ears.hearing.listen(hang)
    ears.hearing.listen(kept)
    for first in range(1, 201, 20):
        ears.say(first, 20, users=1)
        await asyncio.to_thread(began.wait)
        done = ears.hearing._listenings[1].strand
        assert ears.hearing._decoding is not None
        await finished(ears.hearing._decoding)
        await finished(done)
    await asyncio.sleep(0)
    assert len(kept.frames) == 198
    assert listening.dropped == 198 - 1 - QUEUE_FRAMES
    assert len(ears.warnings) == 1
    free.set()
    await ears.hearing.flush()
    assert len(slow.frames) + listening.dropped == 200


async def test_frames_of_one_user_can_be_iterated_over_until_the_call_ends() -> None:
    ears = Ears()
    bobs, everybodys = ears.hearing.frames(frozenset((BOB,))), ears.hearing.frames(frozenset())
    ears.say(1, 10)
    ears.hearing.end()
    assert [frame.user_id async for frame in bobs] == [BOB] * 10
    assert len([frame async for frame in everybodys]) == 20


async def test_a_reader_waits_for_sound() -> None:
    ears = Ears()
    reading = asyncio.create_task(anext(ears.hearing.frames(frozenset((ALICE,)))))
    await asyncio.sleep(0)
    assert not reading.done()
    ears.say(1, 3)
    assert (await reading).user_id == ALICE


async def test_a_stream_that_is_never_read_is_bounded_and_warns_once() -> None:
    warnings: list[str] = []
    stream = FrameStream(frozenset(), warnings.append)
    for slot in range(1000):
        stream.put([HeardFrame(ALICE, slot, b"", Provenance.RECEIVED, ())])
        if slot % 10 == 0:
            stream.put([HeardFrame(BOB, slot, b"", Provenance.RECEIVED, ())])
    assert stream.dropped == 900
    assert len(warnings) == 1
    stream.end()
    frames = [frame async for frame in stream]
    assert [frame.slot for frame in frames if frame.user_id == ALICE] == list(range(900, 1000))
    assert [frame.slot for frame in frames if frame.user_id == BOB] == list(range(0, 1000, 10)), "not Bob's fault"


async def test_a_stream_that_nobody_holds_gets_nothing() -> None:
    ears = Ears()
    stream = ears.hearing.frames(frozenset())
    ears.say(1, 1)
    await ears.hearing.flush()
    await asyncio.sleep(0)
    del stream
    ears.say(2, 3)
    await ears.hearing.flush()
    assert not ears.hearing._wanted


async def test_closing_waits_for_the_sinks_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.media.hearing.CLOSE_S", 0.05)
    ears, kept, free = Ears(), Kept(), threading.Event()
    ears.hearing.listen(kept)
    ears.say(1, 5)
    await ears.hearing.close()
    assert len(kept.frames) == 10
    assert ears.warnings == []
    ears.hearing.listen(lambda frame: wait(free))
    ears.say(6, 5)
    await ears.hearing.close()
    assert len(ears.warnings) == 1
    free.set()
