"""How long a listener hears nothing when a call goes to another client: frozen, sealed, thawed, welcomed again."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from bench.results import OURS, Result, Settings
from voicegw import FleetKey, FrozenCall, ToneSource, VoiceClient
from voicegw.server import LocalSignalling, VoiceServer

HANDOVERS = 10
SPEAKER, LISTENER, GUILD, CHANNEL = 1, 2, 7, 9


async def gaps_ms(dave: bool, announced: bool, count: int) -> list[float]:
    """Milliseconds between the last packet before each hand-over and the first one after it, as the server has them.

    `announced` ones are expected by the next client, and begin right behind a packet.
    """
    arrived: list[float] = []
    async with VoiceServer(dave=dave) as server:
        assert server._relay is not None
        server._relay.tap = lambda user_id, data: arrived.append(time.perf_counter())
        policy = "require" if dave else "allow"
        trust = {
            "ca_pem": server.ca_pem,
            "allowed_hosts": (server.host,),
            "allow_private_media": True,
            "policy": policy,
        }
        signalling = LocalSignalling(server, SPEAKER)
        speaker = VoiceClient(user_id=SPEAKER, guild_id=GUILD, signalling=signalling, **trust)  # type: ignore[arg-type]
        listener = VoiceClient(
            user_id=LISTENER,
            guild_id=GUILD,
            signalling=LocalSignalling(server, LISTENER),
            **trust,  # type: ignore[arg-type]
        )
        await speaker.connect(CHANNEL)
        await listener.connect(CHANNEL)
        speaker.play(ToneSource(440))
        key, found = FleetKey.generate(), []
        for _ in range(count):
            await _more(listener, arrived, 25)
            following = None
            if announced:
                told = speaker.announcement()
                assert told is not None
                following = VoiceClient(user_id=SPEAKER, guild_id=GUILD, signalling=signalling, **trust)  # type: ignore[arg-type]
                await following.expect(told)
                await speaker.player.turn_over()
            frozen = FrozenCall.from_bytes((await speaker.freeze()).to_bytes(key), key)
            left = len(arrived)
            if following is None:
                speaker = await VoiceClient.thaw(frozen, signalling=signalling, ca_pem=server.ca_pem)
            else:
                speaker = following
                await speaker.go_on(frozen)
            await _more(listener, arrived, 5)
            found.append((arrived[left] - arrived[left - 1]) * 1000)
        await speaker.close()
        await listener.close()
    return found


async def _more(listener: VoiceClient, arrived: list[float], packets: int) -> None:
    wanted = len(arrived) + packets
    wait: Callable[..., Awaitable[None]] = listener.wait_for
    await wait(lambda: len(arrived) >= wanted)


def handover(settings: Settings) -> Result:
    """In one process, on the local voice server."""
    kinds = {
        f"{OURS}, E2EE": (True, True),
        f"{OURS}, E2EE, not announced": (True, False),
        f"{OURS}, version 0": (False, True),
        f"{OURS}, version 0, not announced": (False, False),
    }
    values: dict[str, list[float]] = {name: [] for name in kinds}
    every: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(settings.rounds):
        for name, kind in kinds.items():
            gaps = asyncio.run(gaps_ms(*kind, HANDOVERS))
            values[name].append(statistics.median(gaps))
            every[name] += gaps
    result = Result("handover", "Silence at a hand-over", "ms", values)
    result.more = {
        name: {
            "p50": statistics.median(gaps),
            "p99": statistics.quantiles(gaps, n=100, method="inclusive")[98],
            "worst": max(gaps),
        }
        for name, gaps in every.items()
    }
    for name, figures in result.more.items():
        said = ", ".join(f"{which} {value:.0f} ms" for which, value in figures.items())
        result.notes.append(f"{name}: {said}, of {len(every[name])} hand-overs.")
    result.notes.append(
        "From the last packet before to the first one after, 20 ms of which are there without a hand-over, too: "
        "resume, IP discovery; with E2EE also our removal, our addition and the transition to the epoch after it. What "
        "was not announced also has to dial, with a TLS handshake, and to make a key package, and ends anywhere in a "
        "frame."
    )
    return result


MEASURES = {"handover": handover}
