"""What can be seen of DAVE frames from outside, against the known answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import VECTORS
from voicegw.wire.dave_frames import decode_uleb128, displayable_code, encode_uleb128, is_dave_frame


def test_uleb128_known_answers() -> None:
    for case in VECTORS["uleb128"]["cases"]:
        assert encode_uleb128(case["value"]).hex() == case["bytes"]
    for case in (*VECTORS["uleb128"]["cases"], *VECTORS["uleb128"]["decode_only"]):
        data = bytes.fromhex(case["bytes"])
        expected = None if case["value"] is None else (case["value"], len(data))
        assert decode_uleb128(data) == expected


@given(st.integers(0, 2**64 - 1), st.binary(max_size=5))
def test_uleb128_there_and_back(value: int, tail: bytes) -> None:
    data = encode_uleb128(value)
    assert decode_uleb128(data + tail) == (value, len(data))


@pytest.mark.parametrize("case", VECTORS["dave_frame_check"]["cases"], ids=lambda case: case["name"])
def test_frames_are_told_apart_as_the_libraries_do(case: dict[str, Any]) -> None:
    expected = case["class"] in ("decrypted", "encrypted_but_undecryptable")
    assert is_dave_frame(bytes.fromhex(case["frame"])) is expected


def test_every_frame_of_the_libraries_is_recognised() -> None:
    for case in VECTORS["dave_frames"]["cases"]:
        assert is_dave_frame(bytes.fromhex(case["frame"]))
    assert not is_dave_frame(bytes.fromhex(VECTORS["dave_silence"]["plain"]))


@given(st.binary(max_size=60))
def test_any_bytes_are_classified(data: bytes) -> None:
    is_dave_frame(data)
    is_dave_frame(data + b"\xfa\xfa")


def test_displayable_codes() -> None:
    for case in VECTORS["displayable_code"]["cases"]:
        assert displayable_code(bytes.fromhex(case["data"]), case["digits"], case["group"]) == case["code"]
    for case in VECTORS["displayable_code"]["errors"]:
        data = bytes.fromhex(case["data"]) if "data" in case else bytes(case["data_length"])
        with pytest.raises(ValueError, match="whole groups"):
            displayable_code(data, case["digits"], case["group"])
