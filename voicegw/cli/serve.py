"""`voicegw serve`: the local voice server until it is interrupted; lines on stdin say what it shall do to bots."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from voicegw.cli.console import Commands, Console, port, snowflake
from voicegw.cli.orders import obey, usage
from voicegw.cli.stdin import on_signals, watch_lines
from voicegw.errors import VoiceError

if TYPE_CHECKING:
    from voicegw.server.main_gateway import MainGateway


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="run a local voice server",
        description="Run a local voice server until interrupted. The first line is JSON: endpoint, ca, udp_port; with\n"
        "--main-gateway also api, gateway, guild, channels.",
        epilog=f"with --main-gateway it takes orders on stdin, one a line:\n{usage()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=port, default=0, help="TCP port of the websocket (a free one)")
    command.add_argument("--udp-port", type=port, default=0, help="UDP port of the media (a free one)")
    command.add_argument("--ca-out", type=Path, metavar="FILE", help="where to write the certificate authority (PEM)")
    command.add_argument("--open", action="store_true", help="take any token and session id")
    command.add_argument("--main-gateway", action="store_true", help="with a main gateway and REST API for bots")
    command.add_argument("--no-dave", action="store_true", help="no end-to-end encryption")
    command.add_argument(
        "--channel-id",
        type=snowflake,
        metavar="C",
        help="with --open: the channel of clients that name none (the server id)",
    )
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Serve."""
    return asyncio.run(serve(arguments, console))


async def serve(arguments: argparse.Namespace, console: Console) -> int:
    """Until SIGINT or SIGTERM."""
    from voicegw.server import VoiceServer
    from voicegw.server.guild import CHANNEL_IDS, GUILD_ID

    stopped = asyncio.Event()
    on_signals(stopped.set)
    server = VoiceServer(
        host=arguments.host,
        port=arguments.port,
        udp_port=arguments.udp_port,
        open=arguments.open,
        dave=not arguments.no_dave,
        channel_id=arguments.channel_id,
        main_gateway=arguments.main_gateway,
    )
    with tempfile.TemporaryDirectory(prefix="voicegw-") as directory:
        async with server:
            ca = arguments.ca_out or Path(directory) / "ca.pem"
            ca.write_bytes(server.ca_pem)
            where = {"endpoint": server.endpoint, "ca": str(ca), "udp_port": server.udp_port}
            if server.main_gateway is not None:
                where |= {"api": server.api, "gateway": server.gateway_url}
                where |= {"guild": str(GUILD_ID), "channels": [str(channel_id) for channel_id in CHANNEL_IDS]}
            print(json.dumps(where), flush=True)
            if server.main_gateway is not None:
                await take_orders(server.main_gateway, stopped, console)
            await stopped.wait()
            identified = len(server.records(op=0, direction="in"))
    console.say(f"served {identified} sessions")
    console.result({"ok": True, "sessions": identified})
    return 0


async def take_orders(gateway: MainGateway, stopped: asyncio.Event, console: Console) -> None:
    """Do what lines on stdin say, until we are stopped."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    watch_lines(lines.put_nowait)
    stopping = asyncio.create_task(stopped.wait())
    stopping.add_done_callback(lambda _: lines.put_nowait(None))
    while (line := await lines.get()) is not None:
        try:
            await obey(gateway, line)
            console.say(f"done: {line}")
        except VoiceError as error:
            console.say(f"not done: {error}")
