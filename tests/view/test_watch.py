"""The command that shows a record, a demo, or follows another view."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import ALICE, CHANNEL, GUILD, MakeClient
from tests.test_cli import call, finish, running
from tests.test_flight import recorded
from voicegw.adapters.system import System
from voicegw.flight import NotARecord
from voicegw.server import VoiceServer
from voicegw.testing.chaos import Chaos
from voicegw.view.server import serve_view

pytestmark = pytest.mark.loopback


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
        (("http://127.0.0.1:1/",), 1, "cannot be reached: Connection refused"),
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
