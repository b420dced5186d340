"""`voicegw demo`: a whole call on this host, from a recording to a recording."""

from __future__ import annotations

import argparse
import asyncio
import importlib.resources
import time
from pathlib import Path

from voicegw.cli.console import Commands, Console, positive

GUILD, CHANNEL = 41771983423143937, 127121515262115840
PLAYER, LISTENER = 104694319306248192, 158533742254751744
GROUP_TIMEOUT_S = 15.0
LIKE_ENOUGH = 0.8


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command = commands.add_parser(
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
    """Play from one client to the other."""
    from voicegw.client import VoiceClient
    from voicegw.errors import VoiceTimeout
    from voicegw.media.likeness import likeness
    from voicegw.media.sinks import SingleWavSink
    from voicegw.media.sources import LimitedSource, WavSource, open_source, read_pcm
    from voicegw.server import LocalSignalling, VoiceServer

    name = arguments.input or str(importlib.resources.files("voicegw.media") / "demo.ogg")
    source = LimitedSource(open_source(name), arguments.seconds)
    reference = LimitedSource(open_source(name), arguments.seconds)
    sink = SingleWavSink(arguments.output)

    async with VoiceServer() as server:
        console.say(f"voice server on wss://{server.endpoint} and UDP port {server.udp_port}, E2EE required")

        def make(user_id: int) -> VoiceClient:
            return VoiceClient(
                user_id=user_id,
                guild_id=GUILD,
                signalling=LocalSignalling(server, user_id),
                ca_pem=server.ca_pem,
                allowed_hosts=(server.host,),
                allow_private_media=True,
            )

        async with make(PLAYER) as player, make(LISTENER) as listener:
            listener.listen(sink)
            begin = time.perf_counter()
            await asyncio.gather(player.connect(CHANNEL), listener.connect(CHANNEL))
            connect_ms = (time.perf_counter() - begin) * 1000
            await player.wait_for(lambda: bool(player.privacy_code), GROUP_TIMEOUT_S)
            await listener.wait_for(lambda: bool(listener.privacy_code), GROUP_TIMEOUT_S)
            group_ms = (time.perf_counter() - begin) * 1000
            console.say(f"connected in {connect_ms:.0f} ms, E2EE ready in {group_ms:.0f} ms, playing {name}")

            await player.play(source).wait()
            heard = listener.receiver.stats.get
            try:
                await player.wait_for(lambda: player.states["speech"] == "silent", 2.0)
                await listener.wait_for(
                    lambda: (stats := heard(PLAYER)) is not None and stats.packets >= player.stats.packets, 2.0
                )
            except VoiceTimeout:
                console.say("not everything that was sent has been heard")
            listener.receiver.flush()
            stats = heard(PLAYER)
            received, lost = (stats.packets, stats.lost) if stats is not None else (0, 0)
            lost = max(lost, player.stats.packets - received)
            in_clear = server.session(PLAYER).counters["media in the clear"]
            codes = [player.privacy_code, listener.privacy_code]
            facts: dict[str, object] = {
                "connect_ms": round(connect_ms, 1),
                "e2ee_ready_ms": round(group_ms, 1),
                "mode": player.session.gateway.mode,
                "dave_version": player.session.dave.version,
                "epoch": player.epoch,
                "codes": codes,
                "sent": player.stats.packets,
                "received": received,
                "lost": lost,
                "in_clear": in_clear,
            }
        ways = {
            who: {machine: client.way(machine) for machine in client.states}
            for who, client in (("player", player), ("listener", listener))
        }
    sink.close()
    alike = await asyncio.to_thread(lambda: likeness(read_pcm(reference), read_pcm(WavSource(arguments.output))))
    ok = bool(codes[0]) and codes[0] == codes[1] and lost == 0 and in_clear == 0 and alike.score >= LIKE_ENOUGH
    for machine, states in ways["player"].items():
        console.say(f"  {machine:10} {' > '.join(states) or 'not moved'}")
    console.say(f"cipher {facts['mode']}, DAVE version {facts['dave_version']}, epoch {facts['epoch']}")
    console.say(f"privacy code  player {_groups(codes[0])}  listener {_groups(codes[1])}")
    console.say(f"packets sent {facts['sent']}, received {received}, lost {lost}, in the clear {in_clear}")
    console.say(
        f"likeness {alike.score:.3f} (best normalised cross-correlation, window by window; "
        f"a wrong song stays below 0.3), delay {alike.lag_s * 1000:.1f} ms, level {alike.level_db:+.1f} dB"
    )
    console.say(f"recording: {arguments.output}" if ok else "this was not a good call")
    console.result(
        {
            "ok": ok,
            **facts,
            "likeness": round(alike.score, 4),
            "lag_ms": round(alike.lag_s * 1000, 2),
            "level_db": round(alike.level_db, 2),
            "states": ways,
            "input": name,
            "output": str(arguments.output),
        }
    )
    return 0 if ok else 1


def _groups(code: str) -> str:
    return " ".join(code[at : at + 5] for at in range(0, len(code), 5))
