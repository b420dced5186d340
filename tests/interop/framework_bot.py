# mypy: ignore-errors
"""A bot of discord.py, py-cord, nextcord or disnake, unmodified, that uses voicegw for its voice.

Run by the interpreter of an environment that has the framework and voicegw, with what it needs as JSON. It logs in,
joins the first voice channel, plays a tone and records; then it moves and is kicked by the test. It prints a line of
JSON for each step.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import ClassVar

import yarl

import voicegw

CALL = json.loads(sys.argv[1])
discord = importlib.import_module(CALL["module"])
protocol = importlib.import_module(f"voicegw.frameworks.{CALL['adapter']}")

discord.http.Route.BASE = discord.http.Route.API_BASE_URL = CALL["api"]
discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(CALL["gateway"])


def say(**words):
    print(json.dumps(words), flush=True)


class Voice(protocol.VoiceClient):
    options: ClassVar = {
        "ca_pem": Path(CALL["ca"]).read_bytes(),
        "allowed_hosts": ("127.0.0.1",),
        "allow_private_media": True,
    }


class Tone(discord.AudioSource):
    """The framework's own kind of source."""

    def __init__(self):
        self.source = voicegw.ToneSource(660, 2.0)
        self.clean = False

    def is_opus(self):
        return False

    def read(self):
        return self.source.read()

    def cleanup(self):
        if not self.clean:  # the framework does it again when it is forgotten
            say(event="cleaned up")
        self.clean = True


intents = discord.Intents.none()
intents.guilds = intents.voice_states = True
bot = discord.Client(intents=intents)
started = False


@bot.event
async def on_ready():
    global started
    if started:
        return
    started = True
    try:
        await perform()
    except Exception as error:
        say(event="failed", error=f"{type(error).__name__}: {error}")
    await bot.close()


async def perform():
    channel = bot.guilds[0].voice_channels[0]
    client = await channel.connect(cls=Voice)
    say(event="joined", channel=channel.id, code=client.voice.privacy_code)
    recording = voicegw.WavSink(CALL["recordings"])
    client.listen(recording)
    await client.voice.wait_for(lambda: client.voice.states["dave"] == "active", 20)
    await client.play(Tone()).wait()
    await client.voice.wait_for(lambda: client.voice.states["speech"] == "silent")
    say(event="played", code=client.voice.privacy_code, sent=client.voice.stats.packets)
    await client.voice.wait_for(lambda: any(stats.packets > 50 for stats in client.voice.stats.users.values()))
    other = bot.guilds[0].voice_channels[1]
    await client.move_to(other)
    say(event="moved", channel=client.channel.id, connected=client.is_connected())
    await client.voice.wait_closed()
    recording.close()
    say(event="kicked", error=type(client.voice.error).__name__)
    again = await channel.connect(cls=Voice) if not bot.voice_clients else None
    if again is None:
        await client.disconnect()
        again = await channel.connect(cls=Voice)
    say(event="rejoined", connected=again.is_connected())
    await again.disconnect()
    say(event="left", connected=again.is_connected(), clients=len(bot.voice_clients))


bot.run(CALL["token"])
