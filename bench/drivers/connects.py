"""Connects and leaves again and again, by voicegw or discord.py, and says what processor time one connect took.

Both rest before each connect: voicegw dials ten times a second at most, and who goes on at once finds warm caches. The
time ends when the group's messages that follow on "ready" have been worked on, too.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.drivers.common import orders

GUILD, CHANNEL = 41771983423143937, 127121515262115840
REST_S, SETTLED_S = 0.12, 0.05


def ids(number: int) -> dict[str, Any]:
    return {"user": 104694319306248192 + number, "session": f"{number:032x}", "token": f"{number:016x}"}


async def ours(told: dict[str, Any], number: int) -> float:
    from voicegw.client import VoiceClient
    from voicegw.secret import Secret
    from voicegw.signalling import Credentials, FixedSignalling

    who = ids(number)
    credentials = Credentials(
        guild_id=GUILD,
        channel_id=CHANNEL,
        user_id=who["user"],
        session_id=Secret(who["session"]),
        token=Secret(who["token"]),
        endpoint=told["endpoint"],
    )
    began = time.process_time()
    client = VoiceClient(
        user_id=who["user"],
        guild_id=GUILD,
        signalling=FixedSignalling(credentials),
        ca_pem=told["pem"],
        allowed_hosts=("127.0.0.1", "localhost"),
        allow_private_media=True,
    )
    await client.connect(CHANNEL)
    await asyncio.sleep(SETTLED_S)
    used = time.process_time() - began
    await client.close()
    return used


class Guild:
    """Answers op 4 as the main gateway would."""

    def __init__(self, told: dict[str, Any], who: dict[str, Any]) -> None:
        self.id, self.told, self.who = GUILD, told, who
        self.client: Any = None
        self.me = SimpleNamespace(voice=None)

    async def change_voice_state(self, *, channel: Any, self_mute: bool = False, self_deaf: bool = False) -> None:
        loop = asyncio.get_running_loop()
        guild, user = str(GUILD), str(self.who["user"])
        channel_id = str(channel.id) if channel else None
        state = {"guild_id": guild, "channel_id": channel_id, "user_id": user, "session_id": self.who["session"]}
        server = {"token": self.who["token"], "guild_id": guild, "endpoint": self.told["endpoint"]}
        loop.call_soon(lambda: loop.create_task(self.client.on_voice_state_update(state)))
        if channel:
            loop.call_soon(lambda: loop.create_task(self.client.on_voice_server_update(server)))


async def theirs(told: dict[str, Any], number: int, http: Any) -> float:
    import discord

    loop, who = asyncio.get_running_loop(), ids(number)
    began = time.process_time()
    guild = Guild(told, who)
    channel: Any = SimpleNamespace(id=CHANNEL, guild=guild, _get_voice_client_key=lambda: (GUILD, "guild_id"))
    user = SimpleNamespace(id=who["user"])
    connection = SimpleNamespace(loop=loop, user=user, http=http, _remove_voice_client=lambda key: None)
    client: Any = discord.VoiceClient(SimpleNamespace(_connection=connection), channel)  # type: ignore[arg-type]
    guild.client = client
    await client.connect(reconnect=False, timeout=20)
    await asyncio.sleep(SETTLED_S)
    used = time.process_time() - began
    await client.disconnect(force=True)
    return used


async def main() -> None:
    told = orders()
    told["pem"] = Path(told["ca"]).read_bytes()  # noqa: ASYNC240 - nothing runs yet
    http: Any = None
    if told["library"] == "discord.py":
        import aiohttp
        from discord.http import DiscordClientWebSocketResponse, HTTPClient

        http = HTTPClient(asyncio.get_running_loop())
        http._HTTPClient__session = aiohttp.ClientSession(ws_response_class=DiscordClientWebSocketResponse)
    used = []
    for number in range(told["connects"] + 2):
        await asyncio.sleep(REST_S)
        one = ours(told, number) if http is None else theirs(told, number, http)
        used.append(await one)
    if http is not None:
        await http._HTTPClient__session.close()
    print(json.dumps({"cpu_ms": sum(used[2:]) / told["connects"] * 1000}), flush=True)  # the first two warm up


sys.stdin.close()
asyncio.run(main())
