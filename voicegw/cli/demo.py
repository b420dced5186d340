"""`voicegw demo`: a whole call on this host, from a recording to a recording."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.resources
import time
from pathlib import Path
from typing import TYPE_CHECKING

from voicegw.cli.console import Commands, Console, positive

if TYPE_CHECKING:
    from voicegw.media.sinks import Sink
    from voicegw.media.sources import Source

GUILD, CHANNEL = 41771983423143937, 127121515262115840
PLAYER, LISTENER = 104694319306248192, 158533742254751744
GROUP_TIMEOUT_S = 15.0
HEARD_TIMEOUT_S = 2.0
LIKE_ENOUGH = 0.8


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="hold a whole call on this host and record it",
        description="Start a local voice server (TLS, UDP, end-to-end encryption), join it with two clients, "
        "play a recording from one to the other, record what the other hears, and compare the two.",
    )
    command.add_argument(
        "--input", metavar="FILE", help="a WAV or Ogg Opus file (a short piece that comes with the package)"
    )
    command.add_argument(
        "--output", type=Path, default=Path("voicegw-demo.wav"), metavar="FILE.wav", help="the recording"
    )
    command.add_argument("--seconds", type=positive, metavar="N", help="play no more than this")
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """The call, then the comparison."""
    return asyncio.run(demo(arguments, console))


async def demo(arguments: argparse.Namespace, console: Console) -> int:
    """Hold the call, compare, say how it went."""
    from voicegw.media.likeness import likeness
    from voicegw.media.opening import open_source
    from voicegw.media.sinks import SingleWavSink
    from voicegw.media.sources import LimitedSource, WavSource, read_pcm

    name = arguments.input or str(importlib.resources.files("voicegw.media") / "demo.ogg")
    with (
        contextlib.closing(LimitedSource(open_source(name), arguments.seconds)) as source,
        contextlib.closing(SingleWavSink(arguments.output)) as sink,
    ):
        console.say(f"playing {name}")
        call = await hold_call(source, sink, console)
    reference = LimitedSource(open_source(name), arguments.seconds)
    alike = await asyncio.to_thread(lambda: likeness(read_pcm(reference), read_pcm(WavSource(arguments.output))))
    ok = call.good and alike.score >= LIKE_ENOUGH

    for machine, states in call.states["player"].items():
        console.say(f"  {machine:10} {' > '.join(states) or 'not moved'}")
    console.say(f"cipher {call.mode}, DAVE version {call.dave_version}, epoch {call.epoch}")
    player, listener = (" ".join(code[at : at + 5] for at in range(0, len(code), 5)) for code in call.codes)
    console.say(f"privacy code  player {player}  listener {listener}")
    console.say(f"packets sent {call.sent}, received {call.received}, lost {call.lost}, in the clear {call.in_clear}")
    console.say(
        f"likeness {alike.score:.3f} (best normalised cross-correlation, window by window; "
        f"a wrong song stays below 0.3), delay {alike.lag_s * 1000:.1f} ms, level {alike.level_db:+.1f} dB"
    )
    console.say(f"recording: {arguments.output}" if ok else "this was not a good call")
    console.result(
        {
            "ok": ok,
            **dataclasses.asdict(call),
            "likeness": round(alike.score, 4),
            "lag_ms": round(alike.lag_s * 1000, 2),
            "level_db": round(alike.level_db, 2),
            "input": name,
            "output": str(arguments.output),
        }
    )
    return 0 if ok else 1


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """How a call went; the states are those that each machine passed, by client."""

    connect_ms: float
    e2ee_ready_ms: float
    mode: str
    dave_version: int
    epoch: int
    codes: list[str]
    sent: int
    received: int
    lost: int
    in_clear: int
    states: dict[str, dict[str, list[str]]]

    @property
    def good(self) -> bool:
        """One group on both sides, everything heard, nothing in the clear."""
        return bool(self.codes[0]) and self.codes[0] == self.codes[1] and self.lost == 0 and self.in_clear == 0


async def hold_call(source: Source, sink: Sink, console: Console) -> Call:
    """Play `source` from one client to the other over a local voice server."""
    from voicegw.client import VoiceClient
    from voicegw.errors import VoiceTimeout
    from voicegw.media.heard import UserStats
    from voicegw.server import LocalSignalling, VoiceServer

    async with VoiceServer() as server:
        console.say(f"voice server on wss://{server.endpoint} and UDP port {server.udp_port}, E2EE required")
        player, listener = (
            VoiceClient(user_id=user_id, guild_id=GUILD, signalling=LocalSignalling(server, user_id), **server.trust)
            for user_id in (PLAYER, LISTENER)
        )
        async with player, listener:
            listener.listen(sink)
            begin = time.perf_counter()
            await asyncio.gather(player.connect(CHANNEL), listener.connect(CHANNEL))
            connect_ms = (time.perf_counter() - begin) * 1000
            for client in (player, listener):
                await client.wait_for(lambda: player.privacy_code == listener.privacy_code != "", GROUP_TIMEOUT_S)
            ready_ms = (time.perf_counter() - begin) * 1000
            console.say(f"connected in {connect_ms:.0f} ms, E2EE ready in {ready_ms:.0f} ms")

            await player.play(source).wait()
            heard = listener.stats.users.setdefault(PLAYER, UserStats())
            with contextlib.suppress(VoiceTimeout):  # what did not come by then is lost
                await player.wait_for(lambda: player.states["speech"] == "silent", HEARD_TIMEOUT_S)
                await listener.wait_for(lambda: heard.packets >= player.stats.packets, HEARD_TIMEOUT_S)
            await listener.flush()
            clients = {"player": player, "listener": listener}
            dave = player.session.dave
            mode = player.session.gateway.mode
            found = (dave.version, dave.epoch, [player.privacy_code, listener.privacy_code])
        return Call(
            connect_ms=round(connect_ms, 1),
            e2ee_ready_ms=round(ready_ms, 1),
            mode=mode,
            dave_version=found[0],
            epoch=found[1],
            codes=found[2],
            sent=player.stats.packets,
            received=heard.packets,
            lost=player.stats.packets - heard.packets,
            in_clear=server.session(PLAYER).counters["media in the clear"],
            states={who: {name: client.way(name) for name in client.states} for who, client in clients.items()},
        )
