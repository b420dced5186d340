"""A soundboard without a bot framework: each line on stdin plays a sound, over whatever plays.

DISCORD_TOKEN=... python examples/soundboard.py GUILD CHANNEL [DIRECTORY]

Sounds are the files in DIRECTORY ("sounds"), by their names without an ending. `loop NAME` plays one again and again
beneath the others, `stop` ends all, `quit` leaves.
"""

import asyncio
import os
import sys
from pathlib import Path

import voicegw
from voicegw.main_gateway import MainGateway


def find(directory, name):
    """The file of a sound."""
    for path in sorted(directory.iterdir()):
        if path.stem == name:
            return voicegw.open_source(path)
    raise voicegw.VoiceError(f"there is no {name!r} in {directory}")


def press(player, directory, words):
    """Do what a line says."""
    match words:
        case ["stop"]:
            for playback in (player.playing, *player.queued):
                if playback is not None:
                    playback.stop(fade_s=0.1)
        case ["loop", name]:
            player.play(find(directory, name), loop=True, volume=0.5, fade_in_s=0.5)
        case [name]:
            player.play_over(find(directory, name), duck=0.4)
        case _:
            raise voicegw.VoiceError("NAME, loop NAME, stop or quit")


async def main(guild_id, channel_id, directory):
    async with MainGateway(os.environ["DISCORD_TOKEN"]) as gateway:
        await gateway.login()
        async with voicegw.VoiceClient(user_id=gateway.user_id, guild_id=guild_id, signalling=gateway) as client:
            await client.connect(channel_id)
            print("sounds:", *sorted(path.stem for path in directory.iterdir()), flush=True)
            while (line := await asyncio.to_thread(sys.stdin.readline)) and line.strip() != "quit":
                try:
                    press(client.player, directory, line.split())
                except voicegw.VoiceError as error:
                    print(f"No: {error}", flush=True)


if __name__ == "__main__":
    guild, channel, *rest = sys.argv[1:]
    asyncio.run(main(int(guild), int(channel), Path(*rest or ["sounds"])))
