"""Flight records that are saved and played in the live view."""

from __future__ import annotations

import json

import aiohttp
import pytest

from tests.conftest import ALICE, BOB, CHANNEL, MakeClient
from tests.test_flight import recorded
from tests.view.conftest import get, told
from voicegw.adapters.system import System
from voicegw.server import VoiceServer
from voicegw.session import SESSIONS
from voicegw.tables.load import load_table
from voicegw.testing.chaos import Chaos
from voicegw.view.record import played
from voicegw.view.server import View

pytestmark = pytest.mark.loopback


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
