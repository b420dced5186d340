"""What a bot does with a call of the fleet, and what an operator sees of it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest

import voicegw
import voicegw.fleet
import voicegw.frozen
from tests.fleet.conftest import StartTrial, nothing_forbidden
from voicegw.errors import (
    EventNotAllowed,
    FleetError,
    NotAudio,
    SignallingError,
    SourceFailed,
    SourceRefused,
    VoiceTimeout,
)
from voicegw.fleet.sealing import ENVIRONMENT
from voicegw.fleet.trial import BOTS, CHANNELS, GUILDS, MUSIC, Trial
from voicegw.media.opus import FRAME_BYTES
from voicegw.server import LocalSignalling

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.loopback,
    # NATS's client leaves the streams of attempts to reconnect to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BOT, GUILD, CHANNEL = BOTS, GUILDS, CHANNELS


def heard(trial: Trial, bot_id: int = BOT) -> int:
    return len(trial.heard[bot_id].times)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def command(trial: Trial, *words: str) -> tuple[int, str, str]:
    """`voicegw fleet ...` of this fleet: its exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "voicegw", "fleet", *words, "--nats", trial.nats.urls[0]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={ENVIRONMENT: trial.key.to_text().reveal(), "PATH": ""},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_bot_plays_pauses_seeks_and_stops_from_afar(fleet: StartTrial) -> None:
    async with fleet(calls=1, workers=1) as trial:
        (bot,) = trial.bots
        assert bot.states["call"] == "connected"
        assert bot.users == {trial.listeners[0].session.shared.user_id}
        await bot.wait_for(lambda: bot.privacy_code != "" and bot.privacy_code == trial.listeners[0].privacy_code, 30)

        whole = bot.play(voicegw.fleet.file(MUSIC))
        await bot.wait_for(lambda: whole.begun)
        whole.pause()
        counters = trial.server.session(BOT).counters
        silence = counters["silence"]
        await trial.until(lambda: counters["silence"] >= silence + 5)
        at = heard(trial)
        whole.resume()
        await trial.until(lambda: heard(trial) > at + 25)
        whole.volume = 0.5
        whole.seek(0.0)
        over = bot.player.queue(voicegw.ToneSource(440, 0.4))
        whole.stop()
        await asyncio.wait_for(over.wait(), 30)
        assert whole.done
        assert over.position_s == pytest.approx(0.4, abs=0.1)
        nothing_forbidden(trial)


async def test_sound_that_only_the_bot_has_is_streamed_and_survives_its_worker(fleet: StartTrial) -> None:
    asked: list[int] = []

    async def pcm() -> AsyncIterator[bytes]:
        for number in range(400):
            asked.append(number)
            yield b"\x10\x20" * (FRAME_BYTES // 2)

    async with fleet(calls=1, workers=2, lease_s=1.5) as trial:
        (bot,) = trial.bots
        playback = bot.play(voicegw.AsyncIteratorSource(pcm()))
        at = heard(trial)
        await trial.until(lambda: heard(trial) > at + 50)
        assert len(asked) < 350  # a second or two ahead of what is heard, not all of it
        owner = trial.owners[BOT]
        assert owner is not None
        trial.workers[owner].send(signal.SIGTERM)
        await trial.workers[owner].ended()
        await asyncio.wait_for(playback.wait(), 60)
        assert len(asked) == 400
        assert heard(trial) - at > 380  # a few frames were heard twice or not at all
        nothing_forbidden(trial)


async def test_a_bot_moves_and_its_call_is_another_workers_afterwards(fleet: StartTrial) -> None:
    async with fleet(calls=1, workers=2) as trial:
        (bot,) = trial.bots
        await bot.move_to(CHANNEL + 7)
        assert bot.channel_id == CHANNEL + 7
        assert trial.server.members(CHANNEL + 7) == [BOT]
        owner = trial.owners[BOT]
        code, out, _ = await command(trial, "drain", str(owner), "--json")
        assert (code, json.loads(out.splitlines()[-1])) == (0, {"ok": True, "worker": owner, "calls": 1})
        await trial.until(lambda: trial.owners[BOT] not in (owner, None))
        await bot.wait_for(lambda: bot.worker == trial.owners[BOT], 30)
        assert trial.server.members(CHANNEL + 7) == [BOT]
        await bot.close()
        assert trial.server.members(CHANNEL + 7) == []
        await trial.until(lambda: not trial.operator.view.calls)


async def test_a_call_outlives_its_bot_and_is_found_again(fleet: StartTrial) -> None:
    async with fleet(calls=1, workers=1) as trial:
        (bot,) = trial.bots
        signalling = bot.signalling
        await bot.detach()
        await trial.play(1)
        again = trial.fleet.client(user_id=BOT, guild_id=GUILD, signalling=signalling)
        trial.bots = [again]
        await again.connect(CHANNEL)
        assert trial.counts["identified"] == 0
        at = heard(trial)
        tone = again.play(voicegw.ToneSource(330, 0.5))
        await asyncio.wait_for(tone.wait(), 30)
        assert heard(trial) > at
        await again.close()
        assert trial.server.members(CHANNEL) == [trial.listeners[0].session.shared.user_id]
        await trial.until(lambda: not trial.operator.view.calls)
        with pytest.raises(EventNotAllowed):
            await again.connect(CHANNEL)


async def test_a_kick_ends_the_call_and_its_key(fleet: StartTrial) -> None:
    async with fleet(calls=1, workers=1) as trial:
        (bot,) = trial.bots
        told: list[object] = []
        bot.add_listener(told.append)
        assert isinstance(bot.signalling, LocalSignalling)
        await bot.signalling.kick()
        await asyncio.wait_for(bot.wait_closed(), 30)
        assert isinstance(bot.error, voicegw.VoiceError)
        assert [notice for notice in told if isinstance(notice, voicegw.Closed)]
        await trial.until(lambda: not trial.operator.view.calls)


async def test_an_object_of_a_bucket_that_the_operator_allows_is_heard(fleet: StartTrial) -> None:
    async with fleet(calls=0, workers=0) as trial:
        connection = await nats.connect(trial.nats.urls[0])
        store = await connection.jetstream().create_object_store("sounds")
        await store.put("song", (Path(voicegw.__file__).parent / "media" / MUSIC).read_bytes())
        await connection.close()
        await trial.start_worker("worker-1", buckets=["sounds"])
        await trial.make_listener(0).connect(CHANNEL)
        bot = trial.fleet.client(user_id=BOT, guild_id=GUILD, signalling=LocalSignalling(trial.server, BOT))
        trial.bots = [bot]
        await bot.connect(CHANNEL)
        song = bot.play(voicegw.fleet.stored("song", bucket="sounds"))
        await trial.until(lambda: heard(trial) > 50)
        assert song.begun
        with pytest.raises(SourceFailed, match="nothing"):
            await asyncio.wait_for(bot.player.queue(voicegw.fleet.stored("nothing", bucket="sounds")).wait(), 30)
        assert not song.done  # nor has it ended by that


REFUSED = [
    (voicegw.fleet.file("../__init__.py"), SourceRefused),
    (voicegw.fleet.file("/etc/passwd"), SourceRefused),
    (voicegw.fleet.file("nothing.ogg"), NotAudio),
    (voicegw.fleet.url("http://127.0.0.1/song.ogg"), SourceRefused),
    (voicegw.fleet.url("file:///etc/passwd"), SourceRefused),
    (voicegw.fleet.stored("song", bucket="others"), SourceRefused),
]


async def test_what_a_worker_must_not_or_cannot_open_ends_that_playback_only(fleet: StartTrial) -> None:
    async with fleet(calls=1, workers=1) as trial:
        (bot,) = trial.bots
        for source, kind in REFUSED:
            with pytest.raises(kind):
                await asyncio.wait_for(bot.player.queue(source).wait(), 30)
        await trial.play(0.5)
        nothing_forbidden(trial)


async def test_a_bot_without_a_gateway_is_told_so(fleet: StartTrial) -> None:
    class Broken:
        def attach(self, receiver: object) -> None:
            pass

        async def update_voice_state(self, *arguments: object, **flags: bool) -> None:
            raise RuntimeError("offline")

    async with fleet(calls=0, workers=1) as trial:
        bot = trial.fleet.client(user_id=BOT, guild_id=GUILD, signalling=Broken(), max_attempts=1)
        with pytest.raises((SignallingError, VoiceTimeout)):
            await bot.connect(CHANNEL, timeout_s=20)
        await bot.close()


async def test_a_fleet_without_workers_says_so(fleet: StartTrial) -> None:
    async with fleet(calls=0, workers=0) as trial:
        bot = trial.fleet.client(user_id=BOT, guild_id=GUILD, signalling=LocalSignalling(trial.server, BOT))
        with pytest.raises(VoiceTimeout, match="no worker"):
            await bot.connect(CHANNEL, timeout_s=0.5)
        assert await trial.fleet.bus.leases.read(f"call.{GUILD}-{BOT}") is None


async def test_nothing_secret_lies_in_nats_or_in_logs(fleet: StartTrial, tmp_path: Path) -> None:
    async with fleet(calls=2, workers=2) as trial:
        trial.bots[0].play(voicegw.fleet.url("https://example.invalid/?token=canary-of-a-url"))
        name = trial.busiest
        trial.workers[name].send(signal.SIGTERM)
        await trial.workers[name].ended()
        await trial.until(lambda: None not in trial.owners.values())
        secrets = [b"canary-of-a-url", trial.key.secret.reveal(), trial.key.to_text().reveal().encode()]
        for bot_id in trial.heard:
            session = trial.server.session(bot_id)
            secrets += [session.credentials.token.reveal().encode(), session.credentials.session_id.reveal().encode()]
            secrets.append(session.secret_key.reveal())
        await trial.nats.kill()  # all of it is in files now
    files = files_below(tmp_path)
    assert any("jetstream" in str(path) for path in files)
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            for form in (secret, base64.b64encode(secret), secret.hex().encode()):
                assert form not in content, path


async def test_status_and_rebalance_say_and_do_what_is_to_be_done(fleet: StartTrial) -> None:
    async with fleet(calls=4, workers=1) as trial:
        await trial.start_worker("worker-2")
        code, out, err = await command(trial, "status", "--json")
        status = json.loads(out.splitlines()[-1])
        assert code == 0
        assert [(one["name"], one["calls"]) for one in status["workers"]] == [("worker-1", 4), ("worker-2", 0)]
        assert (status["calls"], status["without_owner"]) == (4, 0)
        assert "worker-1" in err
        code, out, _ = await command(trial, "rebalance", "--json")
        asked = json.loads(out.splitlines()[-1])["asked"]["worker-1"]
        assert (code, 1 <= asked <= 3) == (0, True)  # it goes by the room that each says it has
        await trial.until(lambda: len(trial.of("worker-2")) == asked)
        await trial.heard_again(0.0, list(trial.heard))
        nothing_forbidden(trial)
        code, _, err = await command(trial, "drain", "worker-9")
        assert (code, len(err.splitlines())) == (1, 1)
        assert "worker-1, worker-2" in err


async def test_a_command_ends_with_one_line_where_nats_does_not_answer_any_more(fleet: StartTrial) -> None:
    async with fleet(calls=0, workers=1) as trial:
        for number, words in ((signal.SIGSTOP, ("status", "--json")), (signal.SIGKILL, ("drain", "worker-1"))):
            trial.nats.send(number)
            code, out, err = await command(trial, *words)
            assert (code, len(err.splitlines())) == (1, 1), err
            assert json.loads(out or '{"ok": false}')["ok"] is False
            assert "NATS" in err


async def test_another_fleets_key_and_a_name_that_is_taken_are_refused(fleet: StartTrial) -> None:
    async with fleet(calls=0, workers=1) as trial:
        code, _, err = await command(trial, "worker", "--name", "worker-1", "--lease", "2")
        assert (code, len(err.splitlines())) == (1, 1)
        assert "--name" in err
        other = voicegw.frozen.FleetKey.generate("trial")
        with pytest.raises(FleetError, match="key"):
            await voicegw.fleet.connect(trial.nats.urls[0], keys=[other])
        both = await voicegw.fleet.connect(trial.nats.urls[0], keys=[other, trial.key])
        await both.close()


async def test_the_readmes_bot_sings_in_the_fleet(fleet: StartTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "sing_in_the_fleet" in text]
    async with fleet(calls=0, workers=1) as trial:
        monkeypatch.setenv(ENVIRONMENT, trial.key.to_text().reveal())
        program = program.replace("nats://127.0.0.1:4222", trial.nats.urls[0]).replace("song.ogg", MUSIC)
        namespace: dict[str, Any] = {}
        exec(compile(program, "README.md", "exec"), namespace)
        listener = trial.make_listener(0)
        await listener.connect(CHANNEL)
        signalling = LocalSignalling(trial.server, BOT)
        singing = asyncio.create_task(namespace["sing_in_the_fleet"](BOT, GUILD, CHANNEL, signalling))
        await asyncio.wait_for(singing, 60)
        assert len(trial.heard[BOT].times) > 50
        await trial.until(lambda: not trial.operator.view.calls)
        assert trial.server.members(CHANNEL) == [listener.session.shared.user_id]
