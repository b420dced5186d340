"""`voicegw fleet`: workers, their state, and a trial of them all on this host."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voicegw.cli.console import Commands, Console, count, directory, positive, several
from voicegw.errors import FleetError

if TYPE_CHECKING:
    from voicegw.fleet.bus import Bus

NATS = "VOICEGW_NATS"
DEFAULT_NATS = "nats://127.0.0.1:4222"


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "fleet",
        help="calls on many machines, by NATS",
        description="Calls that outlive their process and spread over machines. All parts of a fleet share one key, "
        "in VOICEGW_FLEET_KEY or a file.",
    )
    kinds = command.add_subparsers(title="commands", metavar="WHAT", dest="what", required=True)
    for name, help, more in (
        ("worker", "hold calls on this host until drained (SIGTERM)", _worker_arguments),
        ("status", "who is in the fleet, and how many calls each has", _none),
        ("drain", "have a worker hand its calls over and end", _drain_arguments),
        ("rebalance", "have workers with more than their share hand calls over", _none),
        ("key", "make a fleet key", _none),
        ("demo", "a whole fleet on this host: hand-over, and a worker that is killed", _demo_arguments),
    ):
        kind = kinds.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        kind.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="end with one line of JSON")
        if name in ("worker", "status", "drain", "rebalance"):
            url = os.environ.get(NATS, DEFAULT_NATS)
            kind.add_argument(
                "--nats", action="append", metavar="URL", help=f"a NATS server, or several times ({NATS}, else {url})"
            )
            kind.add_argument(
                "--fleet", default="voicegw", metavar="NAME", help="the fleet's name in that NATS (voicegw)"
            )
            kind.add_argument("--key-file", type=Path, metavar="FILE", help="the fleet's key (VOICEGW_FLEET_KEY)")
        more(kind)
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """One of them."""
    if arguments.what == "key":
        from voicegw.frozen import FleetKey

        key = FleetKey.generate().to_text().reveal()
        if not console.json:  # once is enough for a secret
            console.say(key)
        console.result({"ok": True, "key": key})
        return 0
    if importlib.util.find_spec("nats") is None:
        raise FleetError('a fleet needs NATS\'s client: pip install "voicegw[fleet]"')
    if arguments.what == "demo":
        from voicegw.cli.fleet_demo import demo

        return asyncio.run(demo(arguments, console))
    works: dict[str, Callable[[argparse.Namespace, Console, Bus], Awaitable[int]]] = {
        "worker": _worker,
        "status": _status,
        "drain": _drain,
        "rebalance": _rebalance,
    }
    return asyncio.run(_with_bus(works[arguments.what], arguments, console))


async def _with_bus(
    work: Callable[[argparse.Namespace, Console, Bus], Awaitable[int]], arguments: argparse.Namespace, console: Console
) -> int:
    from voicegw.fleet.bus import Bus
    from voicegw.fleet.sealing import fleet_keys

    servers = arguments.nats or [os.environ.get(NATS, DEFAULT_NATS)]
    keys, replicas = fleet_keys(arguments.key_file), getattr(arguments, "replicas", 1)
    async with await Bus.connect(servers, keys, fleet=arguments.fleet, replicas=replicas) as bus:
        return await work(arguments, console, bus)


async def _worker(arguments: argparse.Namespace, console: Console, bus: Bus) -> int:
    from voicegw.fleet.worker import Worker

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    trust: dict[str, Any] = {"allowed_hosts": tuple(arguments.allow_host)}
    trust |= {"allow_private_media": arguments.allow_private_media}
    if arguments.ca is not None:
        trust["ca_pem"] = arguments.ca.read_bytes()
    worker = Worker(
        bus,
        name=arguments.name,
        lease_s=arguments.lease,
        trust=trust,
        files=arguments.files,
        buckets=arguments.bucket,
        max_calls=arguments.max_calls,
    )
    gc.collect()
    gc.freeze()  # what was imported stays; to go through it again and again would hold all calls for 50 ms
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, worker.drain)
    running = asyncio.create_task(worker.run())
    await worker.joined()
    if not running.done():
        console.say(f"worker {worker.name} is in the fleet {arguments.fleet}")
    await running
    console.result({"ok": True, "name": worker.name})
    return 0


async def _status(arguments: argparse.Namespace, console: Console, bus: Bus) -> int:
    from voicegw.fleet.operator import Operator

    operator = Operator(bus)
    await operator.follow()
    status = operator.status
    operator.close()
    rows: list[tuple[str, ...]] = [("WORKER", "VERSION", "CALLS", "ROOM", "LOAD", "LEASE", "HOST", "")]
    for one in status["workers"]:
        load, draining = f"{one['load']:.0%}", "draining" if one["draining"] else ""
        cells = (one["name"], one["version"], one["calls"], one["free"], load, f"{one['lease_s']:g} s", one["host"])
        rows.append((*map(str, cells), draining))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        console.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    console.say(f"{status['calls']} calls, {status['without_owner']} of them with nobody")
    console.result({"ok": True, **status})
    return 0


async def _drain(arguments: argparse.Namespace, console: Console, bus: Bus) -> int:
    from voicegw.fleet.operator import Operator

    operator = Operator(bus)
    await operator.follow()
    try:
        had = await operator.drain(arguments.worker)
    finally:
        operator.close()
    console.say(f"{arguments.worker} has handed {had} calls over and is out of the fleet")
    console.result({"ok": True, "worker": arguments.worker, "calls": had})
    return 0


async def _rebalance(arguments: argparse.Namespace, console: Console, bus: Bus) -> int:
    from voicegw.fleet.operator import Operator

    operator = Operator(bus)
    await operator.follow()
    try:
        asked = await operator.rebalance()
    finally:
        operator.close()
    for name, calls in asked.items():
        console.say(f"{name} hands {calls} calls over")
    if not asked:
        console.say("every worker has its share")
    console.result({"ok": True, "asked": asked})
    return 0


def _none(command: argparse.ArgumentParser) -> None:
    pass


def _worker_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", help="its name in the fleet (host and process id)")
    command.add_argument(
        "--lease", type=positive, default=3.0, metavar="S", help="seconds after which its calls are free"
    )
    command.add_argument("--files", type=directory, metavar="DIR", help="bots may have files below it played")
    command.add_argument("--bucket", action="append", default=[], help="bots may have its objects played")
    command.add_argument("--replicas", type=count, default=1, metavar="N", help="servers that keep new buckets (1)")
    command.add_argument("--max-calls", type=count, metavar="N", help="take no more than this")
    command.add_argument("--ca", type=Path, metavar="FILE", help="one more authority, of a voice server of your own")
    command.add_argument("--allow-host", action="append", default=[], metavar="HOST", help="its host")
    command.add_argument("--allow-private-media", action="store_true", help="its media may be at a private address")


def _drain_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("worker", help="its name, as `status` shows it")


def _demo_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--calls", type=count, default=60, metavar="N", help="how many calls play (60)")
    command.add_argument("--workers", type=several, default=3, metavar="N", help="how many workers, 2 at least (3)")
    command.add_argument("--lease", type=positive, default=2.0, metavar="S", help="the workers' lease in seconds (2)")
    command.add_argument("--seconds", type=positive, default=4.0, metavar="S", help="of quiet between the events (4)")
