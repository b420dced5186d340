"""F113 to F118: messages of groups that are skipped, repeated, mixed up, in another order, or that others win with."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

import pytest

from tests.faults.cells import covers
from tests.faults.groups import (
    ALICE,
    BOB,
    CAROL,
    ROOM,
    Gate,
    Said,
    back,
    hears,
    in_one_group,
    in_the_gap,
    reports,
    roster,
    server_says,
    together,
    until,
)
from tests.members import World as Members
from voicegw.errors import E2EEError
from voicegw.events import Stamped
from voicegw.server.delivery import Delivery, DeliveryService
from voicegw.testing.simulation import SimulatedClient, Simulation
from voicegw.wire.mls import join_messages
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    ProposalsReceived,
    SessionDescriptionReceived,
    WelcomeReceived,
)

# -- F113


@covers("F113")
@pytest.mark.parametrize("what", ["skipped", "repeated"])
def test_a_commit_that_is_skipped_or_repeated_is_recovered_from(phase: str, what: str) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol, dora = (sim.client(user) for user in (ALICE, BOB, CAROL, 4))
        await together(sim, alice, bob)
        gate = Gate(alice)
        if what == "repeated":
            gate.change = twice
        if phase == "U":
            await in_the_gap(sim, alice)
        if what == "skipped":
            gate.kinds = (CommitAnnounced,)
        await carol.connect(ROOM)
        if phase == "U":
            await back(sim, alice)
        await until(sim, lambda: len(roster(carol)) == 3)
        await asyncio.sleep(3)
        if what == "skipped":
            assert len(gate.kept) == 1
            gate.let_in(())
            await dora.connect(ROOM)
            everybody = [alice, bob, carol, dora]
        else:
            everybody = [alice, bob, carol]
        await until(sim, lambda: in_one_group(*everybody), seconds=3)
        assert reports(sim.server, ALICE) == (what == "skipped")
        assert alice.stats.errors == 0
        await hears(sim, alice, bob)
        await hears(sim, bob, alice)

    Simulation(1).run(story)


def twice(event: Stamped) -> Iterable[Stamped]:
    """A commit under its own number, and again as if it were another message."""
    again = Stamped(event.source, event.generation, event.event)
    return (event, again) if isinstance(event.event, CommitAnnounced) else (event,)


# -- F114


@covers("F114")
def test_recoveries_that_fail_end_in_a_fresh_session_and_then_in_an_error(seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        said = Said(sim)
        await together(sim, alice, bob, carol)
        first = sim.server.session(ALICE)
        Gate(alice).change = spoiled
        server_says(alice, WelcomeReceived(9, b"no welcome"))
        await until(sim, lambda: alice.states["call"] == "closed", seconds=600)
        reported = said.times(ALICE, Opcode.MLS_INVALID_COMMIT_WELCOME)
        for at in reported:
            assert sum(at <= other < at + 10 for other in reported) <= 3
        assert len(reported) >= 3
        assert sim.server.session(ALICE) is not first
        assert isinstance(alice.error, E2EEError)
        assert "recovered" in str(alice.error)

    Simulation(seed).run(story)


def spoiled(event: Stamped) -> Iterable[Stamped]:
    """A welcome with a bit turned."""
    if isinstance(event.event, WelcomeReceived):
        welcome = event.event.welcome
        turned = WelcomeReceived(event.event.transition_id, welcome[:-1] + bytes((welcome[-1] ^ 1,)))
        return (Stamped(event.source, event.generation, turned, event.seq),)
    return (event,)


# -- F115


@covers("F115")
@pytest.mark.parametrize("what", ["join", "leave", "rejoin"])
def test_users_and_proposals_come_in_any_order(phase: str, what: str) -> None:
    for order in itertools.permutations(range(2 if what != "rejoin" else 3)):
        Simulation(1).run(lambda sim, order=order: out_of_order(sim, phase, what, order))  # type: ignore[misc]


async def out_of_order(sim: Simulation, phase: str, what: str, order: tuple[int, ...]) -> None:
    """Alice hears of users and of proposals about them in another order than it was said."""
    alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
    await together(sim, alice, bob)
    if what != "join":
        await together(sim, alice, bob, carol)
    known = strangers_in(sim, alice)
    if phase == "U":
        await in_the_gap(sim, alice)
    gate = Gate(alice, ProposalsReceived, CommitAnnounced, ClientsConnected, ClientDisconnected)
    if what != "join":
        await carol.close()
    if what != "leave":
        carol = carol if what == "join" else sim.client(CAROL)
        await carol.connect(ROOM)
    if phase == "U":
        await back(sim, alice)
    await until(sim, lambda: len(gate.kept) >= len(order))
    kept = gate.kept
    users = [event for event in kept if isinstance(event.event, ClientsConnected | ClientDisconnected)]
    proposals = [event for event in kept if isinstance(event.event, ProposalsReceived)]
    commits = [event for event in kept if isinstance(event.event, CommitAnnounced)]
    parts = [*users, *proposals]
    assert len(users) >= 1
    gate.kept = [*(parts[index] for index in order if index < len(parts)), *parts[len(order) :], *commits]
    gate.let_in()
    everybody = (alice, bob) if what == "leave" else (alice, bob, carol)
    model = {client.user_id for client in everybody}
    await until(sim, lambda: in_one_group(*everybody) and all(roster(one) == model for one in everybody), seconds=20)
    assert known == []


def strangers_in(sim: Simulation, client: SimulatedClient) -> list[set[int]]:
    """Who is ever in the client's group although nobody has named them."""
    found: list[set[int]] = []
    named = {client.user_id, *client.users}

    def look(who: SimulatedClient, event: object) -> None:
        if who is client:
            named.update(client.users)
            if roster(client) - named:
                found.append(roster(client) - named)

    sim.on_event = look
    return found


# -- F116


@covers("F116")
def test_what_begins_a_group_comes_in_any_order(phase: str) -> None:
    for first in itertools.permutations(range(3)):
        Simulation(1).run(lambda sim, first=first: shuffled(sim, phase, first))  # type: ignore[misc]


async def shuffled(sim: Simulation, phase: str, order: tuple[int, ...]) -> None:
    """Alice hears ops 4 (or 24), 25 and 27 in another order."""
    alice, bob = sim.client(ALICE), sim.client(BOB)
    await bob.connect(ROOM)
    if phase == "R":
        await alice.connect(ROOM)
        await until(sim, lambda: in_one_group(alice, bob))
        gate = Gate(alice, EpochPrepared, ExternalSenderReceived, ProposalsReceived)
        sim.server.channel(ROOM).upgrade()
        await until(sim, lambda: len(gate.kept) == 2)
        gate.let_in([index for index in order if index < 2])
    else:
        gate = Gate(alice, SessionDescriptionReceived, ExternalSenderReceived)
        joining = asyncio.ensure_future(alice.connect(ROOM))
        await until(sim, lambda: len(gate.kept) == 2)
        bobs = sim.server.channel(ROOM).delivery
        assert bobs is not None
        early = ProposalsReceived(False, adds_for(bobs))
        gate.kept.append(Stamped("websocket", alice.session.shared.socket_generation, early))
        gate.let_in(order)
        await joining
    await until(sim, lambda: in_one_group(alice, bob), seconds=15)
    await hears(sim, alice, bob)


def adds_for(delivery: DeliveryService) -> bytes:
    """Op 27's vector of what is proposed now."""
    return join_messages(proposal.message for proposal in delivery._proposals.values())


# -- F117


@covers("F117")
@pytest.mark.parametrize("count", [3, 4, 5])
def test_whoever_wins_all_have_the_winners_group(count: int) -> None:
    for winner in range(1, count + 1):
        world = Members()
        for user_id in range(1, count + 1):
            world.join(user_id)
        world.settle()
        made = Held(world)
        world.join(99)
        world.settle()
        assert sorted(user for user, _ in made.commits) == list(range(1, count + 1))
        made.let_in(first=winner)
        world.settle()
        world.check()
        assert world.service.rejected["a commit of another group or epoch"] >= count - 1
        assert len({member.group.epoch for member in world.members.values()}) == 1


class Held:
    """Keeps every op 28 back, so that all members have committed before one of them wins."""

    def __init__(self, world: Members) -> None:
        self.world = world
        self.commits: list[tuple[int, bytes]] = []
        self._take = world.service.commit_welcome
        world.service.commit_welcome = self._keep  # type: ignore[method-assign]

    def _keep(self, user_id: int, data: bytes) -> list[Delivery]:
        self.commits.append((user_id, data))
        return []

    def let_in(self, first: int) -> None:
        self.world.service.commit_welcome = self._take  # type: ignore[method-assign]
        for user_id, data in sorted(self.commits, key=lambda commit: commit[0] != first):
            self.world.say(self._take(user_id, data))


# -- F118


def other_welcome() -> bytes:
    """A welcome of another group."""
    world = Members()
    for user_id in (1, 2):
        world.join(user_id)
    world.settle()
    payloads = [delivery.payload for delivery in world.said if delivery.op == Opcode.MLS_WELCOME]
    assert isinstance(payloads[0], bytes)
    return payloads[0][2:]


class Heard:
    """What the voice server said to some clients about their groups."""

    def __init__(self, *clients: SimulatedClient) -> None:
        self.welcomes: list[WelcomeReceived] = []
        self.commits: list[CommitAnnounced] = []
        for client in clients:
            Gate(client).change = self._note

    def _note(self, event: Stamped) -> Iterable[Stamped]:
        if isinstance(event.event, WelcomeReceived):
            self.welcomes.append(event.event)
        elif isinstance(event.event, CommitAnnounced):
            self.commits.append(event.event)
        return (event,)


@covers("F118")
@pytest.mark.parametrize("what", ["both", "another group", "an older one", "twice", "commit behind its welcome"])
def test_welcomes_and_commits_that_are_mixed_up(what: str, seed: int) -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        heard = Heard(alice, bob, carol)
        await together(sim, alice, bob)
        await together(sim, alice, bob, carol)
        victim, message = {
            "both": (alice, heard.welcomes[-1]),  # an old member gets the newcomer's, too
            "another group": (alice, WelcomeReceived(7, other_welcome())),
            "an older one": (carol, heard.welcomes[0]),
            "twice": (carol, heard.welcomes[-1]),
            "commit behind its welcome": (carol, heard.commits[-1]),
        }[what]
        server_says(victim, message)
        await asyncio.sleep(3)
        assert in_one_group(alice, bob, carol)
        assert reports(sim.server, victim.user_id) == (what in ("both", "another group", "an older one"))
        for speaker, listener in itertools.permutations((alice, bob, carol), 2):
            await hears(sim, speaker, listener)

    Simulation(seed).run(story)


@covers("F118")
def test_a_welcome_for_a_key_package_that_was_replaced() -> None:
    async def story(sim: Simulation) -> None:
        alice, bob, carol = (sim.client(user) for user in (ALICE, BOB, CAROL))
        await together(sim, alice, bob)
        gate = Gate(carol, WelcomeReceived)
        await carol.connect(ROOM)
        await until(sim, lambda: len(gate.kept) == 1)
        server_says(carol, EpochPrepared(1, 1))
        gate.let_in()
        await until(sim, lambda: in_one_group(alice, bob, carol), seconds=5)
        assert reports(sim.server, CAROL) == 1
        await hears(sim, alice, carol)

    Simulation(1).run(story)
