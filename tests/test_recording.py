"""Recordings: on one clock, valid whenever they are cut off, and no longer in memory than in time."""

from __future__ import annotations

import array
import contextlib
import os
import random
import signal
import subprocess
import sys
import tracemalloc
import wave
from pathlib import Path

import pytest

from voicegw.errors import AudioError, NotAudio
from voicegw.media.heard import HeardFrame, Provenance
from voicegw.media.likeness import pcm_frequency
from voicegw.media.ogg import OggOpusReader
from voicegw.media.opus import OpusDecoder, OpusEncoder
from voicegw.media.opus_packets import packet_samples
from voicegw.media.recording import Format, Recording
from voicegw.media.sources import ToneSource
from voicegw.media.wav import WavReader

ALICE, BOB = 11, 22
FORMATS: tuple[Format, ...] = ("wav", "ogg", "flac")
TONES = {user: [*iter(ToneSource(hz, 0.5).read, b"")] for user, hz in ((ALICE, 440), (BOB, 1000))}
PACKETS = {user: [*map(OpusEncoder(64_000).encode, tone)] for user, tone in TONES.items()}


def frame(user: int, slot: int, provenance: Provenance = Provenance.RECEIVED) -> HeardFrame:
    number = slot % 25
    came = provenance in (Provenance.RECEIVED, Provenance.EARLY)
    return HeardFrame(user, 1000 + slot, TONES[user][number], provenance, (PACKETS[user][number],) if came else ())


def needs(kind: Format) -> None:
    if kind == "flac":
        pytest.importorskip("av")


def sound(path: Path, *, cut_off: bool = False) -> bytes:
    """Everything in a recording, decoded: 16 bit stereo. Where it is cut off, half a frame at its end is no sound."""
    if path.suffix == ".wav":
        with wave.open(str(path)) as file:
            pcm: bytes = file.readframes(1 << 30)
        return pcm
    if path.suffix == ".ogg":
        decoder = OpusDecoder()
        with OggOpusReader(path) as reader:
            assert reader.pre_skip == 0
            return b"".join(
                decoder.decode(packet) if len(packet) > 1 else decoder.conceal(packet_samples(packet))
                for packet in reader
            )
    import av

    pcm = b""
    with av.open(str(path)) as container:
        try:
            for found in container.decode(audio=0):
                pcm += bytes(found.planes[0])[: found.samples * 4]
        except av.error.InvalidDataError:
            if not cut_off:
                raise
    return pcm


def loud(pcm: bytes) -> str:
    """One letter a slot: `#` sound, `.` silence. Opus rings on into the first half of the next slot."""
    slots = [pcm[at : at + 3840] for at in range(0, len(pcm), 3840)]
    return "".join("#" if max(map(abs, array.array("h", slot[1920:]))) > 100 else "." for slot in slots)


@pytest.mark.parametrize("kind", FORMATS)
def test_all_files_are_on_one_clock(kind: Format, tmp_path: Path) -> None:
    needs(kind)
    recording = Recording(tmp_path / "made" / "here", kind)
    for slot in range(100):
        if slot < 25 or slot >= 50:
            recording.write(frame(ALICE, slot))
        if 40 <= slot < 75:
            recording.write(frame(BOB, slot))
    recording.close()
    recording.close()
    recording.write(frame(ALICE, 200))
    assert recording.seconds == 2.0
    assert recording.began_at is not None
    assert recording.mixed_path == tmp_path / "made" / "here" / f"mixed.{kind}"
    alice, bob, mixed = (sound(path) for path in (*recording.paths.values(), recording.mixed_path))
    assert len(alice) == len(bob) == len(mixed) == 100 * 3840
    assert loud(alice) == "#" * 25 + "." * 25 + "#" * 50
    assert loud(bob) == "." * 40 + "#" * 35 + "." * 25
    assert loud(mixed) == "#" * 25 + "." * 15 + "#" * 60
    assert pcm_frequency(bob[40 * 3840 : 75 * 3840]) == pytest.approx(1000, abs=3)
    assert pcm_frequency(mixed[: 25 * 3840]) == pytest.approx(440, abs=3)
    if kind == "wav":
        both = array.array("h", mixed[60 * 3840 : 61 * 3840])
        apart = [array.array("h", one[60 * 3840 : 61 * 3840]) for one in (alice, bob)]
        assert list(both) == [min(max(a + b, -32768), 32767) for a, b in zip(*apart, strict=True)]


def test_ogg_keeps_packets_as_they_came_and_marks_the_lost(tmp_path: Path) -> None:
    recording = Recording(tmp_path, "ogg", mixed=False)
    assert not recording.needs_pcm
    recording.write(frame(ALICE, 0))
    recording.write(frame(ALICE, 1, Provenance.CONCEALED))
    recording.write(frame(ALICE, 2, Provenance.EARLY))
    recording.write(frame(ALICE, 300))
    recording.close()
    packets = [*OggOpusReader(recording.paths[ALICE])]
    assert packets[0] == PACKETS[ALICE][0]
    assert packets[1] == bytes((PACKETS[ALICE][0][0] & 0xFC,))
    assert packets[2] == PACKETS[ALICE][2]
    assert packets[-1] == PACKETS[ALICE][0]
    assert sum(map(packet_samples, packets)) == 301 * 960
    assert len(packets) < 60, "silence takes little room"
    assert loud(sound(recording.paths[ALICE])) == "###" + "." * 297 + "#"
    assert recording.mixed_path is None


def test_ogg_keeps_time_with_longer_and_shorter_packets(tmp_path: Path) -> None:
    recording = Recording(tmp_path, "ogg", mixed=False)
    long, short = b"\x18" + bytes(30), b"\xf0" + bytes(30)  # 60 and 10 ms
    for slot in range(30):
        packets = (long,) if slot < 15 and slot % 3 == 0 else () if slot < 15 else (short, short)
        recording.write(HeardFrame(ALICE, slot, b"", Provenance.RECEIVED, packets))
    recording.close()
    assert [*OggOpusReader(recording.paths[ALICE])] == [long] * 5 + [short] * 30


@pytest.mark.parametrize("kind", FORMATS)
def test_what_comes_late_or_twice_does_not_shift_anything(kind: Format, tmp_path: Path) -> None:
    needs(kind)
    recording = Recording(tmp_path, kind)
    for slot in (0, 1, 1, 0, -5, 2, 10, 9, 11):
        recording.write(frame(ALICE, slot))
    recording.write(frame(BOB, 4))
    recording.close()
    assert loud(sound(recording.paths[ALICE])) == "###.......##"
    assert loud(sound(recording.paths[BOB])) == "....#......."
    assert len(sound(tmp_path / f"mixed.{kind}")) == 12 * 3840


@pytest.mark.parametrize("kind", ["wav", "ogg"])
def test_a_file_that_is_cut_off_anywhere_is_valid_up_to_there(kind: Format, tmp_path: Path) -> None:
    recording = Recording(tmp_path, kind)
    for slot in range(0, 130, 2):
        recording.write(frame(ALICE, slot))
    recording.close()
    cut = tmp_path / f"cut.{kind}"
    for path in (recording.paths[ALICE], tmp_path / f"mixed.{kind}"):
        whole, data = sound(path), path.read_bytes()
        header = 44 if kind == "wav" else data.index(b"OggS", data.index(b"OpusTags"))
        steps = random.Random(1).sample(range(header, len(data)), min(150, len(data) - header))
        for length in (*range(header), *steps, header, len(data)):
            cut.write_bytes(data[:length])
            if length < header:
                reader = WavReader if kind == "wav" else OggOpusReader
                with contextlib.suppress(NotAudio):
                    assert [*reader(cut)] == []
                continue
            found = sound(cut)
            assert whole.startswith(found)
            if kind == "wav":
                assert len(found) == length - header
            else:
                assert len(found) >= 0.8 * len(whole) * (length - header) / (len(data) - header) - 50 * 3840 * 1.3
        assert sound(cut) == whole


RECORDER = """
import sys
from tests.test_recording import ALICE, BOB, Recording, frame
recording = Recording(sys.argv[2], sys.argv[1])
for slot in range(1_000_000):
    recording.write(frame(ALICE, slot))
    if slot % 3 == 0:
        recording.write(frame(BOB, slot))
    print(slot, flush=True)
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_a_recorder_that_is_killed_leaves_all_but_the_last_second(kind: Format, tmp_path: Path) -> None:
    needs(kind)
    with subprocess.Popen([sys.executable, "-c", RECORDER, kind, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 333:
                break
        os.kill(child.pid, signal.SIGKILL)
        written = max([333, *(int(line) for line in child.stdout.read().split() if line.isdigit())])
    for name in (ALICE, BOB, "mixed"):
        found = sound(tmp_path / f"{name}.{kind}", cut_off=True)
        assert len(found) >= (333 - 55 - 25) * 3840
        assert len(found) <= (written + 2) * 3840
        assert set(loud(found[: 200 * 3840])) <= ({"#"} if name != BOB else {"#", "."})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("missing", [1, 2, 100, 777])
def test_a_recording_whose_last_bytes_never_reached_the_disk_plays_until_there(
    kind: Format, missing: int, tmp_path: Path
) -> None:
    needs(kind)
    recording = Recording(tmp_path, kind)
    for slot in range(200):
        recording.write(frame(ALICE, slot))
    recording.close()
    for name in (ALICE, "mixed"):
        path = tmp_path / f"{name}.{kind}"
        os.truncate(path, path.stat().st_size - missing)
        found = sound(path, cut_off=True)
        assert (200 - 55) * 3840 <= len(found) <= 202 * 3840
        assert set(loud(found[: 140 * 3840])) == {"#"}


@pytest.mark.parametrize("kind", FORMATS)
def test_memory_does_not_grow_with_length(kind: Format, tmp_path: Path) -> None:
    needs(kind)
    recording = Recording(tmp_path, kind)

    def record(first: int, count: int) -> int:
        for slot in range(first, first + count):
            recording.write(frame(ALICE, slot))
            recording.write(frame(BOB, slot))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        record(0, 60)
        before = record(60, 40)
        assert record(100, 200) < before + 20_000
    finally:
        tracemalloc.stop()
    recording.close()


@pytest.mark.parametrize("kind", ["wav", "ogg"])
def test_an_hour_of_silence_takes_no_time_and_little_room(kind: Format, tmp_path: Path) -> None:
    recording = Recording(tmp_path, kind)
    recording.write(frame(ALICE, 0))
    recording.write(frame(BOB, 50 * 3600))
    recording.close()
    blocks = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir() if hasattr(path.stat(), "st_blocks"))
    assert blocks < 5_000_000
    assert recording.seconds == pytest.approx(3600.02)


def test_flac_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"voicegw\[av\]"):
        Recording(tmp_path, "flac")


def test_a_place_that_cannot_be_written_shows_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        Recording(tmp_path / "file" / "deeper")


def test_an_unknown_format_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="a recording is wav, ogg, flac, not 'mp3'"):
        Recording(tmp_path / "new", "mp3")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
