"""WebM: the Opus packets come out as they went in, whatever lies around them; damage is NotAudio and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.webm import OPUS_HEAD, block, cluster, element, header, track, webm
from voicegw.errors import NotAudio, SourceFailed
from voicegw.media.opening import open_source
from voicegw.media.opus import OpusEncoder
from voicegw.media.opus_files import WebmOpusSource
from voicegw.media.sources import Source, ToneSource
from voicegw.media.webm import WebmOpusReader

SILENCE = b"\xf8\xff\xfe"


def packets_of(data: bytes) -> list[bytes]:
    return list(WebmOpusReader(io.BytesIO(data)))


def tone(seconds: float) -> list[bytes]:
    encoder, source = OpusEncoder(), ToneSource(440, seconds)
    return [encoder.encode(frame) for frame in iter(source.read, b"")]


def everything(source: Source) -> list[bytes]:
    found = [frame for frame in iter(source.read, b"") if frame is not None]
    source.close()
    return found


@pytest.mark.parametrize("live", [False, True])
def test_the_packets_of_the_opus_track_come_out_unchanged(live: bool) -> None:
    packets = tone(0.5)
    reader = WebmOpusReader(io.BytesIO(webm(packets, live)))
    assert (reader.channels, reader.pre_skip) == (2, 312)
    assert list(reader) == packets


def test_groups_and_all_lacings() -> None:
    one, two, three = b"\xf8" + b"a" * 300, b"\xf8" + b"b" * 20, b"\xf8" + b"c" * 77
    xiph = bytes((2, 255, len(one) - 255, len(two))) + one + two + three
    first, difference = (len(one) | 0x4000).to_bytes(2, "big"), (len(two) - len(one) + 0x1FFF) | 0x4000
    ebml = b"\x02" + first + difference.to_bytes(2, "big") + one + two + three
    fixed = b"\x01" + two + two
    data = header(track(2, b"A_OPUS", OPUS_HEAD)) + cluster(
        block(2, one, grouped=True), block(2, xiph, 0x02), block(2, ebml, 0x06), block(2, fixed, 0x04)
    )
    assert packets_of(data) == [one, one, two, three, one, two, three, two, two]


def test_a_file_that_is_cut_gives_its_whole_packets() -> None:
    packets = tone(0.2)
    data = webm(packets)
    for cut in range(len(data) - 600, len(data), 7):
        found = packets_of(data[:cut])
        assert found == packets[: len(found)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin"),
        (b"OggS" + bytes(60), "does not begin|too long"),
        (header(track(1, b"V_VP9")), "no Opus track"),
        (header() + cluster(block(1, b"x")) + element(0x1654AE6B, track(1, b"A_OPUS", OPUS_HEAD)), "no Opus track"),
        (header(track(1, b"A_VORBIS", b"x")) + cluster(block(1, b"x")), "no Opus track"),
        (header(track(1, b"A_OPUS", b"OpusHead")), "too short"),
        (header(track(1, b"A_OPUS", OPUS_HEAD, element(0x6D80, b"\0"))), "packed or encrypted"),
        (header(track(1, b"A_OPUS", OPUS_HEAD)) + cluster(block(1, b"\x05ab", 0x04)), "divide"),
        (header(track(1, b"A_OPUS", OPUS_HEAD)) + cluster(block(1, b"\x01\xff\xff", 0x02)), "before its frames"),
        (header(track(1, b"A_OPUS", OPUS_HEAD)) + cluster(block(1, b"\x01\xc0", 0x06)), "longer than it is"),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(NotAudio, match=message):
        packets_of(data)


@given(st.binary(max_size=40), st.integers(0, 400), st.binary(max_size=4))
def test_only_not_audio_comes_out_of_hostile_streams(junk: bytes, at: int, over: bytes) -> None:
    data = bytearray(webm([SILENCE] * 6))
    data[at : at + len(over)] = over
    for hostile in (bytes(data), webm([SILENCE])[:180] + junk, junk):
        try:
            assert sum(map(len, packets_of(hostile))) <= len(hostile)
        except NotAudio:
            continue


def test_a_file_passes_through_and_can_be_sought(tmp_path: Path) -> None:
    packets = tone(1.0)
    (tmp_path / "a.mp3").write_bytes(webm(packets))  # names say nothing
    source = open_source(tmp_path / "a.mp3")
    assert isinstance(source, WebmOpusSource)
    assert source.is_opus
    assert everything(source) == packets
    source = WebmOpusSource(tmp_path / "a.mp3")
    source.seek(0.5)
    assert everything(source) == packets[25:]


def test_a_stream_passes_through_and_cannot_be_sought() -> None:
    packets = tone(1.0)
    source = WebmOpusSource(io.BytesIO(webm(packets)))
    with pytest.raises(SourceFailed, match="sought"):
        source.seek(0.5)
    assert everything(source) == packets
    odd = WebmOpusSource(io.BytesIO(webm([SILENCE] * 30 + [b"\xf0\xff\xfe"])))
    with pytest.raises(NotAudio, match="length of its packets"):
        everything(odd)


def test_packets_of_other_lengths_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.webm").write_bytes(webm([b"\xf0\xff\xfe"] * 10))
    source = WebmOpusSource(tmp_path / "a.webm")
    assert not source.is_opus
    assert {len(frame) for frame in everything(source)} == {3840}
