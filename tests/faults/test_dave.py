"""F108 to F112: nothing leaves before there is a key; transitions late, repeated, out of order, never executed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

import pytest

from tests.faults.cells import covers
from tests.faults.groups import (
    ABOUT_GROUPS,
    ALICE,
    BOB,
    CAROL,
    ROOM,
    Ears,
    Gate,
    back,
    hears,
    in_one_group,
    in_the_gap,
    reports,
    roster,
    together,
    until,
)
from tests.faults.worlds import in_phase
from voicegw.effects import (
    ReleaseStream,
    SendIdentify,
    SendInvalidCommit,
    SendTransitionReady,
)
from voicegw.events import GroupRejected
from voicegw.media.sources import ToneSource
from voicegw.session import E2EEPolicy, Options
from voicegw.testing.simulation import Simulation
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    CommitAnnounced,
    TransitionExecuted,
    TransitionPrepared,
    WelcomeReceived,
)

LINK_S = 0.02
FRAME_S = 0.02


# -- F108


async def speak_into(sim: Simulation, phase: str, gate_s: float, order: Iterable[int] | None) -> None:
    """Alice speaks from `phase` on; what makes the group reaches her late, and in any order."""
    ears = Ears(sim)
    alice, bob = sim.client(ALICE), sim.client(BOB)
    await bob.connect(ROOM)
    gate = Gate(alice, *ABOUT_GROUPS)
    sim.server.faults.delay_s[Opcode.SESSION_DESCRIPTION] = 1.0
    joining = asyncio.ensure_future(alice.connect(ROOM))
    await until(sim, lambda: alice.states["gateway"] == "identifying.awaiting_session_description")
    if phase == "H":
        alice.play(ToneSource(440))
    await joining
    sim.server.faults.delay_s.clear()
    if phase != "H":
        alice.play(ToneSource(440))
    await asyncio.sleep(gate_s)
    if phase == "U":
        await in_the_gap(sim, alice)
    assert alice.states["speech"] == "held.not_ready"
    assert ears.times(ALICE) == []
    gate.let_in(order)
    await until(sim, lambda: alice.states["speech"] == "speaking", seconds=15)
    begin = sim.loop.time()
    await until(sim, lambda: bool(ears.times(ALICE)))
    assert ears.times(ALICE)[0] - begin <= FRAME_S + LINK_S
    await until(sim, lambda: BOB in roster(alice) and alice.privacy_code == bob.privacy_code)
    assert ears.clear == []


@covers("F108")
def test_nothing_leaves_before_there_is_a_key(phase: str, seed: int) -> None:
    Simulation(seed).run(lambda sim: speak_into(sim, phase, (0.0, 6.0, 60.0)[seed], None))


@covers("F108", "R")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_no_order_of_messages_lets_a_frame_out_in_the_clear(order: tuple[int, ...]) -> None:
    async def story(sim: Simulation) -> None:
        await speak_into(sim, "R", 1.0, order)

    Simulation(1).run(story)


@covers("F108", "R")
def test_a_group_that_never_comes_lets_nothing_out() -> None:
    async def story(sim: Simulation) -> None:
        ears = Ears(sim)
        alice, bob = sim.client(ALICE), sim.client(BOB)
        await bob.connect(ROOM)
        Gate(alice, *ABOUT_GROUPS)
        await alice.connect(ROOM)
        playback = alice.play(ToneSource(440))
        await asyncio.sleep(600)
        assert alice.states["dave"] == "waiting.group"
        assert (ears.times(ALICE), playback.position_s) == ([], 0.0)

    Simulation(1).run(story)


# -- F109


@covers("F109")
def test_when_all_have_left_the_next_one_hears_us(phase: str, seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        if phase == "U":
            await in_the_gap(sim, alice)
        await bob.close()
        if phase == "U":
            await back(sim, alice)
        await until(sim, lambda: alice.states["dave"] == "waiting.alone")
        await together(sim, alice, carol)
        await hears(sim, alice, carol)

    Simulation(seed).run(story)


@covers("F109")
def test_a_call_that_began_in_the_clear_is_upgraded(phase: str) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob = (sim.client(user, policy="allow") for user in (ALICE, BOB))
        channel = sim.server.channel(ROOM)
        channel.downgrade()
        for client in (alice, bob):
            await client.connect(ROOM)
        assert alice.states["dave"] == "clear.only"
        await hears(sim, alice, bob)
        if phase == "U":
            await in_the_gap(sim, alice)
        channel.upgrade()
        if phase == "U":
            await back(sim, alice)
        await until(sim, lambda: in_one_group(alice, bob))
        ears = Ears(sim)
        await hears(sim, alice, bob)
        assert ears.clear == []

    Simulation(1).run(story)


# -- F110


@covers("F110")
def test_id_zero_is_a_transition_that_is_executed_at_once(phase: str) -> None:
    world = in_phase(phase, speaking=True)
    ready = len(world.sent(SendTransitionReady))
    for message in (CommitAnnounced(0, b"commit"), WelcomeReceived(0, b"welcome")):
        world.server(message)
        world.settle()
        assert (world.states["dave"], world.states["speech"]) == ("active", "speaking")
    world.server(TransitionPrepared(1, 0))
    assert world.states["dave"] == "active"
    assert len(world.sent(SendTransitionReady)) == ready
    world.unanswered.add("SendKeyPackage")
    world.feed(GroupRejected(0, "does not fit"))
    world.settle()
    assert world.sent(SendInvalidCommit) == [SendInvalidCommit(0)]
    assert world.states["speech"] == "held.not_ready"
    world.server(WelcomeReceived(0, b"another welcome"))
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("active", "speaking")
    assert len(world.sent(SendTransitionReady)) == ready


@covers("F110")
def test_a_downgrade_with_id_zero_is_executed_at_once(phase: str) -> None:
    world = in_phase(phase, Options(policy=E2EEPolicy.ALLOW), speaking=True)
    world.server(TransitionPrepared(0, 0))
    assert (world.states["dave"], world.session.dave.version) == ("clear.only", 0)
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=False)


# -- F111


class Model:
    """What the voice server believes of us: transitions count in the order of their announcement, each once."""

    def __init__(self) -> None:
        self.announced: list[tuple[int, int]] = []
        self.version = 1

    def announce(self, transition_id: int, version: int) -> None:
        self.announced.append((transition_id, version))

    def execute(self, transition_id: int) -> None:
        ids = [announced for announced, _ in self.announced]
        if transition_id in ids:
            at = ids.index(transition_id)
            self.version = self.announced[at][1]
            del self.announced[: at + 1]


EXECUTIONS = [
    executed
    for length in (1, 2, 3)
    for executed in itertools.product((5, 6, 7), repeat=length)
    if executed != (7,) * length
]


@covers("F111")
@pytest.mark.parametrize("kinds", ["group, group", "group, clear", "clear, group", "clear, clear"])
def test_transitions_are_executed_in_any_order_twice_or_never(phase: str, kinds: str) -> None:
    for executed in EXECUTIONS:
        world, model = in_phase(phase, Options(policy=E2EEPolicy.ALLOW), speaking=True), Model()
        world.unanswered.add("SendTransitionReady")
        for transition_id, kind in zip((5, 6), kinds.split(", "), strict=True):
            clear = kind == "clear"
            message = TransitionPrepared(0, transition_id) if clear else CommitAnnounced(transition_id, b"commit")
            world.server(message)
            world.settle()
            model.announce(transition_id, 0 if clear else 1)
        for transition_id in executed:
            world.server(TransitionExecuted(transition_id))
            model.execute(transition_id)
            released = world.sent(ReleaseStream)[-1]
            assert isinstance(released, ReleaseStream)
            assert released.encrypted == (model.version == 1), (executed, world.states)
            assert world.session.dave.version == model.version, (executed, world.states)
        world.unanswered.discard("OpenSocket")
        world.advance(60)  # nothing is stuck: what was never executed is recovered from, or was superseded
        assert world.states["dave"] in ("active", "clear.only"), (executed, world.states)


@covers("F111", "R")
def test_announcements_without_end_are_bounded() -> None:
    world = in_phase("R", Options(policy=E2EEPolicy.ALLOW))
    world.unanswered.add("SendTransitionReady")
    for transition_id in range(1, 200):
        world.server(TransitionPrepared(0, transition_id))
    assert len(world.session.dave.transitions) == 16
    world.server(TransitionExecuted(1))
    assert world.states["dave"] == "changing"
    world.server(TransitionExecuted(199))
    assert world.states["dave"] == "clear.only"


# -- F112


@covers("F112")
def test_a_transition_that_is_never_executed_leaves_no_half_state(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        alice.play(ToneSource(440))
        await until(sim, lambda: alice.states["speech"] == "speaking")
        gate = Gate(alice, TransitionExecuted)
        await carol.connect(ROOM)
        await until(sim, lambda: alice.states["dave"] == "changing")
        await asyncio.sleep(9)
        assert alice.states["speech"] == "speaking"  # frames go on meanwhile
        await until(sim, lambda: alice.states["dave"] == "recovering", seconds=2)
        gate.let_in(())
        await until(sim, lambda: in_one_group(alice, bob, carol), seconds=19)
        assert reports(sim.server, ALICE) == 1
        assert alice.states["speech"] == "speaking"

    Simulation(seed).run(story)


@covers("F112")
def test_a_server_that_executes_nothing_is_left_for_a_fresh_session() -> None:
    world = in_phase("R", speaking=True)
    world.unanswered.add("SendTransitionReady")
    world.transition_id = 9
    world.server(CommitAnnounced(8, b"commit"))
    world.settle()
    sessions = len(world.sent(SendIdentify))
    world.until(lambda: len(world.sent(SendIdentify)) > sessions, 30)
    assert len(world.sent(SendInvalidCommit)) == 1
