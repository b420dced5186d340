"""voicegw: receiver, jitter buffers, decoders and a sink, with no socket before them."""

from __future__ import annotations

import asyncio
import json
import time

from bench.drivers.receiving import KEY, SLOT_S, datagrams, orders
from voicegw.media.heard import HeardFrame
from voicegw.media.hearing import Hearing
from voicegw.secret import Secret
from voicegw.wire.encryption import TransportCipher


async def main() -> None:
    told = orders()
    loop = asyncio.get_running_loop()
    frames = 0

    def count(frame: HeardFrame) -> None:
        nonlocal frames
        frames += len(frame.pcm) == 3840 and not frame.lost

    hearing = Hearing(loop.time, lambda user, speaking: None, print, lambda: None)
    hearing.receiver.use_key(TransportCipher(told["mode"], Secret(KEY)))
    for user in range(1, told["users"] + 1):
        hearing.receiver.map_ssrc(user, user)
    hearing.listen(count)
    rows = datagrams(told)
    done = asyncio.Event()
    began, cpu = loop.time(), time.process_time()

    def feed(number: int) -> None:
        if number == len(rows):
            done.set()
            return
        take = hearing.receiver.datagram
        for data in rows[number]:
            take(data)
        loop.call_at(began + (number + 1) * SLOT_S, feed, number + 1)

    feed(0)
    await done.wait()
    spent = time.process_time() - cpu
    await hearing.flush()
    print(json.dumps({"cpu_s": spent, "frames": frames, "packets": sum(map(len, rows))}))


asyncio.run(main())
