# mypy: ignore-errors
"""A bot of discord.py, unmodified, in a call: it plays a tone and counts what it hears. Its main gateway is a stub.

Run by the interpreter of an environment that has discord.py and davey, with the call as JSON. It prints a line of JSON
when it is ready, one when it is done, and after stdin was closed one with the result.
"""

import array
import asyncio
import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import davey
import discord
import opuslib_next
from discord.http import DiscordClientWebSocketResponse, HTTPClient
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt

HZ = 660
SECONDS = 4.0
ENOUGH = 100
RATE = 48_000


class Guild:
    """Answers op 4 as the main gateway would."""

    def __init__(self, call):
        self.call = call
        self.id = int(call["guild_id"])
        self.client = None
        self.me = SimpleNamespace(voice=None)

    async def change_voice_state(self, *, channel, self_mute=False, self_deaf=False):
        state = {
            "guild_id": self.call["guild_id"],
            "channel_id": str(channel.id) if channel else None,
            "user_id": self.call["user_id"],
            "session_id": self.call["session_id"],
        }
        server = {key: self.call[key] for key in ("token", "guild_id", "endpoint")}
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.create_task(self.client.on_voice_state_update(state)))
        if channel:
            loop.call_soon(lambda: loop.create_task(self.client.on_voice_server_update(server)))


class Ear:
    """Decrypts and decodes what another user says."""

    def __init__(self, client, peer_id):
        self.client = client
        self.peer_id = peer_id
        self.decoder = discord.opus.Decoder()
        self.pcm = array.array("h")
        self.heard = 0
        self.misread = 0
        self.errors = []

    def __call__(self, data):
        if len(data) < 32 or data[0] >> 6 != 2 or data[1] & 0x7F != 120:
            return
        nonce = data[-4:] + bytes(20)
        try:
            frame = decrypt(data[12:-4], data[:12], nonce, bytes(self.client.secret_key))
            session = self.client._connection.dave_session
            opus = session.decrypt(self.peer_id, davey.MediaType.audio, frame)
            sound = array.array("h", self.decoder.decode(opus, fec=False))
        except Exception as error:
            if self.heard:
                self.errors.append(f"{type(error).__name__}: {error}")
            else:
                self.misread += 1  # it came before the word that lets us into the group, which goes another way
            return
        self.heard += 1
        if any(sound):
            self.pcm = (self.pcm + sound[::2])[-RATE:]

    def frequency(self):
        """By upward zero crossings."""
        rises = [at for at in range(1, len(self.pcm)) if self.pcm[at - 1] < 0 <= self.pcm[at]]
        return (len(rises) - 1) * RATE / (rises[-1] - rises[0]) if len(rises) > 1 else 0.0


class Counted(discord.AudioSource):
    """Counts the packets of another source."""

    def __init__(self, source):
        self.source = source
        self.count = 0

    def read(self):
        frame = self.source.read()
        self.count += bool(frame)
        return frame

    def is_opus(self):
        return self.source.is_opus()


def tone():
    wave = (round(8000 * math.sin(2 * math.pi * HZ * at / RATE)) for at in range(int(SECONDS * RATE)))
    return io.BytesIO(array.array("h", [sample for value in wave for sample in (value, value)]).tobytes())


async def until(predicate, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not predicate():  # noqa: ASYNC110 - the library tells nobody
            await asyncio.sleep(0.02)


def say(**words):
    print(json.dumps(words), flush=True)


async def main(call):
    loop = asyncio.get_running_loop()
    discord.opus.load_opus(str(next(Path(opuslib_next.__file__).parent.rglob("libopus*.so*"))))
    http = HTTPClient(loop)
    http._HTTPClient__session = aiohttp.ClientSession(ws_response_class=DiscordClientWebSocketResponse)
    guild = Guild(call)
    channel = SimpleNamespace(
        id=int(call["channel_id"]), guild=guild, _get_voice_client_key=lambda: (guild.id, "guild_id")
    )
    user = SimpleNamespace(id=int(call["user_id"]))
    connection = SimpleNamespace(loop=loop, user=user, http=http, _remove_voice_client=lambda key: None)
    client = guild.client = discord.VoiceClient(SimpleNamespace(_connection=connection), channel)
    await client.connect(reconnect=True, timeout=20)
    ear = Ear(client, int(call["peer_id"]))
    client._connection.add_socket_listener(ear)
    say(event="ready")
    await until(lambda: client._connection.can_encrypt and len(client._connection.dave_session.get_user_ids()) == 2)
    code = client.voice_privacy_code
    source = Counted(discord.PCMAudio(tone()))
    ended = asyncio.Event()
    client.play(source, after=lambda error: loop.call_soon_threadsafe(ended.set))
    await ended.wait()
    await until(lambda: ear.heard >= ENOUGH)
    code = client.voice_privacy_code or code
    say(event="done")
    await loop.run_in_executor(None, sys.stdin.read)
    mode = client.mode
    await client.disconnect(force=True)
    await http._HTTPClient__session.close()
    say(
        version=discord.__version__,
        ok=not ear.errors,
        code=code,
        mode=mode,
        played_packets=source.count,
        heard_packets=ear.heard,
        misread_packets=ear.misread,
        freq=ear.frequency(),
        errors=ear.errors[:5],
    )


asyncio.run(main(json.loads(sys.argv[1])))
