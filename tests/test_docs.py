"""What the documents show is run, and what they draw is current."""

from __future__ import annotations

import asyncio
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import Phase, settings

import voicegw
from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, pair
from voicegw.effects import Connected, Moved
from voicegw.media.sources import LimitedSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.session import ALL_SESSIONS, Options
from voicegw.tables.check import check_all
from voicegw.tables.draw import to_overview
from voicegw.tables.load import load_table
from voicegw.testing.simulation import Simulation

ROOT = Path(__file__).parent.parent
SONG = ROOT / "voicegw" / "media" / "demo.ogg"
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class Bot:
    """A bot framework that is connected to the local main gateway."""

    def __init__(self, server: VoiceServer, user_id: int) -> None:
        self.user_id = user_id
        self._handlers: dict[str, Callable[[Any], None]] = {}
        self._gateway = LocalSignalling(server, user_id)
        self._gateway.attach(self)

    def on(self, name: str, handler: Callable[[Any], None]) -> None:
        self._handlers[name] = handler

    async def send(self, message: dict[str, Any]) -> None:
        assert message["op"] == 4
        state = message["d"]
        channel_id = int(state["channel_id"]) if state["channel_id"] else None
        await self._gateway.update_voice_state(
            int(state["guild_id"]), channel_id, self_mute=state["self_mute"], self_deaf=state["self_deaf"]
        )

    def voice_state_update(self, data: Any) -> None:
        self._handlers["VOICE_STATE_UPDATE"](data)

    def voice_server_update(self, data: Any) -> None:
        self._handlers["VOICE_SERVER_UPDATE"](data)


@pytest.mark.loopback
async def test_the_readmes_bot_plays_and_records(
    server: VoiceServer,
    make_client: MakeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(voicegw, name) for name in voicegw.__all__}
    names["VoiceClient"] = lambda **options: voicegw.VoiceClient(**options, **server.trust)
    names["open_source"] = lambda name: LimitedSource(voicegw.open_source(str(SONG)), 0.5)
    namespace: dict[str, Any] = {"voicegw": types.SimpleNamespace(**names)}
    exec(compile(EXAMPLES[0].replace("import voicegw\n", ""), "README.md", "exec"), namespace)
    other = make_client(server, BOB)
    await other.connect(CHANNEL)
    tone = other.play(voicegw.ToneSource(440))
    await namespace["sing"](Bot(server, ALICE), GUILD, CHANNEL)
    tone.stop()
    assert (tmp_path / "recordings" / f"{BOB}.wav").stat().st_size > 10_000
    assert other.stats.users[ALICE].packets >= 25
    said = capsys.readouterr().out
    assert "Connected(channel_id=" in said
    assert "EncryptionChanged" in said
    assert server.members(CHANNEL) == [BOB]


@pytest.mark.loopback
async def test_the_readmes_test_server_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = [example for example in EXAMPLES if "server.faults.lose" in example]
    program = program.replace("asyncio.run(main())", "")
    namespace: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), namespace)
    await asyncio.wait_for(namespace["main"](), 30)
    assert "UserStats(packets=" in capsys.readouterr().out


@pytest.mark.loopback
async def test_the_readmes_framework_example_runs(
    server: VoiceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_frameworks import Channel, Client, connected_class

    monkeypatch.chdir(tmp_path)
    program = EXAMPLES[1].replace(
        "from voicegw.frameworks.discord_py import VoiceClient  # or .py_cord, .nextcord, .disnake\n", ""
    )
    namespace: dict[str, Any] = {"VoiceClient": connected_class(server)}
    exec(compile(program, "README.md", "exec"), namespace)
    channel = Channel(Client(server, ALICE), CHANNEL)
    playing = asyncio.create_task(namespace["sing_in"](channel, voicegw.ToneSource(440, 0.1)))
    await server.wait_for(lambda: server.members(CHANNEL) == [ALICE])
    other = Channel(Client(server, BOB), CHANNEL)
    listener = await other.connect(cls=connected_class(server))
    await asyncio.wait_for(playing, 20)
    assert listener.voice.stats.users[ALICE].packets >= 5
    await listener.disconnect()


def rules_example(examples: int) -> Any:
    (program,) = [example for example in EXAMPLES if "CallRules" in example]
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), namespace)
    case = namespace["TestPanel"]
    case.settings = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, phases=[Phase.generate]
    )
    return namespace


def test_the_readmes_panel_passes_the_rules() -> None:
    rules_example(25)["TestPanel"]("runTest").runTest()


def test_the_rules_find_a_panel_that_forgets_to_hide() -> None:
    namespace = rules_example(300)

    def tell(panel: Any, notice: object) -> None:
        if isinstance(notice, Connected | Moved):
            panel.channel_id = notice.channel_id

    namespace["Panel"].tell = tell
    with pytest.raises(AssertionError):
        namespace["TestPanel"]("runTest").runTest()


@pytest.mark.loopback
async def test_the_readmes_view_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = [example for example in EXAMPLES if "serve_view" in example]
    namespace: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), namespace)

    class Bot:
        async def run(self) -> None:
            said = capsys.readouterr().out
            page, metrics = re.findall(r"http\S+?/(?:metrics)?(?=[,\s])", said)
            async with aiohttp.ClientSession() as session:
                for address, shown in ((page, "<title>voicegw"), (metrics, "voicegw_transitions_total{")):
                    async with session.get(address) as answer:
                        assert shown in await answer.text()

    await namespace["watched"](Bot())


def test_there_are_no_examples_that_no_test_runs() -> None:
    assert len(EXAMPLES) == 9


@pytest.mark.loopback
async def test_the_readmes_call_goes_from_process_to_process(server: VoiceServer, make_client: MakeClient) -> None:
    (program,) = [example for example in EXAMPLES if "FrozenCall" in example]
    namespace: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), namespace)
    alice, bob = await pair(make_client, server)
    signalling, key = LocalSignalling(server, ALICE), voicegw.FleetKey.generate()
    alice.play(voicegw.ToneSource(440))
    document = await namespace["hand_on"](alice, key)
    async with await namespace["go_on"](document, key, signalling, ca_pem=server.ca_pem) as again:
        before = bob.stats.users[ALICE].packets if ALICE in bob.stats.users else 0
        await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].packets > before + 5)
        assert again.states["call"] == "connected"


def test_the_readmes_simulated_bot_gets_through(voice_simulation: Simulation) -> None:
    (program,) = [example for example in EXAMPLES if "voice_simulation" in example]
    namespace: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), namespace)
    namespace["test_half_a_minute_of_trouble"](voice_simulation)


def test_the_readmes_diagram_is_current() -> None:
    (drawn,) = re.findall(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert drawn == to_overview(load_table("gateway"))


def test_the_readmes_figures_of_the_tables_are_current() -> None:
    report = check_all(ALL_SESSIONS, Options().max_attempts)
    assert f"({report.pairs:,} of {report.states} states, in {report.rows} rows)" in README
    assert f"decided within {report.bound_s:,.0f} s" in README


def test_links_lead_somewhere() -> None:
    readmes = (ROOT / "README.md", ROOT / "states" / "README.md", ROOT / "examples" / "README.md")
    for page in (*readmes, *(ROOT / "diagrams").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_public_names_are_there_and_sorted() -> None:
    assert voicegw.__all__ == sorted(voicegw.__all__)
    for name in voicegw.__all__:
        assert getattr(voicegw, name).__module__.startswith("voicegw") or name == "Notice"
    assert set(voicegw.__all__) <= set(dir(voicegw))
    with pytest.raises(AttributeError, match="no attribute 'Toaster'"):
        _ = voicegw.Toaster


@pytest.mark.loopback
async def test_the_readmes_listening_example_runs(
    server: VoiceServer, make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    (program,) = [example for example in EXAMPLES if "Recording" in example]
    exec(compile(program, "README.md", "exec"), namespace)
    alice, bob = await pair(make_client, server)
    heard: list[bytes] = []
    listening = asyncio.create_task(namespace["take_minutes"](bob, ALICE, heard.append))
    await asyncio.sleep(0)
    await alice.play(voicegw.ToneSource(440, 0.3)).wait()
    await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].silence >= 1)
    await bob.close()
    await asyncio.wait_for(listening, 10)
    assert len(heard) >= 10  # a busy host lets some time go by
    assert all(len(pcm) == 3840 for pcm in heard)
    assert {file.name for file in (tmp_path / "minutes").iterdir()} == {f"{ALICE}.ogg", "mixed.ogg"}
