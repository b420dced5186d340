"""Many streams of voicegw: its players, pacer, ciphers and sockets; what is missing is the conversation before."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from dataclasses import asdict

from bench.drivers.common import opus_frame, orders, pcm_frames
from voicegw.adapters.mls import MlsGroup
from voicegw.adapters.udp import VoiceUdp
from voicegw.media import pacer
from voicegw.media.player import Player
from voicegw.media.sender import StreamSender
from voicegw.secret import Secret
from voicegw.wire.encryption import AES_256_GCM, TransportCipher


class Endless:
    """A source that has no end."""

    def __init__(self, frames: list[bytes], is_opus: bool) -> None:
        self.is_opus = is_opus
        self.read = itertools.cycle(frames).__next__

    def close(self) -> None:
        pass


async def main() -> None:
    told = orders()
    vars(pacer)["FULL_SLOT"] = told.get("full_slot", pacer.FULL_SLOT)
    encrypt = None
    if told["dave"]:
        from bench.drivers.group import ready_session

        group = MlsGroup(1, asyncio.get_running_loop().time)
        group._session = ready_session()
        encrypt = group.encrypt
    frames = pcm_frames() if told["pcm"] else [opus_frame(told["size"])]
    loop = asyncio.get_running_loop()
    players = []
    for number in range(1, told["streams"] + 1):
        udp = VoiceUdp(loop, ("127.0.0.1", told["port"]), lambda data: None)
        sender = StreamSender(lambda: None)
        cipher = TransportCipher(AES_256_GCM, Secret(number.to_bytes(32, "big")))
        sender.configure(cipher, number, udp.send)
        sender.release(encrypt)
        players.append((Player(sender, lambda: None, lambda: None, lambda: None), udp))
    for player, _ in players:
        player.play(Endless(frames, not told["pcm"]))
        await asyncio.sleep(0)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip() == "compute":  # a bot that computes in its event loop
            end = loop.time() + 3600.0
            while loop.time() < end:
                json.dumps(list(range(2000)))
        print(json.dumps(asdict(pacer.process_pacer().stats)), flush=True)


asyncio.run(main())
