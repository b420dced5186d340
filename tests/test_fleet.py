"""What a fleet's parts decide without NATS: whose turn it is, what is sealed, what a worker opens, what bots hear."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("nats", reason='pip install "voicegw[fleet]"')

from tests.conftest import ALICE, CHANNEL, GUILD
from voicegw.effects import Closed, FlagsChanged, Moved, PlaybackEnded, UsersChanged
from voicegw.errors import ConnectionClosed, EventNotAllowed, FleetError, NotAudio, VoiceError
from voicegw.events import HostWoke
from voicegw.fleet import bus
from voicegw.fleet.bus import Bus, Entry
from voicegw.fleet.document import CallDocument
from voicegw.fleet.notices import error_from, error_to, notice_from, notice_to
from voicegw.fleet.sealing import ENVIRONMENT, Seal, fleet_keys
from voicegw.fleet.sources import described, file, stored, url
from voicegw.fleet.speaker import LeasedClient
from voicegw.fleet.streaming import KEPT_FRAMES, StreamedAway, StreamedSource
from voicegw.fleet.view import CALL, WORKER, CallEntry, FleetView, WorkerEntry, call_id, ids_of
from voicegw.frozen import FORMAT, FleetKey
from voicegw.media.live import IteratorSource
from voicegw.media.opus import FRAME_BYTES
from voicegw.media.sources import LimitedSource, ToneSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.signalling import VoiceFlags
from voicegw.wire.opcodes import Opcode


class Fleet:
    """A view, and what is written to the bucket that it follows."""

    def __init__(self) -> None:
        self.silent: list[str] = []
        self.heard = asyncio.Event()
        self.view = FleetView(asyncio.get_running_loop().time, on_silent=self.note)
        self.revision = 0

    def note(self, name: str) -> None:
        self.silent.append(name)
        self.heard.set()

    def write(self, key: str, value: bytes | None) -> None:
        self.revision += 1
        self.view.take(Entry(key, value, self.revision))

    def worker(self, name: str, life: str | None = None, **says: object) -> None:
        given = {"version": "1", "document": FORMAT, "lease_s": 60.0, "free": 100, **says}
        self.write(WORKER + name, WorkerEntry(life=life or f"life of {name}", **given).to_bytes())  # type: ignore[arg-type]

    def call(self, number: int, owner: str = "", **says: object) -> str:
        name = call_id(number, 7)
        life = f"life of {owner}" if owner else ""
        self.write(CALL + name, CallEntry(owner, life, **says).to_bytes())  # type: ignore[arg-type]
        return name


@pytest.fixture
async def fleet() -> Fleet:
    return Fleet()


async def test_a_call_is_nobodys_when_its_owners_lease_is_over(fleet: Fleet) -> None:
    fleet.worker("a")
    call = fleet.call(1, "a")
    assert (fleet.view.owner(call), fleet.view.unowned()) == ("a", [])
    fleet.worker("a", life="another")  # the same name, begun anew
    assert (fleet.view.owner(call), fleet.view.unowned()) == (None, [call])
    fleet.write(WORKER + "a", None)
    fleet.write(CALL + call, None)
    assert (fleet.view.workers, fleet.view.unowned()) == ({}, [])
    fleet.view.close()


async def test_an_older_revision_changes_nothing(fleet: Fleet) -> None:
    fleet.worker("a")
    call = fleet.call(1, "a")
    fleet.view.take(Entry(CALL + call, CallEntry().to_bytes(), 1))
    fleet.view.take(Entry(WORKER + "a", None, 1))
    assert fleet.view.owner(call) == "a"
    fleet.view.close()


async def test_a_worker_that_does_not_renew_for_a_whole_lease_is_silent(fleet: Fleet) -> None:
    fleet.worker("a", lease_s=0.05)
    fleet.worker("b", lease_s=60.0)
    await asyncio.wait_for(fleet.heard.wait(), 10)
    assert set(fleet.silent) == {"a"}
    fleet.view.close()


async def test_all_who_look_see_the_same_order_and_room_decides_how_often_one_is_first(fleet: Fleet) -> None:
    for name, free in (("a", 100), ("b", 100), ("c", 300)):
        fleet.worker(name, free=free)
    calls = [fleet.call(number) for number in range(1000)]
    orders = [fleet.view.order(call) for call in calls]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    first = Counter(order[0] for order in orders)
    assert 500 < first["c"] < 700
    assert 130 < first["a"] < 270
    again = Fleet()
    for name, free in (("c", 300), ("b", 100), ("a", 100)):
        again.worker(name, free=free)
    assert [again.call(number) for number in range(1000)] == calls
    assert [again.view.order(call) for call in calls] == orders
    fleet.view.close()
    again.view.close()


async def test_who_is_full_drains_or_reads_no_such_document_claims_nothing(fleet: Fleet) -> None:
    fleet.worker("full", free=0)
    fleet.worker("draining", draining=True)
    fleet.worker("old", document=1)
    fleet.worker("new", document=2)
    assert fleet.view.order(fleet.call(1, document=2)) == ["new"]
    assert sorted(fleet.view.order(fleet.call(2, document=1))) == ["new", "old"]
    assert fleet.view.order(fleet.call(3, document=3)) == []
    fleet.view.close()


async def test_who_offered_a_call_comes_last(fleet: Fleet) -> None:
    for name in "abc":
        fleet.worker(name)
    for number in range(50):
        assert fleet.view.order(fleet.call(number, before="b"))[-1] == "b"
    fleet.view.close()


async def test_what_a_newer_version_says_besides_is_left_out() -> None:
    entry = WorkerEntry.from_bytes(b'{"life": "x", "version": "9", "document": 9, "lease_s": 3, "wishes": []}')
    assert (entry.life, entry.document) == ("x", 9)
    assert ids_of(call_id(12, 34)) == (12, 34)


# -- sealing


def test_a_message_is_sealed_for_its_place_and_opens_with_any_of_the_keys() -> None:
    old, new = FleetKey.generate("old"), FleetKey.generate("new")
    message = {"do": "voice server", "token": "canary", "frames": b"\x00\xff" * 50, "none": None}
    data = Seal([old]).close(message, "subject")
    assert b"canary" not in data
    assert Seal([new, old]).open(data, "subject") == message
    for seal, place in ((Seal([new]), "subject"), (Seal([old]), "another subject")):
        with pytest.raises(FleetError, match="key"):
            seal.open(data, place)
    for broken in (b"", data[:20], data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(FleetError):
            Seal([old]).open(broken, "subject")


def test_a_document_is_read_again() -> None:
    seal = Seal([FleetKey.generate()])
    document = CallDocument("life", 9, {"policy": "require"}, "bot", 3, b"frozen")
    data = document.to_bytes(seal, "1-2")
    assert CallDocument.from_bytes(data, seal, "1-2") == document
    with pytest.raises(FleetError):
        CallDocument.from_bytes(data, seal, "1-3")
    assert CallDocument.from_bytes(CallDocument("", 9).to_bytes(seal, "1-2"), seal, "1-2").frozen is None


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = FleetKey.generate("old"), FleetKey.generate("new")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(FleetError, match=ENVIRONMENT):
        fleet_keys()
    monkeypatch.setenv(ENVIRONMENT, old.to_text().reveal())
    assert [key.key_id for key in fleet_keys()] == ["old"]
    path = tmp_path / "keys"
    path.write_text(f"{new.to_text().reveal()}\n{old.to_text().reveal()}\n", encoding="utf-8")
    assert [key.key_id for key in fleet_keys(path)] == ["new", "old"]
    path.write_text("secret-but-no-key", encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        fleet_keys(path)
    assert "secret-but-no-key" not in str(caught.value)


# -- what bots hear


@pytest.mark.parametrize(
    "notice",
    [
        Moved(9),
        UsersChanged((1, 2), ()),
        FlagsChanged(VoiceFlags(mute=True)),
        Closed(None),
        Closed(ConnectionClosed(4014, "Disconnected.")),
        PlaybackEnded(1.5, NotAudio("noise")),
    ],
    ids=repr,
)
def test_a_notice_is_heard_as_it_was_told(notice: Closed) -> None:
    again = notice_from(notice_to(notice))
    assert type(again) is type(notice)
    assert repr(again) == repr(notice)


def test_an_error_keeps_its_class_its_words_and_what_it_carries() -> None:
    for error in (ConnectionClosed(4006, "gone"), EventNotAllowed("play", "closed"), NotAudio("noise")):
        again = error_from(error_to(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert type(error_from({"kind": "OfTomorrow", "text": "x"})) is VoiceError
    assert notice_from({"kind": "OfTomorrow"}) is None


# -- sources


def test_only_what_a_worker_can_open_is_named_to_it() -> None:
    for named in (url("https://example.com/a"), file("a.ogg"), stored("a")):
        assert described(named) is named.description
    assert described(ToneSource(440)) is not None
    assert described(LimitedSource(ToneSource(440), 1.0)) is not None
    assert described(IteratorSource([b""])) is None


async def test_a_streamed_source_gives_all_in_order_and_again_from_where_it_is_asked() -> None:
    frames = [number.to_bytes(2, "big") * (FRAME_BYTES // 2) for number in range(120)]
    away = StreamedAway(IteratorSource(frames), asyncio.get_running_loop())
    source = StreamedSource(lambda asked: away.piece(asked["from"], asked["count"]), "p", is_opus=False)
    more = asyncio.Event()
    source.bind(more.set)

    async def read_all() -> list[bytes]:
        got = []
        while (frame := source.read()) != b"":
            if frame is None:
                more.clear()
                await asyncio.wait_for(more.wait(), 10)
            else:
                got.append(frame)
        return got

    assert await read_all() == frames
    source.seek(2.0)
    assert await read_all() == frames[100:]
    source.close()
    away.close()
    assert len(frames) < KEPT_FRAMES


async def test_a_bot_that_cannot_give_a_place_again_says_so() -> None:
    away = StreamedAway(IteratorSource([b"\0" * FRAME_BYTES] * 10), asyncio.get_running_loop())
    with pytest.raises(VoiceError, match="not kept"):
        await away.piece(5000, 50)
    away.close()


# -- a worker that has lost its lease


async def test_a_client_without_a_lease_does_nothing_but_can_be_frozen(server: VoiceServer) -> None:
    leased = True
    client = LeasedClient(
        may_speak=lambda: leased,
        user_id=ALICE,
        guild_id=GUILD,
        signalling=LocalSignalling(server, ALICE),
        **server.trust,
    )
    await client.connect(CHANNEL)
    leased = False
    server.drop_socket(ALICE)
    await server.wait_for(lambda: not server.session(ALICE).connected)
    client.feed(HostWoke(60.0))
    frozen = await client.freeze()
    assert frozen.resumable
    assert server.records(op=Opcode.RESUME) == []
    assert server.members(CHANNEL) == [ALICE]  # nobody has left


# -- without NATS


async def test_a_fleet_that_cannot_reach_nats_says_so_in_one_line() -> None:
    with pytest.raises(FleetError) as caught:
        await Bus.connect("nats://someone:canary@127.0.0.1:1", [FleetKey.generate()])
    assert "127.0.0.1:1" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


async def test_a_server_that_says_nothing_is_no_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "CONNECT_S", 0.3)
    taken: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: taken.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    before = asyncio.all_tasks()
    with pytest.raises(FleetError, match="cannot be reached"):
        await Bus.connect(f"nats://127.0.0.1:{port}", [FleetKey.generate()])
    silent.close()
    for writer in taken:
        writer.close()
        await writer.wait_closed()
    assert asyncio.all_tasks() <= before


def test_without_nats_the_library_imports_and_the_command_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['nats'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "import voicegw, voicegw.fleet; from voicegw.cli import main; sys.exit(main(['fleet', 'status']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ['voicegw: a fleet needs NATS\'s client: pip install "voicegw[fleet]"']
