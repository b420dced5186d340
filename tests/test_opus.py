from __future__ import annotations

import array
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicegw.errors import NotAudio, OpusNotFound
from voicegw.media import opus
from voicegw.media.opus import OpusDecoder, OpusEncoder, load_opus
from voicegw.media.opus_packets import packet_samples

SILENCE = b"\xf8\xff\xfe"


def tone(frames: int, hz: float = 440.0) -> bytes:
    samples = array.array("h")
    for n in range(frames * 960):
        value = int(8000 * math.sin(2 * math.pi * hz * n / 48000))
        samples.extend((value, value))
    return samples.tobytes()


def encoded(frames: int, bitrate: int = 64_000) -> list[bytes]:
    encoder, pcm = OpusEncoder(bitrate), tone(frames)
    return [encoder.encode(pcm[n * 3840 : (n + 1) * 3840]) for n in range(frames)]


def rms(pcm: bytes) -> float:
    samples = array.array("h", pcm)
    return math.sqrt(sum(s * s for s in samples) / len(samples))


def test_the_library_is_loaded_once_and_tells_where_it_is_from() -> None:
    library = load_opus()
    assert library is load_opus()
    assert "opus" in library.path
    assert library.version.startswith("libopus")


def test_the_packaged_library_comes_before_the_systems() -> None:
    pytest.importorskip("opuslib_next")
    first = next(opus._candidates())
    assert Path(first).parent.name == "_native"
    assert Path(first).is_absolute()


def test_opuslib_gets_its_library_and_the_import_hook_is_gone_afterwards() -> None:
    script = (
        "import sys; before = list(sys.meta_path)\n"
        "from voicegw.media.opus import load_opus\n"
        "library = load_opus()\n"
        "import opuslib.api\n"
        "assert opuslib.api.libopus is library.handle\n"
        "assert sys.meta_path == before\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_two_threads_may_need_opus_at_once() -> None:
    """While one imports opuslib the other neither fails nor finds half of it."""
    script = (
        "import threading\n"
        "from voicegw.media import opus\n"
        "made, halfway, tried = [], threading.Event(), threading.Event()\n"
        "load = opus._ApiLoader.exec_module\n"
        "def exec_module(self, module):\n"
        "    load(self, module)\n"
        "    halfway.set()\n"
        "    tried.wait(0.5)\n"
        "opus._ApiLoader.exec_module = exec_module\n"
        "first = threading.Thread(target=lambda: made.append(opus.OpusEncoder()))\n"
        "first.start()\n"
        "halfway.wait()\n"
        "try:\n"
        "    made.append(opus.OpusEncoder())\n"
        "finally:\n"
        "    tried.set()\n"
        "    first.join()\n"
        "assert len(made) == 2\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_any_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opus, "_candidates", lambda: iter(()))
    with pytest.raises(OpusNotFound, match="pip install opuslib-next-bundled"):
        opus._open()


def test_a_file_that_is_no_library_is_named_and_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "libopus.so"
    broken.write_bytes(b"not a library")
    good = load_opus().path
    monkeypatch.setattr(opus, "_candidates", lambda: iter((str(broken), good)))
    assert opus._open()[0] == good
    monkeypatch.setattr(opus, "_candidates", lambda: iter((str(broken),)))
    with pytest.raises(OpusNotFound, match=r"libopus\.so"):
        opus._open()


def test_a_tone_comes_back_as_loud_as_it_went_in() -> None:
    decoder = OpusDecoder()
    heard = b"".join(decoder.decode(packet) for packet in encoded(20))
    assert len(heard) == 20 * 3840
    assert rms(heard[3840 * 5 :]) == pytest.approx(rms(tone(20)), rel=0.1)


def test_packets_follow_the_bitrate() -> None:
    def size(bitrate: int) -> int:
        encoder, noise = OpusEncoder(bitrate), bytes(n * n * 31 % 251 for n in range(3840))
        return sum(len(encoder.encode(noise)) for _ in range(20))

    assert size(24_000) < size(64_000) < size(128_000)


@pytest.mark.parametrize("length", [0, 1, 1920, 3838, 3839, 3841, 7680])
def test_a_frame_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(NotAudio, match="3840"):
        OpusEncoder().encode(bytes(length))


@pytest.mark.parametrize("bitrate", [0, -1, 5_999, 510_001])
def test_an_impossible_bitrate_is_refused(bitrate: int) -> None:
    with pytest.raises(ValueError, match="bitrate"):
        OpusEncoder(bitrate)


def test_the_silence_frame_decodes_to_twenty_milliseconds_of_nothing() -> None:
    assert OpusDecoder().decode(SILENCE) == bytes(3840)


def test_a_packet_of_six_frames_decodes_to_120_ms() -> None:
    packet = bytes((SILENCE[0] | 3, 6)) + SILENCE[1:] * 6
    assert len(OpusDecoder().decode(packet)) == 6 * 3840


def test_a_lost_frame_is_concealed_with_sound() -> None:
    decoder = OpusDecoder()
    for packet in encoded(10):
        decoder.decode(packet)
    assert rms(decoder.conceal()) > 1000
    assert len(decoder.conceal(2880)) == 2880 * 4


@pytest.mark.parametrize("samples", [0, -960, 119, 961, 5880])
def test_an_impossible_length_of_loss_is_refused(samples: int) -> None:
    decoder = OpusDecoder()
    with pytest.raises(NotAudio, match="multiple of 120"):
        decoder.conceal(samples)
    with pytest.raises(NotAudio, match="multiple of 120"):
        decoder.decode_fec(SILENCE, samples)


def test_the_frame_before_is_made_from_the_next_one() -> None:
    packets, decoder = encoded(12), OpusDecoder()
    for packet in packets[:10]:
        decoder.decode(packet)
    assert rms(decoder.decode_fec(packets[11])) > 1000
    assert len(decoder.decode(packets[11])) == 3840


@pytest.mark.parametrize("frame", [b"", b"\xff", b"\xff\x00", b"\xf9\x00", b"\xfb\x32", bytes(70_000)])
def test_what_is_no_packet_is_refused(frame: bytes) -> None:
    with pytest.raises(NotAudio):
        OpusDecoder().decode(frame)
    with pytest.raises(NotAudio):
        OpusDecoder().decode_fec(frame)


@pytest.mark.parametrize(
    ("packet", "samples"),
    [
        (SILENCE, 960),
        (b"\xfc", 960),
        (b"\x00", 480),
        (b"\x18", 2880),
        (b"\x70", 480),
        (b"\x78", 960),
        (b"\x80", 120),
        (b"\xe0", 120),
        (b"\xe8", 240),
        (b"\xf9\x01\x02", 1920),
        (b"\xfa\x01\x02\x03", 1920),
        (b"\xe3\x30" + bytes(48), 5760),
        (b"\xfb\x83\x01\x01\x00\x00\x00", 2880),
        (b"\xfb\x42\x03\x01\x02\x00\x00\x00", 1920),
        (b"\xfa\xfc\x00" + bytes(252), 1920),
    ],
)
def test_the_length_of_a_packet_is_read_from_its_first_bytes(packet: bytes, samples: int) -> None:
    assert packet_samples(packet) == samples
    assert len(OpusDecoder().decode(packet)) == samples * 4


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xf9\x01",
        b"\xfa",
        b"\xfa\xfc",
        b"\xfa\x05\x00",
        b"\xfb",
        b"\xfb\x00",
        b"\xfb\x07" + bytes(7),
        b"\xfb\x02\x00",
        b"\xfb\x83\x01",
        b"\xfb\x82\x05\x00",
        b"\xfb\x41",
        b"\xfb\x41\xff\xff",
        b"\xfb\x41\x09\x00",
        b"\xf8" + bytes(1276),
    ],
)
def test_a_packet_whose_frames_do_not_fit_has_no_length(packet: bytes) -> None:
    with pytest.raises(NotAudio):
        packet_samples(packet)


@given(st.binary(max_size=40))
def test_the_length_is_the_one_libopus_finds(packet: bytes) -> None:
    try:
        expected: int | None = len(OpusDecoder().decode(packet)) // 4
    except NotAudio:
        expected = None
    try:
        found: int | None = packet_samples(packet)
    except NotAudio:
        found = None
    assert found == expected
