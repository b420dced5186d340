"""FleetClient: VoiceClient's interface for a call that a worker of the fleet holds.

    async with await voicegw.fleet.connect("nats://127.0.0.1:4222") as fleet:
        client = fleet.client(user_id=..., guild_id=..., signalling=...)     # instead of voicegw.VoiceClient(...)

The bot keeps its main gateway: op 4 leaves through its signalling, and what the gateway answers goes to the worker. The
call outlives the bot, too: a bot that comes back and connects to where it was finds its call.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, Unpack

from voicegw.adapters.waiters import Waiters
from voicegw.effects import Closed, Connected, HoldReason, Moved, MoveFailed, Notice
from voicegw.errors import EventNotAllowed, FleetError, SignallingError, VoiceError, VoiceTimeout
from voicegw.fleet.bus import Bus, NoAnswer, Nobody, Overtaken
from voicegw.fleet.call_state import FleetCallState
from voicegw.fleet.document import CallDocument
from voicegw.fleet.notices import error_from, error_to, notice_from
from voicegw.fleet.playback import FleetPlayback
from voicegw.fleet.player import FleetPlayer
from voicegw.fleet.sealing import fleet_keys
from voicegw.fleet.sources import Named, as_data, described
from voicegw.fleet.streaming import StreamedAway
from voicegw.fleet.view import CALL, CallEntry, call_id
from voicegw.frozen import FleetKey
from voicegw.joiners import settle
from voicegw.media.playback import HowToPlay
from voicegw.media.sources import Source, SourceDescription
from voicegw.notices import NoticeBoard
from voicegw.session import E2EEPolicy
from voicegw.signalling import Signalling, snowflake_of

ANSWER_S: Final = 20.0  # a source may take long to open
RETRY_S: Final = 0.05
PATIENCE_S: Final = 60.0  # so long a command waits for a worker
LOOK_EVERY_S: Final = 10.0
CLOSE_S: Final = 4.0


class Fleet:
    """One process's way into a fleet."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    def client(self, **options: Any) -> FleetClient:
        """A call of the fleet; the arguments are VoiceClient's, but for those about trust, which the workers' operator
        gives, and `system`."""
        return FleetClient(self.bus, **options)

    async def close(self) -> None:
        """End the connection; calls go on. Harmless when ended."""
        await self.bus.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


async def connect(
    servers: str | Sequence[str],
    *,
    keys: Sequence[FleetKey] | None = None,
    key_file: Path | None = None,
    fleet: str = "voicegw",
) -> Fleet:
    """Connect to the NATS of a fleet; the key comes from `key_file`, else from VOICEGW_FLEET_KEY.

    Raises:
        FleetError: NATS cannot be reached, or there is no key.
    """
    return Fleet(await Bus.connect(servers, keys if keys is not None else fleet_keys(key_file), fleet=fleet))


class FleetClient(FleetCallState):
    """A call in the fleet. What VoiceClient's methods say holds here; what is heard stays at the worker."""

    def __init__(
        self,
        bus: Bus,
        *,
        user_id: int,
        guild_id: int,
        signalling: Signalling,
        channel_id: int | None = None,
        policy: E2EEPolicy | str = E2EEPolicy.REQUIRE,
        self_mute: bool = False,
        self_deaf: bool = False,
        max_attempts: int = 12,
        names_channel: bool = False,
        rejoin_after_rate_limit: bool = False,
        deadlines: Mapping[str, float] = MappingProxyType({}),
        real_time_while: Iterable[HoldReason | str] = (HoldReason.ALONE,),
    ) -> None:
        super().__init__()
        self.channel_id = channel_id
        self.error: VoiceError | None = None
        self.worker = ""
        self.player = FleetPlayer(self)
        self._bus = bus
        self._user_id = user_id
        self._guild_id = guild_id
        self.signalling = signalling
        self._call_id = call_id(guild_id, user_id)
        self._options: dict[str, Any] = {
            "policy": str(E2EEPolicy(policy)),
            "self_mute": self_mute,
            "self_deaf": self_deaf,
            "max_attempts": max_attempts,
            "names_channel": names_channel,
            "rejoin_after_rate_limit": rejoin_after_rate_limit,
            "deadlines": dict(deadlines),
            "real_time_while": [str(HoldReason(reason)) for reason in real_time_while],
        }
        self._bot = secrets.token_hex(8)
        self._number = 0
        self._wanted = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer: asyncio.Future[None] | None = None
        self._playbacks: dict[str, FleetPlayback] = {}
        self._notices = NoticeBoard()
        self._waiters = Waiters()
        self._closed = asyncio.Event()
        self._commands: deque[dict[str, Any]] = deque()
        self._signals: deque[dict[str, Any]] = deque()
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._unserve: Any = None
        self._looking: asyncio.Task[None] | None = None
        signalling.attach(self)

    # -- what a bot does

    async def connect(self, channel_id: int | None = None, timeout_s: float = 30.0) -> None:
        """Join `channel_id` (or the channel given at the beginning) and wait until the voice session is ready.

        A call of this user that lives in the fleet already is taken up.

        Raises:
            VoiceTimeout: not ready after `timeout_s` seconds; the call is left.
            EventNotAllowed: the call was closed; a new call takes a new client.
            VoiceError: what ended the attempt.
        """
        wanted = channel_id if channel_id is not None else self.channel_id
        if wanted is None or self._closed.is_set():
            raise EventNotAllowed("connect without a channel", "closed" if self._closed.is_set() else "idle")
        self.channel_id = self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._answer = self._loop.create_future()
        if self._unserve is None:
            self._unserve = await self._bus.serve(self._bus.subject("call", self._call_id, "bot"), self._asked)
            self._looking = self._bus.spawn(self._look())
        if not await self._put():
            self.command("move", channel=wanted)
        await self._wait(timeout_s, "no worker had the call ready")

    async def move_to(self, channel_id: int, timeout_s: float = 30.0) -> None:
        """Go to another channel of the guild and wait until the voice session there is ready.

        Raises:
            VoiceTimeout: not there after `timeout_s` seconds; the call goes on.
            VoiceError: as `connect`.
        """
        self._answer = self._running().create_future()
        self._wanted = channel_id
        self.command("move", channel=channel_id)
        await self._wait(timeout_s, "the call was not in the other channel", leave=False)

    def play(self, source: Source | Named, **how: Unpack[HowToPlay]) -> FleetPlayback:
        """Play `source` now, instead of what was played before.

        URLs and tones, and what `voicegw.fleet.url`, `file` and `stored` name, are opened by the worker; all else is
        read here and streamed to it, and lasts as long as this process.
        """
        return self.begin("play", source, dict(how))

    def mute(self, *, self_mute: bool = False, self_deaf: bool = False) -> None:
        """How we show ourselves from the next join on."""
        self._options |= {"self_mute": self_mute, "self_deaf": self_deaf}
        if self._unserve is not None:
            self.command("mute", self_mute=self_mute, self_deaf=self_deaf)

    def add_listener(self, listener: Callable[[Notice], None]) -> None:
        """Call `listener(notice)` for all that happens: `Connected`, `Moved`, `Reconnecting`, `Closed` ..."""
        self._notices.add(listener)

    async def close(self) -> None:
        """Leave the channel and free everything; harmless when closed already. `detach` leaves the call alone.

        Where no worker answers, op 4 is sent from here.
        """
        if self._unserve is None:
            self._closed.set()
            return
        if not self._closed.is_set():
            self.command("leave")
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._closed.wait()
            except TimeoutError:
                await self._leave_alone()
        await self.detach()

    async def detach(self) -> None:
        """Go without the call: a worker plays on what it can open itself, until a bot of this user connects again."""
        unserve, self._unserve = self._unserve, None
        if unserve is not None:
            await unserve()
        for task in (*self._sending.values(), *((self._looking,) if self._looking is not None else ())):
            task.cancel()
        for playback in tuple(self._playbacks.values()):
            playback.end()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Until the call is over, for whatever reason; `error` says which, None where the bot asked for it."""
        await self._closed.wait()

    async def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Until `predicate()` holds; it is asked after everything that the worker tells.

        Raises:
            VoiceTimeout: it did not hold in time.
        """
        await self._waiters.wait_for(predicate, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Is the call over?"""
        return self._closed.is_set()

    def listen(self, *sinks: object) -> None:
        """What is heard stays at the worker.

        Raises:
            FleetError: always.
        """
        raise FleetError("a fleet's call cannot be listened to from here; use VoiceClient where a bot shall hear")

    frames = listen

    # -- what the main gateway says, from any thread

    def voice_state_update(self, data: Mapping[str, Any]) -> None:
        """Take the `d` of any VOICE_STATE_UPDATE; others' are ignored."""
        if snowflake_of(data.get("user_id")) == self._user_id and snowflake_of(data.get("guild_id")) == self._guild_id:
            names = ("user_id", "guild_id", "channel_id", "session_id", "mute", "deaf", "self_mute", "self_deaf")
            told = {name: data[name] for name in (*names, "suppress") if name in data}
            self._signal({"do": "voice state", "data": told})

    def voice_server_update(self, data: Mapping[str, Any]) -> None:
        """Take the `d` of any VOICE_SERVER_UPDATE; other guilds' are ignored."""
        if snowflake_of(data.get("guild_id")) == self._guild_id:
            told = {name: data.get(name) for name in ("guild_id", "token", "endpoint")}
            self._signal({"do": "voice server", "data": told})

    def main_session_lost(self) -> None:
        """The bot's main gateway session was invalidated, not resumed: its voice sessions end with it."""
        self._signal({"do": "main session", "what": "lost"})

    def main_session_started(self) -> None:
        """The bot's main gateway has identified afresh."""
        self._signal({"do": "main session", "what": "started"})

    def main_session_resumed(self) -> None:
        """The bot's main gateway was away and has resumed."""
        self._signal({"do": "main session", "what": "resumed"})

    # -- for players and playbacks

    def begin(self, do: str, source: Source | Named, how: dict[str, Any]) -> FleetPlayback:
        """Have the worker begin with a source."""
        loop = self._running()
        playback_id = secrets.token_hex(6)
        playback = FleetPlayback(
            playback_id, source, self, loop.time, float(how.get("volume", 1.0)), bool(how.get("loop", False))
        )
        description = described(source)
        if description is None:
            assert not isinstance(source, Named)
            playback.streamed = StreamedAway(source, loop)
            arguments = {"call": self._call_id, "playback": playback_id, "is_opus": source.is_opus}
            description = SourceDescription("streamed", arguments)
        elif not isinstance(source, Named):
            source.close()
        self._playbacks[playback_id] = playback
        self.command(do, playback=playback_id, source=as_data(description), how=how)
        return playback

    def command(self, do: str, **what: Any) -> None:
        """Have the worker do it, after what was asked before."""
        self._number += 1
        self._commands.append({"do": do, "bot": self._bot, "number": self._number, **what})
        self._send(self._commands)

    # -- inside

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._closed.is_set():
            raise EventNotAllowed("using a call", "closed" if self._closed.is_set() else "idle")
        return self._loop

    async def _put(self) -> bool:
        """Put the call into the buckets, for some worker to take; False where it is there."""
        assert self.channel_id is not None
        document = CallDocument("", self.channel_id, self._options)
        data = document.to_bytes(self._bus.seal, self._call_id)
        try:
            await self._bus.documents.create(self._call_id, data)
        except Overtaken:
            if await self._bus.leases.read(CALL + self._call_id) is not None:
                return False
            left = await self._bus.documents.read(self._call_id)
            with contextlib.suppress(Overtaken):
                await self._bus.documents.update(self._call_id, data, left.revision if left is not None else 0)
        try:
            await self._bus.leases.create(CALL + self._call_id, CallEntry().to_bytes())
        except Overtaken:
            return False
        return True

    async def _wait(self, timeout_s: float, what: str, *, leave: bool = True) -> None:
        assert self._answer is not None
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._answer)
        except TimeoutError as error:
            if isinstance(error, VoiceError):
                raise
            if leave:
                await self.close()
            raise VoiceTimeout(f"{what} after {timeout_s:g} s") from None
        except asyncio.CancelledError:
            if leave:
                await asyncio.shield(self.close())
            raise

    async def _leave_alone(self) -> None:
        """No worker leaves for us: whoever claims the call meanwhile sees its key go, and lets go of it."""
        with contextlib.suppress(FleetError):
            while (entry := await self._bus.leases.read(CALL + self._call_id)) is not None:
                with contextlib.suppress(Overtaken):
                    await self._bus.leases.delete(entry.key, entry.revision)
        with contextlib.suppress(Exception):
            await self.signalling.update_voice_state(self._guild_id, None, self_mute=False, self_deaf=False)
        self._end(None)

    def _signal(self, message: dict[str, Any]) -> None:
        loop = self._loop
        if loop is None or self._closed.is_set():
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._queue_signal, message)

    def _queue_signal(self, message: dict[str, Any]) -> None:
        self._signals.append(message)
        self._send(self._signals)

    def _send(self, queue: deque[dict[str, Any]]) -> None:
        if id(queue) not in self._sending:
            self._sending[id(queue)] = self._bus.spawn(self._send_on(queue))

    async def _send_on(self, queue: deque[dict[str, Any]]) -> None:
        """One after the other; whoever has the call is asked until there is an answer."""
        try:
            while queue and not self._closed.is_set():
                message = queue.popleft()
                try:
                    self._hear(await self._ask(message))
                except VoiceError as error:
                    playback = self._playbacks.get(message.get("playback", ""))
                    if playback is not None and message["do"] != "playback":
                        self._over(playback, error, 0.0)
        finally:
            self._sending.pop(id(queue), None)

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        subject = self._bus.subject("call", self._call_id, "worker")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(Nobody, NoAnswer):
                    answer = await self._bus.ask(subject, message, ANSWER_S if "number" in message else 1.0)
                    if not answer.get("busy"):
                        return answer
                await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        """What a worker said may have been lost; ask now and again."""
        while not self._closed.is_set():
            await asyncio.sleep(LOOK_EVERY_S)
            with contextlib.suppress(VoiceError):
                subject = self._bus.subject("call", self._call_id, "worker")
                self._hear(await self._bus.ask(subject, {"do": "state"}))

    # -- what the worker says

    async def _asked(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked["do"]:
            case "hear":
                self._hear(asked)
            case "op 4":
                await self._op4(asked)
            case "frames":
                playback = self._playbacks.get(asked["playback"])
                if playback is None or playback.streamed is None:
                    gone = FleetError("the bot that streamed this has begun anew")
                    return {"lengths": [], "ended": True, "failed": error_to(gone)}
                return await playback.streamed.piece(asked["from"], asked["count"])
        return {}

    async def _op4(self, asked: dict[str, Any]) -> None:
        flags = {"self_mute": asked["self_mute"], "self_deaf": asked["self_deaf"]}
        try:
            await self.signalling.update_voice_state(self._guild_id, asked["channel"], **flags)
        except VoiceError:
            raise
        except Exception as error:  # whatever the framework's gateway raises
            raise SignallingError(f"the bot's gateway raised {type(error).__name__}") from error

    def _hear(self, told: dict[str, Any]) -> None:
        about = told.get("about")
        if about is not None:
            self._about = about
            self.worker = about["worker"]
            self._look_at_playbacks(about)
        if "ended" in told:
            ended = told["ended"]
            playback = self._playbacks.get(ended["playback"])
            if playback is not None:
                self._over(playback, error_from(ended["failed"]), ended["position_s"])
        notice = notice_from(told["notice"]) if "notice" in told else None
        if notice is not None:
            self._notice(notice)
        elif (
            self._about.get("opened") and self._about["channel"] == self._wanted and self.states["call"] == "connected"
        ):
            settle(self._answer, None)
        self._waiters.notify()

    def _look_at_playbacks(self, about: dict[str, Any]) -> None:
        for playback_id, (position_s, paused) in about.get("playbacks", {}).items():
            if playback_id in self._playbacks:
                self._playbacks[playback_id].heard(position_s, paused)
        if about.get("opened"):
            for playback_id, playback in tuple(self._playbacks.items()):
                if playback.begun and playback_id not in about["playbacks"]:
                    self._over(playback, None, None)

    def _over(self, playback: FleetPlayback, error: VoiceError | None, position_s: float | None) -> None:
        self._playbacks.pop(playback.playback_id, None)
        playback.end(error, position_s)

    def _notice(self, notice: Notice) -> None:
        match notice:
            case Connected(channel_id=channel) | Moved(channel_id=channel):
                self.channel_id = channel
                settle(self._answer, None)
            case MoveFailed(error=error):
                settle(self._answer, error)
            case Closed(error=error):
                self._end(error)
        self._notices.put(notice)
        self._notices.tell()

    def _end(self, error: VoiceError | None) -> None:
        self.error = error
        settle(self._answer, error or EventNotAllowed("being in a call", "closed"))
        for playback in tuple(self._playbacks.values()):
            self._over(playback, None, None)
        self._closed.set()

    def __repr__(self) -> str:
        return (
            f"<FleetClient {self.states.get('call', 'idle')} at {self.worker or 'no worker'}, guild {self._guild_id}>"
        )
