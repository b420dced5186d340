# mypy: ignore-errors
"""A bot of interactions.py, unmodified, that uses voicegw for its voice."""

import interactions
from interactions.api.http.route import Route
from interactions.api.voice.audio import Audio, AudioVolume, BaseAudio
from steps import CALL, LOCAL, perform

import voicegw
from voicegw.frameworks.interactions_py import VoiceClient

Route.BASE = CALL["api"]
bot = interactions.Client(
    token=CALL["token"],
    intents=interactions.Intents.GUILDS | interactions.Intents.GUILD_VOICE_STATES,
    sync_interactions=False,
)


class Tone(BaseAudio):
    """A source as bots write it: it has nothing at first, and says that more is to come."""

    needs_encode = True
    locked_stream = False
    bitrate = encoder = None

    def __init__(self, hz):
        self.frames = [b"", *iter(voicegw.ToneSource(hz, 1.0).read, b"")]

    @property
    def audio_complete(self):
        return not self.frames

    def read(self, frame_size):
        return self.frames.pop(0) if self.frames else b""

    def cleanup(self):
        self.frames = []


class Bot:
    async def join(self, number, timeout=20):
        return await VoiceClient.connect_to(self.channels()[number], timeout_s=timeout, **LOCAL)

    def channels(self):
        return sorted(bot.guilds[0].channels, key=lambda channel: channel.id)

    def channel_of(self, client):
        return int(client.channel.id)

    def clients(self):
        return 0  # interactions.py keeps no count of them

    async def settled(self, client):
        pass

    def sources(self):
        yield "own 660", Tone(660)
        if CALL["sound"]:
            yield "Audio 880", Audio(CALL["sound"])
            yield "AudioVolume 880", AudioVolume(CALL["sound"])


started = False


@interactions.listen()
async def on_startup():
    global started
    if not started:
        started = True
        await perform(Bot())


bot.start()
