"""`voicegw join`: one client on any voice server, with credentials that were obtained elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from voicegw.cli.console import Commands, Console, seconds, snowflake
from voicegw.cli.stdin import watch_for_stop
from voicegw.errors import VoiceError
from voicegw.secret import Secret

MODES = {"aes256_gcm": "aead_aes256_gcm_rtpsize", "xchacha20_poly1305": "aead_xchacha20_poly1305_rtpsize"}


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "join",
        help="join any voice server with given credentials",
        description="Join a voice server, play and record. The line 'stop' on stdin ends it early.",
    )
    command.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="the voice server")
    given = os.environ.get("VOICEGW_TOKEN")
    command.add_argument(
        "--token",
        type=Secret,
        default=given,
        required=not given,
        metavar="T",
        help="the voice token, or VOICEGW_TOKEN in the environment",
    )
    for name in ("server", "channel", "user"):
        command.add_argument(f"--{name}-id", required=True, type=snowflake, metavar=name[0].upper())
    command.add_argument("--session-id", required=True, type=Secret, metavar="S")
    command.add_argument("--ca", type=Path, metavar="FILE", help="one more certificate authority (PEM)")
    command.add_argument("--play", metavar="FILE", help="a WAV or Ogg Opus file, or tone:HZ")
    command.add_argument("--play-delay", type=seconds, default=0.0, metavar="S", help="seconds before playing")
    command.add_argument("--duration", type=seconds, metavar="S", help="leave after so many seconds")
    command.add_argument("--linger", type=seconds, default=0.5, metavar="S", help="seconds to stay after playing (0.5)")
    command.add_argument("--record", type=Path, metavar="DIR", help="record everybody, one WAV file a user")
    command.add_argument(
        "--flight-record", type=Path, metavar="FILE", help="write what moved the machines, without secrets"
    )
    command.add_argument("--dave", choices=("require", "allow", "off"), default="require", help="E2EE policy (require)")
    command.add_argument("--mode", choices=(*MODES.values(), *MODES), help="the only transport encryption to use")
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """The call."""
    return asyncio.run(join(arguments, console))


async def join(arguments: argparse.Namespace, console: Console) -> int:
    """Connect, play, record, leave."""
    from voicegw.client import VoiceClient
    from voicegw.effects import Closed, EncryptionChanged, Notice, Reconnecting, Warned
    from voicegw.media.opening import open_source
    from voicegw.media.sinks import MeasuringSink, WavSink
    from voicegw.signalling import Credentials, FixedSignalling
    from voicegw.wire.encryption import PREFERRED_MODES
    from voicegw.wire.endpoint import DISCORD_SUFFIX

    source = open_source(arguments.play) if arguments.play else None
    sink = MeasuringSink(WavSink(arguments.record) if arguments.record else None)
    host = arguments.endpoint.rpartition(":")[0].strip("[]") or arguments.endpoint
    ours = not host.endswith(DISCORD_SUFFIX)
    credentials = Credentials(
        guild_id=arguments.server_id,
        channel_id=arguments.channel_id,
        user_id=arguments.user_id,
        session_id=arguments.session_id,
        token=arguments.token,
        endpoint=arguments.endpoint,
    )
    client = VoiceClient(
        user_id=arguments.user_id,
        guild_id=arguments.server_id,
        signalling=FixedSignalling(credentials),
        policy=arguments.dave,
        modes=(MODES.get(arguments.mode, arguments.mode),) if arguments.mode else PREFERRED_MODES,
        ca_pem=arguments.ca.read_bytes() if arguments.ca else None,
        allowed_hosts=(host,) if ours else (),
        allow_private_media=ours,
        max_attempts=1,
        names_channel=True,
        real_time_while=(),
        keep_flight_record=arguments.flight_record is not None,
    )
    codes: list[tuple[float, str]] = []
    errors: list[str] = []
    reconnects = 0

    def note(notice: Notice) -> None:
        nonlocal reconnects
        match notice:
            case EncryptionChanged(epoch=epoch, privacy_code=code):
                codes.append((time.time(), code))
                console.say(f"E2EE epoch {epoch}, privacy code {code}")
            case Reconnecting(reason=reason):
                reconnects += 1
                console.say(f"reconnecting: {reason}")
            case Warned(text=text):
                console.say(f"warning: {text}")
            case Closed(error=reason) if reason is not None:
                errors.append(str(reason))
            case _:
                console.say(str(notice))

    client.add_listener(note)
    client.listen(sink)
    stopped = asyncio.Event()
    watch_for_stop(stopped)
    connected_ms = None
    begin = time.perf_counter()
    mode, dave_version = "", 0
    try:
        await client.connect(arguments.channel_id)
        connected_ms = round((time.perf_counter() - begin) * 1000, 1)
        mode, dave_version = client.session.gateway.mode, client.session.dave.version
        console.say(f"connected in {connected_ms:g} ms, {mode}, DAVE version {dave_version}")
        await stay(client, source, arguments, stopped)
    except VoiceError as error:
        if str(error) not in errors:
            errors.append(str(error))
    finally:
        await client.close()
        sink.close()
        if client.flight_recorder is not None:
            client.flight_recorder.save(arguments.flight_record)
    for what in errors:
        print(f"voicegw: {what}", file=sys.stderr)
    received = {
        str(user_id): {
            "packets": stats.packets,
            "lost": stats.lost,
            "concealed": stats.concealed,
            "silence": stats.silence,
            "errors": stats.errors,
            "freq": round(sink.frequency(user_id), 1),
            "seconds": round(stats.seconds, 2),
        }
        for user_id, stats in client.stats.users.items()
    }
    ok = connected_ms is not None and not errors
    console.say(f"sent {client.stats.packets} packets; heard {received or 'nobody'}")
    console.result(
        {
            "ok": ok,
            "connected": connected_ms is not None,
            "connected_ms": connected_ms,
            "mode": mode,
            "dave_version": dave_version,
            "codes": [list(code) for code in codes],
            "sent": client.stats.packets,
            "received": received,
            "states": client.way("gateway"),
            "reconnects": reconnects,
            "errors": errors,
        }
    )
    return 0 if ok else 1


async def stay(client: object, source: object, arguments: argparse.Namespace, stopped: asyncio.Event) -> None:
    """Play what is to be played and stay as long as was asked; raises what ended the call."""
    from voicegw.client import VoiceClient
    from voicegw.media.sources import Source

    assert isinstance(client, VoiceClient)

    async def plan() -> None:
        if source is not None:
            await asyncio.sleep(arguments.play_delay)
            playing: Source = source  # type: ignore[assignment]
            await client.play(playing).wait()
            if arguments.duration is None:
                await asyncio.sleep(arguments.linger)
                return
        await asyncio.Event().wait()

    ends = [asyncio.create_task(work) for work in (plan(), _wait(stopped), client.wait_closed())]
    try:
        done, _ = await asyncio.wait(ends, timeout=arguments.duration, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in ends:
            task.cancel()
    if client.error is not None:
        raise client.error


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
