"""A recorder for disnake: /record joins and says so to everybody, /stop leaves and tells where the files are.

DISCORD_TOKEN=... python examples/recorder.py

Everybody is told, by text and by sound, before the first word is kept, and so is who comes later. Whether that is
enough where you live is for you to know.
"""

import asyncio
import os
import time
from pathlib import Path

import disnake
from disnake.ext import commands

import voicegw
from voicegw.frameworks.disnake import VoiceClient

RECORDINGS = Path(os.environ.get("RECORDINGS", "recordings"))
NOTICE = "This channel is being recorded. Whoever does not want that leaves it, or stays silent; /stop ends it."

GUILD = disnake.InteractionContextTypes(guild=True)

bot = commands.InteractionBot(intents=disnake.Intents(guilds=True, voice_states=True))
background = set()  # the event loop keeps no task alive


def announce(channel, text):
    task = asyncio.ensure_future(channel.send(text))
    background.add(task)
    task.add_done_callback(background.discard)


def open_notice():
    """A spoken notice of yours, "notice.ogg", or a tone."""
    return voicegw.open_source("notice.ogg") if Path("notice.ogg").exists() else voicegw.ToneSource(880, 0.5)


@bot.slash_command(description="Record your voice channel", contexts=GUILD)
async def record(inter: disnake.ApplicationCommandInteraction):
    await inter.response.defer()
    if inter.author.voice is None:
        raise voicegw.VoiceError("join a voice channel first")
    if inter.guild.voice_client is not None:
        raise voicegw.VoiceError("there is a recording already")
    channel = inter.author.voice.channel
    await channel.send(NOTICE)
    client = await channel.connect(cls=VoiceClient)
    recording = voicegw.Recording(RECORDINGS / time.strftime("%Y-%m-%d %H-%M-%S"), "ogg")

    def note(notice):
        match notice:
            case voicegw.UsersChanged(joined=joined) if joined:
                announce(channel, f"{' '.join(f'<@{user_id}>' for user_id in joined)} {NOTICE}")
            case voicegw.Reconnecting(reason=reason):
                announce(channel, f"The recording has a gap: {reason}.")

    try:
        await client.play(open_notice()).wait()
        client.listen(recording)
        client.voice.add_listener(note)
        await inter.edit_original_response("Recording.")
        await client.voice.wait_closed()  # stopped, kicked, or the network did not come back
    finally:
        await client.disconnect()  # and the last sound has come
        await asyncio.to_thread(recording.close)
    names = ", ".join(path.name for path in (*recording.paths.values(), recording.mixed_path))
    await channel.send(f"Recorded {recording.seconds:.1f} s: {names}")


@bot.slash_command(description="End the recording", contexts=GUILD)
async def stop(inter: disnake.ApplicationCommandInteraction):
    await inter.response.defer()
    if inter.guild.voice_client is None:
        raise voicegw.VoiceError("there is no recording")
    await inter.guild.voice_client.disconnect()
    await inter.edit_original_response("Stopped.")


@bot.event
async def on_slash_command_error(inter, error):
    cause = getattr(error, "original", error)
    if not isinstance(cause, voicegw.VoiceError):
        raise error
    await inter.edit_original_response(f"No: {cause}")


bot.run(os.environ["DISCORD_TOKEN"])
