"""The command line as programs and people call it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
import wave
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ALICE, BOB, CAROL, CHANNEL, GUILD
from voicegw.cli import main
from voicegw.cli.stdin import watch_lines
from voicegw.frozen import FleetKey
from voicegw.server import VoiceServer
from voicegw.tables.load import table_names

ROOT = Path(__file__).parent.parent


@dataclass
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line of stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """Run a command in this process."""
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capfd.readouterr()
    return Done(code, out, err)


@contextlib.asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command in its own process, ended in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "voicegw",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finish(process: asyncio.subprocess.Process, said: bytes | None = None) -> Done:
    """Wait for its end."""
    out, err = await asyncio.wait_for(process.communicate(said), 40)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, *arguments: str) -> AsyncIterator[dict[str, Any]]:
    """`voicegw serve --open` and its first line."""
    ca = tmp_path / "ca.pem"
    async with running("serve", "--open", "--ca-out", str(ca), "--json", *arguments) as process:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        yield json.loads(line)
        process.send_signal(signal.SIGTERM)
        done = await finish(process)
        assert done.code == 0, done.err
        assert done.result["ok"] is True


def joining(served: dict[str, Any], user_id: int, *arguments: str) -> list[str]:
    return [
        "join",
        *("--endpoint", served["endpoint"]),
        *("--ca", served["ca"]),
        *("--token", "some token"),
        *("--session-id", f"session of {user_id}"),
        *("--server-id", str(GUILD)),
        *("--channel-id", str(CHANNEL)),
        *("--user-id", str(user_id)),
        "--json",
        *arguments,
    ]


# -- help and bad arguments


def test_without_arguments_it_prints_help(capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd)
    assert done.code == 0
    for command in ("demo", "serve", "join", "diagram", "check", "doctor"):
        assert f"    {command} " in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("sing",),
        ("demo", "--seconds", "0"),
        ("demo", "--seconds", "nan"),
        ("serve", "--port", "65536"),
        ("join",),
        ("diagram", "toaster"),
        ("diagram", "--format", "gif"),
        ("check", "--wrong"),
        ("simulate", "--seeds", "0"),
        ("bench", "--rounds", "-1"),
        ("fleet", "worker", "--max-calls", "0"),
        ("fleet", "worker", "--files", "no directory"),
        ("fleet", "demo", "--calls", "0"),
        ("fleet", "demo", "--workers", "1"),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_one_line_and_exit_2(capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    done = call(capfd, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert "--help" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--seconds", "0"), "argument --seconds: '0' is no time above 0"),
        (("demo", "--seconds", "x"), "argument --seconds: 'x' is no number of seconds"),
        (("serve", "--port", "-1"), "argument --port: '-1' is not a port"),
        (("simulate", "--seeds", "many"), "argument --seeds: 'many' is not a whole number above 0"),
        (("fleet", "demo", "--workers", "1"), "argument --workers: '1' is not a whole number above 1"),
        (("record", "--guild", "a"), "argument --guild: 'a' is not an id"),
    ],
)
def test_an_argument_that_cannot_be_says_why(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in call(capfd, *arguments).err


async def test_the_module_is_the_command() -> None:
    async with running("check", "--json") as process:
        done = await finish(process)
    assert done.code == 0
    assert done.result["violations"] == 0


# -- check, diagram, doctor


def test_check_counts(capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "check", "--json")
    assert done.code == 0
    assert {"states", "rows", "pairs", "bound_s", "violations"} < set(done.result)
    assert done.result["by_check"] == {f"T{number:02d}": 0 for number in range(1, 12)}
    assert done.result["kinds"] >= 500
    assert len(done.out.splitlines()) == 1
    assert "all decided" in done.err
    people = call(capfd, "check")
    assert "all decided" in people.out
    assert people.err == ""


def test_simulate_repeats_itself(capfd: pytest.CaptureFixture[str]) -> None:
    first = call(capfd, "simulate", "--seeds", "50", "--json")
    again = call(capfd, "simulate", "--seeds", "50", "--json")
    other = call(capfd, "simulate", "--seeds", "50", "--seed", "7", "--json")
    assert first.code == 0
    assert {"seeds", "virtual_hours", "events", "faults", "violations", "trace_hash"} < set(first.result)
    assert first.result["rows_taken"] <= first.result["rows"]
    assert first.result == again.result
    assert first.result["violations"] == 0
    assert first.result["trace_hash"] != other.result["trace_hash"]
    assert first.result["events"] > 1000


def test_simulate_shows_the_first_run_that_fails(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from voicegw.core.machine_session import MachineSession

    monkeypatch.setattr(MachineSession, "cancel", lambda session, deadline: None)
    done = call(capfd, "simulate", "--seeds", "3", "--json")
    assert done.code == 1
    assert done.result["violations"] == 3
    assert "seed 0: V02: armed are " in done.err
    assert "shortest found: 1 of " in done.err
    assert "call idle --join_requested--> joining.asking" in done.err


def test_simulate_says_which_row_was_never_taken(capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "simulate", "--seeds", "2", "--every-row", "--json")
    assert done.code == 1
    assert done.result["violations"] == done.result["rows"] - done.result["rows_taken"] > 0
    assert "wrong: T10: never taken: gateway row" in done.err


def test_simulate_runs_a_campaign(capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "simulate", "--campaign", "S01", "--json")
    assert done.code == 0
    assert done.result["figures"]["S01 0"]["beats"] == 721
    assert "S01 seed 0, 1.0 virtual hours" in done.err


@pytest.mark.parametrize("form", ["mermaid", "dot", "md", "svg", "png"])
def test_diagram_draws_one_machine(capfd: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    path = tmp_path / f"picture.{form}"
    done = call(capfd, "diagram", "gateway", "--format", form, "--output", str(path), "--json")
    assert done.code == 0
    assert done.result == {"ok": True, "machines": ["gateway"], "written": [str(path)]}
    begins = {"mermaid": b"stateDiagram-v2", "dot": b"digraph", "md": b"# gateway", "svg": b"<?xml", "png": b"\x89PNG"}
    assert path.read_bytes().startswith(begins[form])


def test_diagram_prints_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(capfd, "diagram", "speech").out.startswith("stateDiagram-v2\n")
    assert call(capfd, "diagram").out.count("stateDiagram-v2") == len(table_names())


def test_diagram_check_finds_a_stale_page(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capfd, "diagram", "--check", "--output", str(ROOT / "diagrams")).code == 0
    assert call(capfd, "diagram", "--format", "md,svg,map", "--output", str(tmp_path)).code == 0
    assert call(capfd, "diagram", "--check", "--output", str(tmp_path), "--json").result == {"ok": True, "stale": []}
    page, picture = tmp_path / "call.md", tmp_path / "dave.svg"
    page.write_text(page.read_text(encoding="utf-8").replace("joining", "jumping"), encoding="utf-8")
    picture.unlink()
    done = call(capfd, "diagram", "--check", "--output", str(tmp_path), "--json")
    assert done.code == 1
    assert done.result == {"ok": False, "stale": [str(page), str(picture)]}


def test_doctor_finds_everything_here(capfd: pytest.CaptureFixture[str]) -> None:
    done = call(capfd, "doctor", "--json")
    assert done.code == 0
    assert set(done.result) == {"ok", "opus", "ciphers", "dave", "timers", "udp", "tls"}
    assert all(part["ok"] for name, part in done.result.items() if name != "ok")


def test_a_missing_libopus_is_one_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from voicegw.errors import OpusNotFound
    from voicegw.media import opus

    def missing() -> None:
        raise OpusNotFound("no libopus; install it")

    monkeypatch.setattr(opus, "load_opus", missing)
    done = call(capfd, "doctor", "--json")
    assert done.code == 1
    assert done.result["opus"] == {"ok": False, "found": "no libopus; install it"}


# -- demo


@pytest.mark.loopback
async def test_demo_holds_a_call_and_records_it(tmp_path: Path) -> None:
    recording = tmp_path / "heard.wav"
    async with running("demo", "--seconds", "2", "--output", str(recording), "--json") as process:
        done = await finish(process)
    assert done.code == 0, done.err
    result = done.result
    assert result["ok"] is True
    assert result["codes"][0] == result["codes"][1] != ""
    assert (result["sent"], result["received"], result["lost"], result["in_clear"]) == (105, 105, 0, 0)
    assert result["likeness"] > 0.9
    assert result["states"]["player"]["gateway"][-3:] == ["ready", "closed.closing", "closed.down"]
    with wave.open(str(recording)) as file:
        assert file.getparams()[:4] == (2, 2, 48000, 105 * 960)


@pytest.mark.loopback
async def test_demo_takes_a_wav_file(tmp_path: Path) -> None:
    song = tmp_path / "song.wav"
    with wave.open(str(song), "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", "not compressed"))
        file.writeframes(
            b"".join(((n * n // 97) % 20000 - 10000).to_bytes(2, "little", signed=True) for n in range(22050))
        )
    async with running("demo", "--input", str(song), "--output", str(tmp_path / "heard.wav"), "--json") as process:
        done = await finish(process)
    assert done.code == 0, done.err
    assert done.result["likeness"] > 0.8
    assert done.result["lost"] == 0


@pytest.mark.loopback
def test_demo_fails_with_a_wrong_song(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voicegw.media import opening
    from voicegw.media.sources import ToneSource

    songs = iter([ToneSource(440, 1.0), ToneSource(550, 1.0)])
    monkeypatch.setattr(opening, "open_source", lambda name: next(songs))
    done = call(capfd, "demo", "--output", str(tmp_path / "heard.wav"), "--json")
    assert done.code == 1
    assert done.result["ok"] is False
    assert done.result["lost"] == 0
    assert done.result["likeness"] < 0.3


@pytest.mark.loopback
def test_demo_fails_with_a_wrong_key(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voicegw.adapters.mls import MlsGroup
    from voicegw.errors import GroupError

    def refuse(group: MlsGroup, user_id: int, frame: bytes) -> bytes:
        raise GroupError("a wrong key")

    monkeypatch.setattr(MlsGroup, "decrypt", refuse)
    done = call(capfd, "demo", "--seconds", "1", "--output", str(tmp_path / "heard.wav"), "--json")
    assert done.code == 1
    assert (done.result["ok"], done.result["likeness"]) == (False, 0.0)
    assert "this was not a good call" in done.err


@pytest.mark.parametrize("kind", ["missing", "text", "directory", "unwritable"])
def test_demo_says_what_is_wrong_with_a_file(capfd: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    given = tmp_path / "song.ogg"
    output = tmp_path / "heard.wav"
    if kind == "text":
        given.write_text("no audio", encoding="utf-8")
    elif kind == "directory":
        given.mkdir()
    arguments = ["demo", "--input", str(given), "--output", str(output)]
    if kind == "unwritable":
        arguments = ["demo", "--output", str(tmp_path / "no such directory" / "heard.wav")]
    done = call(capfd, *arguments)
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("voicegw: ")


# -- serve and join


@pytest.mark.loopback
async def test_two_clients_meet_on_a_served_port(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert set(served) == {"endpoint", "ca", "udp_port"}
        listen = joining(served, BOB, "--record", str(tmp_path / "heard"))
        play = joining(served, ALICE, "--play", "tone:440", "--duration", "3", "--mode", "xchacha20_poly1305")
        async with running(*listen) as listener, running(*play) as player:
            played = await finish(player)
            heard = await finish(listener, b"stop\n")
    for done in (played, heard):
        assert done.code == 0, done.err
        assert done.result["ok"] is True
        assert done.result["connected"] is True
        assert done.result["dave_version"] == 1
        assert done.result["errors"] == []
    codes = [{code for _, code in done.result["codes"]} for done in (played, heard)]
    assert codes[0] & codes[1]
    assert played.result["mode"] == "aead_xchacha20_poly1305_rtpsize"
    assert heard.result["mode"] == "aead_aes256_gcm_rtpsize"
    received = heard.result["received"][str(ALICE)]
    assert received["packets"] == played.result["sent"] > 50
    assert (received["lost"], received["errors"]) == (0, 0)
    assert received["freq"] == pytest.approx(440, abs=3)
    assert played.result["states"][:2] == ["closed.down", "connecting.dialling"]
    with wave.open(str(tmp_path / "heard" / f"{ALICE}.wav")) as file:
        assert file.getnframes() == received["packets"] * 960


@pytest.mark.loopback
async def test_join_refuses_a_server_without_e2ee_unless_allowed(tmp_path: Path) -> None:
    async with serving(tmp_path, "--no-dave") as served:
        async with running(*joining(served, ALICE)) as process:
            refused = await finish(process)
        async with running(*joining(served, CAROL, "--dave", "allow", "--duration", "0.2")) as process:
            allowed = await finish(process)
    assert refused.code == 1
    assert refused.result["connected"] is False
    assert "policy" in refused.result["errors"][0]
    assert "voicegw: " in refused.err
    assert allowed.code == 0
    assert allowed.result["dave_version"] == 0


@pytest.mark.loopback
async def test_join_says_at_once_why_it_cannot_come_back(tmp_path: Path) -> None:
    """There is no main gateway to ask for another pair."""
    async with VoiceServer() as server:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(server.ca_pem)
        async with running(*joining({"endpoint": server.endpoint, "ca": str(ca)}, ALICE)) as process:
            refused = await finish(process)
        async with running(*joining({"endpoint": "127.0.0.1:9", "ca": str(ca)}, ALICE)) as process:
            unreachable = await finish(process)
    assert refused.code == unreachable.code == 1
    assert "session no longer valid (close code 4006)" in refused.result["errors"][0]
    assert unreachable.result["errors"] == ["the voice server cannot be reached: Connection refused"]
    assert refused.result["states"].count("connecting.dialling") == 1


@pytest.mark.loopback
async def test_join_says_that_a_file_is_missing(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        served = {"endpoint": f"127.0.0.1:{unused.getsockname()[1]}", "ca": str(tmp_path / "none.pem")}
        async with running(*joining(served, ALICE)) as process:
            done = await finish(process)
    assert done.code == 1
    assert "none.pem: No such file" in done.err


def test_join_wants_a_token(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOICEGW_TOKEN", raising=False)
    arguments = joining({"endpoint": "127.0.0.1:1", "ca": "ca.pem"}, ALICE)
    at = arguments.index("--token")
    done = call(capfd, *arguments[:at], *arguments[at + 2 :])
    assert done.code == 2
    assert "required: --token" in done.err
    assert "VOICEGW_TOKEN" in call(capfd, "join", "--help").out


def test_join_does_not_show_the_token_in_its_help(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOICEGW_TOKEN", "canary")
    assert "canary" not in call(capfd, "join", "--help").out


@pytest.mark.loopback
async def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with running("serve", "--port", str(taken.getsockname()[1])) as process:
            done = await finish(process)
    assert done.code == 1
    assert done.out == ""
    assert "cannot listen on 127.0.0.1" in done.err
    assert len(done.err.splitlines()) == 1


# -- interrupted, cut off


async def test_an_interrupted_command_says_so_to_programs() -> None:
    listening = (  # where the tests run in the background of a shell, SIGINT is ignored by all that they start
        "import signal, sys; from voicegw.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", listening, "demo", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), 30)  # it has begun
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert done.code == 130
    assert done.result == {"ok": False, "error": "interrupted"}
    assert "Traceback" not in done.err


async def written_to(descriptor: int, *arguments: str) -> tuple[int | None, str]:
    """Exit code and stderr of a command whose stdout is `descriptor`, which is closed here."""
    command = (sys.executable, "-m", "voicegw", *arguments)
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=descriptor, stderr=asyncio.subprocess.PIPE)
    finally:
        os.close(descriptor)
    _, err = await asyncio.wait_for(process.communicate(), 40)
    return process.returncode, err.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
async def test_output_that_cannot_be_written_is_one_line() -> None:
    code, err = await written_to(os.open("/dev/full", os.O_WRONLY), "diagram", "--json")
    assert code == 1
    assert err.splitlines()[-1] == "voicegw: the system: No space left on device"


async def test_a_reader_that_has_read_enough_is_no_news() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert await written_to(writing, "diagram") == (1, "")


def test_it_says_its_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(capfd, "--version").out == f"voicegw {importlib.metadata.version('voicegw')}\n"


def test_a_fleet_key_is_for_people_or_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    shown = call(capfd, "fleet", "key")
    assert FleetKey.from_text(shown.out.strip()) != FleetKey.from_text(call(capfd, "fleet", "key").out.strip())
    told = call(capfd, "fleet", "key", "--json")
    assert FleetKey.from_text(told.result["key"])
    assert told.err == ""


async def test_a_command_in_the_background_of_a_terminal_does_not_ask_it_for_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The terminal would stop it for reading."""
    asked = threading.Event()

    class Terminal:
        def fileno(self) -> int:
            return 0

        def __iter__(self) -> Iterator[str]:
            asked.set()
            return iter(("stop\n",))

    monkeypatch.setattr("sys.stdin", Terminal())
    lines: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr("os.tcgetpgrp", lambda descriptor: os.getpgrp() + 1)
    watch_lines(lines.put_nowait)
    assert not any(thread.name == "voicegw-stdin" for thread in threading.enumerate())
    monkeypatch.setattr("os.tcgetpgrp", lambda descriptor: os.getpgrp())
    assert not asked.is_set()
    watch_lines(lines.put_nowait)
    assert await asyncio.wait_for(lines.get(), 20) == "stop"
