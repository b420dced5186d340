"""Speech to text, user by user: a hook for the speech recognition of your choice.

DISCORD_TOKEN=... python examples/transcription.py GUILD CHANNEL

Needs `pip install "voicegw[vad]"`. What comes with it recognises nothing: it says how long and how loud somebody spoke.
Put yours into `transcribe`.
"""

import array
import asyncio
import os
import sys

import voicegw
from voicegw.main_gateway import MainGateway

PAUSE_S = 0.6  # so much silence ends an utterance
LONGEST_S = 30.0


def transcribe(user_id: int, pcm: bytes) -> str:
    """Text for one utterance; called in a thread, so it may take its time.

    `pcm` is 48 kHz, mono, 16 bit. Most models want 16 kHz: take every third sample after a low-pass filter, or let
    your library do it.
    """
    samples = array.array("h", pcm)
    loudest = max(map(abs, samples), default=0) / 32768
    return f"({len(samples) / 48_000:.1f} s of speech, peak {loudest:.2f})"


class Utterance:
    """What one user says between two pauses."""

    def __init__(self):
        self.pcm = bytearray()
        self.last_slot = 0

    def add(self, frame):
        self.pcm += array.array("h", frame.pcm)[::2].tobytes()  # both channels of speech are alike
        self.last_slot = frame.slot

    def over(self, slot):
        return slot - self.last_slot > PAUSE_S * 50 or len(self.pcm) > LONGEST_S * 96_000


async def listen(client, say):
    """Give every utterance to `transcribe`, and its text to `say(user_id, text)`, until the call is over."""
    speaks = voicegw.VoiceActivity()
    utterances = {}

    async def recognise(user_id, utterance):
        say(user_id, await asyncio.to_thread(transcribe, user_id, bytes(utterance.pcm)))

    def end(user_id):
        work.create_task(recognise(user_id, utterances.pop(user_id)))

    frames = client.frames()  # of everybody, 20 ms at a time
    async with asyncio.TaskGroup() as work:
        while client.states["call"] != "closed":
            try:
                frame = await asyncio.wait_for(anext(frames), PAUSE_S)
            except (TimeoutError, StopAsyncIteration):  # nobody says anything
                over = list(utterances)
            else:
                if speaks(frame):
                    utterances.setdefault(frame.user_id, Utterance()).add(frame)
                over = [user_id for user_id, utterance in utterances.items() if utterance.over(frame.slot)]
            for user_id in over:
                end(user_id)


async def main(guild_id, channel_id):
    async with MainGateway(os.environ["DISCORD_TOKEN"]) as gateway:
        await gateway.login()
        async with voicegw.VoiceClient(user_id=gateway.user_id, guild_id=guild_id, signalling=gateway) as client:
            await client.connect(channel_id)
            print("listening", flush=True)
            await listen(client, lambda user_id, text: print(user_id, text, flush=True))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
