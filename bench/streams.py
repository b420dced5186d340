"""How many streams one core keeps at pace, by each library."""

from __future__ import annotations

import time
from typing import Any

from bench.peers import BenchFailed, Sender, senders, sending, sink
from bench.results import OURS, Result, Settings

PACE = 0.999
WARM_S = 0.8
STEP, NEAR, WIDE = 1.04, 1.08, 1.5
MOST = 12_000
MOST_TRIES = 12
FRAME_MS = 20.0


def keeps_pace(sender: Sender, streams: int, seconds: float, **kind: Any) -> bool:
    """Do all streams send all the time, and is the mean gap between a stream's packets 20 ms?"""
    try:
        with sink() as other, sending(sender, other.port, streams, **kind):
            time.sleep(WARM_S)
            other.begin()
            began = time.monotonic()
            time.sleep(seconds)
            arrived = other.end()
            due = streams * (time.monotonic() - began) * 1000 / FRAME_MS
    except BenchFailed:  # ours refuses more than it can keep
        return False
    # Who catches up sends too fast. One packet of each stream may be beyond the window's ends, where no gap is seen.
    even = PACE <= arrived["gap_ms"] / FRAME_MS <= 2 - PACE
    return even and bool(arrived["packets"] >= PACE * due - streams)


def largest(sender: Sender, guess: int, seconds: float, factor: float, **kind: Any) -> int:
    """The largest number that is kept, looked for from `guess` on in steps of `factor`, then of 4 %."""
    streams, kept = guess, keeps_pace(sender, guess, seconds, **kind)
    best = streams if kept else 0
    for _ in range(MOST_TRIES):
        step = round(streams * factor) if kept else round(streams / factor)
        streams = max(1, min(MOST, step if step != streams else streams + (1 if kept else -1)))
        again = keeps_pace(sender, streams, seconds, **kind)
        best = max(best, streams if again else 0)
        if again != kept:
            if factor <= STEP:
                break
            factor = max(STEP, factor**0.5)
        kept = again
    if not best:
        raise BenchFailed(f"{sender.name} keeps no number of streams at pace here")
    return best


def capacity(result: Result, settings: Settings, guesses: dict[str, int], **kind: Any) -> Result:
    """Fill in the largest numbers, in interleaved rounds; each begins where the one before has ended.

    The first looks in wide steps, so that it does not matter how good the guesses are.
    """
    values: dict[str, list[float]] = {}
    for number in range(settings.rounds):
        for sender in senders(*guesses):
            found = largest(sender, guesses[sender.name], settings.seconds, NEAR if number else WIDE, **kind)
            values.setdefault(sender.name, []).append(found)
            guesses[sender.name] = found
    result.values = values
    return result


def streams(settings: Settings) -> Result:
    """Opus that passes through, without DAVE."""
    result = Result("streams", "Passed-through streams kept at pace by one core", "streams", {})
    guesses = {OURS: 2600, "discord.py": 650, "py-cord": 600, "@discordjs/voice": 800, "C": 5600}
    capacity(result, settings, guesses)
    result.compare("discord.py", 7, "more")
    result.compare("py-cord", 7, "more")
    result.compare("@discordjs/voice", 1.5, "more")
    result.compare("C", 0.35, "more")
    result.notes.append(
        "50 packets of 240 bytes a second each, one socket each, AES-256-GCM where a library has it (discord.py and "
        "py-cord have XChaCha20 only). At pace: a stream's packets are 19.98 to 20.02 ms apart on average, and none is "
        "missing; looked for in steps of 4 %."
    )
    medians = result.medians()
    if {"C", "discord.py"} <= set(medians):
        times = medians["C"] / medians["discord.py"]
        result.notes.append(
            f"C, which does nothing but AES-256-GCM and the system call, reaches {times:.1f} times what discord.py "
            "does. The faster the kernel, the nearer all of them are to each other."
        )
    return result


def streams_dave(settings: Settings) -> Result:
    """The same with end-to-end encryption."""
    result = Result("streams-dave", "The same, end-to-end encrypted", "streams", {})
    capacity(result, settings, {OURS: 1900, "discord.py": 580}, dave=True)
    result.compare("discord.py", 5, "more")
    return result


MEASURES = {"streams": streams, "streams-dave": streams_dave}
