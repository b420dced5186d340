"""`voicegw watch`: the live view of a demo call or of a bot, and flight records played in it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.resources
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from voicegw.cli.console import Commands, Console, port
from voicegw.cli.demo import CHANNEL, GUILD, LISTENER, PLAYER

if TYPE_CHECKING:
    from voicegw.client import VoiceClient
    from voicegw.server import VoiceServer

ACCIDENT_EVERY_S = 12.0


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "watch",
        help="watch calls live, or play a flight record, in a browser",
        description="FILE is a flight record: it is played in a page on this host. URL is the live view of a bot that "
        "has called voicegw.serve_view: its calls are followed in this terminal. --demo holds a call with accidents "
        "on this host and shows it. All until interrupted.",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("what", nargs="?", metavar="FILE or URL")
    what.add_argument("--demo", action="store_true", help="a call with accidents on this host")
    command.add_argument("--port", type=port, default=0, help="where the page is served (a free port)")
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Until interrupted."""
    if arguments.demo:
        return asyncio.run(demo(arguments, console))
    if arguments.what.startswith(("http://", "https://")):
        return asyncio.run(follow(arguments, console))
    return asyncio.run(play(arguments, console))


async def play(arguments: argparse.Namespace, console: Console) -> int:
    """A flight record in the page."""
    async with served(arguments, console, record=arguments.what) as view:
        events = len(view.record["frames"])
    console.result({"ok": True, "events": events})
    return 0


async def demo(arguments: argparse.Namespace, console: Console) -> int:
    """Two clients talk over a local voice server that has accidents."""
    from voicegw.server import VoiceServer

    async with VoiceServer() as server, talking(server, PLAYER) as alice, talking(server, LISTENER) as bob:
        async with served(arguments, console):
            trouble = asyncio.ensure_future(accidents(server, console))
        trouble.cancel()
        sent = {str(client.session.shared.user_id): client.stats.packets for client in (alice, bob)}
    console.result({"ok": True, "sent": sent})
    return 0


async def follow(arguments: argparse.Namespace, console: Console) -> int:
    """A line whenever a call's state is another, or it has come back so soon that nobody saw it away."""
    from voicegw.cli.bot import stop_asked
    from voicegw.view.follow import follow

    stopped = asyncio.ensure_future(stop_asked())
    seen: dict[int, tuple[str, int]] = {}

    async def told() -> None:
        async for change in follow(arguments.what):
            for line in change.get("calls", ()):
                states = line["states"]
                now = " · ".join(states[machine] for machine in ("call", "gateway", "dave", "speech"))
                now = f"ended {line['error'] or ''}" if line.get("ended") else now
                if seen.get(line["id"]) != (now, line["reconnects"]):
                    seen[line["id"]] = (now, line["reconnects"])
                    begin = f"{time.strftime('%H:%M:%S')}  call {line['id']}, guild {line['guild']}"
                    console.say(f"{begin}:  {now}{_figures(line)}")

    telling = asyncio.ensure_future(told())
    try:
        await asyncio.wait((stopped, telling), return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
            console.say("the view has ended")
    finally:
        telling.cancel()
        stopped.cancel()
    console.result({"ok": True, "calls": len(seen)})
    return 0


def _figures(line: dict[str, Any]) -> str:
    found = [] if line["latency"] is None else [f"{line['latency']:g} ms"]
    if line["lost_in"] is not None:
        found.append(f"{line['lost_in']:.1%} lost")
    if line["reconnects"]:
        found.append(f"reconnected {line['reconnects']} times" if line["reconnects"] > 1 else "reconnected once")
    return f"  ({', '.join(found)})" if found else ""


@contextlib.asynccontextmanager
async def served(arguments: argparse.Namespace, console: Console, record: str | None = None) -> AsyncIterator[Any]:
    """A view; the context begins when it is served and ends when somebody interrupts."""
    from voicegw.cli.bot import stop_asked
    from voicegw.view.server import serve_view

    async with await serve_view(port=arguments.port, record=record) as view:
        if console.json:
            print(json.dumps({"url": view.url, "metrics": f"{view.url}metrics"}), flush=True)
        else:
            console.say(f"open {view.url} in a browser; stop with Ctrl+C")
        yield view
        await stop_asked()


@contextlib.asynccontextmanager
async def talking(server: VoiceServer, user_id: int) -> AsyncIterator[VoiceClient]:
    """A client in the demo's channel that plays the demo's music, over and over."""
    from voicegw.client import VoiceClient
    from voicegw.media.opening import open_source
    from voicegw.server import LocalSignalling

    async with VoiceClient(
        user_id=user_id,
        guild_id=GUILD,
        signalling=LocalSignalling(server, user_id),
        keep_flight_record=True,
        **server.trust,
    ) as client:
        await client.connect(CHANNEL)
        client.listen(lambda frame: None)
        client.play(open_source(str(importlib.resources.files("voicegw.media") / "demo.ogg")), loop=True)
        yield client


async def accidents(server: VoiceServer, console: Console) -> None:
    """One after the other, for ever."""
    for number in itertools.count():
        await asyncio.sleep(ACCIDENT_EVERY_S)
        user_id = (PLAYER, LISTENER)[number % 2]
        if number % 4 < 2:
            console.say(f"the websocket of {user_id} breaks")
            server.drop_socket(user_id)
        else:
            console.say(f"a tenth of the datagrams is lost for {ACCIDENT_EVERY_S:g} s")
            server.faults.lose = 0.1
            await asyncio.sleep(ACCIDENT_EVERY_S)
            server.faults.lose = 0.0
