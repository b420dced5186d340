"""What the live view shows of calls, and how it draws their machines."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, pair, signalling_of
from tests.view.conftest import get, lines_once, scraped, told, value_of
from voicegw.adapters.calls import Calls
from voicegw.adapters.system import System
from voicegw.client import VoiceClient
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.tables.draw import drawn_from, fingerprint, to_map_dot
from voicegw.tables.load import load_table, map_of
from voicegw.view.machines import MACHINES, described
from voicegw.view.server import View
from voicegw.view.watch import ENDED_KEPT, RECORDS_KEPT, Watch

pytestmark = pytest.mark.loopback


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
    for number in ("77", "9" * 5000):
        assert (await get(view, f"calls/{number}"))[0] == 404
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
                user_id=ALICE, guild_id=GUILD, signalling=LocalSignalling(server, ALICE), system=system, **server.trust
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
