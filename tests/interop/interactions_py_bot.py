# mypy: ignore-errors
"""A bot of interactions.py, unmodified, that uses voicegw for its voice: the same steps as `framework_bot.py`."""

import json
import sys
from pathlib import Path

import interactions
from interactions.api.http.route import Route
from interactions.api.voice.audio import BaseAudio

import voicegw
from voicegw.frameworks.interactions_py import VoiceClient

CALL = json.loads(sys.argv[1])
LOCAL = {
    "ca_pem": Path(CALL["ca"]).read_bytes(),
    "allowed_hosts": ("127.0.0.1",),
    "allow_private_media": True,
}
Route.BASE = CALL["api"]
bot = interactions.Client(
    token=CALL["token"],
    intents=interactions.Intents.GUILDS | interactions.Intents.GUILD_VOICE_STATES,
    sync_interactions=False,
)


def say(**words):
    print(json.dumps(words), flush=True)


class Tone(BaseAudio):
    """The framework's own kind of source."""

    needs_encode = True
    locked_stream = False
    bitrate = encoder = None

    def __init__(self):
        self.source = voicegw.ToneSource(660, 2.0)
        self.clean = False

    @property
    def audio_complete(self):
        return False

    def read(self, frame_size):
        return self.source.read()

    def cleanup(self):
        if not self.clean:
            say(event="cleaned up")
        self.clean = True


@interactions.listen()
async def on_startup():
    try:
        await perform()
    except Exception as error:
        say(event="failed", error=f"{type(error).__name__}: {error}")


async def perform():
    channels = sorted(bot.guilds[0].channels, key=lambda channel: channel.id)
    client = await VoiceClient.connect_to(channels[0], **LOCAL)
    voice = client.voice
    say(event="joined", channel=int(client.channel.id), code=voice.privacy_code)
    recording = voicegw.WavSink(CALL["recordings"])
    client.listen(recording)
    await voice.wait_for(lambda: voice.states["dave"] == "active", 20)
    await client.play(Tone()).wait()
    await voice.wait_for(lambda: voice.states["speech"] == "silent")
    say(event="played", code=voice.privacy_code, sent=voice.stats.packets)
    await voice.wait_for(lambda: any(stats.packets > 50 for stats in voice.stats.users.values()))
    await client.move_to(channels[1])
    say(event="moved", channel=int(client.channel.id), connected=client.is_connected())
    await voice.wait_closed()
    recording.close()
    say(event="kicked", error=type(voice.error).__name__)
    again = await VoiceClient.connect_to(channels[0], **LOCAL)
    say(event="rejoined", connected=again.is_connected())
    await again.disconnect()
    say(event="left", connected=again.is_connected(), clients=0)


bot.start()
