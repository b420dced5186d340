"""Whom the live view tells, and what it tells nobody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import ALICE, MakeClient, pair, signalling_of
from tests.faults.canaries import Canaries
from tests.view.conftest import get, port_of
from voicegw.adapters.system import System
from voicegw.errors import ConnectionFailed
from voicegw.media.sources import ToneSource
from voicegw.server import VoiceServer
from voicegw.view.follow import follow
from voicegw.view.guard import is_local
from voicegw.view.server import PAGE, View, serve_view

pytestmark = pytest.mark.loopback


async def test_only_who_asks_for_localhost_is_answered(view: View) -> None:
    for name in ("localhost", "127.0.0.1:80", "LOCALHOST:9", "[::1]:1"):
        assert (await get(view, "calls", headers={"Host": name}))[0] == 200
    for name in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "0"):
        for path in ("", "calls", "events", "metrics", "play", "nothing"):
            status, text = await get(view, path, headers={"Host": name})
            assert status == 403, (name, path)
            assert "localhost" in text
    for foreign in ("https://evil.example", "null", "http://[", ""):
        assert (await get(view, "calls", headers={"Origin": foreign}))[0] == 403
    for site, mode, status in (
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 200),
    ):
        assert (await get(view, "calls", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}))[0] == status
    own = {"Origin": view.url.rstrip("/")}
    assert (await get(view, "calls", headers=own))[0] == 200


async def test_with_a_token_only_who_has_it_is_answered(system: System) -> None:
    async with await serve_view(token="the token", system=system) as view:
        assert view.url.endswith("/?token=the%20token")
        cookie = f"voicegw-view-{port_of(view)}"
        assert "the token" not in repr(view) + repr(vars(view)["_token"])
        for path in ("", "calls", "events", "metrics", "play"):
            assert (await get(view, path))[0] == 401
            assert (await get(view, path, headers={"Authorization": "Bearer wrong"}))[0] == 401
            assert (await get(view, path, headers={"Authorization": "Bearer \udcff"}))[0] == 401
            assert (await get(view, path, cookies={cookie: "wrong"}))[0] == 401
        bearer = {"Authorization": "Bearer the token", "Host": "metrics.example"}
        assert (await get(view, "metrics", headers=bearer))[0] == 200
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            async with session.get(view.url) as answer:
                assert answer.status == 200
                assert str(answer.url) == view.url.partition("?")[0]  # the token is out of the address
                given = answer.history[0].headers["Set-Cookie"]
                assert given.startswith(f"{cookie}=")
                assert "HttpOnly" in given
                assert "SameSite=Strict" in given
            async with session.get(view.url.partition("?")[0] + "calls") as answer:
                assert answer.status == 200


async def test_elsewhere_than_on_localhost_there_is_always_a_token(system: System) -> None:
    async with await serve_view(host="0.0.0.0", system=system) as view:
        assert re.search(r"\?token=\S{32}$", view.url)
        assert (await get(view, "calls"))[0] == 401
    assert [is_local(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "bot.example", "")] == [False] * 5


async def test_every_answer_forbids_what_is_not_of_this_host(view: View) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("", *PAGE, "machines", "maps/call.svg", "calls", "metrics", "nothing", "maps/main_gateway.svg"):
            async with session.get(view.url + path) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; ")
                assert "unsafe" not in policy
                assert "*" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.status == (404 if path in ("nothing", "maps/main_gateway.svg") else 200), path
        async with session.get(view.url + "events") as answer:
            assert "Content-Security-Policy" in answer.headers


def test_the_page_names_no_other_address() -> None:
    page = Path(__file__).parents[2] / "voicegw" / "view" / "page"
    assert {path.name for path in page.iterdir()} == set(PAGE)
    for path in page.iterdir():
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:https?:)?//[\w.-]+[./][\w./-]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not found, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|style=", text), path.name


async def test_no_secret_is_on_the_page(
    server: VoiceServer, make_client: MakeClient, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = Canaries(monkeypatch)
    shown = ""
    async with await serve_view(system=system, token="token of the view") as view:
        own = {"headers": {"Authorization": "Bearer token of the view"}}
        alice, bob = await pair(make_client, server, system=system, keep_flight_record=True)
        accidents: list[Callable[[], None]] = [lambda: None, partial(server.drop_socket, ALICE)]
        for accident in (*accidents, signalling_of(alice).hand_over):
            accident()
            await alice.play(ToneSource(440, 0.1)).wait()
            for path in ("calls", "calls/1", "calls/2", "calls/1/record", "calls/1/play", "metrics", "machines", ""):
                shown += (await get(view, path, **own))[1]
            async for change in follow(view.url):
                shown += json.dumps(change)
                break
        await bob.close()
        shown += (await get(view, "calls", **own))[1] + (await get(view, "calls/2", **own))[1] + repr(view)
    assert len(canaries.values) >= 8
    assert len(shown) > 50_000
    assert not canaries.show_in(shown)


async def test_pages_beyond_a_bound_are_refused(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.view.server.STREAMS", 2)
    async with aiohttp.ClientSession() as session:
        answers = [await session.get(view.url + "events") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 503]
        for answer in answers:
            answer.close()


async def test_a_view_ends_with_its_pages_open(system: System) -> None:
    view = await serve_view(system=system)
    async with aiohttp.ClientSession() as session, session.get(view.url + "events") as answer:
        assert (await answer.content.readline()).startswith(b"data: ")
        await view.close()
        assert await answer.content.read() == b"\n"
    await view.close()
    assert system.calls.watchers == []
    with pytest.raises(ConnectionFailed):
        await anext(follow(view.url))


async def test_a_port_that_is_taken_is_said(view: View, system: System) -> None:
    with pytest.raises(OSError, match="address"):
        await serve_view(port=port_of(view), system=system)
