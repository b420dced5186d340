"""`voicegw play` and `voicegw record`: a bot in a channel of Discord, with its token from DISCORD_TOKEN."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

from voicegw.cli.console import Commands, Console, positive, snowflake
from voicegw.cli.stdin import watch_for_stop
from voicegw.errors import LoginRefused
from voicegw.secret import Secret

if TYPE_CHECKING:
    from voicegw.client import VoiceClient
    from voicegw.media.playback import Playback

TOKEN = "DISCORD_TOKEN"  # noqa: S105 - the variable's name, not a token
BAR_WIDTH = 30
VOICE_CHANNELS = (2, 13)  # and stages


def add_play(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "play",
        help="play a file in a channel of Discord",
        description=f"Log a bot in, join a voice channel, play a file, leave. The bot's token comes from {TOKEN}.",
    )
    command.add_argument("file", metavar="FILE", help="what to play: a sound file, or tone:HZ")
    command.add_argument("--seconds", type=positive, metavar="N", help="only the first N seconds of it")
    return _place(command)


def add_record(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "record",
        help="record a channel of Discord",
        description="Log a bot in, join a voice channel, record everybody, one WAV file a user, until interrupted or "
        f"until the line 'stop' on stdin. The bot's token comes from {TOKEN}.",
    )
    command.add_argument("--output", type=Path, default=Path("recordings"), metavar="DIR", help="where (recordings)")
    command.add_argument("--seconds", type=positive, metavar="N", help="leave after N seconds")
    return _place(command)


def _place(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--guild", type=snowflake, required=True, metavar="G", help="the guild's id")
    command.add_argument("--channel", type=snowflake, required=True, metavar="C", help="the voice channel's id")
    command.add_argument("--api", metavar="URL", help="another Discord: the base URL of its REST API")
    command.add_argument("--ca", type=Path, metavar="FILE", help="one more certificate authority (PEM), for --api")
    return command


def run_play(arguments: argparse.Namespace, console: Console) -> int:
    """Play."""
    return asyncio.run(play(arguments, console))


def run_record(arguments: argparse.Namespace, console: Console) -> int:
    """Record."""
    return asyncio.run(record(arguments, console))


async def play(arguments: argparse.Namespace, console: Console) -> int:
    """The whole file, or what was asked of it."""
    from voicegw.media.opening import open_source
    from voicegw.media.sources import LimitedSource

    source = LimitedSource(open_source(arguments.file), arguments.seconds)
    async with in_channel(arguments, console) as client:
        playback = client.play(source)
        await client.connect(arguments.channel)
        try:
            await _first_of(playback.wait(), stop_asked(), client.wait_closed(), _bar(playback, client, console))
        finally:
            playback.stop()
        await client.wait_for(lambda: client.states["speech"] == "silent" or client.states["call"] == "closed")
        if client.error is not None:
            raise client.error
        sent = client.stats.packets
        console.say(f"played {playback.position_s:.1f} s in {sent} packets")
        if not sent:
            console.say("nobody else was in the channel, so nobody has heard it")
    played = {"played_s": round(playback.position_s, 2), "sent": sent}
    console.result({"ok": True, "user_id": str(client.session.shared.user_id), **played})
    return 0


async def record(arguments: argparse.Namespace, console: Console) -> int:
    """Everybody, until the end."""
    from voicegw.media.sinks import WavSink

    sink = WavSink(arguments.output)
    try:
        async with in_channel(arguments, console) as client:
            client.listen(sink)
            await client.connect(arguments.channel)
            console.say(f"recording to {arguments.output}; stop with Ctrl+C")
            wait = asyncio.sleep(arguments.seconds) if arguments.seconds else asyncio.Event().wait()
            await _first_of(stop_asked(), client.wait_closed(), wait)
            if client.error is not None:
                raise client.error
    finally:
        sink.close()  # after the call: the last sound has come
    for path in sink.paths.values():
        console.say(str(path))
    if not sink.paths:
        console.say("nobody has said anything")
    files = {str(user_id): str(path) for user_id, path in sink.paths.items()}
    received = {str(user_id): stats.packets for user_id, stats in client.stats.users.items()}
    user_id = str(client.session.shared.user_id)
    console.result({"ok": True, "user_id": user_id, "files": files, "received": received})
    return 0


@contextlib.asynccontextmanager
async def in_channel(arguments: argparse.Namespace, console: Console) -> AsyncIterator[VoiceClient]:
    """A client of the bot, logged in; it has left and the bot is logged out when the context ends."""
    from voicegw.client import VoiceClient
    from voicegw.main_gateway import DISCORD_API, MainGateway

    token = Secret(os.environ.get(TOKEN, "").strip())
    if not token.reveal():
        raise LoginRefused(f"no bot token; set {TOKEN}")
    ca_pem = arguments.ca.read_bytes() if arguments.ca else None
    local = arguments.api is not None
    async with MainGateway(token, api=arguments.api or DISCORD_API, ca_pem=ca_pem) as gateway:
        await gateway.login()
        channel = await gateway.channel(arguments.channel)
        if channel.get("type") not in VOICE_CHANNELS:
            raise LoginRefused(f"channel {arguments.channel} is no voice channel")
        if channel.get("guild_id") != str(arguments.guild):
            raise LoginRefused(
                f"channel {arguments.channel} is in guild {channel.get('guild_id')}, not in {arguments.guild}"
            )
        console.say(f"logged in as {gateway.user_id}, joining {channel.get('name', arguments.channel)}")
        async with VoiceClient(
            user_id=gateway.user_id,
            guild_id=arguments.guild,
            signalling=gateway,
            ca_pem=ca_pem,
            allowed_hosts=(gateway.host,) if local else (),
            allow_private_media=local,
        ) as client:
            yield client


async def stop_asked() -> None:
    """Until SIGINT, SIGTERM, or the line `stop` on stdin."""
    stopped = asyncio.Event()
    watch_for_stop(stopped)
    await stopped.wait()


async def _bar(playback: Playback, client: VoiceClient, console: Console) -> None:
    """A line that shows how far it is, on a terminal only; it never ends by itself."""
    if console.json or not sys.stderr.isatty():
        await asyncio.Event().wait()
    try:
        while True:
            alone = "" if client.users else "  nobody else is here"
            line = f"{_progress(playback.position_s, playback.duration_s)}{alone}"
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(0.5)
    finally:
        print(file=sys.stderr, flush=True)


def _progress(at_s: float, length_s: float | None) -> str:
    if not length_s:
        return _clock(at_s)
    filled = min(BAR_WIDTH, round(BAR_WIDTH * at_s / length_s))
    return f"[{'=' * filled}{' ' * (BAR_WIDTH - filled)}] {_clock(at_s)} / {_clock(length_s)}"


def _clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


async def _first_of(*works: Awaitable[object]) -> None:
    """Until one of them is done; raises what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
