"""Runs a bot as it is, on the local server in the place of Discord.

    voicegw serve --main-gateway | tee server.json              # in a terminal of its own
    python -m voicegw.testing.locally server.json bot.py        # the bot's own arguments may follow
    python -m voicegw.testing.locally server.json /play song=song.ogg

`server.json` holds the line that `voicegw serve --main-gateway` prints. The bot is run unchanged: its framework
(discord.py, py-cord, nextcord, disnake, hikari, interactions.py, hata, or `voicegw.main_gateway`) is pointed to the
server, whose certificate authority is trusted, and DISCORD_TOKEN is set where it is not. What begins with a slash is no
bot but a slash command: every bot that has registered it is asked, by somebody who is in a voice channel.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOKEN = "MTA0Njk0MzE5MzA2MjQ4MTky.a-bot.on-this-host"  # noqa: S105 - any token will do; it begins with a user id
USAGE = "usage: python -m voicegw.testing.locally SERVER.json (BOT.py [ARGUMENT ...] | /COMMAND [NAME=VALUE ...])"
SERVE = "in a terminal of its own: voicegw serve --main-gateway | tee server.json"
VOICE_PROTOCOLS = ("discord", "nextcord", "disnake")


def point_to(place: dict[str, Any]) -> None:
    """Have every framework of this process talk to the server at `place`, the line that `voicegw serve` prints."""
    os.environ["SSL_CERT_FILE"] = place["ca"]
    os.environ["HATA_API_ENDPOINT"] = place["api"]
    os.environ.setdefault("DISCORD_TOKEN", TOKEN)

    import yarl  # aiohttp, which comes with what follows, reads SSL_CERT_FILE when it is imported

    from voicegw.client import VoiceClient
    from voicegw.main_gateway import MainGateway

    host = str(yarl.URL(place["api"]).host)
    ca_pem = Path(place["ca"]).read_bytes()
    _default(VoiceClient.__init__, ca_pem=ca_pem, allowed_hosts=(host,), allow_private_media=True)
    _default(MainGateway.__init__, ca_pem=ca_pem, api=place["api"])
    for name in VOICE_PROTOCOLS:
        if (framework := _installed(name)) is not None:
            framework.http.Route.BASE = framework.http.Route.API_BASE_URL = place["api"]
            framework.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(place["gateway"])
    if (hikari := _installed("hikari")) is not None:
        _default(hikari.GatewayBot.__init__, rest_url=place["api"], banner=None)
        _default(hikari.GatewayBot.run, check_for_updates=False)
    if _installed("interactions") is not None:
        importlib.import_module("interactions.api.http.route").Route.BASE = place["api"]


def ask(place: dict[str, Any], name: str, options: dict[str, str]) -> list[str]:
    """Give the bots a slash command; their answers."""
    request = urllib.request.Request(  # noqa: S310 - the server's own address
        f"{place['api']}/local/command",
        data=json.dumps({"name": name, "options": options}).encode(),
        headers={"Content-Type": "application/json"},
    )
    trust = ssl.create_default_context(cafile=place["ca"])
    try:
        with urllib.request.urlopen(request, context=trust) as response:  # noqa: S310
            answers: list[str] = json.load(response)["answers"]
    except urllib.error.HTTPError as error:
        raise SystemExit(json.load(error)["message"]) from None
    except OSError:
        raise SystemExit(f"the server at {place['api']} is gone; {SERVE}") from None
    return answers


def read_place(path: str) -> dict[str, Any]:
    """What `voicegw serve --main-gateway` has printed into the file at `path`."""
    try:
        place: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[0])
        if "api" in place and Path(place["ca"]).is_file():
            return place
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise SystemExit(f"{path} tells of no server that runs; {SERVE}")


def main(argv: Sequence[str]) -> None:
    """Run the bot, or give the command."""
    is_bot = len(argv) > 1 and Path(argv[1]).is_file()
    is_command = len(argv) > 1 and argv[1].startswith("/") and all("=" in option for option in argv[2:])
    if not is_bot and not is_command:
        raise SystemExit(f"no bot {argv[1]}; {USAGE}" if len(argv) > 1 else USAGE)
    place = read_place(argv[0])
    if not is_bot:
        given = dict(option.split("=", 1) for option in argv[2:])
        print("\n".join(ask(place, argv[1].removeprefix("/"), given)))
        return
    point_to(place)
    sys.argv = [*argv[1:]]
    sys.path.insert(0, str(Path(argv[1]).parent))
    runpy.run_path(argv[1], run_name="__main__")


def _default(function: Any, **values: Any) -> None:
    """Other defaults for keyword arguments."""
    function.__kwdefaults__.update(values)


def _installed(name: str) -> Any:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


if __name__ == "__main__":
    main(sys.argv[1:])
