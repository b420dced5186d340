from __future__ import annotations

import array
import math
import os
import struct
import wave
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import voicegw.media
from voicegw.errors import NotAudio
from voicegw.media.likeness import pcm_frequency
from voicegw.media.ogg import OggOpusReader, OggOpusWriter
from voicegw.media.opening import open_source
from voicegw.media.opus import OpusDecoder, OpusEncoder
from voicegw.media.opus_files import OggOpusSource
from voicegw.media.sources import LimitedSource, Source, ToneSource, WavSource, read_pcm, seek_in
from voicegw.media.wav import WavWriter

SILENCE = b"\xf8\xff\xfe"
DEMO = Path(voicegw.media.__file__).with_name("demo.ogg")


def everything(source: Source) -> list[bytes]:
    found = []
    while frame := source.read():
        found.append(frame)
    assert source.read() == b""
    source.close()
    return found


def dbfs(pcm: bytes) -> float:
    samples = array.array("h", pcm)
    return 10 * math.log10(sum(s * s for s in samples) / len(samples) / 32768**2)


def ogg(path: Path, packets: list[bytes], pre_skip: int = 0) -> Path:
    with OggOpusWriter(path, pre_skip=pre_skip) as writer:
        for packet in packets:
            writer.write(packet)
    return path


def test_packets_of_twenty_milliseconds_go_out_unchanged(tmp_path: Path) -> None:
    encoder, tone = OpusEncoder(), ToneSource(440, 0.2)
    packets = [encoder.encode(frame) for frame in everything(tone)]
    source = OggOpusSource(ogg(tmp_path / "a.ogg", packets))
    assert source.is_opus
    assert everything(source) == packets


def test_packets_of_other_lengths_are_cut_into_frames(tmp_path: Path) -> None:
    encoder = OpusEncoder()
    frames = [encoder.encode(frame) for frame in everything(ToneSource(500, 1.2))]
    # Three packets of one frame each make one of 60 ms (code 3, VBR).
    joined = []
    for at in range(0, 60, 3):
        three = frames[at : at + 3]
        lengths = b"".join(
            bytes((n,)) if n < 252 else bytes((252 + n % 4, (n - 252 - n % 4) // 4))
            for n in (len(frame) - 1 for frame in three[:2])
        )
        joined.append(bytes((three[0][0] | 3, 0x83)) + lengths + b"".join(frame[1:] for frame in three))
    source = OggOpusSource(ogg(tmp_path / "a.ogg", joined, pre_skip=312))
    assert not source.is_opus
    found = everything(source)
    assert {len(frame) for frame in found} == {3840}
    decoder = OpusDecoder()
    whole = b"".join(decoder.decode(frame) for frame in frames)
    assert b"".join(found)[: len(whole) - 312 * 4] == whole[312 * 4 :]


def test_one_odd_packet_at_the_end_decides_for_the_whole_file(tmp_path: Path) -> None:
    source = OggOpusSource(ogg(tmp_path / "a.ogg", [SILENCE] * 5 + [b"\xf0\xff\xfe"]))
    assert not source.is_opus
    assert [len(frame) for frame in everything(source)] == [3840] * 6


def test_a_damaged_packet_is_noticed_before_anything_plays(tmp_path: Path) -> None:
    file = ogg(tmp_path / "a.ogg", [SILENCE] * 80)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(NotAudio, match="checksum"):
        OggOpusSource(file)


def test_a_wav_file_is_read_in_frames(tmp_path: Path) -> None:
    file, pcm = tmp_path / "a.wav", bytes(n % 256 for n in range(3840 * 3))
    with WavWriter(file) as writer:
        writer.write(pcm)
    source = WavSource(file)
    assert not source.is_opus
    assert b"".join(everything(source)) == pcm


@pytest.mark.parametrize("hz", [50.0, 440.0, 441.7, 8100.0])
def test_a_tone_has_its_pitch_and_its_level(hz: float) -> None:
    pcm = b"".join(everything(ToneSource(hz, 1.0)))
    assert len(pcm) == 192_000
    assert pcm_frequency(pcm) == pytest.approx(hz, abs=0.5)
    assert max(array.array("h", pcm)) == pytest.approx(8231, abs=5)
    assert dbfs(pcm[19_200:]) == pytest.approx(-15.05, abs=0.1)


def test_a_tone_runs_on_over_frame_borders_and_begins_softly() -> None:
    left = array.array("h", b"".join(everything(ToneSource(441.7, 0.5))))[::2]
    steepest = 8231 * 2 * math.pi * 441.7 / 48000
    assert max(abs(b - a) for a, b in pairwise(left)) <= steepest + 1
    assert max(map(abs, left[:48])) < 8231 * 0.1 + 1


def test_both_channels_of_a_tone_are_the_same() -> None:
    pcm = array.array("h", ToneSource(440).read())
    assert pcm[::2] == pcm[1::2]


def test_a_tone_ends_where_it_shall_and_else_never() -> None:
    found = everything(ToneSource(440, 0.03))
    assert [len(frame) for frame in found] == [3840, 3840]
    assert found[1][1920:] == bytes(1920)
    assert any(found[1][:1920])
    assert everything(ToneSource(440, 0)) == []
    endless = ToneSource(440)
    assert all(len(endless.read()) == 3840 for _ in range(200))
    endless.close()
    endless.close()
    assert endless.read() == b""


@pytest.mark.parametrize(
    ("hz", "seconds"),
    [(0, None), (-1, None), (24_000, None), (math.nan, None), (math.inf, 1), (440, -1), (440, math.nan)],
)
def test_a_tone_that_cannot_be_is_refused(hz: float, seconds: float | None) -> None:
    with pytest.raises(NotAudio, match="tone"):
        ToneSource(hz, seconds)


def test_a_limited_source_gives_no_more_than_it_may(tmp_path: Path) -> None:
    assert len(everything(LimitedSource(ToneSource(440), 0.1))) == 5
    assert len(everything(LimitedSource(ToneSource(440, 0.1)))) == 5
    packets = LimitedSource(OggOpusSource(ogg(tmp_path / "a.ogg", [SILENCE] * 9)), 0.04)
    assert packets.is_opus
    assert everything(packets) == [SILENCE] * 2


def length_of(source: Source) -> float | None:
    length: float | None = getattr(source, "duration_s")  # noqa: B009 - not every source has it
    source.close()
    return length


def test_a_source_says_how_long_it_is(tmp_path: Path) -> None:
    encoder = OpusEncoder()
    packets = [encoder.encode(frame) for frame in everything(ToneSource(440, 0.2))]
    assert length_of(OggOpusSource(ogg(tmp_path / "a.ogg", packets))) == pytest.approx(0.2)
    with WavWriter(tmp_path / "a.wav") as writer:
        writer.write(bytes(4 * 24_000))
    assert length_of(WavSource(tmp_path / "a.wav")) == pytest.approx(0.5)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[: 44 + 4 * 4_800])
    assert length_of(WavSource(tmp_path / "cut.wav")) == pytest.approx(0.1)  # whatever its header says
    assert length_of(ToneSource(440)) is None
    assert length_of(LimitedSource(ToneSource(440), 3)) == pytest.approx(3)
    assert length_of(LimitedSource(ToneSource(440, 2), 3)) == 2
    assert length_of(LimitedSource(ToneSource(440))) is None
    assert length_of(open_source(DEMO)) == pytest.approx(len(everything(open_source(DEMO))) * 0.02)


def test_a_source_can_be_had_as_pcm_at_once(tmp_path: Path) -> None:
    tone = everything(ToneSource(440, 0.1))
    limited = LimitedSource(ToneSource(440), 0.1)
    assert read_pcm(limited) == b"".join(tone)
    assert limited.read() == b""
    encoder, decoder = OpusEncoder(), OpusDecoder()
    packets = [encoder.encode(frame) for frame in tone]
    source = OggOpusSource(ogg(tmp_path / "a.ogg", packets))
    assert read_pcm(source) == b"".join(map(decoder.decode, packets))


def test_files_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "a.ogg") as writer:
        writer.write(bytes(3840))
    ogg(tmp_path / "a.wav", [SILENCE])
    for name, kind in (("a.wav", OggOpusSource), ("a.ogg", WavSource)):
        source = open_source(str(tmp_path / name))
        assert isinstance(source, kind)
        source.close()
    assert isinstance(open_source("tone:440"), ToneSource)


def test_a_closed_file_gives_nothing_more(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "a.wav") as writer:
        writer.write(bytes(38400))
    ogg(tmp_path / "a.ogg", [SILENCE] * 10)
    ogg(tmp_path / "b.ogg", [b"\xf0\xff\xfe"] * 10)
    for name in ("a.wav", "a.ogg", "b.ogg"):
        source = open_source(str(tmp_path / name))
        assert source.read()
        source.close()
        source.close()
        assert source.read() == b""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.ogg", "nothing.ogg cannot be read: No such file"),
        (".", "is a directory"),
        ("text.txt", "text.txt: it is neither Ogg Opus, WebM, WAV"),
        ("empty", "empty: it is neither Ogg Opus, WebM, WAV"),
        ("opus.ogg", "opus.ogg: .*Ogg page"),
        ("broken.wav", "broken.wav: the WAV file has no sound"),
        ("a\0b", "cannot be a file's name"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "text.txt").write_text("Hello, this is a text.")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "opus.ogg").write_bytes(b"OggS" + bytes(3) + b"OpusHead")
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + struct.pack("<I", 4) + b"WAVE")
    with pytest.raises(NotAudio, match=message) as caught:
        open_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAudio, match="not a regular file"):
        open_source(str(tmp_path / "pipe"))


@pytest.mark.parametrize("kind", ["passed", "decoded", "wav", "slow wav", "tone", "limited"])
def test_a_source_goes_where_it_is_told(tmp_path: Path, kind: str) -> None:
    encoder, tone = OpusEncoder(), everything(ToneSource(440, 1.0))
    made: Source
    if kind in ("passed", "limited"):
        made = OggOpusSource(ogg(tmp_path / "a.ogg", [encoder.encode(frame) for frame in tone]))
        made = LimitedSource(made, 0.8) if kind == "limited" else made
    elif kind == "decoded":
        packets = [encoder.encode(frame) for frame in tone]
        made = OggOpusSource(ogg(tmp_path / "a.ogg", [*packets, b"\xf0\xff\xfe"], pre_skip=312))
    elif kind == "tone":
        made = ToneSource(440, 1.0)
    else:
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(48_000 if kind == "wav" else 24_000)
            file.writeframes(b"".join(tone))
        made = WavSource(tmp_path / "a.wav")
    first = [made.read() for _ in range(20)]
    seek_in(made, 0.2)
    again = [made.read() for _ in range(10)]
    if kind == "slow wav":  # the resampler begins anew
        assert again[2:] == first[12:]
    else:
        assert again == first[10:]
    seek_in(made, 0.0)
    assert made.read() == first[0]
    if kind == "limited":
        seek_in(made, 0.6)
        assert len(everything(made)) == 10
    made.close()


@pytest.mark.parametrize("name", ["tone:", "tone:x", "tone:nan", "tone:1e999", "tone:-5", "tone:48000"])
def test_a_tone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(NotAudio, match="tone"):
        open_source(name)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packets=st.lists(st.binary(min_size=1, max_size=12), max_size=6), tail=st.binary(max_size=30))
def test_only_not_audio_comes_out_of_hostile_packets(tmp_path: Path, packets: list[bytes], tail: bytes) -> None:
    file = tmp_path / "a.ogg"
    with OggOpusWriter(file) as writer:
        for packet in packets:
            try:
                writer.write(packet)
            except NotAudio:
                writer.write(SILENCE)
    file.write_bytes(file.read_bytes() + tail)
    try:
        found = everything(open_source(str(file)))
    except NotAudio:
        return
    assert all(found)


def test_the_demo_plays_speech_and_music_at_a_good_level() -> None:
    source = open_source(str(DEMO))
    assert source.is_opus
    decoder = OpusDecoder()
    pcm = b"".join(decoder.decode(packet) for packet in everything(source))
    assert 10 <= len(pcm) / 192_000 <= 12
    assert -20 < dbfs(pcm) < -12
    assert DEMO.stat().st_size < 150_000
    with OggOpusReader(DEMO) as reader:
        assert reader.channels == 2
