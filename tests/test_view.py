"""The live view: what it tells of calls, whom it tells, and what it says to Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, pair, signalling_of
from tests.faults.canaries import Canaries
from tests.test_cli import call, finish, running
from voicegw.adapters.calls import Calls
from voicegw.adapters.system import System
from voicegw.client import VoiceClient
from voicegw.errors import ConnectionFailed
from voicegw.flight import NotARecord
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.session import SESSIONS
from voicegw.tables.draw import drawn_from, fingerprint, to_map_dot
from voicegw.tables.load import load_table, map_of
from voicegw.testing.chaos import Chaos
from voicegw.view.follow import follow
from voicegw.view.guard import is_local
from voicegw.view.machines import MACHINES, described
from voicegw.view.metrics import exposition
from voicegw.view.record import played
from voicegw.view.server import PAGE, View, serve_view
from voicegw.view.watch import ENDED_KEPT, RECORDS_KEPT, Watch

from .test_flight import recorded

pytestmark = pytest.mark.loopback


@pytest.fixture
def system() -> System:
    """A host whose calls are those of the test alone."""
    return System()


@pytest.fixture
async def view(system: System) -> AsyncIterator[View]:
    async with await serve_view(system=system) as served:
        yield served


async def get(view: View, path: str, **options: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(view.url.partition("?")[0] + path, **options) as answer:
        return answer.status, await answer.text()


def port_of(view: View) -> int:
    return int(view.url.split(":")[2].partition("/")[0])


async def told(view: View, path: str) -> Any:
    status, text = await get(view, path)
    assert status == 200, text
    return json.loads(text)


async def lines_once(view: View, ready: Any) -> list[dict[str, Any]]:
    """The list, as soon as `ready` says that it is told."""
    async for _ in follow(view.url):
        lines: list[dict[str, Any]] = await told(view, "calls")
        if ready(lines):
            return lines
    raise AssertionError("the view has ended")


# -- calls


async def test_a_call_is_shown_from_its_join_to_its_end(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    assert await told(view, "calls") == []
    alice, bob = await pair(make_client, server, system=system, keep_flight_record=True)
    bob.listen(lambda frame: None)
    await alice.play(ToneSource(440, 0.4)).wait()
    await bob.wait_for(lambda: bob.stats.users[ALICE].packets >= 20)
    server.drop_socket(BOB)
    await bob.wait_for(lambda: bob.tally.reconnects == 1 and bob.states["gateway"] == "ready")

    one, two = await lines_once(view, lambda lines: len(lines) == 2 and lines[1]["reconnects"] == 1)
    assert (one["guild"], one["channel"], one["user"]) == (str(GUILD), str(CHANNEL), str(ALICE))
    assert two["states"] == bob.states
    assert two["received"] >= 20
    assert two["lost_in"] == 0
    assert two["latency"] == pytest.approx(bob.latency * 1000, abs=0.1)
    whole = await told(view, f"calls/{two['id']}")
    assert whole["code"] == bob.privacy_code != ""
    assert whole["epoch"] == bob.epoch
    assert whole["mode"] == bob.session.gateway.mode
    assert whole["endpoint"] == server.endpoint
    assert whole["why"] == "it waits for nothing"
    assert [user["id"] for user in whole["users"]] == [str(ALICE)]
    assert whole["closes"] == [{"code": "none", "count": 1, "meaning": "abnormal end"}]
    (resumed,) = [step for step in whole["way"] if step["event"] == "resumed_received"]
    assert load_table("gateway").rows[resumed["rows"][0] - 1].event == "resumed_received"

    await bob.close()
    _, ended = await lines_once(view, lambda lines: lines[-1].get("ended") and len(lines) == 2)
    assert ended["states"]["call"] == "closed"
    assert ended["error"] is None
    assert (await told(view, f"calls/{ended['id']}"))["way"][0]["after"] in ("closed", "closed.down")
    assert (await get(view, "calls/77"))[0] == 404
    assert list(system.calls.live().values()) == [alice]


async def test_what_a_call_waits_for_is_told_in_words(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice = make_client(server, ALICE, system=system)
    signalling_of(alice).silent = True
    joining = asyncio.ensure_future(alice.connect(CHANNEL))
    (line,) = await lines_once(view, lambda lines: len(lines) == 1)
    whole = await told(view, f"calls/{line['id']}")
    assert whole["why"].startswith("call joining.asking for ")
    assert whole["deadlines"]["call"]["name"] == load_table("call").states["joining.asking"].deadline
    signalling_of(alice).silent = False
    signalling_of(alice).move(CHANNEL)
    await joining


async def test_an_end_with_an_error_says_which(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice = make_client(server, ALICE, system=system)
    await alice.connect(CHANNEL)
    await server.close_socket(ALICE, 4021)
    await alice.wait_closed()
    (line,) = await lines_once(view, lambda lines: lines and lines[0].get("ended"))
    assert line["error"] == str(alice.error) != "None"
    assert line["closed"] == "4021"
    assert value_of(await scraped(view), "closes", code="4021", event="closed_rate_limited") == 1


async def test_changes_are_sent_together_and_only_what_is_new(
    server: VoiceServer, make_client: MakeClient, system: System
) -> None:
    alice = make_client(server, ALICE, system=system)
    await alice.connect(CHANNEL)
    watch = Watch(system.calls)
    looks = watch.changes(1)
    first = await anext(looks)
    assert [line["id"] for line in first["calls"]] == [1]
    assert first["call"]["id"] == 1
    assert first["call"]["why"]
    second = await anext(looks)
    assert "gone" not in second
    assert not {"policy", "mode", "users", "endpoint"} & second.get("call", {}).keys()
    server.drop_socket(ALICE)
    await alice.wait_for(lambda: alice.tally.reconnects == 1 and alice.states["gateway"] == "ready")
    third = await anext(looks)
    assert third["calls"][0]["reconnects"] == 1
    assert {"way", "closes"} <= third["call"].keys()
    watch.close()


async def test_nobody_is_looked_at_while_nobody_watches(
    server: VoiceServer, make_client: MakeClient, system: System, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr("voicegw.view.watch.summary", lambda number, *rest: looked.append(number))
    alice, _ = await pair(make_client, server, system=system)
    await alice.play(ToneSource(440, 0.7)).wait()
    assert looked == []


class Gone:
    """A client whose call is over, as far as the watch looks."""

    def __init__(self) -> None:
        self.flight_recorder = None


async def test_ended_calls_are_kept_for_a_while_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicegw.view.watch.Ended.look", lambda ended, now: None)
    watch = Watch(Calls())
    for number in range(ENDED_KEPT + 20):
        gone: Any = Gone()
        gone.flight_recorder = object()
        watch._keep(number, gone)
    assert list(watch._ended) == list(range(20, ENDED_KEPT + 20))
    assert sum(ended.recorder is not None for ended in watch._ended.values()) == RECORDS_KEPT


async def test_the_calls_of_a_host_are_known_without_a_view(
    server: VoiceServer, make_client: MakeClient, system: System
) -> None:
    alice = make_client(server, ALICE, system=system)
    assert system.calls.live() == {}
    await alice.connect(CHANNEL)
    assert list(system.calls.live().values()) == [alice]
    await alice.close()
    assert system.calls.live() == {}
    assert system.calls.ended == 1
    assert system.calls.over.transitions["call", "join_requested"] == 1
    del alice


async def test_calls_of_other_threads_are_shown_too(system: System, view: View) -> None:
    """Each with a loop of its own."""
    joined, leave = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with VoiceServer() as server:
            client = VoiceClient(
                user_id=ALICE,
                guild_id=GUILD,
                signalling=LocalSignalling(server, ALICE),
                ca_pem=server.ca_pem,
                allowed_hosts=(server.host,),
                allow_private_media=True,
                system=system,
            )
            async with client:
                await client.connect(CHANNEL)
                joined.set()
                await asyncio.to_thread(leave.wait)

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
    try:
        assert await asyncio.to_thread(joined.wait, 20)
        (line,) = await lines_once(view, lambda lines: len(lines) == 1)
        assert line["states"]["call"] == "connected"
        assert (await told(view, f"calls/{line['id']}"))["policy"] == "require"
    finally:
        leave.set()
        await other
    (line,) = await lines_once(view, lambda lines: lines and lines[0].get("ended"))
    assert line["states"]["call"] == "closed"


async def test_a_call_that_cannot_be_looked_at_is_shown_as_it_was(
    server: VoiceServer, make_client: MakeClient, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_client(server, ALICE, system=system)
    await alice.connect(CHANNEL)
    watch = Watch(system.calls)
    before = watch.lines()

    def between_two_steps(*arguments: object) -> None:
        raise RuntimeError("deque mutated during iteration")

    monkeypatch.setattr("voicegw.view.watch.summary", between_two_steps)
    monkeypatch.setattr("voicegw.view.watch.detail", between_two_steps)
    watch._looked_at = -1.0
    assert watch.lines() == before != {}
    assert watch.whole(1) is None
    watch.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_none_of_the_calls() -> None:
    script = (
        "import os\n"
        "from voicegw.adapters.system import THIS_SYSTEM\n"
        "class Client: pass\n"
        "client = Client()\n"
        "THIS_SYSTEM.calls.join(client)\n"
        "assert len(THIS_SYSTEM.calls.live()) == 1\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(len(THIS_SYSTEM.calls.live()))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert len(THIS_SYSTEM.calls.live()) == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- flight records


async def test_a_calls_own_flight_record_is_saved_and_played(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice = make_client(server, ALICE, system=system, keep_flight_record=True)
    bob = make_client(server, BOB, system=system)
    await alice.connect(CHANNEL)
    await bob.connect(CHANNEL)
    (recorded_one, other) = (line["id"] for line in await told(view, "calls"))
    status, text = await get(view, f"calls/{recorded_one}/record")
    assert status == 200
    assert json.loads(text.splitlines()[0])["voicegw"] == 1
    film = await told(view, f"calls/{recorded_one}/play")
    assert film["begin"] == {name: load_table(name).initial for name in SESSIONS}
    assert film["frames"][0]["event"] == "join_requested"
    assert film["frames"][0]["content"]["channel_id"] == str(CHANNEL)  # too long for a browser's numbers
    status, text = await get(view, f"calls/{other}/play")
    assert status == 404
    assert "keep_flight_record=True" in text


@pytest.mark.parametrize("seed", range(8))
def test_every_frame_has_the_row_that_was_taken(seed: int) -> None:
    chaos = Chaos(seed)
    recorder = recorded(chaos.world)
    chaos.go()
    film = played("\n".join(recorder.lines()), "run")
    assert film["differs"] is None
    states = dict(film["begin"])
    for frame in film["frames"]:
        for step in frame["steps"]:
            table = load_table(step["machine"])
            assert states[step["machine"]] == step["before"]
            states[step["machine"]] = step["after"]
            (number,) = step["rows"]
            row = table.rows[number - 1]
            assert row.event == step["event"]
            assert step["before"] in {leaf for source in row.sources for leaf in table.leaves(source)}
            assert (row.to or step["before"]) == step["after"]


def test_a_record_without_its_beginning_is_played_as_far_as_it_tells() -> None:
    chaos = Chaos(3)
    recorder = recorded(chaos.world, kept=12)
    chaos.go()
    assert recorder.dropped > 0
    film = played("\n".join(recorder.lines()), "rest")
    assert film["dropped"] == recorder.dropped
    assert film["differs"] is None
    steps = [step for frame in film["frames"] for step in frame["steps"]]
    assert all(step["rows"] for step in steps)
    assert film["begin"].keys() == {step["machine"] for step in steps}


def test_a_record_that_todays_tables_would_not_make_is_played_and_said_so() -> None:
    chaos = Chaos(3)
    recorder = recorded(chaos.world)
    chaos.go()
    lines = list(recorder.lines())
    odd = json.loads(lines[2])
    odd["steps"] = []
    lines[2] = json.dumps(odd)
    assert played("\n".join(lines), "odd")["differs"] == 1


async def test_a_record_is_posted_and_refused_where_it_is_none(view: View) -> None:
    chaos = Chaos(1)
    recorder = recorded(chaos.world)
    chaos.go()
    async with aiohttp.ClientSession() as session:
        async with session.post(view.url + "play?name=mine", data="\n".join(recorder.lines())) as answer:
            film = await answer.json()
            assert film["name"] == "mine"
        for nonsense in (b"", b"{}", b"\xff\xfe", b"[1, 2]", b'{"voicegw": 9}', b"null\n" * 9):
            async with session.post(view.url + "play", data=nonsense) as answer:
                assert answer.status == 400
                assert "this file is" in await answer.text()
    assert await told(view, "play") is None


# -- who may look


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
    page = Path(__file__).parent.parent / "voicegw" / "view" / "page"
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


# -- metrics


async def test_metrics_are_named_as_in_the_tables(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice, bob = await pair(make_client, server, system=system)
    await alice.play(ToneSource(440, 0.3)).wait()
    await bob.wait_for(lambda: bob.stats.users.get(ALICE) is not None and bob.stats.users[ALICE].packets >= 15)
    await alice.wait_for(lambda: alice.states["speech"] == "silent")  # the silence after it has left, too
    server.drop_socket(BOB)
    await bob.wait_for(lambda: bob.states["gateway"] == "ready" and bob.tally.reconnects == 1)
    metrics = await scraped(view)
    for name, session in SESSIONS.items():
        states = {labels["state"]: value for labels, value in metrics["voicegw_calls"] if labels["machine"] == name}
        assert states.keys() == session.table.states.keys()
        assert sum(states.values()) == 2
        events = {labels["event"] for labels, _ in metrics["voicegw_transitions"] if labels["machine"] == name}
        assert events == {row.event for row in session.table.rows}
    assert value_of(metrics, "calls", machine="gateway", state="ready") == 2
    assert value_of(metrics, "transitions", machine="gateway", event="resumed_received") == 1
    assert metrics["voicegw_closes"] == [({"code": "none", "event": "closed_resumable"}, 1)]
    assert value_of(metrics, "reconnects") == 1
    assert value_of(metrics, "dave_epochs") == alice.tally.epochs + bob.tally.epochs >= 2
    assert value_of(metrics, "packets_sent") == alice.stats.packets + bob.stats.packets >= 15
    assert value_of(metrics, "packets_received") >= 15
    assert value_of(metrics, "packets_lost") == 0
    assert value_of(metrics, "dave_groups") == 2
    assert 0 < value_of(metrics, "heartbeat_latency_seconds", quantile="1") < 5

    sent, received = alice.stats.packets + bob.stats.packets, bob.stats.totals["received"]
    await alice.close()
    await bob.close()
    after = await scraped(view)
    assert value_of(after, "calls_ended") == 2
    assert value_of(after, "calls", machine="gateway", state="ready") == 0
    assert value_of(after, "packets_sent") >= sent  # what was counted stays counted
    assert value_of(after, "packets_received") >= received
    assert value_of(after, "transitions", machine="gateway", event="resumed_received") == 1


async def test_the_pacers_lateness_is_a_histogram(
    server: VoiceServer, make_client: MakeClient, system: System, view: View
) -> None:
    alice, _ = await pair(make_client, server, system=system)
    before = await scraped(view)
    await alice.play(ToneSource(440, 0.2)).wait()
    after = await scraped(view)
    bounds = [float(labels["le"]) for labels, _ in after["voicegw_pacer_lateness_seconds_bucket"]]
    counts = [count for _, count in after["voicegw_pacer_lateness_seconds_bucket"]]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    assert counts == sorted(counts)
    (_, count), (_, total) = (after[f"voicegw_pacer_lateness_seconds_{part}"][0] for part in ("count", "sum"))
    assert count == counts[-1] >= before["voicegw_pacer_lateness_seconds_count"][0][1] + 10
    assert total > 0


Metrics = dict[str, list[tuple[dict[str, str], float]]]


async def scraped(view: View) -> Metrics:
    """By family; counters lose their `_total`, as the parser names them, and a histogram's samples keep their names."""
    status, text = await get(view, "metrics")
    assert status == 200
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("gauge", "counter", "histogram")
        for sample in family.samples:
            name = sample.name if family.type == "histogram" else family.name
            found.setdefault(name, []).append((sample.labels, sample.value))
        if not family.samples:
            found.setdefault(family.name, [])
    return found


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    (value,) = [value for found, value in metrics[f"voicegw_{name}"] if found == labels]
    return value


def test_the_guide_lists_every_metric(system: System) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "view.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(voicegw_\w+)` \| (\w+) \|", guide, re.MULTILINE))
    assert listed == dict(re.findall(r"^# TYPE (\w+) (\w+)$", exposition(system.calls), re.MULTILINE))


# -- what is drawn


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_and_arrow_is_on_the_map(name: str) -> None:
    table, drawn = load_table(name), map_of(name)
    assert drawn_from(drawn) == fingerprint(to_map_dot(table))
    ids = set(re.findall(r'id="([^"]+)"', drawn))
    for state in table.states.values():
        assert f"{name}.{state.name}" in ids
        assert f"{name}.{state.parent}" in ids
    for row in described()[name]["rows"]:
        for source in row["from"]:
            assert row["to"] is None or f"{name}:{source}:{row['to']}" in ids


# -- the command


async def test_watch_plays_a_record_until_it_is_interrupted(tmp_path: Path) -> None:
    chaos = Chaos(2)
    recorder = recorded(chaos.world)
    chaos.go()
    path = tmp_path / "flight.jsonl"
    recorder.save(path)
    async with running("watch", str(path), "--json") as process:
        assert process.stdout is not None
        where = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        async with aiohttp.ClientSession() as session:
            async with session.get(where["url"] + "play") as answer:
                assert len((await answer.json())["frames"]) == len(list(recorder.lines())) - 1
            async with session.get(where["metrics"]) as answer:
                assert answer.status == 200
        process.send_signal(signal.SIGINT)
        done = await finish(process)
    assert done.code == 0, done.err
    assert done.result == {"ok": True, "events": len(list(recorder.lines())) - 1}
    assert "Traceback" not in done.err


async def test_watch_shows_a_demo_and_another_watch_follows_it() -> None:
    async with running("watch", "--demo", "--json") as process:
        assert process.stdout is not None
        where = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        async with running("watch", where["url"], "--json") as follower:
            assert follower.stderr is not None
            while b"connected \xc2\xb7 ready \xc2\xb7 active" not in await asyncio.wait_for(
                follower.stderr.readline(), 30
            ):
                pass
            follower.send_signal(signal.SIGINT)
            followed = await finish(follower)
        process.send_signal(signal.SIGTERM)
        done = await finish(process)
    assert followed.code == 0, followed.err
    assert followed.result == {"ok": True, "calls": 2}
    assert done.code == 0, done.err
    assert min(done.result["sent"].values()) > 0


async def test_a_follower_hears_that_the_view_has_ended(
    server: VoiceServer, make_client: MakeClient, system: System
) -> None:
    view = await serve_view(system=system, token="t")
    alice = make_client(server, ALICE, system=system)
    await alice.connect(CHANNEL)
    async with running("watch", view.url, "--json") as follower:
        assert follower.stderr is not None
        assert f"call 1, guild {GUILD}".encode() in await asyncio.wait_for(follower.stderr.readline(), 30)
        server.drop_socket(ALICE)
        while b"reconnected once" not in await asyncio.wait_for(follower.stderr.readline(), 30):
            pass
        await view.close()
        done = await finish(follower)
    assert done.code == 0, done.err
    assert "the view has ended" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "FILE or URL"),
        (("a", "--demo"), 2, "not allowed"),
        (("missing.jsonl",), 1, "missing.jsonl"),
        ((str(Path(__file__)),), 1, "is not a flight record"),
        (("http://127.0.0.1:1/",), 1, "cannot be followed"),
    ],
)
def test_watch_says_what_is_wrong_in_one_line(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = call(capfd, "watch", *arguments)
    assert done.code == code
    assert said in done.err
    assert len(done.err.splitlines()) == 1


async def test_a_record_that_is_none_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"\xff\x00 notes")
    with pytest.raises(NotARecord):
        await serve_view(record=path)
