"""Slash commands and messages on the local main gateway: what bots register, are asked, and answer.

Source: Discord docs, "Application Commands", "Receiving and Responding to Interactions", "Create Message".
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from voicegw.errors import VoiceError

if TYPE_CHECKING:
    from voicegw.server.main_gateway import MainGateway

API = "/api/v{version:\\d+}"
ALL_PERMISSIONS = str((1 << 40) - 1)
COMMAND, STRING, INTEGER, BOOLEAN, NUMBER = 2, 3, 4, 5, 10  # an interaction's type, and types of options
DEFERRED = 5  # an answer that follows
ANSWER_S = 10.0


@dataclass
class Asked:
    """One command that was given to a bot, and its answer when it has come."""

    id: str
    application_id: int
    channel_id: int
    answer: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def take(self, data: Mapping[str, Any]) -> None:
        """The bot has answered."""
        if not self.answer.done():
            self.answer.set_result(str(data.get("content") or ""))


class Commands:
    """What users ask of bots: `ask` gives a slash command; `messages` are the texts that bots wrote into channels."""

    def __init__(self, gateway: MainGateway) -> None:
        self._gateway = gateway
        self._numbers = itertools.count(1_000_000_000_000_000_001)
        self._registered: dict[int, dict[str, dict[str, Any]]] = {}
        self._asked: dict[str, Asked] = {}
        self.messages: list[tuple[int, str]] = []

    def routes(self) -> list[web.RouteDef]:
        """What bots ask of the REST API, and the door for who tries a bot: POST `/local/command`."""
        scopes = [f"{API}/applications/{{application}}{scope}/commands" for scope in ("", "/guilds/{guild}")]
        webhook = f"{API}/webhooks/{{application}}/{{token}}"
        return [
            *(web.get(path, self._list) for path in scopes),
            *(web.put(path, self._replace) for path in scopes),
            *(web.post(path, self._add) for path in scopes),
            web.post(f"{API}/interactions/{{id}}/{{token}}/callback", self._callback),
            web.post(webhook, self._follow_up),
            web.get(f"{webhook}/messages/{{message}}", self._original),
            web.patch(f"{webhook}/messages/{{message}}", self._follow_up),
            web.post(f"{API}/channels/{{channel:\\d+}}/messages", self._message),
            web.post(f"{API}/local/command", self._ask),
        ]

    def names(self, user_id: int) -> list[str]:
        """The commands that a bot has registered."""
        return list(self._registered.get(user_id, {}))

    async def ask(self, bot_id: int, user_id: int, channel_id: int, name: str, **options: str) -> str:
        """Give a bot a slash command, as `user_id` would in `channel_id`; the text of its answer.

        Raises:
            VoiceError: it is not logged in, has no such command, or does not answer within 10 s.
        """
        if bot_id not in self._gateway.bots:
            raise VoiceError(f"the bot {bot_id} is not logged in")
        command = self._registered.get(bot_id, {}).get(name)
        if command is None:
            raise VoiceError(f"the bot has no command {name}; it has {', '.join(self.names(bot_id)) or 'none'}")
        asked = Asked(str(next(self._numbers)), bot_id, channel_id)
        token = f"local-{asked.id}"
        self._asked[token] = asked
        interaction = self._gateway.interaction(user_id, channel_id)
        data = {"id": command["id"], "name": name, "type": 1, "options": _options(command, options)}
        self._gateway.bots[bot_id].dispatch(
            "INTERACTION_CREATE",
            {
                **interaction,
                "id": asked.id,
                "application_id": str(bot_id),
                "type": COMMAND,
                "token": token,
                "data": data,
            },
        )
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asked.answer
        except TimeoutError:
            raise VoiceError(f"the bot does not answer {name}") from None

    # -- REST

    async def _list(self, request: web.Request) -> web.Response:
        return _json(list(self._registered.get(int(request.match_info["application"]), {}).values()))

    async def _replace(self, request: web.Request) -> web.Response:
        bot_id = int(request.match_info["application"])
        self._registered[bot_id] = {}
        return _json([self._register(bot_id, command) for command in await request.json()])

    async def _add(self, request: web.Request) -> web.Response:
        return _json(self._register(int(request.match_info["application"]), await request.json()), status=201)

    def _register(self, bot_id: int, command: dict[str, Any]) -> dict[str, Any]:
        whole = {
            "type": 1,
            "description": "",
            "default_member_permissions": None,
            "nsfw": False,
            **command,
            "id": str(next(self._numbers)),
            "application_id": str(bot_id),
            "version": "1",
        }
        self._registered.setdefault(bot_id, {})[command["name"]] = whole
        self._gateway.changed()
        return whole

    async def _callback(self, request: web.Request) -> web.Response:
        answer = await _body(request)
        token = request.match_info["token"]
        asked = self._asked.get(token)
        if asked is None:
            return _json({"message": "Unknown interaction", "code": 10062}, status=404)
        if answer.get("type") != DEFERRED:
            asked.take(answer.get("data") or {})
        if "with_response" not in request.query:
            return web.Response(status=204)
        shown = self._shown(asked.channel_id, asked.application_id, answer.get("data") or {})
        told = {"id": asked.id, "type": COMMAND, "response_message_id": shown["id"]}
        return _json({"interaction": told, "resource": {"type": answer.get("type"), "message": shown}})

    async def _follow_up(self, request: web.Request) -> web.Response:
        asked = self._asked.get(request.match_info["token"])
        if asked is None:
            return _json({"message": "Unknown Webhook", "code": 10015}, status=404)
        data = await _body(request)
        asked.take(data)
        return _json(self._shown(asked.channel_id, asked.application_id, data))

    async def _original(self, request: web.Request) -> web.Response:
        asked = self._asked.get(request.match_info["token"])
        if asked is None:
            return _json({"message": "Unknown Webhook", "code": 10015}, status=404)
        return _json(self._shown(asked.channel_id, asked.application_id, {}))

    async def _message(self, request: web.Request) -> web.Response:
        channel_id = int(request.match_info["channel"])
        user_id = self._gateway.user_of(request.headers.get("Authorization", "").removeprefix("Bot "))
        data = await _body(request)
        self.messages.append((channel_id, str(data.get("content") or "")))
        self._gateway.changed()
        return _json(self._shown(channel_id, user_id, data))

    async def _ask(self, request: web.Request) -> web.Response:
        """For who tries a bot: every bot that has the command is asked, by somebody who is in a channel."""
        wanted = await request.json()
        bots = [bot_id for bot_id in self._gateway.bots if wanted["name"] in self.names(bot_id)]
        if not bots:
            return _json({"message": f"no bot has a command {wanted['name']}"}, status=404)
        user_id, channel_id = self._gateway.somebody(but=bots)
        try:
            answers = [
                await self.ask(bot_id, user_id, channel_id, wanted["name"], **wanted.get("options", {}))
                for bot_id in bots
            ]
        except VoiceError as error:
            return _json({"message": str(error)}, status=504)
        return _json({"answers": answers})

    def _shown(self, channel_id: int, user_id: int, data: Mapping[str, Any]) -> dict[str, Any]:
        """A message as REST shows it."""
        nothing = ("embeds", "attachments", "components", "mentions", "mention_roles")
        return {
            **{name: [] for name in nothing},
            "id": str(next(self._numbers)),
            "channel_id": str(channel_id),
            "author": self._gateway.user(user_id),
            "content": str(data.get("content") or ""),
            "timestamp": "2026-01-01T00:00:00.000000+00:00",
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "pinned": False,
            "type": 0,
            "flags": 0,
        }


def _options(command: Mapping[str, Any], given: Mapping[str, str]) -> list[dict[str, Any]]:
    """The options of a command as its definition types them."""
    kinds = {option["name"]: option["type"] for option in command.get("options") or ()}
    read: dict[int, Callable[[str], object]] = {INTEGER: int, NUMBER: float, BOOLEAN: lambda text: text == "true"}
    return [
        {"name": name, "type": kinds.get(name, STRING), "value": read.get(kinds.get(name, STRING), str)(value)}
        for name, value in given.items()
    ]


async def _body(request: web.Request) -> dict[str, Any]:
    """A body that is JSON, or a form with JSON in it where files come along."""
    if request.content_type.startswith("multipart/"):
        async for part in await request.multipart():
            if isinstance(part, aiohttp.BodyPartReader) and part.name == "payload_json":
                found: dict[str, Any] = json.loads(await part.text())
                return found
        return {}
    body: dict[str, Any] = await request.json()
    return body


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(data).encode(), status=status, headers={"Content-Type": "application/json"})
