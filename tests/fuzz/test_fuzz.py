"""Every parser lets nothing out but its own errors: right inputs, broken ones, and noise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import fuzz_by_hand, main
from tests.fuzz.targets import TARGETS, Target
from voicegw.errors import MalformedFrame

EDITS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 2), st.binary(min_size=1, max_size=4)), max_size=5)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes overwritten, put in, or taken out."""
    for at, kind, new in edits:
        at %= len(data) + 1
        if kind == 0:
            data = data[:at] + new + data[at + len(new) :]
        elif kind == 1:
            data = data[:at] + new + data[at:]
        else:
            data = data[:at] + data[at + 16 * len(new) :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_right_inputs_pass(name: str) -> None:
    assert TARGETS[name].seeds
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(noise=st.binary(max_size=300), which=st.integers(0, 1000), edits=EDITS)
def test_broken_inputs_and_noise_pass(name: str, noise: bytes, which: int, edits: list[tuple[int, int, bytes]]) -> None:
    target = TARGETS[name]
    target.run(noise)
    target.run(edited(target.seeds[which % len(target.seeds)], edits))


def test_a_parser_that_lets_something_out_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(data: bytes) -> None:
        if data[:1] == b"\x7f":
            raise IndexError(data[0])

    found = fuzz_by_hand(Target(broken, [b"a good one"]), seconds=20, seed=1)
    assert found.finding is not None
    assert found.finding[:1] == b"\x7f"
    assert "IndexError" in found.said
    assert fuzz_by_hand(Target(lambda data: None, [b"x"]), seconds=0.05, seed=1).finding is None


def test_the_command_fuzzes_what_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.1", "--by-hand", "endpoint", "dave_frame"]) == 0
    said = capsys.readouterr().out
    assert "endpoint" in said
    assert "dave_frame" in said
    assert "text_frame" not in said
    assert MalformedFrame.__name__ not in said
