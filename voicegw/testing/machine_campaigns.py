"""Campaigns of the machines alone.

Each is a story of its own: what happens is written here, the details come from the seed. The invariants are held after
every event as in any simulated call; a campaign adds what must come out in the end, and figures to compare.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from voicegw.adapters.dials import BUDGETS, DialBudget
from voicegw.effects import (
    ApplyCommit,
    Closed,
    Effect,
    Moved,
    Notice,
    OpenSocket,
    Reconnecting,
    ReleaseStream,
    SendHeartbeat,
    SendIdentify,
    SendKeepalive,
)
from voicegw.errors import ConnectionFailed
from voicegw.events import (
    DialPostponed,
    Event,
    JoinRequested,
    SocketClosed,
    SocketFailed,
    SpeechStarted,
    Stamped,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.gateway import LONGEST_QUEUE_S
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy
from voicegw.testing.campaign import CampaignRun
from voicegw.testing.chaos import Chaos
from voicegw.testing.invariants import Violation
from voicegw.testing.plan import Plan
from voicegw.testing.run import Run
from voicegw.testing.world import CANARY, CHANNEL, ENDPOINT, OTHER, World
from voicegw.wire.payloads import ClientDisconnected, ClientsConnected, CommitAnnounced

LATE_S = 0.1  # after its turn came, until it dials
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
BAD_HOUR = ("close", "failure", "garbage", "repetition", "ghost", "old_pair", "main_gateway", "wear", "stall")
HOSTILE = ("oddity", "downgrade", "garbage", "repetition", "crowd", "group", "membership", "nudge", "habit")


class Stage:
    """One call on a campaign's stage: the machines, their surroundings, and what is counted about them."""

    def __init__(self, seed: int, max_attempts: int = 12) -> None:
        self.plan = Plan(
            seed=seed,
            policy=E2EEPolicy.REQUIRE,
            max_attempts=max_attempts,
            rejoin_after_rate_limit=True,
            alone=False,
            latency_s=0.02,
            dave_protocol_version=1,
            heartbeat_interval_s=13.75,
            steps=(),
        )
        self.chaos = Chaos(self.plan)
        self.ended: list[Run] = []
        self.draw = random.Random(f"campaign {seed}")  # noqa: S311 - a simulation must be repeatable
        self.effects: Counter[type[Effect]] = Counter()
        self.notices: Counter[type[Notice]] = Counter()
        self.dials: list[float] = []
        self.clear = 0
        self.back_after_s: float | None = None

    @property
    def world(self) -> World:
        """The call and its surroundings."""
        return self.chaos.world

    def join(self) -> None:
        """The bot joins, everybody answers, and it speaks."""
        self.world.feed(JoinRequested(CHANNEL))
        self.ready()
        self.speak()

    def ready(self, within_s: float = 10 * MINUTE) -> None:
        """Let time pass until the voice session is ready and E2EE works.

        Raises:
            Violation: it is not, in time.
        """
        session = self.world.session
        self.world.until(lambda: session.gateway.state == "ready" and session.dave.state == "active", within_s)

    def speak(self) -> None:
        """There is something to say, always."""
        if self.world.session.speech.state in ("silent", "draining"):
            self.world.feed(SpeechStarted())

    def happen(self, names: tuple[str, ...]) -> None:
        """One random thing."""
        if self.over:
            return
        self.chaos.happen(self.draw.choice(names), self.draw.getrandbits(32))

    def again(self) -> bool:
        """Has the call ended, as it may? Then the same bot makes another one."""
        if not self.over:
            return False
        self.end()
        self.chaos = Chaos(self.plan)
        self.join()
        return True

    def end(self) -> None:
        """Everybody answers again, and the call comes to ready or to its end."""
        self.count()
        self.ended.append(self.chaos.end())
        self.count()

    @property
    def over(self) -> bool:
        """Has the call ended?"""
        return self.world.session.call.state == "closed"

    def count(self) -> None:
        """Count what the world has kept, put it into the trace hash, and let it go."""
        for _, effect in self.world.effects:
            self.effects[type(effect)] += 1
            self.clear += isinstance(effect, ReleaseStream) and not effect.encrypted
        for notice in self.world.notices:
            self.notices[type(notice)] += 1
        self.world.notices.clear()
        self.chaos.fold()

    def demand(self, what: str, holds: bool) -> None:
        """What must come out.

        Raises:
            Violation: it did not.
        """
        if not holds:
            raise Violation(f"{what} does not hold, in {self.world.session.states}")


def quiet_hour(stage: Stage) -> None:
    """No fault; one hour."""
    stage.join()
    stage.world.advance(HOUR)
    stage.count()
    stage.demand("a beat every 5 s", abs(stage.effects[SendHeartbeat] - 720) <= 1)
    stage.demand("a keepalive every 5 s", abs(stage.effects[SendKeepalive] - 720) <= 1)
    stage.demand("nothing is reported", stage.notices[Reconnecting] == stage.notices[Closed] == 0)


def bad_hour(stage: Stage) -> None:
    """Every 30 s something goes wrong with main gateway, websocket or UDP, for an hour; the bot speaks all the time."""
    stage.join()
    for _ in range(120):
        stage.world.advance(30.0)
        stage.again()
        stage.speak()
        stage.happen(BAD_HOUR)
    stage.end()
    stage.demand("no clear speech", stage.clear == 0)


def moving_day(stage: Stage) -> None:
    """200 moves, region changes and hand-overs with E2EE on, while others come and go."""
    stage.join()
    world, draw = stage.world, stage.draw
    for number in range(200):
        state = VoiceStateUpdated(CHANNEL + number % 5, Secret(f"{CANARY} moved {number}"))
        server = VoiceServerUpdated(Secret(f"{CANARY} other {number}"), ENDPOINT)
        gone = world._stamped(SocketClosed(draw.choice((4014, 4022, 1006))), numbered=False)
        null = VoiceServerUpdated(Secret(f"{CANARY} null {number}"), None)
        ways = (
            (state, server),
            (server, state),
            (gone, state, server),
            (server,),
            (null, server),
            (state, gone, server),
        )
        for event in draw.choice(ways):
            world.feed(event)
            world.advance(draw.choice((0.0, 0.02, 0.2)))
        stage.ready()
        user_id = draw.randrange(10, 20)
        world.server(ClientsConnected((user_id,)))
        world.server(CommitAnnounced(draw.choice((0, 5)), b"commit"))
        world.advance(draw.choice((0.5, 3.0)))
        world.server(ClientDisconnected(user_id))
        stage.speak()
        stage.count()
    stage.demand("the bot hears of its moves", stage.notices[Moved] >= 100)
    stage.demand("members' commits are applied", stage.effects[ApplyCommit] >= 200)
    stage.demand("speech goes on", stage.world.session.speech.state == "speaking")


def hostile_server(stage: Stage) -> None:
    """Malformed, huge, reordered and contradictory messages and downgrades, 5,000 of them."""
    stage.join()
    for number in range(5000):
        stage.happen(HOSTILE)
        stage.world.advance(stage.draw.choice((0.0, 0.0, 0.02, 1.0)))
        stage.again()
        stage.speak()
        if number % 250 == 0:
            stage.count()
    stage.end()
    stage.demand("no clear speech", stage.clear == 0)


def long_haul(stage: Stage, days: int = 30) -> None:
    """30 days with a server move a day; the numbers of messages and of sockets wrap on the way."""
    shared = stage.world.session.shared
    shared.socket_generation = shared.udp_generation = 0xFFFF_FFF0
    stage.join()
    wraps = 0
    for day in range(days):
        for hour in range(24):
            stage.world._seq = (stage.world._seq + 0x3000) & 0xFFFF
            before = shared.sequence.last
            stage.world.server(ClientsConnected((OTHER, hour + 10)))
            wraps += shared.sequence.last < before
            stage.world.advance(HOUR)
            stage.count()
        stage.world.feed(VoiceServerUpdated(Secret(f"{CANARY} day {day}"), ENDPOINT))
        stage.ready()
        stage.speak()
    stage.count()
    stage.demand("the call lives", stage.notices[Closed] == 0)
    stage.demand("message numbers wrap", wraps >= days)
    stage.demand("a beat every 5 s", abs(stage.effects[SendHeartbeat] / (days * DAY / 5) - 1) < 0.01)


class Outage:
    """Calls of one process that lose everything at once; they share its dial budget, and its time.

    Their servers refuse or do not answer a dial for `down_s`; for `errors_s` more they end each session of every second
    call.
    """

    def __init__(self, stages: Sequence[Stage], down_s: float = 10 * MINUTE, errors_s: float = MINUTE) -> None:
        self.stages = stages
        self.budget = DialBudget(stages[0].draw)
        self.begin = World.BEGIN + MINUTE
        self.back_at = self.begin + down_s
        self.well_at = self.back_at + errors_s

    def run(self) -> None:
        """Until each call is back, or over.

        Raises:
            Violation: a call is neither, two hours after its server; or the process dials more often than its budget.
        """
        for stage in self.stages:
            stage.join()
            stage.world.advance(self.begin - stage.world.now)
            self._lose(stage)
        self._come_back()
        dials = sorted(at for stage in self.stages for at in stage.dials)
        for most, window_s in BUDGETS:
            over = any(late - early < window_s - LATE_S for early, late in zip(dials, dials[most:], strict=False))
            self.stages[0].demand(f"{most} dials in {window_s:g} s at most", not over)

    def _lose(self, stage: Stage) -> None:
        world = stage.world
        world.instead["OpenSocket"] = lambda effect: self._dial(stage, effect)
        if stage.plan.seed % 2:
            world.instead["SendIdentify"] = lambda effect: self._identify(stage, effect)
        world.feed(world._stamped(SocketClosed(None), numbered=False))

    def _dial(self, stage: Stage, effect: OpenSocket) -> Iterable[Event | Stamped]:
        world = stage.world
        wait_s = 0.0 if effect.in_turn else self.budget.reserve(world.now, LONGEST_QUEUE_S)
        if wait_s:
            return [world._stamped(DialPostponed(wait_s), numbered=False)]
        stage.dials.append(world.now)
        if world.now >= self.back_at:
            return world._on_open_socket(effect)
        refused = SocketFailed(ConnectionFailed("refused"))
        return () if stage.plan.seed % 3 else [world._stamped(refused, numbered=False)]

    def _identify(self, stage: Stage, effect: SendIdentify) -> Iterable[Event | Stamped]:
        world = stage.world
        if world.now < self.well_at:
            return [world._stamped(SocketClosed(1011))]
        return world._on_identify(effect)

    def _come_back(self) -> None:
        """One after the other in the order of time; a call that is back is left alone."""
        order = [(stage.world.next_due() or 0.0, number) for number, stage in enumerate(self.stages)]
        heapq.heapify(order)
        while order:
            due, number = heapq.heappop(order)
            stage = self.stages[number]
            stage.world.now = max(stage.world.now, due)
            stage.world.happen()
            session = stage.world.session
            if session.gateway.state == "ready" and session.dave.state == "active":
                stage.back_after_s = stage.world.now - self.begin
            elif not stage.over:
                following = stage.world.next_due()
                stage.demand("back in two hours", following is not None and following < self.well_at + 2 * HOUR)
                heapq.heappush(order, (following or 0.0, number))
            if stage.back_after_s is not None or stage.over:
                stage.count()


def outage(stages: Sequence[Stage]) -> None:
    """1,000 calls of one process lose everything at once: servers are back after 10 min, half of them with errors."""
    Outage(stages).run()
    for stage in stages:
        stage.demand("the call lives", stage.notices[Closed] == 0)


def alone(story: Callable[[Stage], None]) -> Callable[[Sequence[Stage]], None]:
    """A story of one call."""

    def run(stages: Sequence[Stage]) -> None:
        for stage in stages:
            story(stage)

    return run


STORIES: Mapping[str, Callable[[Sequence[Stage]], None]] = {
    "S01": alone(quiet_hour),
    "S02": alone(bad_hour),
    "S03": alone(moving_day),
    "S07": alone(hostile_server),
    "S12": alone(long_haul),
    "S13": outage,
}
CALLS = 1000  # of an outage
OUTLASTING = 60  # attempts: with the 30 s between them 12 are spent before the servers are back


def play(name: str, seed: int) -> CampaignRun:
    """One campaign; what does not hold is in the run, and is not raised."""
    run = CampaignRun(name, seed)
    digest = hashlib.sha256()
    if name == "S13":
        stages = [Stage(seed * CALLS + number, OUTLASTING) for number in range(CALLS)]
    else:
        stages = [Stage(seed * CALLS)]
    try:
        STORIES[name](stages)
    except Violation as violation:
        run.violation = str(violation)
    for stage in stages:
        stage.end()
        for part in stage.ended:
            run.events += part.events
            run.virtual_s += part.virtual_s
            run.faults += part.faults
            run.violation = run.violation or part.violation
            run.tail = part.tail
            digest.update(part.trace_hash.encode())
    run.trace_hash = digest.hexdigest()
    run.figures = figures_of(stages)
    return run


def figures_of(stages: Sequence[Stage]) -> dict[str, float]:
    """What happened, in numbers."""
    effects: Counter[type[Effect]] = Counter()
    notices: Counter[type[Notice]] = Counter()
    for stage in stages:
        effects += stage.effects
        notices += stage.notices
    figures: dict[str, float] = {
        "calls": sum(len(stage.ended) for stage in stages),
        "dials": effects[OpenSocket],
        "reconnects": notices[Reconnecting],
        "moves": notices[Moved],
        "beats": effects[SendHeartbeat],
        "clear speech": sum(stage.clear for stage in stages),
    }
    back = sorted(stage.back_after_s for stage in stages if stage.back_after_s is not None)
    if back:
        figures["back after, median s"] = round(back[len(back) // 2], 3)
        figures["back after, longest s"] = round(back[-1], 3)
        dialled = Counter(int(at) for stage in stages for at in stage.dials)
        figures["dials after the loss"] = dialled.total()
        figures["dials in the busiest second"] = max(dialled.values())
    return figures
