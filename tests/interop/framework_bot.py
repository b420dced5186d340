# mypy: ignore-errors
"""A bot of discord.py, py-cord, nextcord or disnake, unmodified, that uses voicegw for its voice."""

import array
import importlib
import io
import math
from typing import ClassVar

import yarl
from steps import CALL, LOCAL, perform

import voicegw

discord = importlib.import_module(CALL["module"])
protocol = importlib.import_module(f"voicegw.frameworks.{CALL['adapter']}")

discord.http.Route.BASE = discord.http.Route.API_BASE_URL = CALL["api"]
discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(CALL["gateway"])


class Voice(protocol.VoiceClient):
    options: ClassVar = LOCAL


class Tone(discord.AudioSource):
    """A source as bots write it."""

    def __init__(self, hz):
        self.source = voicegw.ToneSource(hz, 1.0)

    def is_opus(self):
        return False

    def read(self):
        return self.source.read()


def pcm(hz):
    wave = (round(16000 * math.sin(2 * math.pi * hz * at / 48_000)) for at in range(48_000))
    return io.BytesIO(array.array("h", [sample for value in wave for sample in (value, value)]).tobytes())


class Bot:
    async def join(self, number, timeout=20):
        return await self.channels()[number].connect(cls=Voice, timeout=timeout)

    def channels(self):
        return bot.guilds[0].voice_channels

    def channel_of(self, client):
        return client.channel.id

    def clients(self):
        return len(bot.voice_clients)

    async def settled(self, client):
        pass

    def sources(self):
        yield "own 660", Tone(660)
        yield "PCMVolumeTransformer 770", discord.PCMVolumeTransformer(discord.PCMAudio(pcm(770)), volume=0.5)
        if CALL["sound"]:
            yield "FFmpegPCMAudio 880", discord.FFmpegPCMAudio(CALL["sound"])
            yield "FFmpegOpusAudio 880", discord.FFmpegOpusAudio(CALL["sound"])


intents = discord.Intents.none()
intents.guilds = intents.voice_states = True
bot = discord.AutoShardedClient(intents=intents, shard_count=1) if CALL["sharded"] else discord.Client(intents=intents)
started = False


@bot.event
async def on_ready():
    global started
    if not started:
        started = True
        await perform(Bot())
        await bot.close()


bot.run(CALL["token"])
