from __future__ import annotations

import array
import math
import struct
import wave
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voicegw.errors import NotAudio
from voicegw.media.likeness import pcm_frequency
from voicegw.media.wav import WavReader, WavWriter

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if length is None else length) + body + b"\0" * (len(body) % 2)


def form(tag: int, channels: int, rate: int, bits: int) -> bytes:
    align = channels * bits // 8 & 0xFFFF
    return struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align, bits)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wav(tag: int, channels: int, rate: int, bits: int, data: bytes) -> bytes:
    return riff(chunk(b"fmt ", form(tag, channels, rate, bits)), chunk(b"data", data))


def frames(tmp_path: Path, data: bytes) -> list[bytes]:
    file = tmp_path / "sound"
    file.write_bytes(data)
    with WavReader(file) as reader:
        return list(reader)


def samples(tmp_path: Path, data: bytes) -> list[int]:
    return array.array("h", b"".join(frames(tmp_path, data))).tolist()


def sine(rate: int, seconds: float, hz: float = 440.0) -> list[float]:
    return [0.5 * math.sin(2 * math.pi * hz * n / rate) for n in range(int(rate * seconds))]


def test_stereo_of_48_khz_and_16_bit_passes_unchanged(tmp_path: Path) -> None:
    pcm = bytes(n * 7 % 256 for n in range(3840 * 3))
    assert b"".join(frames(tmp_path, wav(PCM, 2, 48000, 16, pcm))) == pcm


def test_the_last_frame_is_filled_up_with_zeros(tmp_path: Path) -> None:
    found = frames(tmp_path, wav(PCM, 2, 48000, 16, b"\x01\x02\x03\x04" * 1000))
    assert [len(frame) for frame in found] == [3840, 3840]
    assert found[1] == b"\x01\x02\x03\x04" * 40 + bytes(3840 - 160)


@pytest.mark.parametrize(
    ("tag", "bits", "data", "expected"),
    [
        (PCM, 8, bytes((0, 64, 128, 255)), [-32768, -16384, 0, 32512]),
        (PCM, 16, struct.pack("<4h", -32768, -1, 0, 32767), [-32768, -1, 0, 32767]),
        (PCM, 24, bytes.fromhex("000080 00ffff 000000 ffff7f"), [-32768, -1, 0, 32767]),
        (PCM, 32, struct.pack("<4i", -(2**31), -65536, 0, 2**31 - 1), [-32768, -1, 0, 32767]),
        (FLOAT, 32, struct.pack("<4f", -1.0, -0.5, 0.0, 1.0), [-32768, -16384, 0, 32767]),
        (FLOAT, 64, struct.pack("<4d", -1e300, 0.5, math.nan, math.inf), [-32767, 16384, 0, 0]),
    ],
)
def test_every_width_of_sample_is_read(tmp_path: Path, tag: int, bits: int, data: bytes, expected: list[int]) -> None:
    found = samples(tmp_path, wav(tag, 1, 48000, bits, data))
    assert found[0:8:2] == expected
    assert found[1:9:2] == expected


def test_the_extensible_form_is_read(tmp_path: Path) -> None:
    extension = struct.pack("<HHIH", 22, 16, 3, PCM) + GUID_TAIL
    data = riff(
        chunk(b"fmt ", form(EXTENSIBLE, 2, 48000, 16) + extension),
        chunk(b"data", struct.pack("<4h", 1, 2, 3, 4)),
    )
    assert samples(tmp_path, data)[:4] == [1, 2, 3, 4]


@pytest.mark.parametrize("channels", range(3, 9))
def test_more_channels_are_mixed_without_clipping(tmp_path: Path, channels: int) -> None:
    loud = struct.pack(f"<{channels}h", *[30000] * channels) * 960
    assert set(samples(tmp_path, wav(PCM, channels, 48000, 16, loud))) == {30000}
    left = struct.pack(f"<{channels}h", 30000, *[0] * (channels - 1)) * 960
    found = samples(tmp_path, wav(PCM, channels, 48000, 16, left))
    assert found[0] > 8000
    assert found[1] == 0


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 22050, 32000, 44099, 44100, 88200, 96000, 192000, 384000])
def test_any_rate_keeps_pitch_length_and_level(tmp_path: Path, rate: int) -> None:
    hz = 440.0 if rate > 2000 else 110.0
    data = struct.pack(f"<{rate}h", *(round(32767 * s) for s in sine(rate, 1.0, hz)))
    pcm = b"".join(frames(tmp_path, wav(PCM, 1, rate, 16, data)))
    assert len(pcm) == 50 * 3840
    assert pcm_frequency(pcm) == pytest.approx(hz, rel=0.002)
    left = array.array("h", pcm)[::2][4800:-4800]
    assert math.sqrt(sum(s * s for s in left) / len(left)) == pytest.approx(16383 / math.sqrt(2), rel=0.02)


def test_resampling_follows_the_sound_to_within_a_hundredth(tmp_path: Path) -> None:
    data = struct.pack("<44100h", *(round(32767 * s) for s in sine(44100, 1.0)))
    left = samples(tmp_path, wav(PCM, 1, 44100, 16, data))[::2]
    ideal = [32767 * s for s in sine(48000, 1.0)]
    assert max(abs(a - b) for a, b in list(zip(left, ideal, strict=True))[100:-100]) < 164


def test_what_is_above_hearing_at_48_khz_is_filtered_out(tmp_path: Path) -> None:
    data = struct.pack("<96000h", *(round(32767 * s) for s in sine(96000, 1.0, 34_000.0)))
    left = samples(tmp_path, wav(PCM, 1, 96000, 16, data))[::2][4800:-4800]
    assert math.sqrt(sum(s * s for s in left) / len(left)) < 120


def test_a_constant_stays_constant_over_block_borders(tmp_path: Path) -> None:
    data = struct.pack("<h", 12345) * 100_000
    left = samples(tmp_path, wav(PCM, 1, 44100, 16, data))[::2]
    assert set(left[100:108_000]) == {12345}


def test_chunks_that_are_not_sound_are_skipped(tmp_path: Path) -> None:
    data = riff(
        chunk(b"LIST", b"odd"),
        chunk(b"fmt ", form(PCM, 2, 48000, 16) + b"\0\0"),
        chunk(b"fact", bytes(4)),
        chunk(b"data", b"\x01\0\x02\0"),
        chunk(b"data", b"\x09\0\x09\0"),
    )
    assert samples(tmp_path, data)[:4] == [1, 2, 0, 0]


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFE])
def test_a_stream_without_a_length_ends_with_its_file(tmp_path: Path, length: int) -> None:
    data = riff(chunk(b"fmt ", form(PCM, 2, 48000, 16)), chunk(b"data", bytes(3840 + 2), length))
    assert len(frames(tmp_path, data)) == 1


def test_a_file_without_samples_has_no_frames(tmp_path: Path) -> None:
    assert frames(tmp_path, wav(PCM, 1, 44100, 16, b"")) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no WAV file"),
        (b"RIFF\0\0\0\0AVI LIST", "no WAV file"),
        (riff(), "no sound"),
        (riff(chunk(b"data", b"1234")), "before its format"),
        (riff(chunk(b"fmt ", form(PCM, 2, 48000, 16))), "no sound"),
        (riff(chunk(b"fmt ", form(PCM, 2, 48000, 16)[:15])), "cut off"),
        (wav(2, 2, 48000, 4, b"1234"), "format 2 with 4 bit"),
        (wav(PCM, 2, 48000, 12, b"1234"), "with 12 bit"),
        (wav(FLOAT, 2, 48000, 16, b"1234"), "format 3 with 16 bit"),
        (wav(PCM, 0, 48000, 16, b"1234"), "0 channels"),
        (wav(PCM, 9, 48000, 16, b"1234"), "9 channels"),
        (wav(PCM, 2, 0, 16, b"1234"), "0 samples"),
        (wav(PCM, 2, 2**32 - 1, 16, b"1234"), "4294967295 samples"),
        (riff(chunk(b"fmt ", form(PCM, 2, 48000, 16)[:12] + b"\0\0\x10\0")), "contradicts"),
        (wav(EXTENSIBLE, 2, 48000, 16, b"1234"), "extended"),
        (riff(*[chunk(b"junk", b"")] * 2000), "no sound"),
    ],
)
def test_what_is_no_wav_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(NotAudio, match=message):
        frames(tmp_path, data)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAudio, match="cannot be read"):
        WavReader(tmp_path / "nothing")
    with pytest.raises(NotAudio, match="is a directory"):
        WavReader(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(min_size=14, max_size=44),
    sound=st.binary(max_size=200),
    length=st.integers(0, 2**32 - 1),
    tag=st.sampled_from((PCM, FLOAT, EXTENSIBLE, 2)),
    channels=st.integers(0, 9),
    bits=st.sampled_from((0, 8, 16, 24, 32, 64)),
)
def test_only_not_audio_comes_out_of_hostile_files(
    tmp_path: Path, body: bytes, sound: bytes, length: int, tag: int, channels: int, bits: int
) -> None:
    blobs = (
        riff(chunk(b"fmt ", body), chunk(b"data", sound, length)),
        riff(chunk(b"fmt ", form(tag, channels, 48000, bits) + body), chunk(b"data", sound, length)),
        b"RIFF" + body[:4] + b"WAVE" + body + sound,
    )
    for blob in blobs:
        try:
            found = frames(tmp_path, blob)
        except NotAudio:
            continue
        assert all(len(frame) == 3840 for frame in found)


def test_a_written_file_opens_elsewhere_with_the_same_sound(tmp_path: Path) -> None:
    file, pcm = tmp_path / "out.wav", bytes(n % 256 for n in range(3840 * 75))
    with WavWriter(file) as writer:
        writer.write(pcm)
        assert writer.seconds == 1.5
    writer.close()
    with wave.open(str(file)) as opened:
        assert opened.getparams()[:4] == (2, 2, 48000, 72_000)
        assert opened.readframes(72_000) == pcm


def test_a_file_whose_writer_died_is_valid_to_the_last_full_second(tmp_path: Path) -> None:
    file = tmp_path / "out.wav"
    writer = WavWriter(file)
    with wave.open(str(file)) as opened:
        assert opened.getnframes() == 0
    for _ in range(120):
        writer.write(b"\x01\x02\x03\x04" * 960)
    with wave.open(str(file)) as opened:
        assert opened.getnframes() == 96_000
        assert opened.readframes(96_000) == b"\x01\x02\x03\x04" * 96_000
    writer.close()


def test_the_header_has_the_bytes_it_must_have(tmp_path: Path) -> None:
    file = tmp_path / "out.wav"
    with WavWriter(file) as writer:
        writer.write(bytes(8))
    assert file.read_bytes() == (
        bytes.fromhex("52494646 2c000000 57415645 666d7420 10000000 0100 0200 80bb0000 00ee0200 0400 1000")
        + bytes.fromhex("64617461 08000000")
        + bytes(8)
    )


def test_half_a_sample_is_refused(tmp_path: Path) -> None:
    with WavWriter(tmp_path / "out.wav") as writer, pytest.raises(NotAudio, match="3839 bytes"):
        writer.write(bytes(3839))


def test_beyond_four_gigabytes_the_length_is_called_unknown(tmp_path: Path) -> None:
    file = tmp_path / "out.wav"
    writer = WavWriter(file)
    writer._length = 2**32 - 4
    writer.write(bytes(4))
    writer.close()
    data = file.read_bytes()
    assert data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
