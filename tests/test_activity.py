from __future__ import annotations

import random
import sys

import pytest

from tests.faults.test_media_sound import voice
from tests.test_hearing import Kept
from voicegw.errors import AudioError
from voicegw.media.activity import SpeechSink, VoiceActivity
from voicegw.media.heard import HeardFrame, Provenance

ALICE, BOB = 11, 22


def frame(user_id: int, slot: int, pcm: bytes, provenance: Provenance = Provenance.RECEIVED) -> HeardFrame:
    return HeardFrame(user_id, slot, pcm, provenance, ())


def test_speech_is_told_from_silence_and_hiss() -> None:
    pytest.importorskip("webrtcvad")
    activity, chance = VoiceActivity(), random.Random(1)
    hiss = [
        b"".join(chance.randrange(-30, 30).to_bytes(2, "little", signed=True) * 2 for _ in range(960))
        for _ in range(50)
    ]
    spoken = [activity(frame(ALICE, n, pcm)) for n, pcm in enumerate(voice(1.0))]
    quiet = [activity(frame(BOB, n, pcm)) for n, pcm in enumerate(hiss)]
    assert sum(spoken) > 40
    assert sum(quiet) < 5
    assert activity(frame(ALICE, 99, voice(0.02)[0], Provenance.SILENCE)) is False


def test_only_speech_and_a_little_after_it_is_passed_on() -> None:
    pytest.importorskip("webrtcvad")
    kept = Kept()
    sink = SpeechSink(kept, hangover_s=0.1)
    silence = [bytes(3840)] * 50
    for slot, pcm in enumerate(silence + voice(1.0) + silence):
        sink.write(frame(ALICE, slot, pcm))
        sink.write(frame(BOB, slot, bytes(3840)))
    sink.close()
    assert {one.user_id for one in kept.frames} == {ALICE}
    slots = [one.slot for one in kept.frames]
    assert 50 <= slots[0] < 60
    assert 95 < slots[-1] < 100 + 5 + 10


def test_what_is_missing_or_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webrtcvad")
    with pytest.raises(ValueError, match="not 4"):
        VoiceActivity(4)
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(AudioError, match=r"voicegw\[vad\]"):
        VoiceActivity()
