"""Encoding: what our way costs beside libopus alone, and whether threads help."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable

from bench.drivers.common import pcm_frames
from bench.machine import cores
from bench.results import OURS, Result, Settings
from voicegw.media.opus import FRAME_SAMPLES, OpusEncoder

FRAMES = 1000


def ours(frames: list[bytes], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of our encoder."""
    encode = OpusEncoder().encode
    began = clock()
    for number in range(FRAMES):
        encode(frames[number % len(frames)])
    return clock() - began


def alone(frames: list[bytes]) -> float:
    """Seconds inside libopus: the same calls on the same state, with buffers made before and nothing kept."""
    encoder = OpusEncoder()
    encode, state, packet = encoder._encode, encoder._state, ctypes.create_string_buffer(1275)
    buffers = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
    clock, total = time.thread_time, 0.0
    for number in range(FRAMES):
        pcm = ctypes.cast(buffers[number % len(buffers)], ctypes.c_char_p)
        began = clock()
        encode(state, pcm, FRAME_SAMPLES, packet, 1275)
        total += clock() - began
    return total


def encode(settings: Settings) -> Result:
    """One thread on one core."""
    result = Result("encode", "Encoding a frame of 20 ms, stereo, 128 kbit/s", "µs", {})
    frames = pcm_frames()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores()[0]})
    values: dict[str, list[float]] = {OURS: [], "libopus": []}
    try:
        for _ in range(settings.rounds):
            values[OURS].append(ours(frames, time.thread_time) / FRAMES * 1e6)
            values["libopus"].append(alone(frames) / FRAMES * 1e6)
    finally:
        os.sched_setaffinity(0, before)
    result.values = values
    result.compare("libopus", 1.25, "less")
    return result


def encode_threads(settings: Settings) -> Result:
    """Two threads on two cores."""
    result = Result("encode-threads", "Frames encoded a second", "frames", {})
    frames = pcm_frames()
    values: dict[str, list[float]] = {"one thread": [], "two threads": [], "two processes": []}
    for _ in range(settings.rounds):
        values["one thread"].append(FRAMES / ours(frames))
        pair = [threading.Thread(target=ours, args=(frames,)) for _ in range(2)]
        began = time.perf_counter()
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
        values["two threads"].append(2 * FRAMES / (time.perf_counter() - began))
        values["two processes"].append(_processes(frames))
    result.values = values
    result.compare("one thread", 1.7, "more", ours="two threads")
    result.notes.append(
        "libopus runs without Python's lock. Two processes share nothing: they show what the second core adds here."
    )
    return result


def _processes(frames: list[bytes]) -> float:
    """Frames a second of two processes, each of which times its own work."""
    began = [os.pipe() for _ in range(2)]
    children = []
    for _, write in began:
        child = os.fork()
        if child == 0:
            os.write(write, struct.pack("d", FRAMES / ours(frames)))
            os._exit(0)
        children.append(child)
    rates = [struct.unpack("d", os.read(read, 8))[0] for read, _ in began]
    for child, ends in zip(children, began, strict=True):
        os.waitpid(child, 0)
        for end in ends:
            os.close(end)
    return float(sum(rates))


MEASURES = {"encode": encode, "encode-threads": encode_threads}
