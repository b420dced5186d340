"""VoiceClient: one bot's call in one guild. It feeds the core with what happens and carries out what the core wants."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self, Unpack

from voicegw.adapters.calls import Tally
from voicegw.adapters.home import Home
from voicegw.adapters.mls import MlsGroup
from voicegw.adapters.system import THIS_SYSTEM, System
from voicegw.adapters.timers import Timers
from voicegw.adapters.waiters import Waiters
from voicegw.adapters.wake import wake_watch
from voicegw.adapters.websocket import check_tls_context, tls_context
from voicegw.call_state import CallState
from voicegw.effects import (
    Closed,
    Connected,
    Effect,
    HoldReason,
    Moved,
    MoveFailed,
    Notice,
    PlaybackEnded,
    SpeakingChanged,
    Warned,
)
from voicegw.errors import EventNotAllowed, VoiceError
from voicegw.events import (
    DeadlinePassed,
    Event,
    GroupRejected,
    HostWoke,
    JoinAbandoned,
    JoinRequested,
    KeyExhausted,
    LeaveRequested,
    MainSessionLost,
    MainSessionResumed,
    MainSessionStarted,
    NoncesMet,
    ReaderFailed,
    SignallingFailed,
    SilenceSent,
    SpeechEnded,
    SpeechStarted,
    Stamped,
    UserVerified,
)
from voicegw.flight import FlightRecorder
from voicegw.gateway import DiscordGatewayVoice
from voicegw.hands import Hands
from voicegw.joiners import Joiners
from voicegw.media.ducking import Ducking, HowToDuck
from voicegw.media.heard import HeardFrame
from voicegw.media.hearing import Hearing
from voicegw.media.listeners import FrameStream, Listening
from voicegw.media.playback import HowToPlay, Playback
from voicegw.media.player import Player
from voicegw.media.sender import StreamSender
from voicegw.media.sinks import Sink
from voicegw.media.sources import Source
from voicegw.native import load_davey
from voicegw.notices import NoticeBoard
from voicegw.path import MediaPath
from voicegw.portable import Portable
from voicegw.session import E2EEPolicy, Options, Transition, VoiceSession
from voicegw.signalling import Signalling
from voicegw.voice_state import VoiceStateWishes, voice_server_of, voice_state_of
from voicegw.wire.encryption import PREFERRED_MODES

HISTORY = 1024

_log = logging.getLogger("voicegw")


class VoiceClient(CallState, Portable):
    """A call: join, play, listen, move, leave. It comes back by itself from what the network does.

    All methods belong to the event loop that runs when the first of them is called; elsewhere they raise
    `UsedElsewhere`. Only what the main gateway says may come from any thread. A forked child has no call.

    `policy` says whether speech may leave without end-to-end encryption: "require" (never), "allow" (where the server
    has none), "off" (not even offered). `modes` are the transport encryptions to use. `ca_pem` adds an authority,
    `allowed_hosts` a host and `allow_private_media` an address for a voice server of your own; `ssl_context` replaces
    the trust altogether. `max_attempts` voice sessions in a row may fail before the call is given up. `names_channel`
    adds the channel to Identify, as version 9 of the gateway does. `rejoin_after_rate_limit` comes back 60 s after the
    voice server said that we asked too often; without it such a call ends. `deadlines` are other seconds for deadlines
    of the state tables, by name: `{"endpoint_timeout": 10.0}`.

    While nothing may leave, what is played waits; for the reasons in `real_time_while` ("alone", "not ready") its time
    goes by unheard instead, as a radio's does: by default while nobody else is in the call. `keep_flight_record` keeps
    the last 5000 events, without secrets, in `flight_recorder`. `system` is the host to run on; a simulated one comes
    from `voicegw.testing`.

    Attributes:
        player (Player): What is played, queued and mixed.
        channel_id (int | None): Where the call is, or is to be.
        error (VoiceError | None): Why the call is over; None while it is not, and where the bot asked for it.
        flight_recorder (FlightRecorder | None): With `keep_flight_record`: `save(path)` writes the record.
        gateway (DiscordGatewayVoice): The voice websocket; its repr has the last close code.
        history (deque[Transition]): The last 1024 steps of all machines.
        session (VoiceSession): The core.
    """

    def __init__(
        self,
        *,
        user_id: int,
        guild_id: int,
        signalling: Signalling,
        channel_id: int | None = None,
        policy: E2EEPolicy | str = E2EEPolicy.REQUIRE,
        modes: Iterable[str] = PREFERRED_MODES,
        ca_pem: bytes | None = None,
        ssl_context: ssl.SSLContext | None = None,
        allowed_hosts: Iterable[str] = (),
        allow_private_media: bool = False,
        self_mute: bool = False,
        self_deaf: bool = False,
        max_attempts: int = 12,
        names_channel: bool = False,
        rejoin_after_rate_limit: bool = False,
        deadlines: Mapping[str, float] = MappingProxyType({}),
        real_time_while: Iterable[HoldReason | str] = (HoldReason.ALONE,),
        keep_flight_record: bool = False,
        system: System = THIS_SYSTEM,
    ) -> None:
        super().__init__()
        self.tls = ssl_context if ssl_context is not None else tls_context(ca_pem)
        check_tls_context(self.tls)
        self.system = system
        self.channel_id = channel_id
        self.names_channel = names_channel
        self.real_time_while = frozenset(HoldReason(reason) for reason in real_time_while)
        self.history: deque[Transition] = deque(maxlen=HISTORY)
        self.tally = Tally()
        options = Options(
            policy=E2EEPolicy(policy),
            modes=tuple(modes),
            allowed_hosts=tuple(allowed_hosts),
            allow_private_media=allow_private_media,
            max_attempts=max_attempts,
            rejoin_after_rate_limit=rejoin_after_rate_limit,
            deadlines=dict(deadlines),
        )
        self.session = VoiceSession(user_id, guild_id, options, self._note_transition)
        self.flight_recorder = FlightRecorder(user_id, guild_id, options) if keep_flight_record else None
        self.gateway = DiscordGatewayVoice(self)
        self.sender = StreamSender(lambda: self._feed_from_pacer(KeyExhausted()))
        self.player = Player(
            self.sender,
            on_speech_started=lambda: self.feed(SpeechStarted()),
            on_speech_ended=lambda: self.feed(SpeechEnded()),
            on_silence_sent=lambda: self.feed(SilenceSent()),
            on_underrun=lambda: self._warn("what is played has run dry: its source blocks; silence is sent meanwhile"),
            on_playback_ended=lambda playback: self._report(PlaybackEnded(playback.position_s, playback.error)),
            loss=self._loss,
        )
        self._waiters = Waiters()
        self._hearing = Hearing(
            self._now,
            self._speaking_changed,
            self._warn,
            self._waiters.notify,
            on_nonces_meet=lambda: self.feed(NoncesMet()),
        )
        self.receiver = self._hearing.receiver
        self._ducking = Ducking(self.player)
        self._path = MediaPath(self.sender, self.receiver, self.feed, self._waiters.notify, system)
        self._group = MlsGroup(user_id, self._now, lambda reason: self._feed_from_pacer(GroupRejected(0, reason)))
        self.receiver.use_decrypt(self._group.decrypt)
        self._wishes = VoiceStateWishes(
            signalling,
            guild_id,
            lambda reason: self.feed(SignallingFailed(reason)),
            self_mute=self_mute,
            self_deaf=self_deaf,
        )
        self._home = Home("this voice client", self.sender.drop)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: Timers | None = None
        self._inbox: deque[Event | Stamped] = deque()
        self._busy = False
        self._hands = Hands(
            gateway=self.gateway,
            path=self._path,
            group=self._group,
            sender=self.sender,
            player=self.player,
            receiver=self.receiver,
            real_time_while=self.real_time_while,
            loop=lambda: self._running,
            timers=lambda: self._clock,
            ask=lambda channel_id: self._spawn(self._wishes.send(channel_id)),
            dialling=lambda: wake_watch(self._running, self.system).add(self, lambda s: self.feed(HostWoke(s))),
            follow=self._inbox.extend,
            report=self._report,
        )
        self._notices = NoticeBoard()
        self._notices.add(self.tally.hear)
        self._joiners = Joiners(lambda error: self.feed(JoinAbandoned(error)), lambda: self.session.call.state)
        self._closed: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.error: VoiceError | None = None
        signalling.attach(self)

    # -- what a bot does

    async def connect(self, channel_id: int | None = None, timeout_s: float = 30.0) -> None:
        """Join `channel_id` (or the channel given at the beginning) and wait until the voice session is ready.

        Raises:
            VoiceTimeout: not ready after `timeout_s` seconds; the call is left.
            EventNotAllowed: the call has a channel already, or was closed; a new call takes a new client.
            DaveNotFound: the MLS library cannot be used on this host, and the policy is not "off".
            VoiceError: what ended the attempt.
        """
        await self._join(channel_id, timeout_s)

    async def move_to(self, channel_id: int, timeout_s: float = 30.0) -> None:
        """Go to another channel of the guild and wait until the voice session there is ready.

        Raises:
            VoiceTimeout: not there after `timeout_s` seconds (a full or forbidden channel); the call goes on.
            SignallingError: the bot's gateway could not send the wish; the call goes on.
            VoiceError: as `connect`.
        """
        await self._join(channel_id, timeout_s)

    async def verification_code(self, user_id: int) -> str:
        """45 digits that `user_id` sees for us, too, where nobody stands between us and them; for people to compare.

        Takes tenths of a second, in a thread; for a user who was in the group before us the MLS library keeps Python's
        lock all that time, so better not while you speak.

        Raises:
            GroupError: the user is not in our group.
        """
        return await asyncio.to_thread(self._group.verification_code, user_id)

    def mark_verified(self, user_id: int) -> None:
        """People have compared the code: `verification(user_id)` is "verified" until another key is shown.

        Raises:
            EventNotAllowed: there is no group.
        """
        self.feed(UserVerified(user_id))

    def mute(self, *, self_mute: bool = False, self_deaf: bool = False) -> None:
        """How we show ourselves from the next join on; deafened, the voice server sends us nothing."""
        self._wishes.self_mute = self_mute
        self._wishes.self_deaf = self_deaf

    def play(self, source: Source, **how: Unpack[HowToPlay]) -> Playback:
        """Play `source` now, instead of what was played before; it waits while E2EE is not ready.

        How is what `Player.play` takes: volume, loudness, loop, fade_in_s, crossfade_s. `player` can more: queue, play
        over, duck.

        Raises:
            TooManyStreams: this process cannot keep another stream at pace.
        """
        self._home.check()
        return self.player.play(source, **how)

    def duck_under_speech(self, level: float | None = 0.3, **how: Unpack[HowToDuck]) -> None:
        """From now on, turn what is played down to `level` while others speak; None ends that.

        What `player.play_over` mixes in stays as loud as it is.

        Raises:
            ValueError: a level that is not 0 to less than 1, or a time below 0.
        """
        self._home.check()
        self._ducking.use(level, **how)

    def listen(self, sink: Sink | Callable[[HeardFrame], None]) -> Listening:
        """Give what the others say to `sink`, or call it with every 20 ms of each user, off the event loop.

        Several may listen. `await listening.stop()` ends one; the sink stays the caller's to close, after `close`
        where it shall have the last sound.

        Raises:
            OpusNotFound: nothing could be decoded on this host.
        """
        self._home.check()
        return self._hearing.listen(sink)

    def frames(self, *user_ids: int) -> FrameStream:
        """What these users say from now on, or everybody, 20 ms at a time: `async for frame in client.frames(user_id)`.

        The stream ends with the call.

        Raises:
            OpusNotFound: nothing could be decoded on this host.
        """
        self._home.check()
        return self._hearing.frames(frozenset(user_ids))

    async def flush(self) -> None:
        """Wait until the listeners have all that has been received, also what waited for its turn."""
        self._home.check()
        await self._hearing.flush()

    def add_listener(self, listener: Callable[[Notice], None]) -> None:
        """Call `listener(notice)` for all that happens: `Connected`, `Moved`, `Reconnecting`, `Closed` ..."""
        self._notices.add(listener)

    async def close(self) -> None:
        """Leave the channel and free everything, within 4 s; harmless when closed already.

        `error` is a `SignallingError` where the leave could not be sent.
        """
        self._begin()
        self.feed(LeaveRequested())
        await self._wait_freed()

    async def wait_closed(self) -> None:
        """Until the call is over, for whatever reason; `error` says which, None where the bot asked for it."""
        self._begin()
        assert self._closed is not None
        await asyncio.shield(self._closed)

    async def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Until `predicate()` holds; it is asked after everything that happens in this call, each packet heard too.

        Raises:
            VoiceTimeout: it did not hold in time.
        """
        self._home.check()
        await self._waiters.wait_for(predicate, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # -- what the main gateway says

    def voice_state_update(self, data: Mapping[str, Any]) -> None:
        """Take the `d` of any VOICE_STATE_UPDATE; others' are ignored."""
        if self._hand_over(self.voice_state_update, data):
            return
        if (event := voice_state_of(data, self.session.shared)) is not None:
            self.feed(event)

    def voice_server_update(self, data: Mapping[str, Any]) -> None:
        """Take the `d` of any VOICE_SERVER_UPDATE; other guilds' are ignored."""
        if self._hand_over(self.voice_server_update, data):
            return
        if (event := voice_server_of(data, self.session.shared)) is not None:
            self.feed(event)

    def main_session_lost(self) -> None:
        """The bot's main gateway session was invalidated, not resumed: its voice sessions end with it."""
        if not self._hand_over(self.main_session_lost):
            self.feed(MainSessionLost())

    def main_session_started(self) -> None:
        """The bot's main gateway has identified afresh; what the session before it joined is joined anew."""
        if not self._hand_over(self.main_session_started):
            self.feed(MainSessionStarted())

    def main_session_resumed(self) -> None:
        """The bot's main gateway was away and has resumed: voice is untouched, nothing is done."""
        if not self._hand_over(self.main_session_resumed):
            self.feed(MainSessionResumed())

    def _hand_over(self, work: Callable[..., None], *arguments: object) -> bool:
        """Bring `work` to our loop where another thread asks for it."""
        if self._loop is None or not self._home.elsewhere:
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the call with it
            self._loop.call_soon_threadsafe(work, *arguments)
        return True

    # -- the loop between core and hands

    def feed(self, event: Event | Stamped) -> None:
        """Give one event to the core and carry out what follows from it; events that come meanwhile wait their turn.

        Raises:
            EventNotAllowed: the present state forbids it; nothing has changed.
        """
        self._home.check()
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        refused: EventNotAllowed | None = None
        try:
            while self._inbox:
                waiting = self._inbox.popleft()
                now = self._now()
                try:
                    effects = self.session.receive(waiting, now)
                except EventNotAllowed as error:
                    refused = error if waiting is event else refused
                    effects = []
                except Exception as error:
                    effects = self.session.shared.effects  # the core counts on what it has asked for already
                    self._failed(waiting, error)
                if self.flight_recorder is not None:
                    self.flight_recorder.note(now, waiting, effects)
                for effect in effects:
                    try:
                        self._hands.carry_out(effect)
                    except Exception as error:
                        self._failed(effect, error)
                self._notices.tell()
        finally:
            self._busy = False
            self._waiters.notify()
        if refused is not None:
            raise refused

    def _failed(self, what: Event | Stamped | Effect, error: Exception) -> None:
        """Our defect: the websocket must not look alive any more; a fresh one may help."""
        inner = what.event if isinstance(what, Stamped) else what
        _log.error("%s failed in %s", type(inner).__name__, self.session.states, exc_info=error)
        generation = self.session.shared.socket_generation
        self._inbox.append(Stamped("websocket", generation, ReaderFailed(type(error).__name__)))

    # -- what the hands tell

    def _loss(self) -> float:
        """The part of our packets that the other end misses, by its last report; from 0 to 1."""
        report = self.receiver.reports.get(self.session.shared.ssrc)
        return report.fraction_lost if report is not None else 0.0

    def _feed_from_pacer(self, event: Event) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.feed, event)

    def _speaking_changed(self, user_id: int, speaking: bool) -> None:
        self._ducking.hear(user_id, speaking)
        self._report(SpeakingChanged(user_id, speaking))

    def _warn(self, text: str) -> None:
        self._report(Warned(text))

    def _report(self, notice: Notice) -> None:
        if isinstance(notice, Connected | Moved):
            self.channel_id = notice.channel_id
            self._joiners.settle(None)
        elif isinstance(notice, MoveFailed):
            self._joiners.settle(notice.error)
        elif isinstance(notice, Closed):
            self._end(notice.error)
        self._notices.put(notice)
        if not self._busy:
            self._notices.tell()

    # -- begin and end

    async def _join(self, channel_id: int | None, timeout_s: float) -> None:
        wanted = channel_id if channel_id is not None else self.channel_id
        if wanted is None:
            raise EventNotAllowed("connect without a channel", self.session.call.state)
        await self._prepare()

        def ask() -> None:
            self.feed(JoinRequested(wanted))
            self.channel_id = wanted

        await self._joiners.wait(ask, timeout_s, lambda: self.session.call.error)

    async def _prepare(self) -> None:
        if self.session.shared.options.policy is not E2EEPolicy.OFF:
            load_davey()
        self._begin()
        await self.gateway.start(self._running)

    def _begin(self) -> None:
        loop = self._home.settle()
        if self._loop is None:
            self._loop = loop
            self._timers = Timers(self._loop, lambda name, at: self.feed(DeadlinePassed(name, at)), self.system)
            self._closed = self._loop.create_future()
            self.system.calls.join(self)

    async def _wait_freed(self) -> None:
        """Until the call is over, and all of it is freed."""
        await self.wait_closed()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks)
        await self.gateway.join_tasks()
        await self._hearing.close()

    def _end(self, error: VoiceError | None) -> None:
        self.error = error
        wake_watch(self._running, self.system).remove(self)
        self._stop_checkpoints()
        self._ducking.stop()
        self.player.close()
        self._path.close()
        self._hearing.end()
        self._joiners.settle(error or EventNotAllowed("being in a call", self.session.call.state))
        self.system.calls.leave(self)
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._running.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "nothing runs before connect"
        return self._loop

    @property
    def _clock(self) -> Timers:
        assert self._timers is not None, "nothing runs before connect"
        return self._timers

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0

    def _note_transition(self, transition: Transition) -> None:
        self.history.append(transition)
        self.tally.step(transition, self.session.gateway.last_close_code)
        if self.flight_recorder is not None:
            self.flight_recorder.step(transition)
        self._checkpoint_due()
        if _log.isEnabledFor(logging.DEBUG):
            guild_id, step = self.session.shared.guild_id, transition
            _log.debug("%s %s: %s --%s--> %s", guild_id, step.machine, step.before, step.event, step.after)

    def __repr__(self) -> str:
        return f"<VoiceClient {self.session.call.state}, guild {self.session.shared.guild_id}>"
