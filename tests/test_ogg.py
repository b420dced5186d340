from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voicegw.errors import NotAudio
from voicegw.media.ogg import OggOpusReader, OggOpusWriter

SILENCE = b"\xf8\xff\xfe"
HEAD = b"OpusHead" + bytes((1, 2)) + struct.pack("<HIhB", 312, 48000, 0, 0)
TAGS = b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)


def slow_checksum(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ 0x104C11DB7 if crc & 0x80000000 else crc << 1
    return crc


def raw_page(lacing: bytes, body: bytes, *, flags: int = 0, serial: int = 7, sequence: int = 0) -> bytes:
    def head(checksum: int) -> bytes:
        return struct.pack("<4sBBqIIIB", b"OggS", 0, flags, 0, serial, sequence, checksum, len(lacing))

    return head(slow_checksum(head(0) + lacing + body)) + lacing + body


def page(*packets: bytes, flags: int = 0, serial: int = 7, sequence: int = 0) -> bytes:
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes((len(p) % 255,)) for p in packets)
    return raw_page(lacing, b"".join(packets), flags=flags, serial=serial, sequence=sequence)


START = page(HEAD, flags=2) + page(TAGS, sequence=1)


def read(tmp_path: Path, data: bytes) -> list[bytes]:
    file = tmp_path / "sound"
    file.write_bytes(data)
    with OggOpusReader(file) as reader:
        return list(reader)


def sized(length: int) -> bytes:
    return b"\xf8" + bytes(n % 251 for n in range(length - 1))


def test_packets_come_back_as_they_were_written(tmp_path: Path) -> None:
    packets = [sized(length) for length in (1, 2, 254, 255, 256, 509, 510, 511, 1275, 3)] * 30
    file = tmp_path / "sound.ogg"
    with OggOpusWriter(file) as writer:
        for packet in packets:
            writer.write(packet)
    reader = OggOpusReader(file)
    assert (reader.channels, reader.pre_skip) == (2, 312)
    assert list(reader) == packets


def test_a_written_file_has_the_bytes_that_the_rfc_gives(tmp_path: Path) -> None:
    file = tmp_path / "sound.ogg"
    writer = OggOpusWriter(file, channels=1, pre_skip=100)
    writer.write(SILENCE)
    writer.close()
    writer.close()
    data = file.read_bytes()
    head, tags, sound = data[:47], data[47:-31], data[-31:]
    assert head[:6] == b"OggS\x00\x02"
    assert head[28:] == b"OpusHead\x01\x01\x64\x00\x80\xbb\x00\x00\x00\x00\x00"
    assert tags[28:] == b"OpusTags\x07\x00\x00\x00voicegw\x00\x00\x00\x00"
    assert sound[4:14] == b"\x00\x04" + (960).to_bytes(8, "little")
    assert sound[26:] == b"\x01\x03" + SILENCE
    for whole in (head, tags, sound):
        assert slow_checksum(whole[:22] + bytes(4) + whole[26:]) == int.from_bytes(whole[22:26], "little")


def test_the_last_page_tells_the_length_in_samples(tmp_path: Path) -> None:
    file = tmp_path / "sound.ogg"
    with OggOpusWriter(file) as writer:
        for _ in range(125):
            writer.write(SILENCE)
        with pytest.raises(NotAudio):
            writer.write(b"")
    data = file.read_bytes()
    last = data.rindex(b"OggS")
    assert data[last + 5] == 4
    assert int.from_bytes(data[last + 6 : last + 14], "little") == 125 * 960
    assert data.count(b"OggS") == 5


def test_a_file_of_an_unfinished_writer_gives_what_was_written_by_then(tmp_path: Path) -> None:
    file = tmp_path / "sound.ogg"
    writer = OggOpusWriter(file)
    for _ in range(120):
        writer.write(SILENCE)
    found = list(OggOpusReader(file))
    writer.close()
    assert found == [SILENCE] * 100


def test_a_packet_over_several_pages_is_put_together(tmp_path: Path) -> None:
    packet = sized(700)
    data = (
        START
        + raw_page(b"\x03\xff\xff", SILENCE + packet[:510], sequence=2)
        + raw_page(b"\xbe\x03", packet[510:] + SILENCE, flags=1, sequence=3)
    )
    assert read(tmp_path, data) == [SILENCE, packet, SILENCE]


def test_a_packet_with_a_hole_is_left_out(tmp_path: Path) -> None:
    packet = sized(600)
    begin = START + raw_page(b"\xff", packet[:255], sequence=2)
    lost_page = begin + raw_page(b"\x5a\x03", packet[510:] + SILENCE, flags=1, sequence=4)
    assert read(tmp_path, lost_page) == [SILENCE]
    never_continued = begin + page(SILENCE, sequence=3)
    assert read(tmp_path, never_continued) == [SILENCE]


def test_other_streams_are_passed_over(tmp_path: Path) -> None:
    data = (
        page(b"\x80theora", flags=2, serial=1)
        + page(HEAD, flags=2)
        + page(b"something else", serial=1, sequence=1)
        + page(TAGS, sequence=1)
        + page(SILENCE, sequence=2)
        + page(b"picture", serial=1, sequence=2)
        + page(SILENCE, SILENCE, flags=4, sequence=3)
        + page(b"picture", serial=1, sequence=3)
    )
    assert read(tmp_path, data) == [SILENCE] * 3


def test_long_comments_over_pages_are_skipped(tmp_path: Path) -> None:
    tags = TAGS + bytes(100_000)
    data, at, sequence = page(HEAD, flags=2), 0, 1
    while at + 65025 <= len(tags):
        data += raw_page(b"\xff" * 255, tags[at : at + 65025], flags=int(at > 0), sequence=sequence)
        at, sequence = at + 65025, sequence + 1
    rest = tags[at:]
    lacing = b"\xff" * (len(rest) // 255) + bytes((len(rest) % 255,))
    data += raw_page(lacing, rest, flags=1, sequence=sequence) + page(SILENCE, sequence=sequence + 1)
    assert read(tmp_path, data) == [SILENCE]


def test_a_truncated_file_gives_its_complete_packets(tmp_path: Path) -> None:
    data = START + page(SILENCE, SILENCE, sequence=2) + page(SILENCE, sequence=3)
    for cut in range(1, 31):
        assert read(tmp_path, data[:-cut]) == [SILENCE, SILENCE]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    last = page(SILENCE, sequence=2)
    lengths = (26, 27)  # with these changed the page may seem cut off
    for at in set(range(len(last))) - set(lengths):
        broken = bytearray(last)
        broken[at] ^= 0x10
        with pytest.raises(NotAudio):
            read(tmp_path, START + bytes(broken))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "first Ogg page"),
        (b"OggS", "first Ogg page"),
        (b"ID3\x04" + bytes(100), "no Ogg page"),
        (b"Oggy", "no Ogg page"),
        (page(b"\x01vorbis", flags=2) + page(b"x"), "no Opus stream"),
        (page(HEAD), "no Opus stream"),
        (page(HEAD[:-1], flags=2), "too short"),
        (page(HEAD[:8] + b"\x10" + HEAD[9:], flags=2), "version 16"),
        (page(HEAD[:9] + b"\x06" + HEAD[10:18] + b"\x01", flags=2), "6 channels"),
        (page(HEAD[:9] + b"\x00" + HEAD[10:], flags=2), "0 channels"),
        (page(HEAD, flags=2) + page(SILENCE, sequence=1), "comment header"),
    ],
)
def test_what_is_no_ogg_opus_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(NotAudio, match=message):
        read(tmp_path, data)


def test_an_endless_packet_is_refused(tmp_path: Path) -> None:
    data = START + page(SILENCE, sequence=2) + raw_page(b"\xff" * 255, bytes(65025), sequence=3)
    with pytest.raises(NotAudio, match="longer than"):
        read(tmp_path, data)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAudio, match="cannot be read"):
        OggOpusReader(tmp_path / "nothing")
    with pytest.raises(NotAudio, match="is a directory"):
        OggOpusReader(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_only_not_audio_comes_out_of_hostile_pages(tmp_path: Path, data: st.DataObject) -> None:
    pages = st.builds(
        raw_page,
        st.binary(max_size=6),
        st.binary(max_size=40) | st.just(HEAD) | st.just(TAGS) | st.just(SILENCE),
        flags=st.integers(0, 7),
        serial=st.just(7) | st.integers(0, 2**32 - 1),
        sequence=st.integers(0, 4) | st.integers(0, 2**32 - 1),
    )
    prefix = data.draw(st.sampled_from((b"", page(HEAD, flags=2), START)))
    blob = prefix + b"".join(data.draw(st.lists(pages, max_size=5))) + data.draw(st.binary(max_size=40))
    try:
        packets = read(tmp_path, blob)
    except NotAudio:
        return
    assert all(packets)
