"""Faults in the form of sealed packets: headers, extensions, padding, and reports among the media."""

from __future__ import annotations

import itertools
import struct

import pytest

from tests.faults.cells import covers
from voicegw.media.opener import PacketOpener
from voicegw.secret import Secret
from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher
from voicegw.wire.rtp import RTCP_AAD_BYTES, pack_header

_keys = itertools.count(800_000)
FRAME = bytes(range(40, 80))
ONE_BYTE, TWO_BYTE = 0xBEDE, 0x1000


class Line:
    """A server that seals whatever it is told, and an opener at the other end."""

    def __init__(self) -> None:
        key = Secret(next(_keys).to_bytes(32, "big"))
        self.server = TransportCipher(PREFERRED_MODES[0], key, "server")
        self.opener = PacketOpener(lambda: 0.0)
        self.opener.use_key(TransportCipher(PREFERRED_MODES[0], key))
        self._sequence = itertools.count(1)

    def header(self, first: int = 0x80, second: int = 120) -> bytes:
        """The 12 bytes of the next packet."""
        sequence = next(self._sequence)
        return bytes((first, second)) + pack_header(sequence, sequence * 960, 7)[2:]

    def open(self, header: bytes, plain: bytes) -> bytes | None:
        """What comes out of a sealed packet."""
        opened = self.opener.open(self.server.seal(header, plain))
        return None if opened is None else opened[2]

    @property
    def rejected(self) -> int:
        """How many were put aside as malformed or forged."""
        return self.opener.counters["rejected"]


def extended(line: Line, csrcs: int, words: int, first: int = 0x90, profile: int = ONE_BYTE) -> bytes:
    """A header with CSRCs and the preamble of an extension."""
    return line.header(first | csrcs) + bytes(4 * csrcs) + struct.pack(">HH", profile, words)


@covers("F85")
@pytest.mark.parametrize("csrcs", range(16))
def test_the_clear_header_is_as_long_as_it_says(csrcs: int) -> None:
    line = Line()
    assert line.open(line.header(0x80 | csrcs) + bytes(4 * csrcs), FRAME) == FRAME
    for words in (0, 1, 2, 3):
        assert line.open(extended(line, csrcs, words), bytes(4 * words) + FRAME) == FRAME
    assert line.rejected == 0
    wrong = line.header(0x80 | csrcs) + bytes(4 * csrcs + 4)  # four bytes more in the clear than the header says
    assert line.open(wrong, FRAME) is None
    if csrcs:
        assert line.open(line.header(0x80 | csrcs) + bytes(4 * csrcs - 4), FRAME) is None
    assert line.open(extended(line, csrcs, 0)[:-4], FRAME) is None  # X, but no preamble in the clear
    assert line.rejected == (3 if csrcs else 2)


@covers("F85")
def test_every_length_of_an_extension_opens_where_it_is_there() -> None:
    line = Line()
    plain = bytes(16) + FRAME  # 56 bytes: 14 words at most
    opened = [words for words in range(65_536) if line.open(extended(line, 0, words), plain) is not None]
    assert opened == [*range(15)]
    assert line.rejected == 65_536 - 15


@covers("F86")
@pytest.mark.parametrize("extension", [0, 2])
@pytest.mark.parametrize("padding", [1, 2, 3, 4, 40, 254, 255])
def test_padding_leaves_what_its_unpadded_twin_has(extension: int, padding: int) -> None:
    line = Line()
    body = bytes(4 * extension)
    header = extended(line, 0, extension, 0xB0) if extension else line.header(0xA0)
    assert line.open(header, body + FRAME + bytes(padding - 1) + bytes([padding])) == FRAME
    assert line.rejected == 0


@covers("F86")
@pytest.mark.parametrize(
    ("plain", "payload"),
    [
        (FRAME + b"\0", None),  # a count of 0
        (b"\0\0\0\4", b""),  # as long as all there is
        (b"\0\0\0\5", None),  # one more
        (b"\xff", None),
        (b"", None),
        (b"\1", b""),
    ],
    ids=["count 0", "length", "length + 1", "255 of 1", "nothing", "1 of 1"],
)
def test_padding_that_cannot_be_is_put_aside(plain: bytes, payload: bytes | None) -> None:
    line = Line()
    assert line.open(line.header(0xA0), plain) == payload
    assert line.rejected == (payload is None)


@covers("F86")
def test_padding_never_reaches_into_the_extension() -> None:
    line = Line()
    assert line.open(extended(line, 0, 2, 0xB0), bytes(8) + b"\0\0\0\4") == b""
    assert line.open(extended(line, 0, 2, 0xB0), bytes(8) + b"\0\0\0\5") is None


@covers("F86")
def test_a_burst_of_padding_alone_has_no_frames() -> None:
    line = Line()
    assert [line.open(line.header(0xA0), bytes(199) + b"\xc8") for _ in range(50)] == [b""] * 50
    assert line.open(line.header(), FRAME) == FRAME
    assert line.rejected == 0


@covers("F87")
@pytest.mark.parametrize("profile", [ONE_BYTE, TWO_BYTE, 0x1001, 0, 0xFFFF], ids=hex)
def test_an_extension_is_no_audio_whatever_its_profile(profile: int) -> None:
    line = Line()
    for body in (b"\x10\x80\0\0", b"\x90\x06\x10\x7f", b"\x00" * 8, b"\xff" * 12, b"\x1f" + bytes(3)):
        assert line.open(extended(line, 0, len(body) // 4, profile=profile), body + FRAME) == FRAME
    assert line.open(extended(line, 0, 11, profile=profile), FRAME) is None
    assert line.rejected == 1


REPORT = bytes.fromhex("81c9000700003247000000630c00002200011234000000111122334400010000")
SENDER = bytes.fromhex("80c80006000000070000000100000002000000030000000400000005")
DESCRIPTION = bytes.fromhex("81ca00020000000701000000")
GOODBYE = bytes.fromhex("81cb000100000007")


@covers("F88")
def test_all_second_bytes_go_where_they_belong() -> None:
    line = Line()
    for second in range(256):
        before = line.opener.counters.copy()
        opened = line.open(line.header(0x80, second), FRAME)
        if second & 0x7F == 120:
            assert opened == FRAME
        else:
            assert opened is None
            kind = "other payload types" if not 200 <= second <= 206 else None
            if kind is not None:
                assert line.opener.counters[kind] == before[kind] + 1
    # Sealed with the 12 clear bytes of media, a report's 8 do not open it.
    assert line.rejected == 7
    for second in range(200, 207):
        packet = bytes((0x80, second)) + REPORT[2:]
        assert line.open(packet[:RTCP_AAD_BYTES], packet[RTCP_AAD_BYTES:]) is None
    assert line.opener.counters["rtcp"] == 7


@covers("F88")
@pytest.mark.parametrize("order", [*itertools.permutations((REPORT, SENDER, DESCRIPTION, GOODBYE))][::3])
def test_compound_reports_are_read_wherever_the_block_stands(order: tuple[bytes, ...]) -> None:
    line = Line()
    compound = b"".join(order)
    assert line.open(compound[:RTCP_AAD_BYTES], compound[RTCP_AAD_BYTES:]) is None
    assert line.opener.reports[0x63].fraction_lost == 12 / 256
    assert line.opener.counters == {"rtcp": 1}


@covers("F88")
def test_a_truncated_report_is_dropped_and_nothing_else() -> None:
    compound = SENDER + REPORT + DESCRIPTION
    for length in range(RTCP_AAD_BYTES, len(compound)):
        line = Line()
        whole = line.server.seal(compound[:RTCP_AAD_BYTES], compound[RTCP_AAD_BYTES:length])
        assert line.opener.open(whole) is None  # cut before it was sealed
        assert (0x63 in line.opener.reports) == (length >= len(SENDER + REPORT))
        for cut in (1, 5, len(whole) - 30):
            assert line.opener.open(whole[: max(0, len(whole) - cut)]) is None  # cut on the way
        assert line.opener.counters["rtcp"] == 1
