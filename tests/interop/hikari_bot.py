# mypy: ignore-errors
"""A bot of hikari, unmodified, that uses voicegw for its voice: the same steps as `framework_bot.py`."""

import asyncio
import json
import ssl
import sys
from pathlib import Path

import hikari

import voicegw
from voicegw.frameworks.hikari import VoiceConnection

CALL = json.loads(sys.argv[1])
LOCAL = {
    "ca_pem": Path(CALL["ca"]).read_bytes(),
    "allowed_hosts": ("127.0.0.1",),
    "allow_private_media": True,
}
bot = hikari.GatewayBot(
    token=CALL["token"],
    rest_url=CALL["api"],
    intents=hikari.Intents.GUILDS | hikari.Intents.GUILD_VOICE_STATES,
    banner=None,
    logs=None,
    http_settings=hikari.impl.config.HTTPSettings(ssl=ssl.create_default_context(cafile=CALL["ca"])),
)


def say(**words):
    print(json.dumps(words), flush=True)


@bot.listen(hikari.GuildAvailableEvent)
async def on_guild(event):
    global performance
    performance = asyncio.create_task(perform(event.guild_id, sorted(event.channels)))
    performance.add_done_callback(lambda _: asyncio.create_task(bot.close()))


async def perform(guild_id, channels):
    if not bot.shard_count:  # the bot is still starting
        await bot.wait_for(hikari.StartedEvent, 10)
    try:
        await call(guild_id, channels)
    except Exception as error:
        say(event="failed", error=f"{type(error).__name__}: {error}")


async def call(guild_id, channels):
    def join():
        return bot.voice.connect_to(guild_id, channels[0], VoiceConnection, **LOCAL)

    connection = await join()
    say(event="joined", channel=int(connection.channel_id), code=connection.voice.privacy_code)
    recording = voicegw.WavSink(CALL["recordings"])
    connection.listen(recording)
    voice = connection.voice
    await voice.wait_for(lambda: voice.states["dave"] == "active", 20)
    await connection.play(voicegw.ToneSource(660, 2.0)).wait()
    await voice.wait_for(lambda: voice.states["speech"] == "silent")
    say(event="played", code=voice.privacy_code, sent=voice.stats.packets)
    await voice.wait_for(lambda: any(stats.packets > 50 for stats in voice.stats.users.values()))
    await connection.move_to(channels[1])
    say(event="moved", channel=int(connection.channel_id), connected=connection.is_connected())
    await connection.join()
    recording.close()
    say(event="kicked", error=type(voice.error).__name__)
    await connection.disconnect()
    again = await join()
    say(event="rejoined", connected=again.is_connected())
    await again.disconnect()
    say(event="left", connected=again.is_connected(), clients=len(bot.voice.connections))


bot.run(check_for_updates=False)
