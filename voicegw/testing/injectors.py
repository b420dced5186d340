"""What can go wrong with a whole call, one function a kind: `INJECTORS` by name, the class of the fault before the `_`.

net: names, TCP, TLS. ws: the voice websocket and what is said on it. udp: the path of the media. dave: the group.
gw: the main gateway. clk: clocks. host: the machine. app: what the bot does.

An injector takes the scene and a random generator, does its harm, and arranges for the end of it with `scene.later`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from voicegw.effects import Notice
from voicegw.errors import VoiceError
from voicegw.testing.bots import Bot
from voicegw.wire.opcodes import Opcode

if TYPE_CHECKING:
    from voicegw.server import VoiceServer
    from voicegw.testing.network import Link
    from voicegw.testing.simulation import Simulation
    from voicegw.testing.watch import Watch

Injector = Callable[["Scene", random.Random], Awaitable[None]]
INJECTORS: dict[str, Injector] = {}

CLOSE_CODES = (1000, 1001, 1006, 1011, 1012, 4000, 4001, 4006, 4009, 4013, 4015, 4020)
LISTENER_FAILS = "a listener of the voice client failed"


class Scene:
    """Where injectors work: the simulation, the bots, and what must be undone."""

    def __init__(self, sim: Simulation, watch: Watch, bots: list[Bot]) -> None:
        self.sim = sim
        self.watch = watch
        self.bots = bots
        self._undo: dict[int, tuple[asyncio.TimerHandle, Callable[[], object]]] = {}
        self._numbers = itertools.count()
        self._awake: list[Bot] = []

    @property
    def server(self) -> VoiceServer:
        """The voice server."""
        return self.sim.server

    def bot(self, chance: random.Random) -> Bot:
        """One of them."""
        return chance.choice(self._awake or self.bots)

    async def inject(self, name: str, chance: random.Random) -> None:
        """Let it happen; a bot whose host does not run does nothing."""
        if name.startswith("app_"):
            self._awake = [bot for bot in self.bots if not bot.client.system.frozen]
            if not self._awake:
                return
        try:
            await INJECTORS[name](self, chance)
        finally:
            self._awake = []

    def later(self, seconds: float, undo: Callable[[], object]) -> None:
        """Undo it after a while, or when all heals."""
        number = next(self._numbers)
        handle = self.sim.loop.call_later(seconds, lambda: self._undo.pop(number)[1]())
        self._undo[number] = (handle, undo)

    async def heal(self) -> None:
        """Nothing goes wrong any more."""
        undone, self._undo = list(self._undo.values()), {}
        for handle, undo in undone:
            handle.cancel()
            undo()
        for host in self.sim.network.hosts.values():
            host.recover()
        frozen = max((host.frozen_until for host in self.sim.network.hosts.values()), default=0.0)
        await asyncio.sleep(max(0.0, frozen - self.sim.loop.now))

    def connected(self, bot: Bot) -> bool:
        """Has the bot a websocket, as the server sees it?"""
        try:
            return self.server.session(bot.user_id).connected
        except KeyError:
            return False


def injector(work: Injector) -> Injector:
    """Register it under its name."""
    INJECTORS[work.__name__] = work
    return work


def _spoil(scene: Scene, chance: random.Random, link: Link, seconds: float, **faults: Any) -> None:
    before = {name: getattr(link, name) for name in faults}
    for name, value in faults.items():
        setattr(link, name, value)

    def undo() -> None:
        for name, value in before.items():
            setattr(link, name, value)

    scene.later(seconds, undo)


# -- net


@injector
async def net_reset(scene: Scene, chance: random.Random) -> None:
    """A TCP connection is reset, or ends, or goes dead without a word."""
    host = scene.bot(chance).client.system
    for connection in [one for one in scene.sim.network.connections if host in one.hosts]:
        chance.choice((connection.reset, connection.finish, connection.silence))()


@injector
async def net_loss(scene: Scene, chance: random.Random) -> None:
    """TCP loses packets: everything comes late."""
    host = scene.bot(chance).client.system
    link = chance.choice((host.tcp_in, host.tcp_out))
    _spoil(scene, chance, link, chance.uniform(1, 20), loss=chance.uniform(0.05, 0.5))


@injector
async def net_cut(scene: Scene, chance: random.Random) -> None:
    """Nothing passes for a while, one way or both, media too or not."""
    host = scene.bot(chance).client.system
    seconds = chance.choice((0.3, 3.0, 12.0, 40.0))
    links = [link for link in host.links if chance.random() < 0.7]
    for link in links:
        _spoil(scene, chance, link, seconds, down=True)


@injector
async def net_dial(scene: Scene, chance: random.Random) -> None:
    """Dials fail: refused, unreachable, no name."""
    host = scene.bot(chance).client.system
    call, code = chance.choice(
        (
            ("connect", errno.ECONNREFUSED),
            ("connect", errno.ENETUNREACH),
            ("connect", errno.EADDRNOTAVAIL),
            ("resolve", -3),
        )
    )
    host.fail(call, code, times=chance.choice((1, 2, 4)))
    await net_reset(scene, chance)


@injector
async def net_black_hole(scene: Scene, chance: random.Random) -> None:
    """Nobody answers a dial."""
    holes, address = scene.sim.network.black_holes, scene.server.host
    holes.add(address)
    scene.later(chance.uniform(1, 30), lambda: holes.discard(address))
    await net_reset(scene, chance)


@injector
async def net_certificate(scene: Scene, chance: random.Random) -> None:
    """The server shows a certificate that must be refused."""
    wrong, address = scene.sim.network.certificates, scene.server.host
    wrong[address] = chance.choice(("certificate has expired", "self-signed certificate", "Hostname mismatch"))
    scene.later(chance.uniform(1, 30), lambda: wrong.pop(address, None))
    await net_reset(scene, chance)


# -- ws


@injector
async def ws_close(scene: Scene, chance: random.Random) -> None:
    """The server closes with a code."""
    bot = scene.bot(chance)
    if scene.connected(bot):
        bot.do(scene.server.close_socket(bot.user_id, chance.choice(CLOSE_CODES)))


@injector
async def ws_drop(scene: Scene, chance: random.Random) -> None:
    """The server drops the connection, again and again."""
    bot = scene.bot(chance)
    for _ in range(chance.choice((1, 1, 3))):
        if scene.connected(bot):
            scene.server.drop_socket(bot.user_id)
        await asyncio.sleep(chance.uniform(0, 0.5))


@injector
async def ws_crash(scene: Scene, chance: random.Random) -> None:
    """All websockets close with 4015."""
    scene.bots[0].do(scene.server.crash())


@injector
async def ws_mute(scene: Scene, chance: random.Random) -> None:
    """The server does not answer heartbeats, or refuses resumes."""
    name, value = chance.choice((("ack_heartbeats", False), ("refuse_resume", True)))
    setattr(scene.server.faults, name, value)
    scene.later(chance.uniform(5, 30), lambda: setattr(scene.server.faults, name, not value))
    if name == "refuse_resume":
        await ws_drop(scene, chance)


@injector
async def ws_withhold(scene: Scene, chance: random.Random) -> None:
    """One kind of message never comes, or comes late."""
    op = int(chance.choice((Opcode.HELLO, Opcode.READY, Opcode.SESSION_DESCRIPTION, Opcode.RESUMED, Opcode.SPEAKING)))
    faults = scene.server.faults
    if chance.random() < 0.5:
        faults.withhold.add(op)
        scene.later(chance.uniform(1, 20), lambda: faults.withhold.discard(op))
    else:
        faults.delay_s[op] = chance.choice((0.2, 2.0, 7.0))
        scene.later(chance.uniform(1, 20), lambda: faults.delay_s.pop(op, None))
    await ws_drop(scene, chance)


@injector
async def ws_garbage(scene: Scene, chance: random.Random) -> None:
    """Frames that no client can use."""
    bot = scene.bot(chance)
    for _ in range(chance.choice((1, 3, 12))):
        if scene.connected(bot):
            scene.server.send_raw(bot.user_id, _garbage(chance))


def _garbage(chance: random.Random) -> str | bytes:
    op = chance.randrange(40)
    return chance.choice(
        (
            "null",
            "[]",
            "{",
            json.dumps({"op": op}),
            json.dumps({"op": op, "d": None}),
            json.dumps({"op": op, "d": {"ssrc": "x", "heartbeat_interval": -1, "mode": 5, "user_id": []}}),
            json.dumps({"op": op, "d": [[[[]]]], "seq": 70000}),
            json.dumps({"op": "8", "d": {}}),
            b"",
            b"\0",
            bytes((0, 0, op)),
            bytes((0, 0, op)) + chance.randbytes(chance.randrange(60)),
        )
    )


@injector
async def ws_ask(scene: Scene, chance: random.Random) -> None:
    """The server asks for heartbeats, and says what is unlisted."""
    bot = scene.bot(chance)
    if scene.connected(bot):
        for op in (Opcode.HEARTBEAT, chance.choice((14, 15, 16, 18, 20, 99))):
            scene.server.send_raw(bot.user_id, json.dumps({"op": int(op), "d": None}))


# -- udp


@injector
async def udp_weather(scene: Scene, chance: random.Random) -> None:
    """Loss, bursts, duplicates, reordering, corruption, jitter, on one way."""
    host = scene.bot(chance).client.system
    fault = chance.choice(("loss", "burst", "duplicate", "reorder", "corrupt", "jitter_s"))
    link = chance.choice((host.udp_in, host.udp_out))
    _spoil(scene, chance, link, chance.uniform(1, 20), **{fault: chance.uniform(0.02, 0.4)})


@injector
async def udp_cut(scene: Scene, chance: random.Random) -> None:
    """No datagram passes, one way or both."""
    host = scene.bot(chance).client.system
    for link in chance.choice(((host.udp_in,), (host.udp_out,), (host.udp_in, host.udp_out))):
        _spoil(scene, chance, link, chance.choice((0.5, 6.0, 30.0)), down=True)


@injector
async def udp_rebind(scene: Scene, chance: random.Random) -> None:
    """The NAT forgets us: what we send comes from another port, and what is sent to the old one is lost."""
    scene.bot(chance).client.system.rebind()


@injector
async def udp_discovery(scene: Scene, chance: random.Random) -> None:
    """IP discovery stays unanswered at first."""
    scene.server.faults.ignore_discovery = chance.choice((1, 3, 20))
    scene.later(20.0, lambda: setattr(scene.server.faults, "ignore_discovery", 0))
    await ws_close(scene, chance)


@injector
async def udp_forgery(scene: Scene, chance: random.Random) -> None:
    """Datagrams that nobody signed, from the server's address or a stranger's."""
    bot = scene.bot(chance)
    network = scene.sim.network
    for number in range(chance.choice((1, 30))):
        for socket in [one for one in network.descriptors.values() if one.host is bot.client.system]:
            source = chance.choice(((scene.server.host, scene.server.udp_port), ("66.22.196.99", 5000)))
            header = bytes((0x80, 120)) + chance.randbytes(10)
            data = chance.choice((b"", b"\0", chance.randbytes(74), header + chance.randbytes(60 + number)))
            network.forge(source, socket.getsockname(), data)


# -- dave


@injector
async def dave_version(scene: Scene, chance: random.Random) -> None:
    """The call gives E2EE up for a while."""
    for channel in {bot.home: scene.server.channel(bot.home) for bot in scene.bots}.values():
        channel.downgrade()
        scene.later(chance.choice((0.1, 3.0, 15.0)), channel.upgrade)


@injector
async def dave_guest(scene: Scene, chance: random.Random) -> None:
    """Somebody else comes and goes."""
    guest = Bot(scene.sim, scene.watch, 50 + len(scene.sim.clients), scene.bots[0].home, scene.bots[0]._options)
    stay_s = chance.choice((0.05, 0.3, 3.0))

    async def visit() -> None:
        guest.begin()
        await asyncio.sleep(stay_s)
        await guest.end()

    scene.bots[0].do(visit())


@injector
async def dave_withhold(scene: Scene, chance: random.Random) -> None:
    """A transition is announced or executed without a word; the server owes everything else of the group."""
    op = chance.choice((Opcode.DAVE_PREPARE_TRANSITION, Opcode.DAVE_EXECUTE_TRANSITION))
    faults = scene.server.faults
    faults.withhold.add(op)
    scene.later(chance.uniform(0.5, 10), lambda: faults.withhold.discard(op))
    await dave_guest(scene, chance)


@injector
async def dave_garbage(scene: Scene, chance: random.Random) -> None:
    """MLS messages that nobody made."""
    bot = scene.bot(chance)
    if scene.connected(bot):
        session = scene.server.session(bot.user_id)
        op = chance.choice((25, 27, 29, 30))
        prefix = b"" if op == 25 else bytes((0,)) if op == 27 else bytes((0, chance.randrange(4)))
        session.send(op, prefix + chance.randbytes(chance.randrange(1, 80)))


# -- gw


@injector
async def gw_kick(scene: Scene, chance: random.Random) -> None:
    """A moderator takes a bot out."""
    bot = scene.bot(chance)
    if bot.signalling.credentials is not None and chance.random() < 0.5:
        await bot.signalling.kick()


@injector
async def gw_move(scene: Scene, chance: random.Random) -> None:
    """A moderator moves a bot, and perhaps back."""
    bot = scene.bot(chance)
    for channel_id in (bot.home + 1, bot.home)[: chance.choice((1, 2))]:
        if bot.signalling.credentials is not None:
            bot.signalling.move(channel_id)
        await asyncio.sleep(chance.choice((0.0, 0.05, 1.0)))


@injector
async def gw_region(scene: Scene, chance: random.Random) -> None:
    """Another voice server, announced once or with a null endpoint before."""
    bot = scene.bot(chance)
    if bot.signalling.credentials is None:
        return
    if chance.random() < 0.5:
        bot.signalling.remove_server()

        def announce() -> None:
            if bot.signalling.credentials is not None:
                bot.signalling.hand_over()

        scene.later(chance.choice((0.1, 4.0, 40.0)), announce)
    else:
        bot.signalling.hand_over()


@injector
async def gw_silent(scene: Scene, chance: random.Random) -> None:
    """Joins stay unanswered, or are answered the other way round."""
    bot = scene.bot(chance)
    name = chance.choice(("silent", "server_first"))
    setattr(bot.signalling, name, True)
    scene.later(chance.choice((1.0, 5.0, 20.0)), lambda: setattr(bot.signalling, name, False))


@injector
async def gw_session(scene: Scene, chance: random.Random) -> None:
    """The bot's own gateway session is lost, and a new one begins."""
    bot = scene.bot(chance)
    bot.client.main_session_lost()
    bot.signalling.forget()
    scene.later(chance.choice((0.1, 3.0, 20.0)), bot.client.main_session_started)


# -- clk and host


@injector
async def clk_jump(scene: Scene, chance: random.Random) -> None:
    """The wall clock jumps."""
    scene.bot(chance).client.system.wall_offset_s += chance.choice((-3.15e8, -3600.0, 0.5, 3600.0, 3.15e8))


@injector
async def clk_suspend(scene: Scene, chance: random.Random) -> None:
    """The host sleeps, and may find another network when it wakes."""
    host = scene.bot(chance).client.system
    host.suspend(chance.choice((5.0, 60.0, 3600.0)))
    if chance.random() < 0.5:
        host.rebind()


@injector
async def host_stall(scene: Scene, chance: random.Random) -> None:
    """The process does not run, on the client's or the server's side."""
    host = chance.choice((scene.bot(chance).client.system, scene.bot(chance).client.system, scene.server.system))
    host.stall(chance.choice((0.1, 1.0, 7.0, 20.0)))  # type: ignore[attr-defined]


@injector
async def host_errno(scene: Scene, chance: random.Random) -> None:
    """Calls of the system fail for a while."""
    host = scene.bot(chance).client.system
    call, code = chance.choice(
        (
            ("send", errno.ENETUNREACH),
            ("send", errno.EAGAIN),
            ("send", errno.ENOBUFS),
            ("recv", errno.ECONNREFUSED),
            ("socket", errno.EMFILE),
            ("socket", errno.ENOMEM),
        )
    )
    host.fail(call, code, times=chance.choice((1, 5, 200)))
    scene.later(chance.choice((0.5, 5.0)), host.stop_failing)
    if call == "socket":
        await net_reset(scene, chance)


# -- app


@injector
async def app_speak(scene: Scene, chance: random.Random) -> None:
    """The bot plays."""
    scene.bot(chance).speak(chance.choice((1, 5, 25)))


@injector
async def app_playback(scene: Scene, chance: random.Random) -> None:
    """The bot plays, pauses, goes on, stops."""
    bot = scene.bot(chance)
    bot.speak(20)
    for _ in range(chance.randrange(4)):
        await asyncio.sleep(chance.choice((0.0, 0.03, 0.2)))
        if bot.playback is not None:
            getattr(bot.playback, chance.choice(("pause", "resume", "stop")))()


@injector
async def app_move(scene: Scene, chance: random.Random) -> None:
    """The bot goes elsewhere, and perhaps changes its mind."""
    bot = scene.bot(chance)
    for channel_id in (bot.home + 2, bot.home)[: chance.choice((1, 2))]:
        if not bot.over:
            bot.do(bot.join(channel_id))
        await asyncio.sleep(chance.choice((0.0, 0.05)))


@injector
async def app_impatience(scene: Scene, chance: random.Random) -> None:
    """A join is cancelled while it waits."""
    bot = scene.bot(chance)

    async def join_briefly() -> None:
        task = scene.sim.loop.create_task(bot.client.connect(bot.home))
        await asyncio.sleep(chance.choice((0.0, 0.01, 0.1, 1.0)))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, VoiceError):
            await task

    if not bot.over:
        bot.do(join_briefly())


@injector
async def app_close(scene: Scene, chance: random.Random) -> None:
    """The bot leaves, perhaps several times at once."""
    bot = scene.bot(chance)
    if chance.random() < 0.3:
        for _ in range(chance.choice((1, 2, 5))):
            bot.do(bot.client.close())


@injector
async def app_hand_over(scene: Scene, chance: random.Random) -> None:
    """The call goes to another process, frozen or after a crash, and perhaps to yet another one."""
    bot = scene.bot(chance)
    for _ in range(chance.choice((1, 1, 3))):
        bot.do(bot.hand_over(chance.random() < 0.5, chance.choice((0.0, 0.05, 2.0, 70.0))))
        await asyncio.sleep(chance.choice((0.0, 0.3, 3.0)))


@injector
async def app_store(scene: Scene, chance: random.Random) -> None:
    """Checkpoints cannot be written for a while: speech is held, and whoever takes over knows little."""
    bot = scene.bot(chance)
    bot.store_away = True
    scene.later(chance.choice((1.0, 10.0)), lambda: setattr(bot, "store_away", False))
    if chance.random() < 0.5:
        await app_hand_over(scene, chance)


@injector
async def app_listener(scene: Scene, chance: random.Random) -> None:
    """A listener raises whatever it hears."""

    def fail(notice: Notice) -> None:
        raise RuntimeError("a listener's own mistake")

    scene.watch.expected_errors.add(LISTENER_FAILS)
    scene.bot(chance).client.add_listener(fail)
