# mypy: ignore-errors
"""What every bot does, whatever its framework: the steps of the two tests, told to them as lines of JSON.

Imported by the bots, which are run by interpreters of environments that have a framework and voicegw.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from pathlib import Path

import voicegw
from voicegw.effects import Connected, Moved, Resumed

CALL = json.loads(sys.argv[1])
LOCAL = {
    "ca_pem": Path(CALL["ca"]).read_bytes(),
    "allowed_hosts": ("127.0.0.1",),
    "allow_private_media": True,
}


def say(event, **words):
    print(json.dumps({"event": event, **words}), flush=True)


async def perform(bot):
    """`bot` joins, lists its framework's channels and sources, and says where a client is and how many there are."""
    say("logged in", version=version(CALL["package"]))
    try:
        await {"sing": sing, "endure": endure}[CALL["plan"]](bot)
    except Exception as error:
        say("failed", error=f"{type(error).__name__}: {error}")


async def sing(bot):
    """Find the second channel full; play, record, move, be kicked, come again, leave."""
    try:
        await bot.join(1, timeout=1)
    except Exception as error:
        say("refused", error=type(error).__name__, clients=bot.clients())
    client = await bot.join(0)
    voice = client.voice
    say("joined", channel=bot.channel_of(client), code=voice.privacy_code)
    recording = voicegw.WavSink(CALL["recordings"])
    client.listen(recording)
    await voice.wait_for(lambda: voice.states["dave"] == "active", 20)
    loop = asyncio.get_running_loop()
    for name, source in bot.sources():
        ended = asyncio.Event()
        client.play(source, after=lambda error, ended=ended: loop.call_soon_threadsafe(ended.set))
        await ended.wait()
        await voice.wait_for(lambda: voice.states["speech"] == "silent")
        say("played", name=name, code=voice.privacy_code, sent=voice.stats.packets)
        await asyncio.to_thread(sys.stdin.readline)
    say("played all")
    await voice.wait_for(lambda: any(stats.packets > 50 for stats in voice.stats.users.values()))
    await client.move_to(bot.channels()[1])
    say("moved", channel=bot.channel_of(client), connected=client.is_connected())
    await voice.wait_closed()
    recording.close()
    await bot.settled(client)
    say("kicked", error=type(voice.error).__name__, clients=bot.clients())
    again = await bot.join(0)
    say("rejoined", connected=again.is_connected())
    await again.disconnect()
    say("left", connected=again.is_connected(), clients=bot.clients())


async def endure(bot):
    """Play, whatever happens, and say how the call comes back."""
    client = await bot.join(0)
    client.voice.add_listener(lambda notice: narrate(notice, bot, client))
    client.play(voicegw.ToneSource(660))
    say("joined", channel=bot.channel_of(client))
    await client.voice.wait_closed()
    say("kicked", error=type(client.voice.error).__name__)


def narrate(notice, bot, client):
    match notice:
        case Resumed():
            say("resumed")
        case Connected() | Moved():
            name = type(notice).__name__.lower()
            say(name, channel=bot.channel_of(client), clients=bot.clients())
