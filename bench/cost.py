"""What streams cost that are all kept at pace: processor, lateness, memory, threads."""

from __future__ import annotations

import functools
import json
import math
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.machine import cpu_s, memory_kib, threads
from bench.peers import Sender, senders, sending, sink
from bench.results import OURS, Result, Settings
from bench.streams import WARM_S
from voicegw.media.pacer import FULL_SLOT

STREAMS = 100
SLOT_SIZES = (8, 16, 32, 64, 128)
SLOTS_ROUNDS = 3
ALL = (OURS, "discord.py", "py-cord", "@discordjs/voice", "C")


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a sender says of itself: ours, its pacer's statistics."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    said: dict[str, Any] = json.loads(process.stdout.readline())
    return said


def observed(sender: Sender, streams: int, seconds: float, word: str = "", **kind: Any) -> dict[str, Any]:
    """What arrives of so many streams, and `cpu_us` a packet; `word` is said to the sender before."""
    with sink() as other, sending(sender, other.port, streams, **kind) as process:
        time.sleep(WARM_S)
        if word:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            time.sleep(WARM_S)
        before = cpu_s(process.pid)
        other.begin()
        time.sleep(seconds)
        arrived = other.end()
        arrived["cpu_us"] = (cpu_s(process.pid) - before) * 1e6 / max(1, arrived["packets"])
        if sender.name == OURS and not word:
            arrived["pacer"] = answer(process)
    return arrived


@functools.cache
def rounds_of(settings: Settings) -> Mapping[str, Sequence[dict[str, Any]]]:
    """What arrives from each of `ALL` in every round; made once, for two benchmarks look at it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(settings.rounds):
        for sender in senders(*ALL):
            found.setdefault(sender.name, []).append(observed(sender, STREAMS, settings.seconds))
    return found


def packet(settings: Settings) -> Result:
    """Processor time."""
    result = Result("packet", f"Processor time a packet, {STREAMS} passed-through streams", "µs", {})
    result.values = {name: [arrived["cpu_us"] for arrived in each] for name, each in rounds_of(settings).items()}
    result.compare("discord.py", 0.35, "less")
    result.compare("py-cord", 0.35, "less")
    result.notes.append("All threads of the process, the system calls among it: the C sender shows what those cost.")
    return result


def lateness(settings: Settings) -> Result:
    """How even the packets come."""
    title = f"99th percentile of the gaps' distance from 20 ms, {STREAMS} passed-through streams"
    result = Result("lateness", title, "ms", {})
    each = rounds_of(settings)
    result.values = {name: [arrived["gap_error_ms"]["p99"] for arrived in rounds] for name, rounds in each.items()}
    result.compare("discord.py", 1 / 3, "less")
    result.compare("C", 1.0, "less", by=lambda a, b: a - b, of=f"{OURS} - C, ms")
    result.notes.append(
        "Streams of one slot leave one after the other: the gap of the last is as even as the work of those before it. "
        "discord.py wakes a thread for each stream, which is as even as the kernel's timers, and costs what "
        "[packet](#packet) says; [slots](#slots) says what fewer streams in a slot would. A receiver's jitter buffer "
        "waits for 40 ms and more."
    )
    pacer = each[OURS][-1]["pacer"]
    late = ", ".join(f"{name} {count}" for name, count in pacer["lateness"].items() if count)
    result.notes.append(
        f"What the pacer itself says of the last round (`process_pacer().stats`): {pacer['frames']} frames left, after "
        f"their time by {late}; {pacer['skipped']} skipped; load {pacer['load']:.0%} of a core."
    )
    result.more["pacer"] = pacer
    return result


def slots(settings: Settings) -> Result:
    """Few wake-ups or even gaps."""
    result = Result("slots", f"Processor time a packet, {STREAMS} streams, by how many share a wake-up", "µs", {})
    values: dict[str, list[float]] = {}
    errors: dict[int, list[float]] = {}
    for _ in range(min(SLOTS_ROUNDS, settings.rounds)):
        for sender in senders(OURS):
            for size in SLOT_SIZES:
                arrived = observed(sender, STREAMS, settings.seconds, full_slot=size)
                values.setdefault(f"{OURS}, {size} a slot", []).append(arrived["cpu_us"])
                errors.setdefault(size, []).append(arrived["gap_error_ms"]["p99"])
    result.values = values
    medians = list(result.medians().values())
    wakings = [math.ceil(STREAMS / size) for size in SLOT_SIZES]
    waking_us = (medians[0] - medians[-1]) * STREAMS / (wakings[0] - wakings[-1])
    gaps = ", ".join(f"{size} a slot {statistics.median(each):.2f} ms" for size, each in errors.items())
    result.notes.append(
        f"99th percentile of the gaps' distance from 20 ms: {gaps}. A waking costs {waking_us:.0f} µs, since the core "
        f"was idle and its caches are empty; each packet of {STREAMS} bears a hundredth of every waking. "
        f"Slots are filled with {FULL_SLOT}: a jitter buffer evens out what the gaps are off by, and the "
        "processor is paid for by everybody."
    )
    result.more["gap_error_ms"] = {str(size): each for size, each in errors.items()}
    return result


def busy(settings: Settings) -> Result:
    """The bot computes in its event loop all the time."""
    title = f"Packets that leave of those due, {STREAMS} streams, while the bot computes in Python"
    result = Result("busy", title, "of 1", {})
    values: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for sender in senders(OURS, "discord.py"):
            arrived = observed(sender, STREAMS, settings.seconds, "compute")
            due = STREAMS * 50 * settings.seconds
            values.setdefault(sender.name, []).append(arrived["packets"] / due)
    result.values = values
    result.compare("discord.py", 1.0, "more")
    result.notes.append(
        "An event loop that never rests, on the same core. Sockets that hand the interpreter over with every packet "
        "get it back after 5 ms."
    )
    return result


def memory(settings: Settings) -> Result:
    """What one stream more holds."""
    result = Result("memory", "Private memory of each further stream", "KiB", {})
    values: dict[str, list[float]] = {}
    few, many = 20, 220
    for _ in range(settings.rounds):
        for sender in senders(OURS, "discord.py", "@discordjs/voice"):
            held, running = [], []
            for streams in (few, many):
                with sink() as other, sending(sender, other.port, streams) as process:
                    time.sleep(WARM_S)
                    held.append(memory_kib(process.pid))
                    running.append(threads(process.pid))
            values.setdefault(sender.name, []).append((held[1] - held[0]) / (many - few))
            values.setdefault(f"{sender.name}, threads", []).append((running[1] - running[0]) / (many - few))
    result.values = {name: each for name, each in values.items() if "threads" not in name}
    result.compare("discord.py", 1 / 3, "less")
    for name, each in values.items():
        if "threads" in name:
            result.notes.append(f"{name} for each further stream: {max(each):.2f}.")
    return result


MEASURES = {"packet": packet, "lateness": lateness, "slots": slots, "busy": busy, "memory": memory}
