from __future__ import annotations

import array
import cmath
import functools
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import voicegw.media
from voicegw.media.likeness import Likeness, _transform, likeness, pcm_frequency
from voicegw.media.ogg import OggOpusReader
from voicegw.media.opus import OpusDecoder, OpusEncoder

SECOND = 192_000
DEMO = Path(voicegw.media.__file__).with_name("demo.ogg")


def demo() -> bytes:
    decoder = OpusDecoder()
    return b"".join(decoder.decode(packet) for packet in OggOpusReader(DEMO))


def coded(pcm: bytes, bitrate: int = 64_000) -> bytes:
    encoder, decoder = OpusEncoder(bitrate), OpusDecoder()
    whole = len(pcm) - len(pcm) % 3840
    return b"".join(decoder.decode(encoder.encode(pcm[at : at + 3840])) for at in range(0, whole, 3840))


@functools.cache
def song(seed: int, seconds: int = 3) -> bytes:
    notes, out = random.Random(seed), array.array("h")
    for _ in range(seconds * 4):
        hz = 220 * 2 ** (notes.choice((0, 2, 4, 5, 7, 9, 11, 12, 14, 16)) / 12)
        for n in range(12_000):
            angle = 2 * math.pi * hz * n / 48000
            value = round(6000 * math.exp(-n / 5000) * (math.sin(angle) + 0.5 * math.sin(2 * angle)))
            out.extend((value, value))
    return out.tobytes()


def tone(hz: float, seconds: float) -> bytes:
    out = array.array("h")
    for n in range(round(seconds * 48000)):
        value = round(8000 * math.sin(2 * math.pi * hz * n / 48000))
        out.extend((value, value))
    return out.tobytes()


def scaled(pcm: bytes, factor: float) -> bytes:
    return array.array("h", [round(sample * factor) for sample in array.array("h", pcm)]).tobytes()


def test_a_recording_is_entirely_like_itself() -> None:
    pcm = song(1)
    found = likeness(pcm, pcm)
    assert found.score == pytest.approx(1.0)
    assert found.lag_s == 0.0
    assert found.level_db == 0.0


def test_speech_and_music_through_opus_stay_alike() -> None:
    pcm = demo()
    found = likeness(pcm, coded(pcm))
    assert found.score > 0.9
    assert found.lag_s == pytest.approx(312 / 48000, abs=0.0005)
    assert found.level_db == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("samples", [1, 5, 12_347, 48_001])
def test_a_delay_is_found_to_the_sample(samples: int) -> None:
    pcm = song(1)
    found = likeness(pcm, bytes(4 * samples) + pcm)
    assert found.score > 0.99
    assert round(found.lag_s * 48000) == samples


def test_a_missing_beginning_is_a_delay_below_zero_and_costs_its_share() -> None:
    pcm = song(1, 4)
    found = likeness(pcm, pcm[SECOND:])
    assert round(found.lag_s * 48000) == -48000
    assert found.score == pytest.approx(0.75, abs=0.05)


def test_a_missing_end_costs_its_share() -> None:
    pcm = song(1, 4)
    assert likeness(pcm, pcm[: SECOND * 2]).score == pytest.approx(0.5, abs=0.05)


def test_loudness_does_not_matter_but_is_told() -> None:
    pcm = song(1)
    found = likeness(pcm, scaled(pcm, 0.25))
    assert found.score > 0.99
    assert found.level_db == pytest.approx(-12.04, abs=0.1)


@pytest.mark.parametrize("other", range(2, 8))
def test_another_song_is_not_alike(other: int) -> None:
    assert likeness(song(1, 10), song(other, 10)).score < 0.3


def test_speech_is_not_music_and_noise_is_neither() -> None:
    pcm = demo()
    speech, music = pcm[: 4 * SECOND], pcm[5 * SECOND :]
    noise = random.Random(1).randbytes(4 * SECOND)
    assert likeness(speech, music).score < 0.2
    assert likeness(music, speech).score < 0.2
    assert likeness(speech, noise).score < 0.1


def test_sound_turned_backwards_is_not_alike() -> None:
    pcm = demo()
    backwards = array.array("h", reversed(array.array("h", pcm))).tobytes()
    assert likeness(pcm, backwards).score < 0.3


@pytest.mark.parametrize("hz", [300.0, 1000.0, 3000.0])
def test_a_tone_is_like_itself_and_not_like_another(hz: float) -> None:
    assert likeness(tone(hz, 1), coded(tone(hz, 1))).score > 0.9
    assert likeness(tone(hz, 1), tone(hz * 1.2, 1)).score < 0.1


@pytest.mark.parametrize("quiet", [b"", bytes(4), bytes(SECOND), b"\x07\x00\x07\x00" * 48000])
def test_silence_is_like_nothing(quiet: bytes) -> None:
    pcm = song(1, 1)
    assert likeness(pcm, quiet) == Likeness(0.0, 0.0, -120.0)
    assert likeness(quiet, pcm).score == 0.0
    assert likeness(quiet, quiet).score == 0.0


@settings(max_examples=60)
@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_bytes_give_a_score_between_nothing_and_one(reference: bytes, heard: bytes) -> None:
    found = likeness(reference, heard)
    assert 0.0 <= found.score <= 1.0
    assert math.isfinite(found.lag_s)
    assert math.isfinite(found.level_db)
    assert 0.0 <= pcm_frequency(heard) <= 24_000.0


@pytest.mark.parametrize("hz", [60.0, 440.0, 1234.5, 12_000.0])
def test_the_pitch_of_a_tone_is_told(hz: float) -> None:
    assert pcm_frequency(tone(hz, 0.1)) == pytest.approx(hz, abs=1)
    assert pcm_frequency(tone(hz, 2)) == pytest.approx(hz, abs=0.2)
    assert pcm_frequency(coded(tone(hz, 1))) == pytest.approx(hz, abs=0.5)


def test_silence_has_no_pitch() -> None:
    assert pcm_frequency(b"") == 0.0
    assert pcm_frequency(bytes(SECOND)) == 0.0


def test_the_fast_transform_is_the_plain_one() -> None:
    values = [complex(n * n % 7, n % 5) for n in range(16)]
    plain = [sum(v * cmath.exp(-2j * math.pi * k * n / 16) for n, v in enumerate(values)) for k in range(16)]
    assert all(abs(a - b) < 1e-9 for a, b in zip(_transform(values), plain, strict=True))
