"""Campaigns of whole clients and the local server.

Each is a story of its own: what happens is written here, the details come from the seed. All is watched that a `Watch`
sees (nonces, numbers, timestamps, clear speech, sockets, dials, secrets); a campaign adds what must come out in the
end, and figures to compare.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from voicegw.effects import IdentityChanged, Notice
from voicegw.errors import VoiceError
from voicegw.media.sinks import MeasuringSink
from voicegw.testing.bots import Bot, Frames
from voicegw.testing.campaign import CampaignRun
from voicegw.testing.injectors import Scene
from voicegw.testing.invariants import Violation
from voicegw.testing.simulation import Simulation
from voicegw.testing.storm import CHANNEL, GROUP_S, NOTICE_S, SETTLE_S, SHOWN_LINES, within
from voicegw.testing.watch import Watch
from voicegw.wire.opcodes import BINARY_FROM_SERVER, Opcode

if TYPE_CHECKING:
    from voicegw.server.delivery import Delivery
    from voicegw.testing.network import Address, Host

FRAMES_A_SECOND = 50
ATTEMPTS = 60


class Cast:
    """The bots of a story, their surroundings, and what is counted."""

    def __init__(self, sim: Simulation, watch: Watch, policies: Iterable[str]) -> None:
        self.sim = sim
        self.watch = watch
        self.draw = random.Random(f"campaign {sim.seed}")  # noqa: S311 - a simulation must be repeatable
        self.faults: Counter[str] = Counter()
        self.figures: Counter[str] = Counter()
        self.bots = [
            Bot(sim, watch, number, CHANNEL, {"policy": policy, "max_attempts": ATTEMPTS})
            for number, policy in enumerate(policies, 1)
        ]
        self.scene = Scene(sim, watch, self.bots)

    async def meet(self, bots: Iterable[Bot] | None = None) -> None:
        """They join, by default all, and have one group."""
        joining = self.bots if bots is None else list(bots)
        for bot in joining:
            bot.begin()
        for bot in joining:
            await within(self.sim, bot.settled(), SETTLE_S, f"V06: {bot} is neither ready nor over")
        await self.agree()

    async def agree(self) -> None:
        """All who are not away are ready and have one group, soon."""
        there = [bot for bot in self.bots if bot.client.states["call"] != "idle"]
        for bot in there:
            await within(self.sim, bot.settled(), SETTLE_S, f"V06: {bot} is neither ready nor over")
            self.demand(f"{bot} goes on", not bot.over)
        for bot in there:
            await within(self.sim, bot.agreed(there), GROUP_S, f"V06: {bot} has no group with the others")

    async def speech(self, speaker: Bot, listeners: Iterable[Bot]) -> None:
        """Each of them hears what `speaker` says."""
        before = {bot: bot.heard(speaker) for bot in listeners}
        await within(self.sim, speaker.say(10), GROUP_S, f"V06: {speaker} cannot speak")
        for bot, packets in before.items():
            await within(self.sim, bot.hears(speaker, packets + 10), GROUP_S, f"V06: {bot} does not hear {speaker}")

    async def happen(self, name: str) -> None:
        """One thing that goes wrong, with drawn details."""
        self.faults[name] += 1
        await self.scene.inject(name, random.Random(self.draw.getrandbits(32)))  # noqa: S311

    def demand(self, what: str, holds: bool) -> None:
        """What must come out.

        Raises:
            Violation: it did not.
        """
        if not holds:
            raise Violation(f"{what}: it does not hold")

    def speak_on(self, speaker: Bot) -> None:
        """There is something to say, always."""
        if not speaker.over and (speaker.playback is None or speaker.playback.done):
            speaker.speak(FRAMES_A_SECOND * 3600)

    def count(self, bot: Bot) -> None:
        """Take what a call has counted into the figures; once, before its client goes."""
        client = bot.client
        self.figures["calls"] += 1
        self.figures["connects"] += client.tally.transitions["gateway", "connect_requested"]
        self.figures["reconnects"] += client.tally.reconnects
        self.figures["epochs"] += client.tally.epochs
        self.figures["sent"] += client.stats.packets
        self.figures["heard"] += sum(one.packets for one in client.stats.users.values())


ClientStory = Callable[[Cast], Awaitable[None]]


async def doors(cast: Cast, changes: int = 150, lost_of_100: int = 1) -> None:
    """Members join, leave and come again at random, faster than transitions end; 1 % of MLS messages are lost.

    Each with the websocket that brought it; it had a number, and no resume brings it.
    """
    cast.sim.server.faults.delay_s[Opcode.DAVE_EXECUTE_TRANSITION] = 0.3
    channel = cast.sim.server.channel(CHANNEL)
    deliver = channel.deliver

    def lossy(deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            session = channel.sessions.get(delivery.user_id)
            lost = delivery.op in BINARY_FROM_SERVER and cast.draw.randrange(100) < lost_of_100
            if lost and session is not None:
                cast.faults["mls message lost"] += 1
                session.seq = (session.seq + 1) & 0xFFFF
                cast.sim.loop.call_soon(cut, delivery.user_id)
            else:
                deliver([delivery])

    def cut(user_id: int) -> None:
        with contextlib.suppress(KeyError, VoiceError):  # who has no websocket has lost it already
            cast.sim.server.drop_socket(user_id)

    channel.deliver = lossy  # type: ignore[method-assign]
    inside: list[Bot] = []
    busy: set[Bot] = set()

    async def go(bot: Bot) -> None:
        busy.add(bot)
        if bot in inside:
            inside.remove(bot)
            cast.count(bot)
            await bot.end()
            bot.renew()
        else:
            await bot.join(CHANNEL)
            inside.append(bot)
        busy.discard(bot)

    moving: set[asyncio.Task[None]] = set()
    for number in range(changes):
        free = [bot for bot in cast.bots if bot not in busy and (number > len(cast.bots) or bot not in inside)]
        if free:
            moving.add(cast.sim.loop.create_task(go(cast.draw.choice(free))))
            cast.faults["membership"] += 1
        cast.figures["pending transitions"] = max(
            cast.figures["pending transitions"],
            *(len(bot.client.session.dave.transitions) for bot in cast.bots),
        )
        await asyncio.sleep(cast.draw.uniform(0.02, 0.4))
    await asyncio.gather(*moving)
    channel.deliver = deliver  # type: ignore[method-assign]
    cast.sim.server.faults.delay_s.clear()
    cast.demand("two transitions were pending at once", cast.figures["pending transitions"] >= 2)
    await cast.meet([bot for bot in cast.bots if bot not in inside])
    await cast.speech(cast.bots[0], cast.bots[1:])


async def train(cast: Cast, stretches: int = 40) -> None:
    """2 % loss in the open, 40 % in tunnels, black-outs of 2 to 30 s after which the address is another; it speaks."""
    await cast.meet()
    passenger, listener = cast.bots
    host = passenger.client.system
    for _ in range(stretches):
        cast.speak_on(passenger)
        for link in host.links:
            link.loss = 0.02
        await asyncio.sleep(cast.draw.uniform(10, 60))
        cast.faults["tunnel"] += 1
        for link in host.links:
            link.loss = 0.4
        await asyncio.sleep(cast.draw.uniform(3, 15))
        if cast.draw.random() < 0.5:
            cast.faults["black-out"] += 1
            for link in host.links:
                link.down = True
            await asyncio.sleep(cast.draw.uniform(2, 30))
            host.rebind()
            for link in host.links:
                link.down = False
        cast.watch.check()
    host.recover()
    await asyncio.sleep(NOTICE_S)
    await cast.agree()
    cast.demand("most of it was heard", listener.heard(passenger) > 0.6 * passenger.client.stats.packets)


async def laptop(cast: Cast, sleeps: int = 20) -> None:
    """It is shut for a minute to eight hours, and opened in another network."""
    await cast.meet()
    owner, other = cast.bots
    host = owner.client.system
    for _ in range(sleeps):
        cast.speak_on(owner)
        await asyncio.sleep(cast.draw.uniform(5, 30))
        cast.faults["sleep"] += 1
        host.suspend(cast.draw.uniform(60, 8 * 3600))
        await asyncio.sleep(0.1)
        host.rebind()
        host.set_delay(cast.draw.choice((0.002, 0.02, 0.15)))
        await asyncio.sleep(host.frozen_until - cast.sim.loop.now + NOTICE_S)
        await cast.agree()
        cast.watch.check()
    await cast.speech(other, [owner])


async def hostile_path(cast: Cast, seconds: int = 5, forged_a_second: int = 10_000) -> None:
    """Forged, replayed and truncated datagrams by the thousand, forged resets, and wrong certificates."""
    await cast.meet()
    speaker, victim = cast.bots
    seen: deque[bytes] = deque(maxlen=500)
    watched = cast.sim.network.on_datagram
    assert watched is not None

    def tap(host: Host, target: Address, data: bytes) -> None:
        watched(host, target, data)
        if target[0] == victim.client.system.address:
            seen.append(data)

    cast.sim.network.on_datagram = tap
    cast.speak_on(speaker)
    await asyncio.sleep(1.0)
    source = (cast.sim.server.host, cast.sim.server.udp_port)
    heard = victim.heard(speaker)
    for tick in range(seconds * 50):
        for _ in range(forged_a_second // 50):
            forge(cast, source, victim.client.system, seen)
        await asyncio.sleep(0.02)
        if tick % 100 == 50:
            await cast.happen("net_reset")
    cast.sim.network.on_datagram = watched
    heard = victim.heard(speaker) - heard
    cast.demand(f"speech is heard meanwhile ({heard} packets)", heard > 0.8 * seconds * FRAMES_A_SECOND)
    cast.demand("and no packet twice", heard <= (seconds + 1) * FRAMES_A_SECOND)
    for _ in range(seconds):
        await cast.happen("net_certificate")
        await asyncio.sleep(cast.draw.uniform(0, 10))
    await cast.scene.heal()
    await asyncio.sleep(NOTICE_S)
    for bot in cast.bots:
        if bot.over:  # a certificate that is refused ends a call
            await bot.come_back()
    await cast.agree()
    await cast.speech(victim, [speaker])


def forge(cast: Cast, source: Address, host: Host, seen: deque[bytes]) -> None:
    """One datagram that the voice server has not sent, or not now."""
    kind = cast.draw.choice(("forged", "replayed", "truncated", "turned"))
    data = cast.draw.choice(seen)
    if kind == "forged":
        data = data[:12] + cast.draw.randbytes(60)
    elif kind == "truncated":
        data = data[: cast.draw.randrange(len(data))]
    elif kind == "turned":
        at = cast.draw.randrange(len(data))
        data = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
    cast.faults[f"datagram {kind}"] += 1
    for socket in [one for one in cast.sim.network.descriptors.values() if one.host is host]:
        cast.sim.network.forge(source, socket.getsockname(), data)


class Noise(Frames):
    """Packets that are no Opus."""

    def __init__(self, count: int, draw: random.Random) -> None:
        super().__init__(count)
        self._draw = draw

    def read(self) -> bytes:
        """Any bytes."""
        return self._draw.randbytes(self._draw.randrange(1, 400)) if super().read() else b""


async def hostile_member(cast: Cast, rounds: int = 12) -> None:
    """A member sends what is no Opus, spoils what it encrypts, claims others' SSRCs, floods, and changes its key."""
    await cast.meet()
    speaker, victim, hostile = cast.bots
    told: Counter[type[Notice]] = Counter()
    victim.client.add_listener(lambda notice: told.update((type(notice),)))
    victim.client.listen(MeasuringSink())
    for number in range(rounds):
        cast.speak_on(speaker)
        before, sent_before = victim.heard(speaker), speaker.client.stats.packets
        deed = (no_opus, spoiled_trailers, claimed_ssrcs, flood, another_key)[number % 5]
        cast.faults[deed.__name__] += 1
        await deed(cast, hostile)
        cast.watch.check()
        heard, sent = victim.heard(speaker) - before, speaker.client.stats.packets - sent_before
        cast.demand(f"the others are heard ({heard} of {sent} during {deed.__name__})", heard >= 0.9 * sent - 5)
        await cast.agree()
    cast.demand("a key that changed is told", told[IdentityChanged] >= rounds // 5)
    cast.demand(
        "nobody is heard who is not there", set(victim.client.stats.users) <= {bot.user_id for bot in cast.bots}
    )


async def no_opus(cast: Cast, hostile: Bot) -> None:
    """Encrypted as it should be, and nothing that decodes."""
    await hostile.client.play(Noise(100, cast.draw)).wait()


async def spoiled_trailers(cast: Cast, hostile: Bot) -> None:
    """Frames whose end-to-end trailer says something else."""
    client = hostile.client
    encrypt = client._group.encrypt

    def spoil(frame: bytes) -> bytes:
        sealed = bytearray(encrypt(frame))
        for _ in range(cast.draw.randrange(1, 4)):
            sealed[-1 - cast.draw.randrange(min(len(sealed), 20))] ^= 1 << cast.draw.randrange(8)
        return bytes(sealed)

    client.sender.release(spoil)
    await client.play(Frames(100)).wait()
    client.sender.release(encrypt)


async def claimed_ssrcs(cast: Cast, hostile: Bot) -> None:
    """Says that it speaks with the SSRCs of others, and with all that there are."""
    server = cast.sim.server
    for bot in cast.bots:
        for other in cast.bots:
            for ssrc in (server.session(other.user_id).ssrc, cast.draw.getrandbits(32)):
                claim = {"speaking": 1, "ssrc": ssrc, "user_id": str(hostile.user_id)}
                server.session(bot.user_id).send(Opcode.SPEAKING, claim)
    await hostile.say(10)
    for bot in cast.bots:  # what the voice server says when it is asked again
        for other in cast.bots:
            truth = {"speaking": 1, "ssrc": server.session(other.user_id).ssrc, "user_id": str(other.user_id)}
            if other is not bot:
                server.session(bot.user_id).send(Opcode.SPEAKING, truth)
    await asyncio.sleep(1.0)


async def flood(cast: Cast, hostile: Bot) -> None:
    """A thousand speaking messages at once."""
    server = cast.sim.server
    session = server.session(hostile.user_id)
    for number in range(1000):
        server.channel(CHANNEL).speak(session, number % 2)
    await asyncio.sleep(1.0)


async def another_key(cast: Cast, hostile: Bot) -> None:
    """Leaves after people have compared codes, and comes again as somebody else."""
    for bot in cast.bots:
        if bot is not hostile:
            bot.client.mark_verified(hostile.user_id)
    cast.count(hostile)
    await hostile.end()
    hostile.renew()
    await cast.meet([hostile])


class Blocked(Frames):
    """Has nothing for a while after half a second; it says so, as a source does that must not block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pause_s: float) -> None:
        super().__init__(100)
        self._loop = loop
        self._pause_s = pause_s
        self._until = 0.0
        self._on_more: Callable[[], object] = lambda: None

    def bind(self, on_more: Callable[[], object]) -> None:
        """Whom to call when there is more."""
        self._on_more = on_more

    def read(self) -> bytes | None:  # type: ignore[override]
        """A packet; None while it is blocked."""
        if self.left == 75 and not self._until:
            self._until = self._loop.time() + self._pause_s
            self._loop.call_at(self._until, self._on_more)
        return None if self._loop.time() < self._until else super().read()


ERRNOS = {
    "send": (errno.ENETUNREACH, errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.ECONNREFUSED),
    "recv": (errno.ECONNREFUSED, errno.ENETDOWN, errno.ENOMEM),
    "socket": (errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    "connect": (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL),
    "resolve": (-2, -3),
}


async def busy_host(cast: Cast, rounds: int = 30) -> None:
    """Stalls of 0.05 to 10 s, listeners that take long, sources that block, and every call of the system refused."""
    await cast.meet()
    busy, other = cast.bots
    host, loop = busy.client.system, cast.sim.loop
    busy.client.add_listener(lambda notice: host.stall(0.3))
    refusals = [(call, code) for call, codes in ERRNOS.items() for code in codes]
    for number in range(rounds):
        busy.client.play(Blocked(loop, cast.draw.choice((0.3, 2.0, 20.0))))
        await asyncio.sleep(cast.draw.uniform(0.6, 3))
        cast.faults["stall"] += 1
        host.stall(cast.draw.choice((0.05, 0.5, 3.0, 10.0)))
        await asyncio.sleep(cast.draw.uniform(0.0, 3))
        call, code = refusals[number % len(refusals)]
        cast.faults[f"{call} refused"] += 1
        host.fail(call, code, times=cast.draw.choice((1, 5, 100)))
        await cast.happen(cast.draw.choice(("net_reset", "udp_rebind", "gw_region")))
        await asyncio.sleep(cast.draw.uniform(0.5, 5))
        await cast.scene.heal()
        await asyncio.sleep(NOTICE_S)
        for bot in cast.bots:
            if bot.over:  # the call was given up while its host could not
                await bot.come_back()
        await cast.agree()
        cast.watch.check()
    await cast.speech(busy, [other])
    await cast.speech(other, [busy])


async def door_handle(cast: Cast, cycles: int = 10_000) -> None:
    """Connect and close, again and again, given up at any moment; nothing is left of any of them."""
    (bot,) = cast.bots
    for _ in range(cycles):
        client = bot.client
        joining = bot.do(bot.join(CHANNEL))
        if cast.draw.random() < 0.9:
            await asyncio.sleep(cast.draw.choice((0.0, cast.draw.uniform(0.0, 0.5))))
            if not joining.done():
                cast.faults["cancelled"] += 1
                joining.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await joining
        cast.figures["ready"] += bot.ready
        cast.count(bot)
        await bot.end()
        cast.sim.forget(client)
        cast.watch.check()
        bot.renew()
        await asyncio.sleep(2.0)  # the dials of a process are 300 in ten minutes
    cast.demand("nobody is in the channel", cast.sim.server.members(CHANNEL) == [])
    bot.begin()
    await within(cast.sim, bot.settled(), SETTLE_S, f"V06: {bot} is neither ready nor over")
    cast.demand("the last one can join", bot.ready)


STORIES: Mapping[str, tuple[ClientStory, tuple[str, ...]]] = {
    "S04": (doors, ("require",) * 50),
    "S05": (train, ("require",) * 2),
    "S06": (laptop, ("require",) * 2),
    "S08": (hostile_path, ("require",) * 2),
    "S09": (hostile_member, ("require", "require", "allow")),  # nobody holds the last one to what it sends
    "S10": (busy_host, ("require",) * 2),
    "S11": (door_handle, ("require",)),
}
"""Each story, and the policies of its bots."""


def play(name: str, seed: int) -> CampaignRun:
    """One campaign; what does not hold is in the run, and is not raised."""
    return play_story(*STORIES[name], name, seed)


def play_story(story: ClientStory, policies: Iterable[str], campaign: str, seed: int) -> CampaignRun:
    """This story; what does not hold is in the run, and is not raised."""
    run = CampaignRun(campaign, seed)
    sim = Simulation(seed)
    with Watch(sim) as watch:
        watch.server(sim.server)
        cast = Cast(sim, watch, policies)

        async def go(_: Simulation) -> None:
            await story(cast)
            await cast.scene.heal()
            for bot in cast.bots:
                cast.count(bot)
                await bot.end()
            watch.check()

        begin = sim.loop.now
        try:
            sim.run(go)
            watch.finish(())
            watch.check()
        except Exception as error:  # whatever it is, it is what the run found
            first = watch.violations[0] if watch.violations else ""
            run.violation = first or f"{type(error).__name__}: {error}"
    run.events = watch.events
    run.virtual_s = sim.loop.now - begin
    run.faults = cast.faults
    run.figures = dict(cast.figures)
    run.trace_hash = sim.trace_hash
    run.tail = sim.trace[-SHOWN_LINES:]
    return run
