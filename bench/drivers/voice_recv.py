"""discord-ext-voice-recv: its own reader, router and decoders in their threads, with no socket before them."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import discord
from discord.ext import voice_recv
from discord.ext.voice_recv.reader import AudioReader

from bench.drivers.receiving import KEY, SLOT_S, datagrams, orders


class Counting(voice_recv.AudioSink):
    """Counts what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0

    def wants_opus(self) -> bool:
        return False

    def write(self, user: Any, data: Any) -> None:
        self.frames += len(data.pcm) == 3840

    def cleanup(self) -> None:
        pass


def main() -> None:
    told = orders()
    discord.opus.load_opus(told["libopus"])
    members = {user: SimpleNamespace(id=user) for user in range(1, told["users"] + 1)}
    guild = SimpleNamespace(get_member=members.get, id=1)
    connection = SimpleNamespace(add_socket_listener=lambda f: None, remove_socket_listener=lambda f: None)
    client: Any = SimpleNamespace(
        mode=told["mode"],
        secret_key=list(KEY),
        guild=guild,
        client=SimpleNamespace(get_user=members.get),
        _connection=connection,
        _ssrc_to_id={user: user for user in members},
        _get_id_from_ssrc=lambda ssrc: ssrc,
        dispatch=lambda *a: None,
        dispatch_sink=lambda *a: None,
        stop_listening=lambda: None,
        is_connected=lambda: True,
    )
    sink = Counting()
    reader = AudioReader(sink, client)
    reader.keepalive = SimpleNamespace(start=lambda: None, stop=lambda: None)  # type: ignore[assignment]
    rows = datagrams(told)
    reader.start()
    began, cpu = time.perf_counter(), time.process_time()
    for number, row in enumerate(rows):
        for data in row:
            reader.callback(data)
        time.sleep(max(0.0, began + (number + 1) * SLOT_S - time.perf_counter()))
    spent = time.process_time() - cpu
    print(
        json.dumps({"cpu_s": spent, "frames": sink.frames, "packets": sum(map(len, rows)), "error": str(reader.error)})
    )
    reader.stop()


main()
