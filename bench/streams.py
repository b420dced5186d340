"""How many streams one core keeps at pace, by each library."""

from __future__ import annotations

import time
from typing import Any

from bench.peers import Sender, senders, sending, sink
from bench.results import OURS, Result, Settings

PACE = 0.999
WARM_S = 1.5
STEP = 1.04
MOST = 12_000
PER_SECOND = 50


def keeps_pace(sender: Sender, streams: int, seconds: float, **kind: Any) -> bool:
    """Do all packets of so many streams arrive when they should?"""
    with sink() as other, sending(sender, other.port, streams, **kind):
        time.sleep(WARM_S)
        other.begin()
        began = time.monotonic()
        time.sleep(seconds)
        arrived = other.end()
        elapsed = time.monotonic() - began
    return bool(arrived["packets"] >= PACE * streams * PER_SECOND * elapsed - streams * 0.01)


def largest(sender: Sender, guess: int, seconds: float, **kind: Any) -> int:
    """The largest number on a grid of 4 % that is kept, looked for from `guess` on."""
    streams, factor = guess, STEP**4
    kept = keeps_pace(sender, streams, seconds, **kind)
    while factor >= STEP * 0.999:
        step = round(streams * factor) if kept else round(streams / factor)
        step = max(1, min(MOST, step if step != streams else streams + (1 if kept else -1)))
        if step == streams:
            break
        again = keeps_pace(sender, step, seconds, **kind)
        if again == kept:
            streams = step
            continue
        if factor < STEP**1.5:
            return streams if kept else step
        # Between the two: look closer, from the one that is kept.
        streams, kept, factor = (streams, True, factor**0.5) if kept else (step, True, factor**0.5)
    return streams


def capacity(result: Result, settings: Settings, guesses: dict[str, int], **kind: Any) -> Result:
    """Fill in the largest numbers, in interleaved rounds."""
    values: dict[str, list[float]] = {}
    for _ in range(settings.rounds):
        for sender in senders(*guesses):
            found = largest(sender, guesses[sender.name], settings.seconds, **kind)
            values.setdefault(sender.name, []).append(found)
            guesses[sender.name] = max(1, found)
    result.values = values
    return result


def streams(settings: Settings) -> Result:
    """Opus that passes through, without DAVE."""
    result = Result("streams", "Passed-through streams kept at pace by one core", "streams", {})
    guesses = {OURS: 1500, "discord.py": 200, "py-cord": 200, "@discordjs/voice": 500, "C": 3500}
    capacity(result, settings, guesses)
    result.compare("discord.py", 7, "more")
    result.compare("py-cord", 7, "more")
    result.compare("@discordjs/voice", 1.5, "more")
    result.compare("C", 0.35, "more")
    result.notes.append(
        "50 packets of 240 bytes a second each, one socket each, AES-256-GCM where a library has it (discord.py and "
        "py-cord have XChaCha20 only). At pace: 99.9 % of what was due in the window arrived in it."
    )
    return result


def streams_dave(settings: Settings) -> Result:
    """The same with end-to-end encryption."""
    result = Result("streams-dave", "The same, end-to-end encrypted", "streams", {})
    capacity(result, settings, {OURS: 1200, "discord.py": 180, "py-cord": 180}, dave=True)
    result.compare("discord.py", 5, "more")
    result.compare("py-cord", 5, "more")
    return result


def pcm(settings: Settings) -> Result:
    """Sound that each library encodes by its own defaults."""
    from voicegw.media.opus import load_opus

    result = Result("pcm", "PCM streams encoded and kept at pace by one core", "streams", {})
    capacity(result, settings, {OURS: 70, "discord.py": 18}, pcm=True, libopus=load_opus().path)
    result.compare("discord.py", 4, "more")
    result.notes.append("The same libopus for both. discord.py expects a loss of 15 % by default, which costs it.")
    return result


MEASURES = {"streams": streams, "streams-dave": streams_dave, "pcm": pcm}
