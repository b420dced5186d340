from __future__ import annotations

import wave
from pathlib import Path

import pytest

from voicegw.media.heard import HeardFrame, Provenance
from voicegw.media.sinks import MeasuringSink, SingleWavSink, WavSink
from voicegw.media.sources import ToneSource

ONE, TWO = b"\x01\x02\x03\x04" * 960, b"\x05\x06\x07\x08" * 960


def frame(user_id: int, pcm: bytes, provenance: Provenance = Provenance.RECEIVED) -> HeardFrame:
    return HeardFrame(user_id, 0, pcm, provenance, ())


def recorded(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 48000)
        found: bytes = file.readframes(file.getnframes())
    return found


def test_every_user_gets_a_file_of_their_own(tmp_path: Path) -> None:
    sink = WavSink(tmp_path / "deep" / "er")
    sink.write(frame(11, ONE))
    sink.write(frame(22, TWO))
    sink.write(frame(11, TWO))
    sink.close()
    assert {file.name for file in (tmp_path / "deep" / "er").iterdir()} == {"11.wav", "22.wav"}
    assert recorded(sink.paths[11]) == ONE + TWO
    assert recorded(sink.paths[22]) == TWO


def test_nobody_heard_leaves_no_file(tmp_path: Path) -> None:
    sink = WavSink(tmp_path / "out")
    sink.close()
    assert list((tmp_path / "out").iterdir()) == []
    assert sink.paths == {}


def test_what_comes_after_the_end_neither_changes_nor_replaces_a_file(tmp_path: Path) -> None:
    sink = WavSink(tmp_path)
    sink.write(frame(1, ONE))
    sink.close()
    sink.close()
    sink.write(frame(1, TWO))
    sink.write(frame(2, TWO))
    assert recorded(tmp_path / "1.wav") == ONE
    assert not (tmp_path / "2.wav").exists()


def test_one_file_holds_the_first_speaker_only(tmp_path: Path) -> None:
    sink = SingleWavSink(tmp_path / "out.wav")
    assert sink.user_id is None
    sink.write(frame(5, ONE))
    sink.write(frame(6, TWO))
    sink.write(frame(5, TWO))
    assert sink.user_id == 5
    assert sink.seconds == pytest.approx(0.04)
    sink.close()
    sink.close()
    sink.write(frame(5, ONE))
    assert recorded(tmp_path / "out.wav") == ONE + TWO


def test_sound_that_was_made_up_while_waiting_is_kept_only_for_packets_that_never_came(tmp_path: Path) -> None:
    sink = WavSink(tmp_path)
    sink.write(frame(1, ONE))
    for pcm in (TWO, ONE, ONE):
        sink.write(frame(1, pcm, Provenance.CONCEALED)._replace(awaited=True))
    sink.write(frame(1, ONE)._replace(missed=1))
    sink.write(frame(1, TWO, Provenance.CONCEALED)._replace(awaited=True))
    sink.close()
    assert recorded(tmp_path / "1.wav") == ONE + TWO + ONE


def test_a_place_that_cannot_be_written_shows_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        WavSink(tmp_path / "file" / "out")
    with pytest.raises(OSError, match=r"out\.wav"):
        SingleWavSink(tmp_path / "missing" / "out.wav")


def test_pitch_is_measured_for_every_user_and_sound_passed_on(tmp_path: Path) -> None:
    inner = SingleWavSink(tmp_path / "out.wav")
    sink, low, high = MeasuringSink(inner), ToneSource(440), ToneSource(880)
    for _ in range(60):
        sink.write(frame(1, low.read()))
        sink.write(frame(2, high.read()))
    sink.close()
    assert sink.frequency(1) == pytest.approx(440, abs=0.5)
    assert sink.frequency(2) == pytest.approx(880, abs=0.5)
    assert sink.frequency(3) == 0.0
    assert len(recorded(tmp_path / "out.wav")) == 60 * 3840


def test_silence_does_not_drown_what_was_measured() -> None:
    sink, low = MeasuringSink(), ToneSource(440)
    for _ in range(20):
        sink.write(frame(1, low.read()))
    for _ in range(200):
        sink.write(frame(1, bytes(3840)))
    sink.close()
    assert sink.frequency(1) == pytest.approx(440, abs=1)
