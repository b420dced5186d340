# mypy: ignore-errors
"""A bot of hikari, unmodified, that uses voicegw for its voice."""

import asyncio
import ssl

import hikari
from steps import CALL, LOCAL, perform

import voicegw
from voicegw.frameworks.hikari import VoiceConnection

bot = hikari.GatewayBot(
    token=CALL["token"],
    rest_url=CALL["api"],
    intents=hikari.Intents.GUILDS | hikari.Intents.GUILD_VOICE_STATES,
    banner=None,
    logs=None,
    http_settings=hikari.impl.config.HTTPSettings(ssl=ssl.create_default_context(cafile=CALL["ca"])),
)


class Bot:
    def __init__(self, guild_id, channels):
        self.guild_id = guild_id
        self._channels = channels

    async def join(self, number, timeout=20):
        channel = self._channels[number]
        return await bot.voice.connect_to(self.guild_id, channel, VoiceConnection, timeout=timeout, **LOCAL)

    def channels(self):
        return self._channels

    def channel_of(self, client):
        return int(client.channel_id)

    def clients(self):
        return len(bot.voice.connections)

    async def settled(self, client):
        await client.disconnect()  # hikari leaves the channel for every connection that has ended

    def sources(self):
        yield "voicegw's 660", voicegw.ToneSource(660, 1.0)


started = False


@bot.listen(hikari.GuildAvailableEvent)
async def on_guild(event):
    global started
    if not started:
        started = True
        task = asyncio.create_task(run(Bot(event.guild_id, [event.channels[key] for key in sorted(event.channels)])))
        task.add_done_callback(lambda _: asyncio.create_task(bot.close()))


async def run(performer):
    if not bot.shard_count:  # the bot is still starting
        await bot.wait_for(hikari.StartedEvent, 10)
    await perform(performer)


bot.run(check_for_updates=False)
