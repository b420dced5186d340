"""RTP media: what the far end renders. Loss, silence frames, Opus surprises, and ciphertext that must stay unheard."""

from __future__ import annotations

import ctypes
import math
import random

import pytest

from tests.faults.cells import covers
from tests.listening import ALICE, BOB, SSRC, TONE, Listening
from tests.members import World as Groups
from voicegw.adapters.mls import MlsGroup
from voicegw.errors import NotAudio
from voicegw.media.heard import Provenance
from voicegw.media.opus import OpusDecoder, OpusEncoder, _function, load_opus
from voicegw.media.opus_packets import has_copy
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.rtp import SILENCE_FRAME


def voice(seconds: float) -> list[bytes]:
    """Frames of something like speech: a buzz whose pitch and loudness wander."""
    frames, phase = [], 0.0
    for number in range(round(seconds * 50)):
        samples = (ctypes.c_int16 * 1920)()
        for at in range(960):
            time = number * 0.02 + at / 48_000
            phase += 2 * math.pi * (140 + 30 * math.sin(time * 5)) / 48_000
            sound = sum(math.sin(phase * k) / k for k in range(1, 9)) * (0.55 + 0.45 * math.sin(time * 18))
            samples[2 * at] = samples[2 * at + 1] = round(6000 * sound)
        frames.append(bytes(samples))
    return frames


def with_copies(frames: list[bytes], loss_percent: int) -> list[bytes]:
    """Packets that carry a copy of the one before: voice mode, 32 kbit/s, in-band FEC on."""
    encoder = OpusEncoder(32_000, "voip")
    control = _function(load_opus(), "opus_encoder_ctl", ctypes.c_void_p, ctypes.c_int)
    for request, value in ((4012, 1), (4014, loss_percent), (4024, 3001)):  # FEC, expected loss, signal is voice
        assert control(encoder._state, request, ctypes.c_int32(value)) == 0
    return [encoder.encode(frame) for frame in frames]


VOICE = voice(4.0)
PACKETS = with_copies(VOICE, 20)


def losses(kind: str, share: float, seed: int) -> set[int]:
    """Which packets are lost: at random, or in bursts of so many on average."""
    chance, lost = random.Random(seed), set()
    if kind == "random":
        return {number for number in range(1, len(PACKETS)) if chance.random() < share}
    length = float(kind)
    bad = False
    for number in range(1, len(PACKETS)):
        bad = chance.random() >= 1 / length if bad else chance.random() < share / (1 - share) / length
        if bad:
            lost.add(number)
    return lost


def closeness(original: list[bytes], heard: list[bytes]) -> float:
    """1 where both have the same loudness in every slot, 0 where they have nothing in common; frames as PCM."""

    def loud(pcm: bytes) -> float:
        samples = memoryview(pcm).cast("h")[::16]
        return math.sqrt(sum(sample * sample for sample in samples) / len(samples))

    pairs = [(loud(one), loud(other)) for one, other in zip(original, heard, strict=True)]
    return 1 - sum(abs(one - other) for one, other in pairs) / sum(max(pair) for pair in pairs)


def say(listening: Listening, lost: set[int]) -> None:
    for number, packet in enumerate(PACKETS):
        if number not in lost:
            listening.take(number, packet)
        listening.wait(0.02)
    listening.wait(1.0)


@covers("F103")
@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2, 0.4, 0.5])
@pytest.mark.parametrize("kind", ["random", "1.5", "4"])
def test_loss_is_recovered_concealed_and_faded(kind: str, share: float, seed: int) -> None:
    listening = Listening()
    listening.receiver.map_ssrc(SSRC, ALICE)
    lost = losses(kind, share, seed)
    say(listening, lost)
    clean = Listening()
    clean.receiver.map_ssrc(SSRC, ALICE)
    say(clean, set())
    stats = listening.receiver.stats[ALICE]
    tail = len(PACKETS) - max(set(range(len(PACKETS))) - lost) - 1
    assert (stats.lost, stats.late, stats.restarts) == (len(lost) - tail, 0, 0)
    slots = {frame.slot - clean.frames[0].slot: frame.pcm for frame in listening.frames}
    original = [frame.pcm for frame in clean.frames[: len(PACKETS)]]
    heard = [slots.get(place, bytes(3840)) for place in range(len(PACKETS))]
    with_holes = [bytes(3840) if place in lost else pcm for place, pcm in enumerate(heard)]
    score, score_with_holes = closeness(original, heard), closeness(original, with_holes)
    assert 1 - score <= (0.85 if kind == "4" else 0.6) * (1 - score_with_holes) + 0.005
    alone = {n for n in lost if n - 1 not in lost and n + 1 not in lost and n + 1 < len(PACKETS)}
    recovered = [frame for frame in listening.frames if frame.provenance is Provenance.RECOVERED]
    assert len(recovered) == stats.recovered >= sum(has_copy(PACKETS[n + 1]) for n in alone)


def test_the_packets_of_these_tests_carry_copies() -> None:
    assert sum(map(has_copy, PACKETS)) > len(PACKETS) / 2


@covers("F103")
@pytest.mark.parametrize("kind", ["voice", "music"])
@pytest.mark.parametrize("behind", [False, True], ids=["nothing behind", "packets behind"])
def test_what_is_made_up_fades_after_100_ms_and_is_silent_after_200(kind: str, behind: bool) -> None:
    encoder = OpusEncoder()
    packets = PACKETS if kind == "voice" else [encoder.encode(frame) for frame in VOICE]
    listening, alone = Listening(), OpusDecoder()
    listening.receiver.map_ssrc(SSRC, ALICE)
    for number in range(50):
        listening.take(number, packets[number])
        alone.decode(packets[number])
        listening.wait(0.02)
    for number in range(75, 100) if behind else ():
        listening.take(number, packets[number])
    listening.wait(2.0)
    made_up = [frame for frame in listening.frames if frame.provenance is Provenance.CONCEALED][:24]
    assert [frame.slot - made_up[0].slot for frame in made_up] == list(range(24 if behind else 10))
    guesses = [alone.conceal() for _ in range(10)]
    assert [frame.pcm for frame in made_up[:5]] == guesses[:5]
    for place, (frame, guess) in enumerate(zip(made_up[5:10], guesses[5:], strict=True)):
        heard, unfaded = memoryview(frame.pcm).cast("h"), memoryview(guess).cast("h")
        for at in range(0, 1920, 96):
            level = 1 - (place + at / 1920) / 5
            assert heard[at] == pytest.approx(unfaded[at] * level, abs=1 + abs(unfaded[at]) / 400)
    assert not any(any(frame.pcm) for frame in made_up[10:])


@covers("F103")
def test_long_packets_that_are_lost_fade_as_soon_as_short_ones() -> None:
    listening, chance = Listening(), random.Random(1)
    listening.receiver.map_ssrc(SSRC, ALICE)
    for number in range(20):  # 60 ms each
        listening.take(number, bytes((0x18,)) + chance.randbytes(40))
        listening.wait(0.06)
    for number in range(28, 32):
        listening.take(number, bytes((0x18,)) + chance.randbytes(40))
    listening.wait(1.5)
    made_up = [frame for frame in listening.frames if frame.provenance is Provenance.CONCEALED][:21]
    assert [frame.slot - made_up[0].slot for frame in made_up] == list(range(21))  # the last packet has a copy
    assert not any(any(frame.pcm) for frame in made_up[12:])


# -- silence frames


@covers("F104")
def test_silence_that_the_server_puts_in_passes_end_to_end_encryption() -> None:
    groups = Groups()
    for user in (ALICE, BOB):
        groups.join(user)
    groups.settle()
    alice, bob = groups.members[ALICE].group, groups.members[BOB].group
    listening = Listening()
    listening.receiver.use_decrypt(bob.decrypt)
    listening.receiver.map_ssrc(SSRC, ALICE)
    for number in range(20):
        listening.take(number, alice.encrypt(TONE[number]))
        listening.wait(0.02)
    for number in range(20, 25):
        listening.take(number, SILENCE_FRAME)  # exactly these three bytes, in the clear
        listening.wait(0.02)
    for number in range(25, 30):
        listening.take(number, alice.encrypt(SILENCE_FRAME))
        listening.wait(0.02)
    listening.take(30, SILENCE_FRAME + b"\0")  # one byte more is no silence, and clear speech is not believed
    listening.wait(0.5)
    stats = listening.receiver.stats[ALICE]
    assert (stats.silence, stats.undecryptable, stats.lost) == (10, 1, 0)
    assert listening.heard().startswith("." * 20 + "s" * 10 + "?")
    assert next(round(at, 2) for at, _, on in listening.speaking if not on) <= 20 * 0.02 + 0.2


@covers("F104")
def test_after_five_frames_of_silence_nothing_is_made_up() -> None:
    for count, guessed in ((5, 0), (0, 10)):
        listening = Listening()
        listening.receiver.map_ssrc(SSRC, ALICE)
        listening.say(*range(1, 11))
        for number in range(11, 11 + count):
            listening.take(number, SILENCE_FRAME)
            listening.wait(0.02)
        listening.wait(0.5)
        assert listening.heard().count("x") == guessed


# -- Opus surprises


@covers("F105")
def test_packets_of_every_kind_of_frame_come_out_in_slots(seed: int) -> None:
    """Every TOC byte, with whatever bytes behind it, in streams of one length and of all mixed."""
    chance = random.Random(seed)
    for order in (sorted(range(256), key=lambda toc: (toc >> 3, toc)), chance.sample(range(256), 256)):
        listening = Listening()
        listening.receiver.map_ssrc(SSRC, ALICE)
        for number, toc in enumerate(order):
            body = chance.randbytes(chance.choice((0, 1, 2, 20, 60, 120, 240)))
            listening.take(number, bytes((toc,)) + body)
            listening.wait(0.02)
        listening.wait(3.0)
        stats = listening.receiver.stats[ALICE]
        assert stats.packets + stats.late == 256
        assert stats.undecodable == 0, "what looks right can be decoded"
        assert len(listening.heard()) == stats.slots


@covers("F105")
@pytest.mark.parametrize(
    ("toc", "milliseconds"),
    [(0x83 ^ 3, 2.5), (0x88, 5), (0xF0, 10), (0xF8, 20), (0x10, 40), (0x18, 60), (0x19, 120)],
    ids=lambda value: str(value),
)
def test_frames_of_2_5_to_120_ms_play_in_real_time(toc: int, milliseconds: float) -> None:
    listening, chance = Listening(), random.Random(1)
    listening.receiver.map_ssrc(SSRC, ALICE)
    count = round(2400 / milliseconds)
    for number in range(count):
        while listening.now < 100 + number * milliseconds / 1000:
            listening.wait(0.02)
        listening.take(number, bytes((toc,)) + chance.randbytes(40))
    listening.wait(0.5)
    stats = listening.receiver.stats[ALICE]
    assert (stats.packets, stats.lost, stats.late, stats.errors) == (count, 0, 0, 0)
    heard = listening.heard()
    assert heard.rstrip("x").count(".") == pytest.approx(120, abs=2)
    assert heard.rstrip("x").count("x") <= 1


@covers("F105")
def test_bytes_that_are_no_opus_never_reach_the_decoder(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[bytes] = []
    decode = OpusDecoder.decode

    def watch(self: OpusDecoder, frame: bytes) -> bytes:
        try:
            return decode(self, frame)
        except NotAudio:
            refused.append(frame)
            raise

    monkeypatch.setattr(OpusDecoder, "decode", watch)
    listening, chance = Listening(), random.Random(seed)
    listening.receiver.map_ssrc(SSRC, ALICE)
    for number in range(3000):
        listening.receiver.packet(SSRC, number, chance.randbytes(chance.choice((0, 1, 2, 3, 7, 50, 300, 1274, 1400))))
        listening.wait(0.02)
    listening.wait(3.0)
    stats = listening.receiver.stats[ALICE]
    assert refused == []
    assert stats.misshapen > 100
    assert stats.packets + stats.late >= 2900


@covers("F105")
def test_a_decoder_that_goes_on_failing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, broken = OpusDecoder.decode, set[int]()

    def failing(self: OpusDecoder, frame: bytes) -> bytes:
        if not broken:
            broken.add(id(self))
        if id(self) in broken:
            raise NotAudio("corrupted stream")
        return decode(self, frame)

    monkeypatch.setattr(OpusDecoder, "decode", failing)
    listening = Listening()
    listening.receiver.map_ssrc(SSRC, ALICE)
    kept = []  # or else the next decoder may get the same address
    for number in range(20):
        listening.take(number, TONE[number])
        listening.wait(0.02)
        kept.append(listening.receiver.map.owners[SSRC][1].decoder._decoder)
    listening.wait(0.5)
    stats = listening.receiver.stats[ALICE]
    assert (stats.undecodable, stats.decoder_resets) == (5, 1)
    assert len(listening.heard()) == stats.slots == 20 + 10


# -- ciphertext


@covers("F106")
@pytest.mark.parametrize("case", ["unknown user", "no group", "another group", "older epoch", "version 0", "tampered"])
def test_ciphertext_never_reaches_a_decoder(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def noted(frame: bytes) -> bytes:
        decoded.append(frame)
        return frame

    decode, decode_fec = OpusDecoder.decode, OpusDecoder.decode_fec
    monkeypatch.setattr(OpusDecoder, "decode", lambda self, frame: decode(self, noted(frame)))
    monkeypatch.setattr(
        OpusDecoder,
        "decode_fec",
        lambda self, frame, samples: decode_fec(self, noted(frame), samples),
    )
    groups = Groups()
    for user in (ALICE, BOB):
        groups.join(user)
    groups.settle()
    alice, bob = groups.members[ALICE].group, groups.members[BOB].group
    frames = [alice.encrypt(packet) for packet in TONE]
    listening = Listening()
    listening.receiver.map_ssrc(SSRC, BOB if case == "unknown user" else ALICE)
    if case == "no group":
        listening.receiver.use_decrypt(MlsGroup(BOB, lambda: listening.now).decrypt)
    elif case == "another group":
        others = Groups()
        for user in (ALICE, BOB):
            others.join(user)
        others.settle()
        listening.receiver.use_decrypt(others.members[BOB].group.decrypt)
    elif case == "version 0":
        listening.receiver.use_decrypt(None)
    else:
        listening.receiver.use_decrypt(bob.decrypt)
    if case == "older epoch":
        bob._now = lambda: listening.now
        groups.members[BOB].begin()
        listening.now += 11
    if case == "tampered":
        frames = [frame[:5] + bytes((frame[5] ^ 1,)) + frame[6:] for frame in frames]
    for number, frame in enumerate(frames):
        assert is_dave_frame(frame)
        listening.take(number, frame)
        listening.wait(0.02)
    listening.wait(0.5)
    assert decoded == []
    user = BOB if case == "unknown user" else ALICE
    stats = listening.receiver.stats[user]
    assert (stats.packets, stats.undecryptable) == (len(frames), len(frames))
    assert set(listening.heard(user)) <= {"?", "x"}
    assert not any(any(frame.pcm) for frame in listening.frames)
