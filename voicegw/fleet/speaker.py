"""A call's VoiceClient on a worker, in the hands of a bot that is elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from voicegw.client import VoiceClient
from voicegw.effects import Closed, Notice
from voicegw.errors import AudioError, EventNotAllowed, FleetError, SignallingError, VoiceError
from voicegw.events import Event, FreezeRequested, Stamped
from voicegw.fleet.bus import Bus
from voicegw.fleet.document import CallDocument
from voicegw.fleet.notices import error_to, notice_to
from voicegw.fleet.sources import AskedSource, Openers
from voicegw.fleet.view import ids_of
from voicegw.frozen import FrozenCall
from voicegw.media.playback import Playback
from voicegw.signalling import SignallingReceiver
from voicegw.snapshot import Announcement

OP4_S: Final = 1.4  # a wish that is not out by then counts as not sent, see voice_state.py
CHECKPOINT_S: Final = 2.0

Write = Callable[[FrozenCall], Awaitable[None]]


class BotSignalling:
    """Op 4 through the bot, which has the main gateway; `attached(client)` is called when the client is made."""

    def __init__(self, bus: Bus, subject: str, attached: Callable[[VoiceClient], None]) -> None:
        self._bus = bus
        self._subject = subject
        self._attached = attached

    def attach(self, receiver: SignallingReceiver) -> None:
        """The client hears of voice states and servers through the speaker's commands."""
        assert isinstance(receiver, VoiceClient)
        self._attached(receiver)

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Have the bot send op 4."""
        wish = {"do": "op 4", "channel": channel_id, "self_mute": self_mute, "self_deaf": self_deaf}
        try:
            await self._bus.ask(self._subject, wish, OP4_S)
        except FleetError as error:
            raise SignallingError(f"the bot's main gateway cannot be reached: {error}") from error


class LeasedClient(VoiceClient):
    """Nothing happens to it, so it does nothing, while its worker's lease is over; but it can be frozen.

    The pacer asks for itself. This is about all else that a worker would do when it wakes too late: resume, ask for
    its address, leave.
    """

    def __init__(self, *, may_speak: Callable[[], bool], **options: Any) -> None:
        self._may_speak = may_speak
        super().__init__(**options)

    def feed(self, event: Event | Stamped) -> None:
        """As VoiceClient's, with a lease."""
        if isinstance(event, FreezeRequested) or self._may_speak():
            super().feed(event)


class Speaker:
    """Opens a call from its document and does what its bot says.

    `write` makes a checkpoint durable, `trust` are the options that the worker gives. `ended(error)` is called
    when the call is over for another reason than that it went elsewhere.
    """

    def __init__(
        self,
        bus: Bus,
        call_id: str,
        worker: str,
        openers: Openers,
        trust: Mapping[str, Any],
        write: Write,
        ended: Callable[[VoiceError | None], None],
    ) -> None:
        self._bus = bus
        self._call_id = call_id
        self._worker = worker
        self._openers = openers
        self._trust = trust
        self._write = write
        self._ended = ended
        self.bot = bus.subject("call", call_id, "bot")
        self._client: VoiceClient | None = None
        self._playbacks: dict[str, Playback] = {}
        self._ahead: Mapping[str, Any] = {}
        self.gone = False
        self._opened = False

    async def dial_ahead(self, options: Mapping[str, Any], announced: Announcement) -> bool:
        """Get ready for a call with these options that is another worker's yet; are we?"""
        if self.gone:
            return False
        guild_id, user_id = ids_of(self._call_id)
        self._ahead = options
        try:
            client = LeasedClient(
                user_id=user_id,
                guild_id=guild_id,
                signalling=BotSignalling(self._bus, self.bot, self._attached),
                **{**options, **self._trust},
            )
            return await client.expect(announced)
        except VoiceError:
            return False

    async def open(self, document: CallDocument) -> None:
        """Thaw the call, or join.

        Raises:
            VoiceError: it is over.
        """
        signalling = BotSignalling(self._bus, self.bot, self._attached)
        client: VoiceClient
        if document.frozen is None:
            guild_id, user_id = ids_of(self._call_id)
            options = {**document.options, **self._trust}
            client = LeasedClient(user_id=user_id, guild_id=guild_id, signalling=signalling, **options)
            client.keep_checkpoints(self._write, CHECKPOINT_S)
            await client.connect(document.channel_id)
        else:
            frozen = FrozenCall.from_bytes(document.frozen, self._bus.seal.keys)
            client = await self._client_for(frozen, signalling)
            await client.go_on(frozen, openers=self._openers.openers, write=self._write, every_s=CHECKPOINT_S)
            for playback in (client.player.playing, *client.player.queued, *client.player.over):
                if playback is not None and isinstance(playback.source, AskedSource):
                    self._follow(playback.source.playback_id, playback)
        self._opened = True
        self._tell({})

    async def _client_for(self, frozen: FrozenCall, signalling: BotSignalling) -> VoiceClient:
        """The one that has dialled ahead, where its options are the call's; else one that has not."""
        ahead = self._client
        if ahead is not None and self._ahead == frozen.options:
            return ahead
        if ahead is not None:
            self._client = None
            await ahead.close()
        given = {**frozen.options, "channel_id": frozen.session.channel_id, **self._trust}
        return LeasedClient(user_id=frozen.user_id, guild_id=frozen.guild_id, signalling=signalling, **given)

    @property
    def announcement(self) -> tuple[Mapping[str, Any], Announcement] | None:
        """What another worker needs to dial ahead: options and endpoint; None where there is no session."""
        announced = self._client.announcement() if self._client is not None else None
        return None if announced is None or self._client is None else (self._client.options, announced)

    async def turn_over(self) -> None:
        """Until a frame has just left: to be silent from here on is heard the shortest."""
        if self._client is not None:
            await self._client.player.turn_over()

    def hush(self) -> None:
        """Nothing leaves from here on, whatever becomes of the lease."""
        self.gone = True
        if self._client is not None:
            self._client.player.halt()
            self._client.sender.hold()

    async def freeze(self) -> FrozenCall | None:
        """Let go of the call; what another needs to go on. None where nothing was begun, or it is over."""
        self.hush()
        client = self._client
        if client is None:
            return None
        try:
            return await client.freeze()
        except EventNotAllowed:  # it is over, or being left
            return None

    async def close(self) -> None:
        """Leave."""
        self.gone = True
        if self._client is not None:
            await self._client.close()

    async def keep(self) -> None:
        """What the bot has said is in the document from here on."""
        if self._client is not None and not self.gone:
            frozen = self._client.checkpoint()
            await self._write(frozen)
            self._client.renew_lease(frozen)

    # -- what the bot says

    async def do(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One command.

        Raises:
            VoiceError: it cannot be done.
        """
        client = self._client
        if client is None:
            return {"busy": True}
        match asked["do"]:
            case "move":
                if client.channel_id != asked["channel"] or client.states["call"] != "connected":
                    self._bus.spawn(_quietly(client.move_to(asked["channel"])))
            case "mute":
                client.mute(self_mute=asked["self_mute"], self_deaf=asked["self_deaf"])
            case "leave":
                self._bus.spawn(client.close())
            case "voice state":
                client.voice_state_update(asked["data"])
            case "voice server":
                client.voice_server_update(asked["data"])
            case "main session":
                getattr(client, f"main_session_{asked['what']}")()
            case "play" | "queue" | "play over":
                await self._play(client, asked)
            case "duck":
                client.player.duck(asked["level"])
            case "bitrate":
                client.player.bitrate = asked["value"]
            case "playback":
                self._handle(asked)
            case "state":
                pass
            case other:
                raise FleetError(f"this worker's version knows no {str(other)[:40]!r}")
        return {"about": self.about()}

    async def _play(self, client: VoiceClient, asked: dict[str, Any]) -> None:
        playback_id = asked["playback"]
        if playback_id in self._playbacks:
            return
        source = await asyncio.to_thread(self._openers.open, playback_id, asked["source"])
        ways: dict[str, Callable[..., Playback]] = {
            "play": client.play,
            "queue": client.player.queue,
            "play over": client.player.play_over,
        }
        try:
            self._follow(playback_id, ways[asked["do"]](source, **asked["how"]))
        except BaseException:
            source.close()
            raise

    def _handle(self, asked: dict[str, Any]) -> None:
        playback = self._playbacks.get(asked["playback"])
        if playback is None:
            return
        match asked["what"]:
            case "stop":
                playback.stop(asked["fade_s"])
            case "pause":
                playback.pause()
            case "resume":
                playback.resume()
            case "seek":
                playback.seek(asked["seconds"])
            case "fade":
                playback.fade_to(asked["volume"], asked["seconds"])
            case "loop":
                playback.loop = asked["value"]

    def _follow(self, playback_id: str, playback: Playback) -> None:
        self._playbacks[playback_id] = playback

        async def follow() -> None:
            error: VoiceError | None = None
            try:
                await playback.wait()
            except AudioError as failed:
                error = failed
            self._playbacks.pop(playback_id, None)
            if not self.gone:
                ended = {"playback": playback_id, "position_s": playback.position_s, "failed": error_to(error)}
                self._tell({"ended": ended})

        self._bus.spawn(follow())

    # -- what the bot hears

    def about(self) -> dict[str, Any]:
        """How the call is."""
        client = self._client
        if client is None:
            return {"worker": self._worker, "opened": False}
        stats = client.stats
        return {
            "worker": self._worker,
            "opened": self._opened,
            "states": client.states,
            "channel": client.channel_id,
            "epoch": client.epoch,
            "privacy_code": client.privacy_code,
            "users": sorted(client.users),
            "speaking": sorted(client.speaking),
            "flags": asdict(client.flags),
            "latency": client.latency,
            "stats": [stats.packets, stats.bytes, stats.held, stats.errors],
            "playbacks": {name: [one.position_s, one.paused] for name, one in self._playbacks.items()},
        }

    def _attached(self, client: VoiceClient) -> None:
        self._client = client
        client.add_listener(lambda notice: self._noticed(client, notice))

    def _noticed(self, client: VoiceClient, notice: Notice) -> None:
        if self.gone or client is not self._client:
            return
        self._tell({"notice": notice_to(notice)})
        if isinstance(notice, Closed):
            self.gone = True
            self._ended(notice.error)

    def _tell(self, message: dict[str, Any]) -> None:
        self._bus.spawn(self._bus.tell(self.bot, {"do": "hear", "about": self.about(), **message}))


async def _quietly(work: Awaitable[None]) -> None:
    """What goes wrong is told by a notice."""
    with contextlib.suppress(VoiceError):
        await work
