"""A process with one call, made to be killed: joins, plays, and writes checkpoints. What it needs comes on stdin."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from voicegw import Credentials, FixedSignalling, FleetKey, FrozenCall, ToneSource, VoiceClient
from voicegw.secret import Secret


async def main() -> None:
    given = json.loads(sys.stdin.read())
    guild_id, channel_id, user_id = given["place"]
    session_id, token, endpoint = given["credentials"]
    credentials = Credentials(guild_id, channel_id, user_id, Secret(session_id), Secret(token), endpoint)
    key, store = FleetKey.from_text(given["key"]), Path(given["store"])

    async def write(frozen: FrozenCall) -> None:
        written = store.with_suffix(".new")
        written.write_bytes(frozen.to_bytes(key))
        written.replace(store)

    client = VoiceClient(
        user_id=user_id,
        guild_id=guild_id,
        signalling=FixedSignalling(credentials),
        ca_pem=given["ca"].encode(),
        allowed_hosts=(given["host"],),
        allow_private_media=True,
    )
    client.keep_checkpoints(write, every_s=0.25)
    await client.connect(channel_id)
    client.play(ToneSource(440))
    await client.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
