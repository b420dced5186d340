"""Whole calls in virtual time: real clients and the real local server on simulated hosts, all from one seed.

    from voicegw.testing.simulation import Simulation

    async def story(sim: Simulation) -> None:
        alice, bob = sim.client(1), sim.client(2)
        await alice.connect(9)
        await bob.connect(9)
        await bob.wait_for(lambda: bob.privacy_code != "")
        alice.system.udp_out.loss = 0.1          # a tenth of what Alice sends is lost
        sim.server.drop_socket(1)                # her websocket breaks; she resumes
        await alice.play(ToneSource(440, 60)).wait()   # a minute, in some milliseconds
        assert bob.stats.users[1].packets > 2000

    def test_a_minute_of_bad_weather() -> None:
        Simulation(seed=1).run(story)

`client` makes a `VoiceClient` on a host of its own; that host (`client.system`) has links, failing calls, stalls,
suspends and clocks to play with (`voicegw.testing.network`), and `sim.server.faults` is what the server does wrong.
The main gateway is `signalling(client)`. When the story has ended, clients and server are closed, and whatever is left
then (a task, a timer, a socket, an exception that nobody took) fails the run. `sim.trace` tells what happened and
`sim.trace_hash` is the same for the same seed.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from voicegw.adapters.websocket import tls_context
from voicegw.client import VoiceClient
from voicegw.effects import Effect, Notice
from voicegw.events import Event, Stamped
from voicegw.frozen import FrozenCall
from voicegw.media.playback import HowToPlay, Playback
from voicegw.media.sources import Source
from voicegw.portable import Write
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.server.certificates import make_authority
from voicegw.session import Transition
from voicegw.testing.invariants import Violation
from voicegw.testing.loop import PROCESS, VirtualLoop
from voicegw.testing.network import Host, Network

if TYPE_CHECKING:
    import trustme

GUILD = 41771983423143937
SERVER_NAME, SERVER_ADDRESS, SERVER_PORT = "c-ams01-sim.discord.media", "66.22.196.1", 443
SETTLE_S = 5.0
LIMIT_S = 40 * 86_400.0

Done = TypeVar("Done")
Story = Callable[["Simulation"], Awaitable[Any]]


class Simulation:
    """One run: loop, network, server, clients. `policy` is the loop's schedule, by default drawn from the seed.

    `tls` turns real TLS on, which costs some milliseconds a connection. `delay_s` is one way between any two hosts;
    without `dave` the server has no E2EE.
    """

    def __init__(
        self, seed: int = 0, *, policy: str = "", tls: bool = False, delay_s: float = 0.02, dave: bool = True
    ) -> None:
        self.seed = seed
        self.loop = VirtualLoop(seed, policy=policy, limit_s=LIMIT_S)
        self.network = Network(self.loop, seed, tls=tls)
        self.clients: list[SimulatedClient] = []
        self.trace: list[str] = []
        self.on_event: Callable[[SimulatedClient, Event | Stamped], None] | None = None
        self.on_effect: Callable[[SimulatedClient, Effect], None] | None = None
        self.delay_s = delay_s
        self._servers: list[VoiceServer] = []
        self.server = self.voice_server(SERVER_NAME, SERVER_ADDRESS, dave=dave)

    def voice_server(self, name: str, address: str, **options: Any) -> VoiceServer:
        """Another voice server; those made before `run` start with it, later ones by `start_server`."""
        host = self.network.host(address)
        host.set_delay(0.0)
        self.network.names[name] = [address]
        options = {"port": SERVER_PORT, "authority": _authority(), **options}
        server = VoiceServer(host=address, name=name, system=host, **options)
        self._servers.append(server)
        return server

    def client(self, user_id: int, guild_id: int = GUILD, *, address: str = "", **options: Any) -> SimulatedClient:
        """A voice client; `options` are VoiceClient's. Its main gateway is the simulation's server."""
        host = self.network.host(address or f"10.0.{len(self.clients) // 250}.{len(self.clients) % 250 + 1}")
        host.set_delay(self.delay_s)
        options = {
            "signalling": LocalSignalling(self.server, user_id),
            "ssl_context": _trust(),
            "system": host,
            **options,
        }
        client = SimulatedClient(self, user_id=user_id, guild_id=guild_id, **options)
        self.clients.append(client)
        return client

    def forget(self, client: SimulatedClient) -> None:
        """A client that is closed needs no memory any more.

        Raises:
            Violation: it has left something.
        """
        self._check_freed(client)
        self.clients.remove(client)

    def run(self, story: Story) -> None:
        """Run `story(self)` and see that it leaves nothing behind.

        Raises:
            Violation: an invariant does not hold, or something is left.
            DeadEnd: the story waits for what can never come.
            Exception: whatever the story raises.
        """
        asyncio.set_event_loop(None)
        try:
            self.loop.run_until_complete(self._main(story))
        finally:
            self._sweep()
            self.loop.close()

    async def start_server(self, server: VoiceServer) -> None:
        """Start one server, as a process on its own host."""

        async def start() -> None:
            PROCESS.set(server.system)  # type: ignore[arg-type]
            await server.start()

        await self.loop.create_task(start())

    def note(self, who: str, what: object) -> None:
        """One line of the trace."""
        self.trace.append(f"{self.loop.now:.6f} {who} {what}")

    @property
    def trace_hash(self) -> str:
        """The same for the same seed, whatever keys were drawn."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    async def _main(self, story: Story) -> None:
        for server in self._servers:
            await self.start_server(server)
        try:
            await story(self)
            for client in self.clients:
                await client.close()
                self._check_freed(client)
        finally:
            for server in self._servers:
                await server.close()
        await asyncio.sleep(SETTLE_S)
        self._check_left()

    def _check_freed(self, client: SimulatedClient) -> None:
        left = [f"task {task.get_name()}" for task in (*client._tasks, *client.gateway._tasks)]
        if client._timers is not None and len(client._timers):
            left.append(f"timers {list(client._timers._handles)}")
        if not any(other.system is client.system and not other.over for other in self.clients):
            mine = f"'{client.system.address}'"
            left += [text for text in self.network.open_sockets if mine in text and "udp" in text]
        if left:
            raise Violation(f"V16: {client!r} is closed and has left {', '.join(left)}")

    def _check_left(self) -> None:
        me = asyncio.current_task()
        left = [f"task {task!r}" for task in asyncio.all_tasks(self.loop) if task is not me]
        left += [f"timer {handle!r}" for handle in self.loop.timers]
        left += self.network.open_sockets
        left += self.loop.problems
        if left:
            raise Violation(f"V16: the run has left {'; '.join(left)}")

    def _sweep(self) -> None:
        """After a failure: end what still runs, so that the next run begins clean."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.limit_s += 3600.0
            ending = asyncio.gather(*tasks, return_exceptions=True)
            self.loop.run_until_complete(ending)


class SimulatedClient(VoiceClient):
    """The real client as a process of its own: what is asked of it runs on its host, and is noted."""

    system: Host

    def __init__(self, simulation: Simulation, **options: Any) -> None:
        self._simulation = simulation
        super().__init__(**options)
        self.user_id = self.session.shared.user_id
        self.add_listener(self._note_notice)
        self._hands.observer = self._note_effect

    @property
    def over(self) -> bool:
        """Has the call ended?"""
        return self.states["call"] == "closed"

    @property
    def signalling(self) -> Any:
        """Its main gateway: a `LocalSignalling`, unless another one was given."""
        return self._wishes.signalling

    async def connect(self, channel_id: int | None = None, timeout_s: float = 30.0) -> None:
        """As VoiceClient's."""
        await self._here(super().connect, channel_id, timeout_s)

    async def move_to(self, channel_id: int, timeout_s: float = 30.0) -> None:
        """As VoiceClient's."""
        await self._here(super().move_to, channel_id, timeout_s)

    async def freeze(self) -> FrozenCall:
        """As VoiceClient's."""
        return await self._here(super().freeze)

    def keep_checkpoints(self, write: Write, every_s: float = 1.0) -> None:
        """As VoiceClient's."""
        token = PROCESS.set(self.system)
        try:
            super().keep_checkpoints(write, every_s)
        finally:
            PROCESS.reset(token)

    async def go_on(self, frozen: FrozenCall, *how: Any) -> None:
        """As VoiceClient's."""
        await self._here(super().go_on, frozen, *how)

    async def close(self) -> None:
        """As VoiceClient's."""
        await self._here(super().close)

    def play(self, source: Source, **how: Unpack[HowToPlay]) -> Playback:
        """As VoiceClient's."""
        token = PROCESS.set(self.system)
        try:
            return super().play(source, **how)
        finally:
            PROCESS.reset(token)

    def voice_state_update(self, data: Mapping[str, Any]) -> None:
        """As VoiceClient's."""
        self._when_awake(super().voice_state_update, data)

    def voice_server_update(self, data: Mapping[str, Any]) -> None:
        """As VoiceClient's."""
        self._when_awake(super().voice_server_update, data)

    def main_session_lost(self) -> None:
        """As VoiceClient's."""
        self._when_awake(super().main_session_lost)

    def main_session_started(self) -> None:
        """As VoiceClient's."""
        self._when_awake(super().main_session_started)

    def main_session_resumed(self) -> None:
        """As VoiceClient's."""
        self._when_awake(super().main_session_resumed)

    def feed(self, event: Event | Stamped) -> None:
        """As VoiceClient's."""
        token = PROCESS.set(self.system)
        try:
            super().feed(event)
        finally:
            PROCESS.reset(token)
            if self._simulation.on_event is not None:
                self._simulation.on_event(self, event)

    def _when_awake(self, work: Callable[..., None], *arguments: Any) -> None:
        """Now, or when the process runs again."""
        token = PROCESS.set(self.system)
        try:
            if self.system.frozen:
                self.system.network.loop.call_soon(work, *arguments)
            else:
                work(*arguments)
        finally:
            PROCESS.reset(token)

    def _note_effect(self, effect: Effect) -> None:
        if self._simulation.on_effect is not None:
            self._simulation.on_effect(self, effect)

    async def _here(self, work: Callable[..., Awaitable[Done]], *arguments: Any) -> Done:
        token = PROCESS.set(self.system)
        try:
            return await work(*arguments)
        finally:
            PROCESS.reset(token)

    def _note_transition(self, transition: Transition) -> None:
        super()._note_transition(transition)
        step = transition
        self._simulation.note(str(self.user_id), f"{step.machine} {step.before} --{step.event}--> {step.after}")

    def _note_notice(self, notice: Notice) -> None:
        self._simulation.note(str(self.user_id), type(notice).__name__)


@functools.cache
def _authority() -> trustme.CA:
    return make_authority()


@functools.cache
def _trust() -> ssl.SSLContext:
    return tls_context(_authority().cert_pem.bytes())
