"""A call that can go on in another process: frozen and thawed, or taken over after a crash.

What keeps any nonce from being used twice is the lease. A checkpoint names the first nonce, number and timestamp that
this process will not use; only when it is durable (`renew_lease`) may those before it be used. Whoever thaws it begins
there, however far this process came. Where no renewal comes in time, speech is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from voicegw.errors import EventNotAllowed, VoiceError, VoiceTimeout
from voicegw.events import CallThawed, FreezeRequested, HandOverAnnounced, LeaveRequested
from voicegw.frozen import FrozenCall
from voicegw.media.playlist import Opener, Playlist, play_on, playlist_of
from voicegw.secret import Secret
from voicegw.signalling import Signalling
from voicegw.snapshot import Announcement
from voicegw.wire.rtp import SAMPLE_RATE

if TYPE_CHECKING:
    from voicegw.adapters.system import System
    from voicegw.effects import HoldReason
    from voicegw.events import Event, Stamped
    from voicegw.joiners import Joiners
    from voicegw.media.player import Player
    from voicegw.media.receiver import StreamReceiver
    from voicegw.media.sender import StreamSender
    from voicegw.session import VoiceSession
    from voicegw.voice_state import VoiceStateWishes

LEASE_FRAMES: Final = 250  # 5 s of speech
RETRY_S: Final = 0.25
GATHER_S: Final = 0.05  # what changes in quick succession is one checkpoint, unless speech waits for it
DIALLING_AHEAD: Final = ("closed.dialling_ahead", "closed.opened_ahead")
DIALLED_AHEAD: Final = "closed.greeted_ahead"
MOST_AWAY_S: Final = 60.0  # a wall clock may say anything; the timestamp follows it so far

Write = Callable[[FrozenCall], Awaitable[object]]


class Portable:
    """The part of `VoiceClient` that lets a call go from process to process."""

    if TYPE_CHECKING:  # what VoiceClient brings
        session: VoiceSession
        sender: StreamSender
        player: Player
        receiver: StreamReceiver
        system: System
        names_channel: bool
        real_time_while: frozenset[HoldReason]
        _wishes: VoiceStateWishes
        _joiners: Joiners
        _loop: asyncio.AbstractEventLoop | None

        def feed(self, event: Event | Stamped) -> None: ...
        async def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 10.0) -> None: ...
        def _begin(self) -> None: ...
        def _warn(self, text: str) -> None: ...
        def _spawn(self, work: Any) -> asyncio.Task[None]: ...
        async def _prepare(self) -> None: ...
        async def _wait_freed(self) -> None: ...
        async def close(self) -> None: ...

    def __init__(self) -> None:
        self._coming: Playlist | None = None  # what another process played, until all of it plays here
        self._due = asyncio.Event()
        self._urgent = asyncio.Event()
        self._leasing = False
        self._writing: asyncio.Task[None] | None = None

    # -- what a bot does

    async def freeze(self) -> FrozenCall:
        """Stop at the edge of a frame and let go of the call, so that another process can `thaw` it.

        Nobody sees a leave. The transport key is never used again in this process, and this client is over. See
        `voicegw.frozen`.

        Raises:
            EventNotAllowed: the call is over, or being left.
        """
        self._begin()
        call = self.session.call
        if FreezeRequested.name not in call.table.enabled(call.state):
            raise EventNotAllowed("freezing a call", call.state)
        self._stop_checkpoints()
        self.player.halt()
        self.sender.hold()
        frozen = self._take(0)
        for digest, _ in frozen.keys:
            self.system.keys.retire(digest)
        for text in frozen.playlist.lost:
            self._warn(f"not taken along: {text}")
        self.feed(FreezeRequested())
        await self._wait_freed()
        return frozen

    def announcement(self) -> Announcement | None:
        """What another process may have before `freeze`, to `expect` it; None where there is no session to go on with.

        Nothing of it is secret.
        """
        session = self.session.snapshot()
        if session.endpoint is None or session.secret_key is None:
            return None
        version = session.dave_protocol_version
        return Announcement(session.endpoint, session.channel_id, version, session.external_sender)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's that go along with the call; trust and whose it is do not."""
        chosen, wishes = self.session.shared.options, self._wishes
        return {
            **{each.name: getattr(chosen, each.name) for each in dataclasses.fields(chosen)},
            "policy": chosen.policy.value,
            "deadlines": dict(chosen.deadlines),
            "names_channel": self.names_channel,
            "real_time_while": [reason.value for reason in self.real_time_while],
            "self_mute": wishes.self_mute,
            "self_deaf": wishes.self_deaf,
        }

    def checkpoint(self) -> FrozenCall:
        """The call as another process may take it over if this one dies; 5 s of speech are left to this one.

        From the first one on nothing is sent beyond what the last one that was given to `renew_lease` leaves.
        """
        self._begin()
        self._lease_only()
        return self._take(LEASE_FRAMES)

    def renew_lease(self, frozen: FrozenCall) -> None:
        """`frozen`, a checkpoint of this call, is now where whoever takes over will find it."""
        key = self.session.gateway.key
        if key and frozen.session.secret_key == key:
            self.sender.lease(frozen.stream)

    def keep_checkpoints(self, write: Write, every_s: float = 1.0) -> None:
        """Have `await write(frozen)` make a checkpoint durable: at once, when something changes, and every `every_s`.

        Best before `connect`. Where `write` raises or hangs, speech is held when the lease of the last one ends.
        """
        self._begin()
        self._lease_only()
        self._stop_checkpoints()
        self._writing = self._spawn(self._write_on(write, every_s))

    async def expect(self, announced: Announcement, timeout_s: float = 5.0) -> bool:
        """Get ready to `go_on` with a call that another process is about to freeze; are we?

        A websocket is opened, and a key package made; nothing is said to the voice server yet. Where that cannot be
        had, or is not used within 10 s, `go_on` does it all the same.

        Raises:
            EventNotAllowed: this client has a call already.
        """
        await self._prepare()
        self.feed(HandOverAnnounced(announced))
        with contextlib.suppress(VoiceTimeout):
            await self.wait_for(lambda: self.session.gateway.state not in DIALLING_AHEAD, timeout_s)
        return self.session.gateway.state == DIALLED_AHEAD

    @classmethod
    async def thaw(
        cls,
        frozen: FrozenCall,
        *,
        signalling: Signalling,
        timeout_s: float = 30.0,
        openers: Mapping[str, Opener] = MappingProxyType({}),
        write: Write | None = None,
        every_s: float = 1.0,
        **options: Any,
    ) -> Self:
        """Go on with a call that another process has frozen, or that died with it: resume, else identify, else join.

        Returns when it is connected and plays on. `options` are the constructor's, instead of the frozen ones; trust is
        not frozen, so `ca_pem` must be given again. `openers` open kinds of sources of your own. With `write`,
        checkpoints are kept from the beginning. Listeners and sinks are added again by whoever wants to hear; nobody is
        verified any more.

        Raises:
            VoiceTimeout: not connected after `timeout_s` seconds; the call is left.
            VoiceError: as `connect`.
        """
        make: Callable[..., Self] = cls
        given = {**frozen.options, "channel_id": frozen.session.channel_id, "signalling": signalling, **options}
        client = make(user_id=frozen.user_id, guild_id=frozen.guild_id, **given)
        await client.go_on(frozen, timeout_s, openers, write, every_s)
        return client

    async def go_on(
        self,
        frozen: FrozenCall,
        timeout_s: float = 30.0,
        openers: Mapping[str, Opener] = MappingProxyType({}),
        write: Write | None = None,
        every_s: float = 1.0,
    ) -> None:
        """What `thaw` does with the client that it makes, for one that was made with the options of `frozen`.

        Raises:
            EventNotAllowed: this client has a call already.
            VoiceError: as `thaw`.
        """
        await self._prepare()
        session = frozen.session
        away_s = min(max(0, self.system.wall_ms() - frozen.frozen_at_ms) / 1000, MOST_AWAY_S)
        begin = (frozen.stream.timestamp_ticks + round(away_s * SAMPLE_RATE)) & 0xFFFFFFFF
        counters = {digest: self.system.keys.take_over(digest, uses) for digest, uses in frozen.keys}
        mark = dataclasses.replace(frozen.stream, timestamp_ticks=begin)
        self.sender.go_on(mark, self.player.clock(), counters)
        if session.secret_key is not None:
            session = dataclasses.replace(session, secret_key=Secret(session.secret_key.reveal()))  # ours is wiped
        self._coming = frozen.playlist
        if write is not None:
            self.keep_checkpoints(write, every_s)
        playing: list[asyncio.Task[None]] = []

        def ask() -> None:
            self.feed(CallThawed(session))
            playing.append(self._spawn(self._play_on(frozen.playlist, openers)))

        try:
            await self._joiners.wait(ask, timeout_s, lambda: self.session.call.error)
        except BaseException as error:
            for task in playing:
                task.cancel()
            self.feed(LeaveRequested())
            if isinstance(error, VoiceError):
                await self.close()
            raise
        await asyncio.wait(playing)

    # -- inside

    def _take(self, ahead: int) -> FrozenCall:
        """The call as it is; `ahead` frames may still leave."""
        session = self.session
        owners = self.receiver.map.owners
        return FrozenCall(
            user_id=session.shared.user_id,
            guild_id=session.shared.guild_id,
            session=session.snapshot((ssrc, user.user_id) for ssrc, (user, _) in owners.items()),
            stream=self.sender.mark(ahead, self.player.clock()),
            playlist=self._coming or playlist_of(self.player),
            keys=self.sender.keys(ahead),
            options=self.options,
            states=session.states,
            frozen_at_ms=self.system.wall_ms(),
        )

    async def _play_on(self, playlist: Playlist, openers: Mapping[str, Opener]) -> None:
        await play_on(self.player, playlist, openers, self._warn)
        self._coming = None
        self._checkpoint_due()

    def _lease_only(self) -> None:
        if not self._leasing:
            self._leasing = True
            self.sender.lease_only(self._lease_low)

    def _lease_low(self) -> None:
        """From the pacer's thread, or ours."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._checkpoint_needed)

    def _checkpoint_due(self) -> None:
        """Something has changed that a checkpoint should tell."""
        self._due.set()

    def _checkpoint_needed(self) -> None:
        """Speech waits for one."""
        self._urgent.set()
        self._due.set()

    def _stop_checkpoints(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    async def _write_on(self, write: Write, every_s: float) -> None:
        failing = False
        while True:
            self._due.clear()
            self._urgent.clear()
            frozen = self.checkpoint()
            try:
                await write(frozen)
            except Exception as error:  # whatever the store raises
                if not failing:
                    self._warn(
                        f"a checkpoint could not be written ({type(error).__name__}); speech is held when the lease of "
                        "the last one ends"
                    )
                failing = True
                await asyncio.sleep(RETRY_S)
                continue
            failing = False
            self.renew_lease(frozen)
            for event, seconds in ((self._due, every_s), (self._urgent, GATHER_S)):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await event.wait()
