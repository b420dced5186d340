"""F128, F131 to F133: the MLS library, its keys and counters, what it raises and how much it is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import davey
import pytest

from tests.faults.cells import covers
from tests.faults.groups import (
    ALICE,
    BOB,
    CAROL,
    FRAME,
    GROUP_ID,
    ROOM,
    Ears,
    Mallory,
    hears,
    in_one_group,
    notices_of,
    reports,
    roster,
    server_says,
    together,
    until,
)
from voicegw import native
from voicegw.adapters.mls import MlsGroup
from voicegw.core.dave import Verification
from voicegw.effects import (
    ApplyCommit,
    ApplyProposals,
    ApplyWelcome,
    IdentityChanged,
)
from voicegw.errors import (
    DaveNotFound,
    GroupError,
    MalformedFrame,
)
from voicegw.events import (
    GroupJoined,
    GroupRejected,
    IdentityDiffered,
    ProposalsRejected,
)
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling
from voicegw.session import E2EEPolicy, Options
from voicegw.testing.simulation import Simulation
from voicegw.wire import frames
from voicegw.wire.dave_frames import decode_uleb128
from voicegw.wire.mls import MAX_MESSAGE_BYTES, join_messages, vector
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    EpochPrepared,
    WelcomeReceived,
)
from voicegw.wire.rtp import SILENCE_FRAME

# -- F128


@covers("F128")
def test_our_key_is_renewed_before_its_counter_leaves_24_bits() -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob, carol)
        alice.play(ToneSource(440))
        await until(sim, lambda: len(ears.times(ALICE)) > 20)
        nonces = nonces_of(ears, ALICE)
        assert nonces == list(range(1, len(nonces) + 1))  # the count that we keep is the count that leaves
        assert alice._group._frames in (nonces[-1], nonces[-1] + 1, nonces[-1] + 2)
        epoch, sent = alice.epoch, len(ears.times(ALICE))
        alice._group._frames = 2**24 - 4
        await until(sim, lambda: in_one_group(alice, bob, carol) and alice.epoch > epoch, seconds=3)
        assert len(ears.times(ALICE)) >= sent + 3
        assert reports(sim.server, ALICE) == 1
        await hears(sim, alice, bob, carol)
        assert max(nonces_of(ears, ALICE)[-5:]) < 2000
        assert ears.clear == []

    Simulation(1).run(story)


def nonces_of(ears: Ears, user_id: int) -> list[int]:
    """The counters in the trailers of a user's frames."""
    frames = [frame for _, user, frame in ears.frames if user == user_id and frame != SILENCE_FRAME]
    return [read[0] for frame in frames if (read := decode_uleb128(frame, len(frame) - frame[-3] + 8)) is not None]


@covers("F128")
def test_no_frame_leaves_under_a_key_that_is_worn() -> None:
    mallory, told = Mallory(), list[str]()
    alice = MlsGroup(ALICE, lambda: 0.0, told.append)
    alice.apply_welcome(mallory.join(alice))
    alice._frames = 2**24 - 3
    sent = []
    for _ in range(10):
        try:
            sent.append(alice.encrypt(FRAME))
        except GroupError:
            continue
    assert len(sent) == 2
    assert told == ["our sender key is worn; a new epoch brings another"]
    assert [mallory.session.decrypt(ALICE, davey.MediaType.audio, frame) for frame in sent] == [FRAME] * 2


# -- F131


@covers("F131", "H")
@pytest.mark.parametrize("how", ["not installed", "does not load", "too old", "in the working directory"])
def test_without_the_library_a_call_fails_at_once_and_says_why(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    native.load_davey.cache_clear()
    if how == "not installed":
        monkeypatch.setattr(native, "find_package", lambda name: None)
    elif how == "does not load":

        def broken(name: str) -> None:
            raise OSError("undefined symbol")

        monkeypatch.setattr("importlib.import_module", broken)
    elif how == "too old":
        monkeypatch.setattr(native, "installed_version", lambda name: (0, 1, 6))
    else:
        (tmp_path / "davey.py").write_text("DAVE_PROTOCOL_VERSION = 1\nraise SystemExit('the planted one')\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend("")
        monkeypatch.delitem(__import__("sys").modules, "davey")

    async def story(sim: Simulation) -> None:
        alice = sim.client(ALICE)
        with pytest.raises(DaveNotFound, match="davey"):
            await alice.connect(ROOM)
        assert alice.states["call"] == "idle"
        allowed = sim.client(BOB, policy="allow")
        with pytest.raises(DaveNotFound):
            await allowed.connect(ROOM)
        assert sim.server.members(ROOM) == []

    try:
        Simulation(1).run(story)
    finally:
        native.load_davey.cache_clear()


class Panic(BaseException):
    """As Rust's panics come out of native code: no Exception."""


class Faulty:
    """davey's session, one of whose names raises once."""

    def __init__(self, session: davey.DaveSession, name: str, error: BaseException) -> None:
        self._session, self._name, self._error = session, name, error

    def __getattr__(self, name: str) -> Any:
        if name == self._name and self._error is not None:
            error, self._error = self._error, None  # type: ignore[assignment]
            if name in ("ready", "epoch", "voice_privacy_code"):
                raise error

            def raises(*arguments: object) -> None:
                raise error

            return raises
        return getattr(self._session, name)


CALLS = (
    "process_proposals",
    "process_commit",
    "process_welcome",
    "get_user_ids",
    "voice_privacy_code",
    "encrypt_opus",
    "decrypt",
)


@covers("F131", "R")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no"), Panic("no"), MemoryError()], ids=repr)
def test_what_the_library_raises_is_survived(call: str, error: BaseException) -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        speaker = bob if call == "decrypt" else alice
        speaker.play(ToneSource(440))
        await until(sim, lambda: speaker.states["speech"] == "speaking")
        session = alice._group._session
        assert session is not None
        alice._group._session = Faulty(session, call, error)  # type: ignore[assignment]
        await carol.connect(ROOM)
        if call == "process_welcome":
            server_says(alice, WelcomeReceived(5, b"no welcome"))
        await until(sim, lambda: in_one_group(alice, bob, carol), seconds=5)
        await hears(sim, alice, bob, carol)
        await hears(sim, bob, alice)
        assert reports(sim.server, ALICE) <= 2
        assert ears.clear == []

    Simulation(1).run(story)


# -- F132


@covers("F132")
def test_another_identity_key_is_never_verified(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        await together(sim, alice, bob, carol)
        for one, other in itertools.combinations((alice, bob, carol), 2):
            code = one._group.verification_code(other.user_id)
            assert len(code) == 45
            assert code == other._group.verification_code(one.user_id)
        assert alice.verification(CAROL) is Verification.UNVERIFIED
        alice.mark_verified(CAROL)
        bob.mark_verified(CAROL)
        assert alice.verification(CAROL) is Verification.VERIFIED
        seen = notices_of(alice)
        await carol.close()
        await until(sim, lambda: len(roster(alice)) == 2)
        back_again = sim.client(CAROL)
        await back_again.connect(ROOM)
        await until(sim, lambda: len(roster(alice)) == 3)
        assert seen.count(IdentityChanged(CAROL)) == 1
        for client in (alice, bob):
            assert client.verification(CAROL) is Verification.CHANGED
        await until(sim, lambda: in_one_group(alice, bob, back_again))
        alice.mark_verified(CAROL)
        assert alice.verification(CAROL) is Verification.VERIFIED
        server_says(alice, EpochPrepared(1, 1))  # who is in a new group is not seen before codes are compared
        assert alice.verification(CAROL) is Verification.UNVERIFIED

    Simulation(seed).run(story)


@covers("F132")
def test_two_keys_at_once_are_told_and_refused() -> None:
    mallory, alice = Mallory(), MlsGroup(ALICE, lambda: 0.0)
    alice.apply_welcome(mallory.join(alice))
    add = mallory.add(mallory.member(BOB).get_serialized_key_package())
    events = alice.apply_proposals(ApplyProposals(False, add, frozenset((ALICE, BOB))))
    assert events[0] == IdentityDiffered(BOB)
    assert isinstance(events[1], ProposalsRejected)
    assert alice.members == {ALICE, BOB}


# -- F133


@covers("F133")
def test_messages_and_groups_are_capped() -> None:
    mallory, alice = Mallory(), MlsGroup(ALICE, lambda: 0.0)
    alice.apply_welcome(mallory.join(alice))
    known = frozenset((ALICE, BOB))
    calls: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("process"):
                calls.append(name)
            return getattr(session, name)

    session = alice._session
    alice._session = Watched()  # type: ignore[assignment]
    remove = mallory.sender.remove(GROUP_ID, 1, 1)
    for huge in (bytes(MAX_MESSAGE_BYTES + 1), vector(bytes(MAX_MESSAGE_BYTES)), join_messages([remove] * 1001)):
        (rejected,) = alice.apply_proposals(ApplyProposals(False, huge, known))
        assert isinstance(rejected, ProposalsRejected)
    for event in (
        *alice.apply_commit(ApplyCommit(3, bytes(MAX_MESSAGE_BYTES + 1), known, member=True)),
        *alice.apply_welcome(ApplyWelcome(3, bytes(MAX_MESSAGE_BYTES + 1), known)),
    ):
        assert isinstance(event, GroupRejected)
    assert calls == []
    header = (7).to_bytes(2, "big")
    for op in (Opcode.MLS_WELCOME, Opcode.MLS_PROPOSALS, Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION):
        with pytest.raises(MalformedFrame):
            frames.decode_binary(header + bytes((op,)) + header + bytes(MAX_MESSAGE_BYTES))


@covers("F133")
@pytest.mark.parametrize(("members", "accepted"), [(999, True), (1000, True), (1001, False)])
def test_a_group_of_more_than_a_thousand_is_refused(members: int, accepted: bool) -> None:
    alice = MlsGroup(ALICE, lambda: 0.0)

    class Crowd:
        ready, epoch, voice_privacy_code = True, 1, "0" * 30

        def process_welcome(self, welcome: bytes) -> None:
            """Takes anything."""

        def get_user_ids(self) -> list[str]:
            return [str(user) for user in range(1, members + 1)]

    alice._session = Crowd()  # type: ignore[assignment]
    (event,) = alice.apply_welcome(ApplyWelcome(3, b"welcome", frozenset(range(1, members + 1))))
    assert isinstance(event, GroupJoined) == accepted


def test_policy_off_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Callable[[], object]] = []
    monkeypatch.setattr("voicegw.client.load_davey", lambda: called.append(native.load_davey))

    async def story(sim: Simulation) -> None:
        server = sim.voice_server("c-ams02-sim.discord.media", "66.22.196.2", dave=False)
        await sim.start_server(server)
        alice = sim.client(ALICE, signalling=LocalSignalling(server, ALICE), policy=E2EEPolicy.OFF)
        await alice.connect(ROOM)
        assert called == []
        assert Options(policy=E2EEPolicy.OFF).max_dave_protocol_version == 0

    Simulation(1).run(story)
