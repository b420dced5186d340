"""How lost packets sound: our receiver beside libopus alone on the same losses, scored by PESQ and STOI."""

from __future__ import annotations

import array
import ctypes
import json
import math
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.machine import HERE
from bench.peers import BenchFailed, peer_python
from bench.results import OURS, Result, Settings
from voicegw.media.heard import SLOT_S
from voicegw.media.jitter import Turn
from voicegw.media.opus import FRAME_BYTES, OpusDecoder, OpusEncoder, _function, load_opus
from voicegw.media.opus_packets import has_copy
from voicegw.media.receiver import StreamReceiver

PACKAGES = ("numpy", "scipy", "pystoi==0.4.1", "pesq==0.0.4")
LOSSES = (0.0, 0.05, 0.1, 0.2, 0.4)
BURST = 3.0
SECONDS = 8
END_SLOTS = 25


def speech() -> list[bytes]:
    """Something like speech: syllables of a voice through moving formants, with breath between them."""
    chance, frames, phase = random.Random(3), [], 0.0
    states = [[0.0, 0.0] for _ in range(3)]
    syllable, pitch, vowel, loud = 0, 120.0, (700.0, 1200.0, 2600.0), 1.0
    for slot in range(SECONDS * 50):
        if syllable == 0:
            syllable = chance.randrange(6, 14)
            pitch = chance.uniform(95, 165)
            vowel = (chance.uniform(280, 800), chance.uniform(900, 2200), chance.uniform(2300, 3000))
            loud = chance.choice((0.0, 0.7, 1.0, 1.0))
        syllable -= 1
        voiced = syllable > 2
        samples = array.array("h")
        for _ in range(960):
            phase += pitch * (1 + 0.02 * math.sin(slot / 3)) / 48_000
            push = (1.0 if phase >= 1 else 0.0) * 14 if voiced else chance.gauss(0, 0.25)
            phase %= 1.0
            sound = 0.0
            for state, hz, width in zip(states, vowel, (80.0, 110.0, 160.0), strict=True):
                r = math.exp(-math.pi * width / 48_000)
                value = push * (1 - r) + 2 * r * math.cos(2 * math.pi * hz / 48_000) * state[0] - r * r * state[1]
                state[1], state[0] = state[0], value
                sound += value
            level = int(max(-32_000, min(32_000, sound * 9000 * loud)))
            samples.append(level)
            samples.append(level)
        frames.append(samples.tobytes())
    return frames


def packets_with_copies(frames: Sequence[bytes], loss: float) -> list[bytes]:
    """As a client sends speech over a bad network: 32 kbit/s, voice, in-band FEC."""
    encoder = OpusEncoder(32_000, "voip")
    control = _function(load_opus(), "opus_encoder_ctl", ctypes.c_void_p, ctypes.c_int)
    for request, value in ((4012, 1), (4014, round(loss * 100)), (4024, 3001)):
        control(encoder._state, request, ctypes.c_int32(value))
    return [encoder.encode(frame) for frame in frames]


def loss_map(count: int, loss: float, burst: bool, seed: int) -> list[bool]:
    """Which packets are lost; in bursts of three on average, or each for itself."""
    chance, lost, bad = random.Random(seed), [False], False
    leave = 1 / BURST if burst else 1 - loss
    enter = loss / (1 - loss) * leave if burst else loss
    for _ in range(count - 1):
        bad = chance.random() < (1 - leave if bad else enter)
        lost.append(bad)
    return lost


def ours(packets: Sequence[bytes], lost: Sequence[bool]) -> list[bytes]:
    """The slots that our receiver renders."""
    now, slots = [10.0], {}

    def decode(turns: list[Turn]) -> None:
        for turn in turns:
            frame = turn.decoder.turn(turn, True)
            if frame is not None:
                slots[frame.slot] = frame.pcm

    receiver = StreamReceiver(lambda: now[0], decode)
    receiver.map_ssrc(1, 1)
    for number in range(len(packets) + END_SLOTS):  # the clock goes on after the last packet, as it does in a call
        if number < len(packets) and not lost[number]:
            receiver.packet(1, number, packets[number])
        now[0] += SLOT_S
        receiver.tick()
    first = min(slots)
    return [slots.get(first + number, bytes(FRAME_BYTES)) for number in range(len(packets))]


def libopus(packets: Sequence[bytes], lost: Sequence[bool]) -> list[bytes]:
    """What libopus makes of it: the copy in the next packet where there is one, else its own concealment."""
    decoder, frames = OpusDecoder(), []
    for number, packet in enumerate(packets):
        if not lost[number]:
            frames.append(decoder.decode(packet))
        elif number + 1 < len(packets) and not lost[number + 1] and has_copy(packets[number + 1]):
            frames.append(decoder.decode_fec(packets[number + 1]))
        else:
            frames.append(decoder.conceal())
    return frames


def scores(python: Path, clean: Sequence[bytes], heard: dict[str, Sequence[bytes]]) -> dict[str, dict[str, float]]:
    """PESQ (wide band, 1 to 4.6) and STOI (0 to 1) of each against the sound without loss."""
    with tempfile.TemporaryDirectory() as place:
        for name, frames in {"clean": clean, **heard}.items():
            Path(place, name).write_bytes(b"".join(frames))
        command = [str(python), str(HERE / "drivers" / "score.py"), place]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchFailed(f"the scores cannot be had: {ended.stderr.strip()[-300:]}")
    found: dict[str, dict[str, float]] = json.loads(ended.stdout)
    return found


def quality(settings: Settings) -> Result:
    """Speech at 32 kbit/s with in-band FEC; every round draws other losses, the same for both."""
    python = peer_python("measures", PACKAGES)
    if python is None:
        raise BenchFailed("PESQ needs a C compiler and a package registry")
    result = Result("quality", "Quality of speech under loss (PESQ, wide band)", "MOS", {})
    frames = speech()
    values: dict[str, list[float]] = {}
    words: dict[str, list[float]] = {}
    cases = [(loss, burst) for loss in LOSSES for burst in ((False, True) if loss else (False,))]
    for loss, burst in cases:
        packets = packets_with_copies(frames, loss)
        clean = libopus(packets, [False] * len(packets))
        case = f"{loss:.0%}, in bursts" if burst else f"{loss:.0%}"
        heard: dict[str, Sequence[bytes]] = {}
        for seed in range(settings.rounds):
            lost = loss_map(len(packets), loss, burst, seed)
            heard |= {f"{OURS} {seed}": ours(packets, lost), f"libopus {seed}": libopus(packets, lost)}
        for name, score in scores(python, clean, heard).items():
            who = name.split()[0]
            values.setdefault(f"{who} {case}", []).append(score["pesq"])
            words.setdefault(f"{who} {case}", []).append(score["stoi"])
        result.values = values
        result.compare(f"libopus {case}", 0.98, "more", ours=f"{OURS} {case}")
    result.notes.append(
        "STOI, in the order of the table: "
        + ", ".join(f"{sum(found) / len(found):.3f}" for found in words.values())
        + "."
    )
    result.notes.append(
        "libopus alone goes on guessing for as long as it is asked to; music becomes noise of the same loudness. Ours "
        "fades after 100 ms and is silent after 200."
    )
    return result


MEASURES = {"quality": quality}
