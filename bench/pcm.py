"""Sound that is encoded here: how many streams of it one core keeps at pace, and where the time of a frame goes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from itertools import cycle
from statistics import median

from bench.cost import observed
from bench.drivers.common import pcm_frames
from bench.machine import on_one_core
from bench.peers import senders
from bench.results import OURS, Result, Settings, rounded
from bench.streams import capacity
from voicegw.media.mixer import RUN_FRAMES, Mixer
from voicegw.media.opus import FRAME_SAMPLES, MAX_FRAME_BYTES, OpusEncoder, load_opus
from voicegw.media.readahead import ReadAhead
from voicegw.media.track import Track

PEER = "discord.py"
STREAMS = 40  # which all who are compared keep at pace
ENCODERS, RUNS = 10, 20
COMPLEXITY, INBAND_FEC, PACKET_LOSS_PERC = 4010, 4012, 4014
PEERS_SETTINGS = {INBAND_FEC: 1, PACKET_LOSS_PERC: 15}
OTHER_SETTINGS = {
    "as ours": {},
    "with FEC for a loss of 15 %": PEERS_SETTINGS,
    "at complexity 10": {COMPLEXITY: 10},
    "at 5": {COMPLEXITY: 5},
    "at 0": {COMPLEXITY: 0},
}


def pcm(settings: Settings) -> Result:
    """Sound that each library encodes by its own defaults."""
    result = Result("pcm", "PCM streams encoded and kept at pace by one core", "streams", {})
    capacity(result, settings, {OURS: 135, PEER: 58}, pcm=True, libopus=load_opus().path)
    result.compare(PEER, 4, "more")
    result.notes.append(
        f"The same libopus for both, 128 kbit/s, `audio`, libopus's own complexity (9). {PEER} switches forward error "
        "correction on and expects a loss of 15 % by default; ours does so once a loss is measured, Songbird, "
        "@discordjs/opus and lavaplayer (at complexity 10) do not. What that costs, and what any other setting would "
        "give, is in [profile-pcm](#profile-pcm): libopus is nearly all of the work."
    )
    return result


def profile_pcm(settings: Settings) -> Result:
    """A frame of PCM on its way out, of ours and of discord.py's."""
    result = Result("profile-pcm", "Where the time of a frame of PCM goes", "µs", {})
    values: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for name, chosen in OTHER_SETTINGS.items():
            costs.setdefault(name, []).append(on_one_core(lambda chosen=chosen: _libopus(chosen)))  # type: ignore[misc]
        for sender in senders(OURS, PEER):
            whole = observed(sender, STREAMS, settings.seconds, pcm=True, libopus=load_opus().path)["cpu_us"]
            libopus = costs["as ours" if sender.name == OURS else "with FEC for a loss of 15 %"][-1]
            values.setdefault(f"{sender.name}, libopus", []).append(libopus)
            if sender.name == OURS:
                mixed = on_one_core(_mixed)
                values.setdefault(f"{OURS}, reading, mixing", []).append(mixed)
                values.setdefault(f"{OURS}, pacing, sending, threads", []).append(whole - libopus - mixed)
            else:
                values.setdefault(f"{PEER}, all the rest", []).append(whole - libopus)
    result.values = values
    medians = result.medians()
    wholes = {who: sum(us for step, us in medians.items() if step.startswith(who)) for who in (OURS, PEER)}
    ours, theirs = medians[f"{OURS}, libopus"], medians.get(f"{PEER}, libopus", 0.0)
    if theirs:
        whole, other = wholes[OURS], wholes[PEER]
        result.notes.append(
            f"A frame costs ours {whole:.0f} µs and {PEER} {other:.0f}, {other / whole:.1f} times as much, so one core "
            f"has room for {2e4 / whole:.0f} and {2e4 / other:.0f} streams. Were all of ours but libopus free, the "
            f"ratio would be {other / ours:.1f}; were all of both, {theirs / ours:.1f}. More than that is only to be "
            "had from libopus, by encoding worse."
        )
    every = ", ".join(f"{name} {rounded(median(one))} µs" for name, one in costs.items())
    result.notes.append(
        f"A frame in libopus alone, runs of ten of {ENCODERS} encoders in turn: {every}. At 5 and less it leaves out "
        "the analysis that tells music from speech; `OpusEncoder` stays at libopus's own 9."
    )
    result.notes.append(
        "What is neither libopus nor the mixer is the difference to the whole process, which is paced and has "
        f"{STREAMS} streams: pacing, sealing, the system call, waking threads, and caches that other work has had "
        "meanwhile."
    )
    return result


def _libopus(chosen: Mapping[int, int]) -> float:
    """Microseconds of a frame inside libopus, once it knows what it hears."""
    encoders = [OpusEncoder() for _ in range(ENCODERS)]
    for encoder in encoders:
        for request, value in chosen.items():
            encoder._control(encoder._state, request, ctypes.c_int32(value))
    frames, packet, clock = cycle(pcm_frames()), ctypes.create_string_buffer(MAX_FRAME_BYTES), time.thread_time
    spent = 0.0
    for run in range(RUNS):
        part = [next(frames) for _ in range(RUN_FRAMES)]
        for encoder in encoders:
            encode, state = encoder._encode, encoder._state
            began = clock()
            for frame in part:
                encode(state, frame, FRAME_SAMPLES, packet, MAX_FRAME_BYTES)
            spent += (clock() - began) * (run >= RUNS // 2)
    return spent / (RUNS - RUNS // 2) / ENCODERS / RUN_FRAMES * 1e6


class _Sound:
    """PCM without end."""

    is_opus = False

    def __init__(self) -> None:
        self.read = cycle(pcm_frames()).__next__

    def close(self) -> None:
        pass


class _AtOnce:
    """Workers that work at once."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def relieve(self) -> None:
        pass


class _NoEncoder(OpusEncoder):
    """Everything about encoding but that."""

    def encode(self, pcm: bytes) -> bytes:
        return b"\xfc"


def _mixed() -> float:
    """Microseconds of a frame that is read and mixed, but not encoded."""
    reader = ReadAhead(_Sound(), _AtOnce())
    reader.refill()
    mixer = Mixer(_AtOnce(), 128_000, lambda track: None, lambda track, following: None, lambda: 0.0)
    mixer._encoder = _NoEncoder()
    mixer.begin([Track(None, reader)])
    began, frames = time.thread_time(), 0
    for _ in range(1000):
        frames += len(mixer.frames)
        mixer.frames.clear()
        mixer.refill()
    return (time.thread_time() - began) / frames * 1e6


MEASURES = {"pcm": pcm, "profile-pcm": profile_pcm}
