"""The local main gateway and its REST API, as a bot sees them."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import ALICE
from voicegw.adapters.websocket import tls_context
from voicegw.server import VoiceServer
from voicegw.server.main_gateway import CHANNEL_IDS, GUILD_ID

pytestmark = pytest.mark.loopback

TOKEN = f"{ALICE}.token"


@pytest.fixture
async def gateway() -> AsyncIterator[VoiceServer]:
    async with VoiceServer(main_gateway=True) as server:
        yield server


class RawBot:
    """A websocket on the main gateway."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, zipped: bool) -> None:
        self.socket = socket
        self._unzip = zlib.decompressobj() if zipped else None

    async def send(self, op: int, d: Any) -> None:
        await self.socket.send_str(json.dumps({"op": op, "d": d}))

    async def receive(self, name: str | None = None) -> Any:
        """The next message, or the next event of that name."""
        while True:
            message = await self.socket.receive(timeout=10)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            text = message.data if self._unzip is None else self._unzip.decompress(message.data)
            data = json.loads(text)
            if name is None or data["t"] == name:
                return data

    async def log_in(self) -> Any:
        assert (await self.receive())["op"] == 10
        await self.send(2, {"token": TOKEN, "intents": 1})
        return await self.receive("READY")


async def dial(server: VoiceServer, session: aiohttp.ClientSession, query: str = "") -> RawBot:
    socket = await session.ws_connect(server.gateway_url + query, ssl=tls_context(server.ca_pem))
    return RawBot(socket, "zlib" in query)


async def test_rest_knows_the_bot_by_its_token(gateway: VoiceServer) -> None:
    tls = tls_context(gateway.ca_pem)
    async with aiohttp.ClientSession() as session:
        for path in ("/users/@me", "/oauth2/applications/@me", "/applications/@me"):
            async with session.get(gateway.api + path, ssl=tls) as response:
                assert response.status == 401
            headers = {"Authorization": f"Bot {TOKEN}"}
            async with session.get(gateway.api + path, ssl=tls, headers=headers) as response:
                assert response.headers["Content-Type"] == "application/json"
                assert (await response.json())["id"] == str(ALICE)
        headers = {"Authorization": "Bot anything"}
        seen = []
        for _ in range(2):
            async with session.get(f"{gateway.api}/users/@me", ssl=tls, headers=headers) as response:
                seen.append((await response.json())["id"])
        assert seen[0] == seen[1] != str(ALICE)
        async with session.get(f"{gateway.api}/soundboard-default-sounds", ssl=tls) as response:
            assert await response.json() == []
        async with session.get(f"{gateway.api}/gateway/bot", ssl=tls, headers=headers) as response:
            assert (await response.json())["url"] == gateway.gateway_url
        async with session.get(gateway.gateway_url.replace("wss", "https"), ssl=tls) as response:
            assert response.status == 426


@pytest.mark.parametrize("query", ["", "?v=10&encoding=json&compress=zlib-stream"])
async def test_a_bot_joins_moves_and_leaves(gateway: VoiceServer, query: str) -> None:
    async with aiohttp.ClientSession() as session:
        bot = await dial(gateway, session, query)
        ready = await bot.log_in()
        assert ready["d"]["user"]["id"] == str(ALICE)
        guild = (await bot.receive("GUILD_CREATE"))["d"]
        assert [channel["id"] for channel in guild["channels"]] == [str(channel_id) for channel_id in CHANNEL_IDS]
        await bot.send(1, ready["s"])
        assert (await bot.receive())["op"] == 11
        wish = {"guild_id": str(GUILD_ID), "channel_id": str(CHANNEL_IDS[0]), "self_mute": False, "self_deaf": False}
        await bot.send(4, wish)
        state = (await bot.receive("VOICE_STATE_UPDATE"))["d"]
        server = (await bot.receive("VOICE_SERVER_UPDATE"))["d"]
        assert (state["user_id"], state["channel_id"]) == (str(ALICE), str(CHANNEL_IDS[0]))
        assert server["endpoint"] == gateway.endpoint
        assert gateway.main_gateway is not None
        gateway.main_gateway.signalling(ALICE).move(CHANNEL_IDS[1])
        moved = (await bot.receive("VOICE_STATE_UPDATE"))["d"]
        assert moved["channel_id"] == str(CHANNEL_IDS[1])
        await bot.send(4, {**wish, "channel_id": "1"})  # no such channel: silence
        await bot.send(4, {**wish, "channel_id": None})
        assert (await bot.receive("VOICE_STATE_UPDATE"))["d"]["channel_id"] is None
        await bot.socket.close()


async def test_a_bot_resumes_with_its_voice_state(gateway: VoiceServer) -> None:
    async with aiohttp.ClientSession() as session:
        bot = await dial(gateway, session)
        ready = await bot.log_in()
        again = await dial(gateway, session)
        await again.send(6, {"token": TOKEN, "session_id": ready["d"]["session_id"], "seq": 1})
        assert (await again.receive("RESUMED"))["d"] == {}
        await again.socket.close()
        await bot.socket.close()


async def test_strangers_are_closed(gateway: VoiceServer) -> None:
    async with aiohttp.ClientSession() as session:
        for text, code in (("{", 4002), ('{"op":4,"d":{}}', 4003)):
            bot = await dial(gateway, session)
            await bot.receive()
            await bot.socket.send_str(text)
            assert (await bot.socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
            assert bot.socket.close_code == code
