"""A music bot for discord.py: /play, /queue, /skip, /pause, /volume, /now, /leave.

DISCORD_TOKEN=... python examples/music_bot.py

A song is an http or https URL, or the name of a file in the directory MUSIC ("music").
"""

import asyncio
import os
from pathlib import Path
from weakref import WeakKeyDictionary

import discord
from discord import app_commands

import voicegw
from voicegw.frameworks.discord_py import VoiceClient

MUSIC = Path(os.environ.get("MUSIC", "music"))


class MusicBot(discord.Client):
    def __init__(self):
        super().__init__(intents=discord.Intents(guilds=True, voice_states=True))
        guild_only = app_commands.AppCommandContext(guild=True)
        self.tree = app_commands.CommandTree(self, allowed_contexts=guild_only)
        self.titles = WeakKeyDictionary()  # of what plays and waits
        self.volumes = {}  # by guild

    async def setup_hook(self):
        await self.tree.sync()


bot = MusicBot()


async def join(interaction):
    """The bot's call in this guild; it joins the user's channel where there is none."""
    if interaction.guild.voice_client is not None:
        return interaction.guild.voice_client
    if interaction.user.voice is None:
        raise voicegw.VoiceError("join a voice channel first")
    return await interaction.user.voice.channel.connect(cls=VoiceClient, self_deaf=True)


def player_of(interaction):
    """What plays in this guild."""
    client = interaction.guild.voice_client
    if client is None or client.voice.player.playing is None:
        raise voicegw.VoiceError("nothing is playing")
    return client.voice.player


def open_song(song):
    """What a user may ask for: the web, by its public addresses, and the files of one directory."""
    if song.startswith(("http://", "https://")):
        return voicegw.open_url(song)
    path = MUSIC / Path(song).name
    if not path.is_file():
        raise voicegw.VoiceError(f"there is no {path.name}")
    return voicegw.open_source(path)


@bot.tree.command(description="Play a song when those before it have ended")
async def play(interaction: discord.Interaction, song: str):
    await interaction.response.defer()  # Discord waits 3 s for an answer; a join may take longer
    client = await join(interaction)
    source = await asyncio.to_thread(open_song, song)
    first = client.voice.player.playing is None
    playback = client.voice.player.queue(source, volume=bot.volumes.get(interaction.guild.id, 1.0))
    bot.titles[playback] = song
    await interaction.followup.send(f"{'Playing' if first else 'Queued'}: {song}")


@bot.tree.command(description="What comes next")
async def queue(interaction: discord.Interaction):
    waiting = [bot.titles[playback] for playback in player_of(interaction).queued]
    await interaction.response.send_message("\n".join(waiting) or "Nothing waits.")


@bot.tree.command(description="Go to the next song")
async def skip(interaction: discord.Interaction):
    playing = player_of(interaction).playing
    playing.stop(fade_s=0.2)
    await interaction.response.send_message(f"Skipped: {bot.titles[playing]}")


@bot.tree.command(description="Pause, or go on")
async def pause(interaction: discord.Interaction):
    playing = player_of(interaction).playing
    (playing.resume if playing.paused else playing.pause)()
    await interaction.response.send_message("Paused." if playing.paused else "Going on.")


@bot.tree.command(description="How loud, in percent")
async def volume(interaction: discord.Interaction, percent: app_commands.Range[int, 0, 200]):
    bot.volumes[interaction.guild.id] = percent / 100
    player = player_of(interaction)
    for playback in (player.playing, *player.queued):
        playback.volume = percent / 100
    await interaction.response.send_message(f"Volume: {percent} %")


@bot.tree.command(description="What is playing")
async def now(interaction: discord.Interaction):
    playing = player_of(interaction).playing
    minutes, seconds = divmod(int(playing.position_s), 60)
    await interaction.response.send_message(f"Playing: {bot.titles[playing]}, {minutes}:{seconds:02}")


@bot.tree.command(description="Leave the channel")
async def leave(interaction: discord.Interaction):
    await interaction.response.defer()
    if interaction.guild.voice_client is not None:
        await interaction.guild.voice_client.disconnect()
    await interaction.followup.send("Left.")


@bot.tree.error
async def on_error(interaction, error):
    cause = getattr(error, "original", error)
    if not isinstance(cause, voicegw.VoiceError):
        raise error
    answered = interaction.response.is_done()
    await (interaction.followup.send if answered else interaction.response.send_message)(f"No: {cause}")


bot.run(os.environ["DISCORD_TOKEN"])
