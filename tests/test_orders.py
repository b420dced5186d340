"""What `voicegw serve --main-gateway` is told on stdin, on a bot of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import ALICE
from tests.test_bot_commands import client_of, local, login
from tests.test_cli import finish, running
from voicegw.cli.orders import ORDERS, obey, usage
from voicegw.client import VoiceClient
from voicegw.effects import Connected, Moved, Notice, Resumed
from voicegw.errors import Kicked, LoginRefused, VoiceError
from voicegw.main_gateway import MainGateway
from voicegw.server import VoiceServer
from voicegw.server.guild import CHANNEL_IDS

pytestmark = pytest.mark.loopback


@pytest.fixture
async def server() -> AsyncIterator[VoiceServer]:
    async with VoiceServer(main_gateway=True) as running_server:
        yield running_server


class InCall:
    """A bot that is logged in and in the first channel, and what it has heard."""

    def __init__(self, server: VoiceServer, gateway: MainGateway, client: VoiceClient) -> None:
        self.server = server
        self.gateway = gateway
        self.client = client
        self.notices: list[Notice] = []
        client.add_listener(self.notices.append)

    async def told(self, order: str) -> None:
        await obey(local(self.server), order)

    async def hears(self, notice: Notice, seconds: float = 20.0) -> None:
        await self.client.wait_for(lambda: notice in self.notices, seconds)
        self.notices.remove(notice)


@pytest.fixture
async def bot(server: VoiceServer) -> AsyncIterator[InCall]:
    async with login(server) as gateway:
        await gateway.login()
        async with client_of(server, gateway) as client:
            await client.connect(CHANNEL_IDS[0])
            yield InCall(server, gateway, client)


async def test_moves_kicks_regions_and_null_endpoints(bot: InCall) -> None:
    await bot.told(f"move {ALICE} {CHANNEL_IDS[1]}")
    await bot.hears(Moved(CHANNEL_IDS[1]))
    await bot.told(f"region {ALICE}")
    await bot.hears(Connected(CHANNEL_IDS[1]))
    await bot.told(f"null {ALICE}")
    await bot.client.wait_for(lambda: bot.client.states["call"] == "waiting.endpoint")
    await bot.told("server-first")
    await bot.told(f"region {ALICE}")
    await bot.hears(Connected(CHANNEL_IDS[1]))
    await bot.told(f"cut {ALICE}")
    await bot.hears(Resumed())
    await bot.told(f"kick {ALICE}")
    await bot.client.wait_closed()
    assert isinstance(bot.client.error, Kicked)
    with pytest.raises(VoiceError, match="no voice channel"):
        await bot.told(f"kick {ALICE}")


async def test_the_main_gateways_session(bot: InCall) -> None:
    session = bot.server.session(ALICE)
    for order in ("drop", "reconnect"):
        connection = local(bot.server).bot(ALICE).connection
        await bot.told(f"{order} {ALICE}")
        await bot.server.wait_for(
            lambda before=connection: (  # type: ignore[misc]
                ALICE in local(bot.server).bots and local(bot.server).bot(ALICE).connection is not before
            )
        )
    assert bot.server.session(ALICE) is session
    await bot.told(f"invalidate {ALICE}")
    await bot.hears(Connected(CHANNEL_IDS[0]))
    assert bot.server.session(ALICE) is not session


async def test_what_was_missed_comes_after_a_resume(bot: InCall) -> None:
    await bot.told(f"drop {ALICE}")
    session = next(iter(local(bot.server).sessions.values()))
    session.signalling.move(CHANNEL_IDS[1])
    await bot.hears(Moved(CHANNEL_IDS[1]))


async def test_channels_that_do_not_answer(server: VoiceServer) -> None:
    async with login(server) as gateway:
        await gateway.login()
        quick = {"join_unanswered": 0.1, "ghost_cleared": 0.1, "pair_timeout": 0.1}
        for order, seen in (("full", True), ("hide", False)):
            await obey(local(server), f"{order} {CHANNEL_IDS[0]}")
            if seen:
                assert (await gateway.channel(CHANNEL_IDS[0]))["user_limit"] == 1
            else:
                with pytest.raises(LoginRefused, match="may not see"):
                    await gateway.channel(CHANNEL_IDS[0])
            async with client_of(server, gateway, deadlines=quick) as client:
                with pytest.raises(VoiceError, match="full"):
                    await asyncio.wait_for(client.connect(CHANNEL_IDS[0]), 20)
        await obey(local(server), f"free {CHANNEL_IDS[0]}")
        async with client_of(server, gateway) as client:
            await client.connect(CHANNEL_IDS[0])


async def test_logins_are_refused_until_all_are_taken(server: VoiceServer) -> None:
    for order, words in (("refuse-tokens", "token"), ("refuse-intents", "intents")):
        await obey(local(server), order)
        async with login(server) as gateway:
            with pytest.raises(LoginRefused, match=words):
                await gateway.login()
        await obey(local(server), "take-all")
    async with login(server) as gateway:
        await gateway.login()


@pytest.mark.parametrize("line", ["", "jump 1", "move 1", "kick somebody", "server-first 1", "kick 1 2", "kick 77"])
async def test_what_makes_no_order_is_said(server: VoiceServer, line: str) -> None:
    with pytest.raises(VoiceError):
        await obey(local(server), line)


def test_every_order_is_in_the_help() -> None:
    assert [text.split()[0] for text in usage().splitlines()] == list(ORDERS)


async def test_serve_takes_orders_on_stdin() -> None:
    async with running("serve", "--main-gateway", "--json") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        place = await asyncio.wait_for(process.stdout.readline(), 30)
        assert b'"channels"' in place
        process.stdin.write(f"full {CHANNEL_IDS[0]}\njump\n".encode())
        assert (await process.stderr.readline()).decode() == f"done: full {CHANNEL_IDS[0]}\n"
        assert (await process.stderr.readline()).startswith(b"not done: there is no order 'jump'")
        process.terminate()
        done = await finish(process)
    assert done.code == 0
