# mypy: ignore-errors
"""A bot of hata, unmodified, that uses voicegw for its voice: the same steps, on hata's own event loop."""

import os
import sys
from importlib.metadata import version

from steps import CALL, LOCAL, narrate, say

os.environ["HATA_API_ENDPOINT"] = CALL["api"]

import hata  # reads the environment when it is imported

import voicegw
from voicegw.frameworks.hata import VoiceClient

bot = hata.Client(CALL["token"], intents=hata.IntentFlag().update_by_keys(guilds=True, guild_voice_states=True))


class Bot:
    def channels(self):
        (guild,) = bot.guilds
        return sorted(guild.iter_channels(), key=lambda channel: channel.id)

    async def join(self, number, timeout=20):
        return await VoiceClient.join(bot, self.channels()[number], timeout_s=timeout, **LOCAL)

    def channel_of(self, client):
        return client.channel_id

    def clients(self):
        return len(bot.voice_clients)

    async def sources(self):
        pcm = b"".join(iter(voicegw.ToneSource(660, 1.0).read, b""))
        yield "RawAudio 660", hata.RawAudio(pcm)
        yield "voicegw's 770", voicegw.ToneSource(770, 1.0)
        if CALL["sound"]:
            yield "LocalAudio 880", await hata.LocalAudio(CALL["sound"])


async def sing(performer):
    try:
        await performer.join(1, timeout=1)
    except Exception as error:
        say("refused", error=type(error).__name__, clients=performer.clients())
    voice = await performer.join(0)
    call = voice.call
    say("joined", channel=voice.channel_id, code=call.privacy_code)
    recording = voicegw.WavSink(CALL["recordings"])
    await voice.listen(recording)
    await voice.run(call.wait_for(lambda: call.states["dave"] == "active", 20))
    async for name, source in performer.sources():
        playback = await voice.play(source)
        await voice.run(playback.wait())
        await voice.run(call.wait_for(lambda: call.states["speech"] == "silent"))
        say("played", name=name, code=call.privacy_code, sent=call.stats.packets)
        await hata.KOKORO.run_in_executor(sys.stdin.readline)
    say("played all")
    await voice.run(call.wait_for(lambda: any(stats.packets > 50 for stats in call.stats.users.values())))
    await voice.move_to(performer.channels()[1])
    say("moved", channel=voice.channel_id, connected=voice.is_connected())
    await voice.run(call.wait_closed())
    recording.close()
    say("kicked", error=type(call.error).__name__, clients=performer.clients())
    again = await performer.join(0)
    say("rejoined", connected=again.is_connected())
    await again.disconnect()
    say("left", connected=again.is_connected(), clients=performer.clients())


async def endure(performer):
    voice = await performer.join(0)
    voice.call.add_listener(lambda notice: narrate(notice, performer, voice))
    await voice.play(voicegw.ToneSource(660))
    say("joined", channel=voice.channel_id)
    await voice.run(voice.call.wait_closed())
    say("kicked", error=type(voice.call.error).__name__)


started = False


@bot.events
async def ready(client):
    global started
    if started:
        return
    started = True
    say("logged in", version=version(CALL["package"]))
    try:
        await {"sing": sing, "endure": endure}[CALL["plan"]](Bot())
    except Exception as error:
        say("failed", error=f"{type(error).__name__}: {error}")


bot.start()
