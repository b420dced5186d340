"""Every example of `docs/` is run, every command in it is one, and its tables say what the machines do."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import voicegw
import voicegw.errors
import voicegw.frameworks
from tests.conftest import ALICE, BOB, CAROL, CHANNEL, GUILD, MakeClient, encrypted
from tests.test_docs import Bot
from tests.test_examples import locally, somebody
from tests.test_frameworks import Channel, Client, connected_class
from voicegw.cli import main, make_parser
from voicegw.client import VoiceClient
from voicegw.effects import Reconnecting
from voicegw.events import SocketClosed, Stamped
from voicegw.flight import FlightRecorder
from voicegw.frameworks.call import FrameworkCall
from voicegw.frameworks.voice_protocol import GuildVoiceClient
from voicegw.media.player import Player
from voicegw.media.sources import ToneSource, read_pcm
from voicegw.media.wav import WavWriter
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.main_gateway import CHANNEL_IDS, GUILD_ID
from voicegw.tables.load import load_table, table_names
from voicegw.testing import World
from voicegw.why import AT_WORK

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

# Pages whose blocks are run in order, in a call with somebody who speaks; what must be printed.
GUIDES = {
    "playing.md": [r"^<voicegw.media.playback.Playback", r"^0\.\d\d s$"],
    "listening.md": [r"mixed\.ogg", r"^3840$", r"^SpeakingChanged\(|^frozenset\(", r"^UserStats\(packets=[1-9]"],
    "e2ee.md": [r"^require$", r"^\d+ \d{30}$", r"^active silent$", r"^(\d{5} ){5}\d{5}$", r"^verified$"],
    "view.md": [r"^http://127\.0\.0\.1:\d+/$"],
    "troubleshooting.md": [r"^it waits for nothing$", r"'gateway': 'ready'", r"^CallStats\(", r"^None$"],
    "machines/index.md": [r"'gateway': 'ready'", r"'identifying.awaiting_ready'", r"^it waits for nothing$"],
}
TUTORIALS = {"tutorials/music_bot.md": "music_bot.py", "tutorials/recorder.md": "recorder.py"}
WITH_PYTEST = "testing.md"
# Programs of these pages are run by tests/interop/test_examples.py, with the framework itself.
WITH_FRAMEWORKS = {
    f"frameworks/{name}.md" for name in ("py_cord", "nextcord", "disnake", "hikari", "interactions_py", "hata")
}
BY_HAND = {"index.md", "frameworks/plain.md", "frameworks/discord_py.md"}

# Commands that are not run here but only read by their own argument parser, and why.
READ_ONLY = {
    "serve": "runs until it is interrupted; tests/test_cli.py",
    "play": "needs a login; tests/test_bot_commands.py",
    "record": "needs a login; tests/test_bot_commands.py",
    "watch": "runs until it is interrupted; tests/view/test_watch.py",
    "fleet": "starts servers and processes; tests/fleet",
    "bench": "takes minutes and two cores; tests/test_bench.py",
    "simulate": "takes minutes; tests/test_cli.py",
}
# Lines that start no command of ours, and why they are not run.
NOT_RUN = (
    r"python3 -m venv ",  # the README's own command is run by .ci/run
    r"\.venv/bin/pip install ",
    r"DISCORD_TOKEN=\.\.\. python examples/",  # needs Discord
)


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def test_there_is_no_example_that_no_test_runs() -> None:
    known = {*GUIDES, *TUTORIALS, WITH_PYTEST, *WITH_FRAMEWORKS, *BY_HAND}
    for page in PAGES:
        if blocks(name_of(page)):
            assert name_of(page) in known, f"{name_of(page)} has Python that no test here runs"
    for name in WITH_FRAMEWORKS:
        (program,) = blocks(name)
        compile(program, name, "exec")
        assert f"from voicegw.frameworks.{Path(name).stem} import" in program
    assert len(blocks("frameworks/discord_py.md")) == len(blocks("frameworks/plain.md")) == 2


def write_tone(path: Path, hz: float = 440, seconds: float = 0.4) -> None:
    writer = WavWriter(path)
    writer.write(read_pcm(ToneSource(hz, seconds)))
    writer.close()


@pytest.fixture
def music(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with what the examples play."""
    monkeypatch.chdir(tmp_path)
    for name in ("song.ogg", "next.wav", "last.wav"):
        write_tone(tmp_path / name)
    return tmp_path


async def run(code: str, namespace: dict[str, Any], name: str) -> None:
    """A block as one would type it into an asynchronous prompt."""
    made = eval(compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)
    if inspect.iscoroutine(made):
        await asyncio.wait_for(made, 30)


async def hearing(client: VoiceClient, other: VoiceClient) -> VoiceClient:
    """The client, once it hears the other."""
    await client.connect(CHANNEL)
    await encrypted(client, other)
    await client.wait_for(lambda: BOB in client.stats.users and client.stats.users[BOB].packets > 0)
    return client


@pytest.mark.loopback
@pytest.mark.parametrize("page", GUIDES)
async def test_a_guides_examples_run(
    page: str, server: VoiceServer, make_client: MakeClient, music: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_client(server, BOB)
    await other.connect(CHANNEL)
    other.play(ToneSource(660))
    signalling = LocalSignalling(server, CAROL)
    names: dict[str, Any] = {"voicegw": voicegw, "user_id": BOB, "guild_id": GUILD, "signalling": signalling}
    for number, block in enumerate(blocks(page), 1):
        if "client" not in names or names["client"].states["call"] == "closed":
            names["client"] = await hearing(make_client(server, ALICE, keep_flight_record=True), other)
        await run(block, names, f"{page}, block {number}")
    if page == "listening.md":
        await names["client"].wait_for(lambda: names["client"].speaking)
        assert {file.name for file in (music / "meeting").iterdir()} == {f"{BOB}.ogg", "mixed.ogg"}
        assert (music / "words" / f"{BOB}.wav").exists()
    said = capsys.readouterr().out
    for expected in GUIDES[page]:
        assert re.search(expected, said, re.MULTILINE), (expected, said)
    for command in (line for block in blocks(page, "sh") for line in block.splitlines()):
        if command.startswith("voicegw explain"):
            assert main(shlex.split(command)[1:]) == 0


@pytest.mark.loopback
async def test_the_home_pages_example_runs(server: VoiceServer, music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = blocks("index.md")
    monkeypatch.setitem(sys.modules, "voicegw.frameworks.discord_py", stub(server))
    namespace: dict[str, Any] = {}
    exec(compile(program, "index.md", "exec"), namespace)
    singing = asyncio.create_task(namespace["sing_in"](Channel(Client(server, ALICE), CHANNEL)))
    await server.wait_for(lambda: server.members(CHANNEL) == [ALICE])
    other = await Channel(Client(server, BOB), CHANNEL).connect(cls=connected_class(server))
    await asyncio.wait_for(singing, 20)
    assert other.voice.stats.users[ALICE].packets >= 5
    await other.disconnect()


def stub(server: VoiceServer) -> types.ModuleType:
    """The module for discord.py where there is no discord.py."""
    module = types.ModuleType("voicegw.frameworks.discord_py")
    module.VoiceClient = connected_class(server)  # type: ignore[attr-defined]
    return module


@pytest.mark.loopback
async def test_options_are_given_by_a_class(server: VoiceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program = blocks("frameworks/discord_py.md")
    module = stub(server)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(voicegw.frameworks, "discord_py", module, raising=False)
    namespace: dict[str, Any] = {}
    exec(compile(program, "discord_py.md", "exec"), namespace)
    client = namespace["Voice"](Client(server, ALICE), Channel(Client(server, ALICE), CHANNEL))
    assert client.voice.flight_recorder is not None
    assert client.voice.session.shared.options.rejoin_after_rate_limit


@pytest.mark.loopback
async def test_the_program_without_a_framework_runs(
    local_discord: VoiceServer,
    place: Path,
    music: Path,
) -> None:
    program, _ = blocks("frameworks/plain.md")
    (music / "bot.py").write_text(program, encoding="utf-8")
    where = {"GUILD": str(GUILD_ID), "CHANNEL": str(CHANNEL_IDS[0])}
    async with somebody(local_discord) as (client, _), locally(place, music / "bot.py", cwd=music, **where) as bot:
        client.play(ToneSource(660))
        assert await asyncio.wait_for(bot.wait(), 40) == 0
        assert client.stats.users[ALICE].packets >= 15
    assert (music / "recordings" / f"{BOB}.wav").exists()


@pytest.mark.loopback
async def test_a_framework_that_is_not_on_the_list_can_join(server: VoiceServer, make_client: MakeClient) -> None:
    _, program = blocks("frameworks/plain.md")
    names = types.SimpleNamespace(VoiceClient=lambda **options: voicegw.VoiceClient(**options, **server.trust))
    namespace: dict[str, Any] = {"voicegw": names}
    exec(compile(program, "plain.md", "exec"), namespace)
    client = await namespace["join"](Bot(server, ALICE), GUILD, CHANNEL)
    assert server.members(CHANNEL) == [ALICE]
    await client.close()


@pytest.mark.loopback
def test_the_pages_tests_of_a_bot_pass(pytester: pytest.Pytester) -> None:
    for number, block in enumerate(blocks(WITH_PYTEST)):
        pytester.makepyfile(**{f"test_block_{number}": block})
    pytester.makeconftest(
        "from hypothesis import settings\n"
        "settings.register_profile('short', max_examples=20, deadline=None)\n"
        "settings.load_profile('short')\n"
    )
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=4)


def words_of(code: str) -> str:
    """Without indentation and empty lines: a page may show the inside of a function."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_shows_the_example_that_is_tested(page: str) -> None:
    program = (ROOT / "examples" / TUTORIALS[page]).read_text(encoding="utf-8")
    steps = blocks(page)
    assert f"<!-- the file examples/{TUTORIALS[page]} -->" in (DOCS / page).read_text(encoding="utf-8")
    assert len(steps) >= 5
    for step in steps:
        assert words_of(step) in words_of(program), f"{page} shows what the example does not have:\n{step}"


# -- commands


def commands(page: str) -> list[str]:
    lines = (line.strip() for block in blocks(page, "sh") for line in block.splitlines())
    return [line for line in lines if line]


def test_commands_are_those_of_the_command_line(capfd: pytest.CaptureFixture[str], music: Path) -> None:
    ran = 0
    for page in (*DOCS.rglob("*.md"),):
        for line in commands(name_of(page)):
            if any(re.match(pattern, line) for pattern in NOT_RUN):
                continue
            words = shlex.split(line.partition(" | ")[0].removesuffix("&"))
            while "=" in words[0]:
                words.pop(0)
            if Path(words[0]).name.startswith("python") and words[1] == "-m":
                assert importlib.util.find_spec(words[2]) is not None, f"{name_of(page)}: {line}"
                continue
            if (ROOT / words[0]).is_file():  # a script of the project's own
                continue
            assert Path(words[0]).name == "voicegw", f"{name_of(page)}: {line}"
            make_parser().parse_args(words[1:])
            if words[1] in (*READ_ONLY, "explain"):  # explain: with its guide
                continue
            if "demo" in words:
                words += ["--seconds", "0.5"]
            if "--check" in words:
                words += ["--output", str(ROOT / "diagrams")]
            assert main(words[1:]) == 0, line
            ran += 1
    assert ran >= 4
    capfd.readouterr()


def test_lists_of_what_is_not_run_are_needed() -> None:
    everything = [line for page in PAGES for line in commands(name_of(page))]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in everything), pattern


# -- what tables of pages say


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with `head`."""
    table = (DOCS / page).read_text(encoding="utf-8").partition(head)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


RESUMES = "resumes on a new websocket, sound goes on; where that is refused, joins anew"
NEW_SESSION = "waiting.backoff"
# What the page says of a close, and the states of gateway and call right after it; then how often it comes until the
# call is over, and with which error; 0 where it comes back for ever.
DOES = {
    "closed_resumable": (RESUMES, "resuming.dialling", "connected", 0, None),
    "closed_resumable_later": (
        "waits a moment, then resumes; where that is refused, joins anew",
        "resuming.backing_off",
        "connected",
        0,
        None,
    ),
    "closed_complaint": (
        "makes a new session; ends when the next one is refused like that too",
        "closed.down",
        NEW_SESSION,
        0,
        None,
    ),
    "closed_rate_limited": (
        "ends; with `rejoin_after_rate_limit=True` it comes back after 60 s",
        "closed.down",
        "closed",
        1,
        "ConnectionClosed",
    ),
    "closed_forgiven_once": ("makes a new session once, then ends", "closed.down", NEW_SESSION, 2, "ConnectionClosed"),
    "closed_new_pair": ("joins anew at once", "closed.down", "joining.asking", 0, None),
    "closed_await_server": ("waits 5 s for another server, then joins anew", "closed.down", "waiting.server", 0, None),
    "closed_defect": ("ends", "closed.down", "closed", 1, "ConnectionClosed"),
    "closed_await": (
        "waits 5 s for the main gateway's word: follows a move, ends with `Kicked` after a kick",
        "closed.down",
        "waiting.verdict",
        1,
        "Kicked",
    ),
    "closed_other_mode": (
        "makes a new session with the other encryption mode; ends where there is none",
        "closed.down",
        NEW_SESSION,
        2,
        "ConnectionClosed",
    ),
    "closed_e2ee_required": ("ends with `E2EERequired`", "closed.down", "closed", 1, "E2EERequired"),
    "closed_unknown": ("waits, then makes a new session", "closed.down", NEW_SESSION, 0, None),
}


def test_the_close_codes_page_has_every_code_and_says_what_happens() -> None:
    told = {code: (means, does, advice) for code, means, does, advice in rows("troubleshooting.md", "| code | means")}
    entries = load_table("gateway").close_codes
    for entry in entries:
        codes = ", ".join("no close frame" if code == "none" else str(code) for code in entry.codes)
        means, does, advice = told.pop(codes)
        assert means == entry.meaning
        assert does == DOES[entry.event][0], codes
        assert advice
    assert told == {}
    assert {entry.event for entry in entries} == set(DOES)


@pytest.mark.parametrize("entry", load_table("gateway").close_codes, ids=lambda entry: str(entry.codes[0]))
def test_a_close_does_what_the_page_says(entry: Any) -> None:
    code = {"none": None, "0-3999": 3000, "4000-4999": 4999}.get(str(entry.codes[0]), entry.codes[0])
    _, gateway, call, ends_after, error = DOES[entry.event]

    def joined() -> World:
        world = World()
        world.join()
        world.until(lambda: world.states["gateway"] == "ready", 10)
        return world

    def close(world: World) -> None:
        world.feed(Stamped("websocket", world.session.shared.socket_generation, SocketClosed(code)))

    world = joined()
    world.unanswered |= {"OpenSocket", "SendVoiceState"}
    close(world)
    assert (world.states["gateway"], world.states["call"]) == (gateway, call)

    world, closes = joined(), 0
    while world.states["call"] != "closed" and closes < 5:
        if world.states["gateway"] == "ready":
            close(world)
            closes += 1
        world.advance(120)
    assert (closes if world.states["call"] == "closed" else 0) == ends_after
    if error is not None:
        assert type(world.session.call.error).__name__ == error


def test_a_reconnect_tells_the_close() -> None:
    world = World()
    world.join()
    world.feed(Stamped("websocket", world.session.shared.socket_generation, SocketClosed(4015)))
    assert Reconnecting("voice server crashed") in world.notices


def test_every_wait_that_why_tells_of_is_on_the_page() -> None:
    told = {
        name
        for states, means, advice in rows("troubleshooting.md", "| `why()`")
        for name in re.findall(r"`([^`]+)`", states)
    }
    waits = {
        f"{machine} {state.name}"
        for machine in ("gateway", "dave", "call")
        for state in load_table(machine).states.values()
        if state.deadline is not None and state.phase != AT_WORK
    }
    assert waits <= told
    assert told - waits <= {f"dave {state}" for state in load_table("dave").states}


def test_every_error_that_ends_something_is_on_the_page() -> None:
    told = {name for error, _ in rows("troubleshooting.md", "| error |") for name in re.findall(r"`(\w+)`", error)}
    assert {name for name in told if not issubclass(getattr(voicegw.errors, name), voicegw.VoiceError)} == set()
    assert {"SignallingError", "VoiceTimeout", "UdpBlocked", "Kicked", "ConnectionClosed", "E2EERequired"} <= told


# Whose names running text speaks of, as in `client.speaking`.
SPOKEN: dict[str, list[Any]] = {
    "voicegw": [voicegw],
    "client": [VoiceClient, GuildVoiceClient, FrameworkCall, FlightRecorder],
    "voice": [VoiceClient, GuildVoiceClient, FrameworkCall],
    "playback": [voicegw.Playback],
    "player": [Player],
    "listening": [voicegw.Listening],
    "frame": [voicegw.HeardFrame],
    "recording": [voicegw.Recording],
    "server": [VoiceServer],
    "signalling": [LocalSignalling],
}


def names_in(thing: Any) -> set[str]:
    """Attributes of a module, or of a class and of what it makes."""
    made: list[str] = re.findall(r"self\.(\w+)", inspect.getsource(thing)) if inspect.isclass(thing) else []
    return {*dir(thing), *made}


def test_names_that_pages_speak_of_are_there() -> None:
    known = {name: {word for thing in things for word in names_in(thing)} for name, things in SPOKEN.items()}
    known["voicegw"] |= {path.stem for path in (ROOT / "voicegw").iterdir()}
    hatas = (ROOT / "voicegw" / "frameworks" / "hata.py").read_text(encoding="utf-8")  # which is not installed here
    known["voice"] |= set(re.findall(r"(?:def |self\.)(\w+)", hatas))
    known["client"].add("voice_clients")  # a client of hata
    seen = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name == "moving.md":  # the names on the left are others'
            text = "\n".join(line.split(" | ")[1] for line in text.splitlines() if line.startswith("| `"))
        for code in re.findall(r"`([^`\n]+)`", text):
            found = re.match(r"(\w+)\.([a-zA-Z_]+)(?:\.|\(|$| )", code)
            if found is not None and found[1] in known and f"{found[1]}.{found[2]}" != "server.json":
                assert found[2] in known[found[1]], f"{name_of(page)}: {code}"
                seen += 1
    assert seen > 60


def test_machines_pages_name_every_machine_of_a_call() -> None:
    told = {name for name, _ in rows("machines/index.md", "| machine | decides")}
    assert told == {f"[{name}](../../diagrams/{name}.md)" for name in table_names()}


def test_links_of_pages_lead_somewhere() -> None:
    """As files; the build looks at them as a site."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)}: {target}"
