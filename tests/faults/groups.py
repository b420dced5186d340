"""Calls with real MLS groups in virtual time, and a gate that keeps what the voice server says about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import davey

from voicegw.adapters.mls import MlsGroup
from voicegw.effects import ApplyWelcome, CreateGroup, Notice
from voicegw.errors import GroupError
from voicegw.events import Event, KeyPackageMade, Stamped
from voicegw.media.sources import ToneSource
from voicegw.server import VoiceServer
from voicegw.server.external_sender import ExternalSender
from voicegw.server.session import Record, ServerSession
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.mls import join_messages, parse_key_package
from voicegw.wire.mls_messages import filter_welcome, parse_welcome
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    ProposalsReceived,
    TransitionExecuted,
    TransitionPrepared,
    WelcomeReceived,
)
from voicegw.wire.rtp import SILENCE_FRAME

ROOM = 927310423890473011
ALICE, BOB, CAROL = 1, 2, 3
FRAME = bytes((0x78, *range(60)))
GROUP_ID = ROOM.to_bytes(8, "big")
APPEND = davey.ProposalsOperationType.append
ABOUT_GROUPS = (
    TransitionPrepared,
    TransitionExecuted,
    EpochPrepared,
    ExternalSenderReceived,
    ProposalsReceived,
    CommitAnnounced,
    WelcomeReceived,
)
ABOUT_USERS = (ClientsConnected, ClientDisconnected)


class Gate:
    """Stands before a client: keeps events of some kinds until they are let in, in any order, or changes them."""

    def __init__(self, client: SimulatedClient, *kinds: type) -> None:
        self.kinds = kinds
        self.kept: list[Stamped] = []
        self.change: Callable[[Stamped], Iterable[Stamped]] | None = None
        self._let_in = client.feed
        client.feed = self  # type: ignore[method-assign]

    def __call__(self, event: Event | Stamped) -> None:
        if isinstance(event, Stamped) and isinstance(event.event, self.kinds):
            self.kept.append(event)
        elif isinstance(event, Stamped) and self.change is not None:
            for changed in self.change(event):
                self._let_in(changed)
        else:
            self._let_in(event)

    def let_in(self, order: Iterable[int] | None = None) -> None:
        """Those of `order`, or all; what comes from now on passes."""
        kept, self.kept, self.kinds = self.kept, [], ()
        for index in range(len(kept)) if order is None else order:
            self._let_in(kept[index])


async def in_the_gap(sim: Simulation, client: SimulatedClient) -> None:
    """The client's websocket breaks, and its resume takes a second."""
    sim.server.faults.delay_s[Opcode.RESUMED] = 1.0
    sim.server.drop_socket(client.user_id)
    await until(sim, lambda: client.states["gateway"].startswith("resuming"))


async def back(sim: Simulation, client: SimulatedClient) -> None:
    """The resume is over."""
    await until(sim, lambda: client.states["gateway"] == "ready")
    sim.server.faults.delay_s.clear()


def server_says(client: SimulatedClient, *events: Any) -> None:
    """The voice server says something to `client` now, on its present websocket, unnumbered."""
    for event in events:
        client.feed(Stamped("websocket", client.session.shared.socket_generation, event))


async def together(sim: Simulation, *clients: SimulatedClient) -> None:
    """Until all are in one group and may speak; those that are not connected yet join one after the other."""
    for client in clients:
        if client.states["call"] == "idle":
            await client.connect(ROOM)
    await until(sim, lambda: in_one_group(*clients))


def in_one_group(*clients: SimulatedClient) -> bool:
    """Do all see the same group, and may all speak?"""
    codes = {client.privacy_code for client in clients}
    active = all(client.states["dave"] == "active" for client in clients)
    return active and len(codes) == 1 and codes != {""}


async def until(sim: Simulation, predicate: Callable[[], bool], seconds: float = 30.0) -> float:
    """Let time pass in steps of 5 ms; how long it took.

    Raises:
        AssertionError: it did not come true in `seconds`.
    """
    begin = sim.loop.time()
    while not predicate():
        if sim.loop.time() - begin > seconds:
            raise AssertionError(f"not reached in {seconds:g} s: {[client.states for client in sim.clients]}")
        await asyncio.sleep(0.005)
    return sim.loop.time() - begin


async def hears(sim: Simulation, speaker: SimulatedClient, *listeners: SimulatedClient) -> None:
    """What `speaker` says reaches the others decrypted, within 2 s."""
    me = speaker.user_id

    def heard(listener: SimulatedClient) -> int:
        stats = listener.stats.users.get(me)
        return stats.packets - stats.errors if stats is not None else 0

    before = [heard(listener) for listener in listeners]
    playback = speaker.play(ToneSource(440))
    await until(
        sim, lambda: all(heard(one) >= was + 10 for one, was in zip(listeners, before, strict=True)), seconds=2.0
    )
    playback.stop()
    await until(sim, lambda: speaker.states["speech"] == "silent")


def decrypts(listener: SimulatedClient, speaker: SimulatedClient) -> bool:
    """Can `listener` open what `speaker` encrypts now?"""
    try:
        return listener._group.decrypt(speaker.user_id, speaker._group.encrypt(FRAME)) == FRAME
    except GroupError:
        return False


def roster(client: SimulatedClient) -> set[int]:
    """Who is in the client's group."""
    return set(client._group.members)


def reports(server: VoiceServer, user_id: int) -> int:
    """How often a user has said op 31."""
    return len(server.records(user_id, Opcode.MLS_INVALID_COMMIT_WELCOME, "in"))


class Ears:
    """O-PLAIN: what the server's relay sees of media; frames by user, and those that are not encrypted end to end."""

    def __init__(self, sim: Simulation) -> None:
        self.frames: list[tuple[float, int, bytes]] = []
        self.clear: list[tuple[float, int, bytes]] = []
        relay, now = sim.server.relay, sim.loop.time
        look = relay._look_at

        def listen(session: ServerSession, frame: bytes) -> None:
            self.frames.append((now(), session.user_id, frame))
            if frame != SILENCE_FRAME and not is_dave_frame(frame):
                self.clear.append(self.frames[-1])
            look(session, frame)

        relay._look_at = listen  # type: ignore[method-assign]

    def times(self, user_id: int) -> list[float]:
        """When frames of speech of a user came."""
        return [at for at, user, frame in self.frames if user == user_id and frame != SILENCE_FRAME]


class Said:
    """When the server heard what: the records of a server are bounded, these are not."""

    def __init__(self, sim: Simulation) -> None:
        self._said: list[tuple[float, int, int]] = []
        note = sim.server.note

        def keep(record: Record) -> None:
            if record.direction == "in":
                self._said.append((sim.loop.time(), record.user_id, record.op))
            note(record)

        sim.server.note = keep  # type: ignore[method-assign]

    def times(self, user_id: int, op: int) -> list[float]:
        """When a user said `op`."""
        return [at for at, user, said in self._said if (user, said) == (user_id, op)]


def notices_of(client: SimulatedClient) -> list[Notice]:
    """What the bot is told from now on."""
    kept: list[Notice] = []
    client.add_listener(kept.append)
    return kept


class Mallory:
    """A member and a voice server that follow no rules: davey without our eyes on it, the external sender's key."""

    def __init__(self) -> None:
        self.sender = ExternalSender()
        self.session = self.member(BOB)
        self.session.get_serialized_key_package()

    def member(self, user_id: int) -> davey.DaveSession:
        session = davey.DaveSession(1, user_id, ROOM)
        session.set_external_sender(self.sender.data)
        return session

    def add(self, *packages: bytes) -> bytes:
        """Op 27's vector that adds their owners to her group."""
        epoch = self.session.epoch or 0
        return join_messages(self.sender.add(GROUP_ID, epoch, package) for package in packages)

    def commit(self, proposals: bytes) -> tuple[bytes, bytes]:
        """Her commit of these, applied, and its welcome."""
        known = [ALICE, BOB, CAROL, 4, 5]
        result = self.session.process_proposals(APPEND, proposals, known)
        assert result is not None
        assert result.welcome is not None
        self.session.process_commit(result.commit)
        return result.commit, result.welcome

    def join(self, victim: MlsGroup) -> ApplyWelcome:
        """The welcome that brings our group into hers."""
        (made,) = victim.create(CreateGroup(1, ROOM, self.sender.data))
        assert isinstance(made, KeyPackageMade)
        _, welcome = self.commit(self.add(made.data))
        return ApplyWelcome(0, welcome_for(welcome, made.data), frozenset((ALICE, BOB)))


def welcome_for(welcome: bytes, package: bytes) -> bytes:
    return filter_welcome(parse_welcome(welcome), parse_key_package(package).ref)
