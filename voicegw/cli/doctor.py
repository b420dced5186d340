"""`voicegw doctor`: what this host has of what a call needs."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import socket
import time
from collections.abc import Callable

from voicegw.cli.console import Commands, Console
from voicegw.errors import VoiceError

TIMER_FRAMES = 25


def add(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="look whether this host can hold a call",
        description="Look at libopus, ciphers, DAVE, timers and UDP of this host.",
    )
    return command


def run(arguments: argparse.Namespace, console: Console) -> int:
    """One line a part; 1 where a part that a call needs does not work."""
    parts: dict[str, Callable[[], str]] = {
        "opus": opus,
        "ciphers": ciphers,
        "dave": dave,
        "timers": timers,
        "udp": udp,
        "tls": tls,
    }
    result: dict[str, object] = {}
    healthy = True
    for name, look in parts.items():
        try:
            found, works = look(), True
        except (VoiceError, OSError, ImportError) as error:
            found, works = str(error), False
        healthy = healthy and works
        result[name] = {"ok": works, "found": found}
        console.say(f"{'ok ' if works else 'NOT'}  {name:8} {found}")
    console.result({"ok": healthy, **result})
    return 0 if healthy else 1


def opus() -> str:
    """Encode and decode one frame."""
    from voicegw.media.opus import OpusDecoder, OpusEncoder, load_opus

    library = load_opus()
    decoded = OpusDecoder().decode(OpusEncoder().encode(bytes(3840)))
    if len(decoded) != 3840:
        raise VoiceError("libopus does not give back what it was given")
    return f"{library.version} from {library.path}"


def ciphers() -> str:
    """Seal and open one packet in each mode."""
    from voicegw.secret import Secret
    from voicegw.wire.encryption import PREFERRED_MODES, TransportCipher

    speeds = []
    for mode in PREFERRED_MODES:
        cipher = TransportCipher(mode, Secret(bytes(range(32))))
        begin = time.perf_counter()
        for _ in range(100):
            if cipher.open(cipher.seal(bytes(12), bytes(240)), 12) != bytes(240):
                raise VoiceError(f"{mode} does not give back what it was given")
        speeds.append(f"{mode} {(time.perf_counter() - begin) * 1e4:.1f} us there and back")
    return ", ".join(speeds)


def dave() -> str:
    """Make a key package."""
    from voicegw.native import load_davey

    davey = load_davey()
    session = davey.DaveSession(davey.DAVE_PROTOCOL_VERSION, 1, 2)
    if not session.get_serialized_key_package():
        raise VoiceError("davey makes no key package")
    return f"protocol version {davey.DAVE_PROTOCOL_VERSION}, davey {importlib.metadata.version('davey')}"


def timers() -> str:
    """How late the event loop wakes for frames of 20 ms."""

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        start, worst = loop.time(), 0.0
        for frame in range(1, TIMER_FRAMES + 1):
            due = start + frame * 0.02
            await asyncio.sleep(due - loop.time())
            worst = max(worst, loop.time() - due)
        return worst

    return f"wakes at most {asyncio.run(measure()) * 1000:.2f} ms late in {TIMER_FRAMES} frames"


def udp() -> str:
    """Send datagrams to ourselves."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        two.bind(("127.0.0.1", 0))
        two.settimeout(2.0)
        for number in range(100):
            one.sendto(bytes((number,)) * 300, two.getsockname())
        got = sum(len(two.recv(2048)) == 300 for _ in range(100))
        granted = two.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return f"{got} of 100 datagrams, receive buffer {granted // 1024} KiB"


def tls() -> str:
    """The authorities that this Python trusts."""
    from voicegw.adapters.websocket import tls_context

    authorities = len(tls_context().get_ca_certs())
    where = "loaded" if authorities else "found on demand"
    return f"{authorities} certificate authorities {where}"
