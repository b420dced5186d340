"""Connects and leaves again and again, by voicegw or discord.py, and says what processor time one connect took.

Both rest before each connect: voicegw dials ten times a second at most, and who goes on at once finds warm caches. The
time ends when the group's messages that follow on "ready" have been worked on, too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from bench.drivers.common import orders

GUILD, CHANNEL = 41771983423143937, 127121515262115840
REST_S, SETTLED_S = 0.12, 0.05
KEY_PACKAGE, EXTERNAL_SENDER = "key package", "external sender"
TASKS, TRANSPORTS, COLLECTING = "the library's tasks", "asyncio's transports", "garbage collection"


class Parts:
    """Processor time of the loop's thread inside of some functions, each without what is watched within it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.counting = False
        self._within: list[str] = []
        self._since = 0.0
        self._thread = threading.get_ident()

    def begin(self, number: int) -> float:
        """A connect begins; the processor time so far. The first two warm up."""
        self._turn()
        self.counting = number > 1
        return time.process_time()

    def end(self) -> float:
        """It is over; the processor time so far."""
        self._turn()
        self.counting = False
        return time.process_time()

    def _turn(self) -> None:
        """What has passed since the last turn belongs to the innermost that is watched."""
        now = time.thread_time()
        if self._within and self.counting:
            self.spent[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """What happens meanwhile is counted under `part`."""
        self._turn()
        self._within.append(part)
        try:
            yield
        finally:
            self._turn()
            self._within.pop()

    def collecting(self, phase: str, info: dict[str, int]) -> None:
        """What `gc` calls before and after it looks for cycles."""
        self._turn()
        if phase == "start":
            self._within.append(COLLECTING)
        else:
            self._within.pop()

    def watched(self, work: Any, part: str | Callable[[Any], str]) -> Any:
        """`work`, which is not a coroutine function, counted under `part`, or what that says of its first argument."""
        if isinstance(part, str):
            self.spent.setdefault(part, 0.0)

        def watched(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread:
                return work(*arguments, **named)
            with self.within(part if isinstance(part, str) else part(arguments[0])):
                return work(*arguments, **named)

        return watched

    def watch(self, owner: Any, name: str, part: str | Callable[[Any], str]) -> None:
        """Count what `owner.name` takes."""
        setattr(owner, name, self.watched(getattr(owner, name), part))

    def watch_steps(self, owner: Any, name: str, part: str) -> None:
        """Count what the steps of the coroutine function `owner.name` take."""
        work = getattr(owner, name)
        self.spent.setdefault(part, 0.0)

        async def watched(*arguments: Any, **named: Any) -> Any:
            return await Steps(self, part, work(*arguments, **named))

        setattr(owner, name, watched)

    def watch_library(self, library: str) -> None:
        """What both do, and what the one does that is named."""
        self.spent |= {TASKS: 0.0, TRANSPORTS: 0.0, COLLECTING: 0.0}
        gc.callbacks.append(self.collecting)
        self.watch(asyncio.Handle, "_run", _kind_of)
        self.watch(ssl.SSLObject, "do_handshake", "TLS handshake")
        self.watch(ssl.SSLObject, "read", "TLS records")
        self.watch(ssl.SSLObject, "write", "TLS records")
        self.watch(ssl.SSLContext, "wrap_bio", "TLS handshake")
        for name in ("connect", "send", "recv_into", "recvfrom", "setsockopt"):
            self.watch(socket.socket, name, "socket and select calls")
        self.watch(selectors.EpollSelector, "select", "socket and select calls")
        self.watch_steps(aiohttp.ClientSession, "_ws_connect", "websocket upgrade (aiohttp)")
        if library == "discord.py":
            import davey

            davey.DaveSession = partial(WatchedGroup, self, davey.DaveSession)  # type: ignore[misc, assignment]
            return
        from voicegw.adapters.mls import MlsGroup
        from voicegw.adapters.udp import VoiceUdp
        from voicegw.client import VoiceClient
        from voicegw.hands import Hands
        from voicegw.session import VoiceSession
        from voicegw.wire import frames

        self.watch(MlsGroup, "create", KEY_PACKAGE)
        self.watch(MlsGroup, "set_external_sender", EXTERNAL_SENDER)
        self.watch(VoiceSession, "receive", "state tables")
        self.watch(Hands, "carry_out", "orders of the tables, timers")
        self.watch(VoiceClient, "__init__", "client object")
        self.watch(VoiceUdp, "__init__", "UDP socket")
        self.watch(frames, "decode_text", "JSON, checked")


class Steps:
    """A coroutine whose steps are counted."""

    def __init__(self, parts: Parts, part: str, work: Any) -> None:
        self._parts, self._part, self._work = parts, part, work

    def __await__(self) -> Iterator[Any]:
        step, given = self._work.send, None
        while True:
            try:
                with self._parts.within(self._part):
                    waited_for = step(given)
            except StopIteration as ended:
                return ended.value
            try:
                step, given = self._work.send, (yield waited_for)
            except BaseException as error:
                step, given = self._work.throw, error


def _kind_of(handle: Any) -> str:
    """Does the loop's callback go on with a task, or is it asyncio's own?"""
    return TASKS if isinstance(getattr(handle._callback, "__self__", None), asyncio.Task) else TRANSPORTS


class WatchedGroup:
    """A group of the MLS library that counts what it is asked for."""

    def __init__(self, parts: Parts, make: Any, *arguments: Any) -> None:
        self._group = parts.watched(make, KEY_PACKAGE)(*arguments)
        self.get_serialized_key_package = parts.watched(self._group.get_serialized_key_package, KEY_PACKAGE)
        self.set_external_sender = parts.watched(self._group.set_external_sender, EXTERNAL_SENDER)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def ids(number: int) -> dict[str, Any]:
    return {"user": 104694319306248192 + number, "session": f"{number:032x}", "token": f"{number:016x}"}


async def ours(told: dict[str, Any], number: int, parts: Parts) -> float:
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
    began = parts.begin(number)
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
    used = parts.end() - began
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


async def theirs(told: dict[str, Any], number: int, parts: Parts, http: Any) -> float:
    import discord

    loop, who = asyncio.get_running_loop(), ids(number)
    began = parts.begin(number)
    guild = Guild(told, who)
    channel: Any = SimpleNamespace(id=CHANNEL, guild=guild, _get_voice_client_key=lambda: (GUILD, "guild_id"))
    user = SimpleNamespace(id=who["user"])
    connection = SimpleNamespace(loop=loop, user=user, http=http, _remove_voice_client=lambda key: None)
    client: Any = discord.VoiceClient(SimpleNamespace(_connection=connection), channel)  # type: ignore[arg-type]
    guild.client = client
    await client.connect(reconnect=False, timeout=20)
    await asyncio.sleep(SETTLED_S)
    used = parts.end() - began
    await client.disconnect(force=True)
    return used


async def main() -> None:
    told = orders()
    parts = Parts()
    if told["parts"]:
        parts.watch_library(told["library"])
    told["pem"] = Path(told["ca"]).read_bytes()  # noqa: ASYNC240 - nothing runs yet
    http: Any = None
    if told["library"] == "discord.py":
        from discord.http import DiscordClientWebSocketResponse, HTTPClient

        http = HTTPClient(asyncio.get_running_loop())
        http._HTTPClient__session = aiohttp.ClientSession(ws_response_class=DiscordClientWebSocketResponse)
    used = []
    for number in range(told["connects"] + 2):
        await asyncio.sleep(REST_S)
        one = ours(told, number, parts) if http is None else theirs(told, number, parts, http)
        used.append(await one)
    if http is not None:
        await http._HTTPClient__session.close()
    cpu_ms = sum(used[2:]) / told["connects"] * 1000  # the first two warm up
    each = {part: spent / told["connects"] * 1000 for part, spent in parts.spent.items()}
    print(json.dumps({"cpu_ms": cpu_ms, "parts": each}), flush=True)


sys.stdin.close()
asyncio.run(main())
