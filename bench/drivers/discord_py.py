"""Many streams of discord.py or py-cord: its own VoiceClient, AudioPlayer and socket, with no gateway behind them."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
from types import SimpleNamespace
from typing import Any

import discord

from bench.drivers.common import opus_frame, orders, pcm_frames

try:
    from discord.voice import VoiceClient  # py-cord
    from discord.voice.enums import ConnectionFlowState
except ImportError:
    from discord.voice_client import VoiceClient
    from discord.voice_state import ConnectionFlowState


class Endless(discord.AudioSource):
    """A source that has no end."""

    def __init__(self, frames: list[bytes], is_opus: bool) -> None:
        self._opus = is_opus
        self.read = itertools.cycle(frames).__next__  # type: ignore[method-assign]

    def is_opus(self) -> bool:
        return self._opus


class Websocket:
    """Takes op 5."""

    async def speak(self, *arguments: object) -> None:
        pass


def client_of(loop: asyncio.AbstractEventLoop, number: int, port: int, session: Any) -> Any:
    user = SimpleNamespace(id=number)
    state = SimpleNamespace(user=user, self_id=number, loop=loop)
    bot: Any = SimpleNamespace(_connection=state, loop=loop, user=user)
    channel: Any = SimpleNamespace(id=number, guild=SimpleNamespace(id=number))
    client: Any = VoiceClient(bot, channel)
    connection = client._connection
    connection.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connection.socket.setblocking(False)
    connection.socket.connect(("127.0.0.1", port))
    connection.ws = Websocket()
    connection.mode = "aead_xchacha20_poly1305_rtpsize"
    connection.secret_key = list(number.to_bytes(32, "big"))
    connection.ssrc = number
    if session is not None:
        connection.dave_session, connection.dave_protocol_version = session, 1
    connection.state = ConnectionFlowState.connected
    return client


async def main() -> None:
    told = orders()
    session = None
    if told["dave"]:
        from bench.drivers.group import ready_session

        session = ready_session()
    frames = pcm_frames() if told["pcm"] else [opus_frame(told["size"])]
    if told["pcm"]:
        discord.opus.load_opus(told["libopus"])
    loop = asyncio.get_running_loop()
    clients = [client_of(loop, number, told["port"], session) for number in range(1, told["streams"] + 1)]
    for client in clients:
        client.play(Endless(frames, not told["pcm"]))
        await asyncio.sleep(0.02 / len(clients))  # as bots do: not all in the same millisecond
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "compute":
            end = loop.time() + 3600.0
            while loop.time() < end:
                json.dumps(list(range(2000)))
        print("{}", flush=True)


asyncio.run(main())
