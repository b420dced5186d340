# mypy: ignore-errors
"""A bot of hata, unmodified, that uses voicegw for its voice: the same steps as `framework_bot.py`."""

import json
import os
import sys
from pathlib import Path

CALL = json.loads(sys.argv[1])
os.environ["HATA_API_ENDPOINT"] = CALL["api"]

import hata  # noqa: E402 - it reads the environment when it is imported

import voicegw  # noqa: E402
from voicegw.frameworks.hata import VoiceClient  # noqa: E402

LOCAL = {
    "ca_pem": Path(CALL["ca"]).read_bytes(),
    "allowed_hosts": ("127.0.0.1",),
    "allow_private_media": True,
}
bot = hata.Client(CALL["token"], intents=hata.IntentFlag().update_by_keys(guilds=True, guild_voice_states=True))


def say(**words):
    print(json.dumps(words), flush=True)


@bot.events
async def ready(client):
    try:
        await perform(client)
    except Exception as error:
        say(event="failed", error=f"{type(error).__name__}: {error}")


async def perform(client):
    (guild,) = client.guilds
    channels = sorted(guild.iter_channels(), key=lambda channel: channel.id)
    voice = await VoiceClient.join(client, channels[0], **LOCAL)
    call = voice.call
    say(event="joined", channel=voice.channel_id, code=call.privacy_code)
    recording = voicegw.WavSink(CALL["recordings"])
    await voice.listen(recording)
    await voice.run(call.wait_for(lambda: call.states["dave"] == "active", 20))
    playback = await voice.play(voicegw.ToneSource(660, 2.0))
    await voice.run(playback.wait())
    await voice.run(call.wait_for(lambda: call.states["speech"] == "silent"))
    say(event="played", code=call.privacy_code, sent=call.stats.packets)
    await voice.run(call.wait_for(lambda: any(stats.packets > 50 for stats in call.stats.users.values())))
    await voice.move_to(channels[1])
    say(event="moved", channel=voice.channel_id, connected=voice.is_connected())
    await voice.run(call.wait_closed())
    recording.close()
    say(event="kicked", error=type(call.error).__name__)
    again = await VoiceClient.join(client, channels[0], **LOCAL)
    say(event="rejoined", connected=again.is_connected())
    await again.disconnect()
    say(event="left", connected=again.is_connected(), clients=len(client.voice_clients))


bot.start()
