"""DiscordGatewayVoice: the hands of the gateway machine on a real websocket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from voicegw.adapters.outbox import Outbox
from voicegw.adapters.websocket import VoiceWebSocket
from voicegw.effects import (
    SendCommitWelcome,
    SendHeartbeat,
    SendIdentify,
    SendInvalidCommit,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
)
from voicegw.errors import (
    CertificateRefused,
    ConnectionClosed,
    ConnectionFailed,
    EventNotAllowed,
    InvalidHandshake,
    MalformedFrame,
)
from voicegw.events import (
    DialPostponed,
    Event,
    FrameRejected,
    ReaderFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
    Stamped,
)
from voicegw.kokoro import Kokoro
from voicegw.secret import Secret
from voicegw.wire import frames
from voicegw.wire.endpoint import parse_endpoint
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import HeartbeatAcked

if TYPE_CHECKING:
    from voicegw.client import VoiceClient

LONGEST_QUEUE_S = 60.0  # a turn to dial that is further away is not waited for
SLICE_S = 0.02
TOO_MANY_REQUESTS, SERVER_TROUBLE = 429, 500  # HTTP

Sendable = (
    SendIdentify
    | SendResume
    | SendSelectProtocol
    | SendHeartbeat
    | SendSpeaking
    | SendTransitionReady
    | SendInvalidCommit
    | SendKeyPackage
    | SendCommitWelcome
)

_log = logging.getLogger("voicegw")


class DiscordGatewayVoice:
    """The gateway that voice clients use to talk to Discord over a secure websocket.

    Nothing is decided here: each method carries out one effect of `states/gateway.toml` or brings it one event.
    `client` is the owner, `kokoro` the heart (None before `start`), `loop` the event loop, `websocket` the open
    websocket or None.

    The opcodes are class attributes under the names of the voice documentation. `INVALIDATE_SESSION` keeps its old
    name for 9, which means `RESUMED` today; `CLIENT_CONNECT` keeps its for 12, which is `VIDEO` today (11 is
    `CLIENTS_CONNECT`).
    """

    IDENTIFY: ClassVar[int] = 0
    SELECT_PROTOCOL: ClassVar[int] = 1
    READY: ClassVar[int] = 2
    HEARTBEAT: ClassVar[int] = 3
    SESSION_DESCRIPTION: ClassVar[int] = 4
    SPEAKING: ClassVar[int] = 5
    HEARTBEAT_ACK: ClassVar[int] = 6
    RESUME: ClassVar[int] = 7
    HELLO: ClassVar[int] = 8
    INVALIDATE_SESSION: ClassVar[int] = 9
    RESUMED: ClassVar[int] = 9
    CLIENTS_CONNECT: ClassVar[int] = 11
    CLIENT_CONNECT: ClassVar[int] = 12
    VIDEO: ClassVar[int] = 12
    CLIENT_DISCONNECT: ClassVar[int] = 13
    SESSION_UPDATE: ClassVar[int] = 14
    MEDIA_SINK_WANTS: ClassVar[int] = 15
    VOICE_BACKEND_VERSION: ClassVar[int] = 16
    CHANNEL_OPTIONS_UPDATE: ClassVar[int] = 17
    CLIENT_FLAGS: ClassVar[int] = 18
    SPEED_TEST: ClassVar[int] = 19
    CLIENT_PLATFORM: ClassVar[int] = 20
    DAVE_PREPARE_TRANSITION: ClassVar[int] = 21
    DAVE_EXECUTE_TRANSITION: ClassVar[int] = 22
    DAVE_TRANSITION_READY: ClassVar[int] = 23
    DAVE_PREPARE_EPOCH: ClassVar[int] = 24
    MLS_EXTERNAL_SENDER: ClassVar[int] = 25
    MLS_KEY_PACKAGE: ClassVar[int] = 26
    MLS_PROPOSALS: ClassVar[int] = 27
    MLS_COMMIT_WELCOME: ClassVar[int] = 28
    MLS_ANNOUNCE_COMMIT_TRANSITION: ClassVar[int] = 29
    MLS_WELCOME: ClassVar[int] = 30
    MLS_INVALID_COMMIT_WELCOME: ClassVar[int] = 31

    def __init__(self, voice_client: VoiceClient) -> None:
        self.client = voice_client
        self.kokoro: Kokoro | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.websocket: VoiceWebSocket | None = None
        self._generation = 0
        self._queued = False
        self._outbox = Outbox(lambda: self.loop.time() if self.loop is not None else 0.0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None

    # -- the seed's public names

    @property
    def latency(self) -> float:
        """The last heartbeat's round trip in seconds; `Kokoro.DEFAULT_LATENCY` while none is recorded."""
        return self.kokoro.latency if self.kokoro is not None else Kokoro.DEFAULT_LATENCY

    async def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Put the gateway and its heart on `loop`, the running one; harmless when started already.

        Raises:
            EventNotAllowed: it runs on another loop already.
        """
        if self.loop is None:
            self.loop = loop
            self.kokoro = Kokoro(self)
        elif self.loop is not loop:
            raise EventNotAllowed("start on another event loop", self.client.session.gateway.state)

    async def connect(self) -> None:
        """Join the client's channel and wait until the voice session is ready; the heart beats from Hello on.

        Raises:
            OSError: no connection can be made (`ConnectionFailed` and its kinds).
            ConnectionClosed: the voice server closed the connection.
            WebSocketProtocolError: the voice server broke the protocol.
            InvalidHandshake: TLS or the websocket upgrade was refused.
        """
        await self.client.connect()

    async def send_as_json(self, data: object) -> None:
        """Send `data` as one text frame, in order with everything else that is sent.

        Never raises for a missing, closing or broken socket: the frame is lost, and a loss is an event of its own.
        """
        self._put(frames.encode_json(data))

    async def close(self, *args: object, **kwargs: object) -> None:
        """Leave the channel and release everything; arguments are accepted for the old name's sake and mean nothing."""
        await self.client.close()

    def __repr__(self) -> str:
        session = self.client.session
        return (
            f"<DiscordGatewayVoice {session.gateway.state}, guild {session.shared.guild_id}, "
            f"attempt {session.call.attempts + 1}, last close code {session.gateway.last_close_code}>"
        )

    # -- effects on the websocket, called by the client in the core's order

    def open_socket(self, generation: int, in_turn: bool = False) -> None:
        """Dial, when it is our turn in this process; what happens comes back stamped with `generation`."""
        self._generation = generation
        self._drop()
        self._outbox.begin()
        if self.kokoro is not None:
            self.kokoro.begin()
        if not in_turn:
            wait_s = self.client.system.dials.reserve(self.loop.time(), LONGEST_QUEUE_S) if self.loop else 0.0
            if wait_s != 0.0:
                self._queued = True
                self._feed(generation, DialPostponed(wait_s))
                return
        self._runner = self._spawn(self._run(generation))

    def close_socket(self, code: int) -> None:
        """Close with a close frame; the close comes back as an event. What still waits is not sent any more."""
        self._outbox.end()
        if self.websocket is None:
            self._drop()
            self._feed(self._generation, SocketClosed(None))
        else:
            self._spawn(self._terminate(code))

    def abort_socket(self) -> None:
        """Drop the socket, or the dial, without a close handshake."""
        self._drop()

    def forget(self) -> None:
        """The session is over: what waits belongs to it."""
        self._outbox.clear()

    def send(self, effect: Sendable) -> None:
        """Carry out one effect that sends a frame."""
        match effect:
            case SendIdentify(max_dave_protocol_version=version):
                self._identify(version)
            case SendResume(seq_ack=seq_ack):
                self._resume(seq_ack)
            case SendSelectProtocol(address=address, port=port, mode=mode):
                self._select_protocol(address, port, mode)
            case SendHeartbeat(seq_ack=seq_ack):
                self._beat(seq_ack)
            case SendSpeaking(flags=flags, ssrc=ssrc):
                if self._alive:
                    self._outbox.speaking(frames.encode_text(Opcode.SPEAKING, frames.speaking(flags, ssrc)))
            case SendTransitionReady(transition_id=transition_id):
                data = frames.transition_ready(transition_id)
                self._put(frames.encode_text(Opcode.DAVE_TRANSITION_READY, data))
            case SendInvalidCommit(transition_id=transition_id):
                data = frames.invalid_commit_welcome(transition_id)
                self._put(frames.encode_text(Opcode.MLS_INVALID_COMMIT_WELCOME, data))
            case SendKeyPackage(data=payload):
                self._put(frames.encode_binary(Opcode.MLS_KEY_PACKAGE, payload))
            case SendCommitWelcome(data=payload):
                self._put(frames.encode_binary(Opcode.MLS_COMMIT_WELCOME, payload))

    # -- the seed's internal names: the carrying-out of one effect each

    def _identify(self, max_dave_protocol_version: int = 1) -> None:
        """Op 0, with the credentials that the client holds."""
        credentials = self.client.credentials
        data = frames.identify(
            credentials.guild_id,
            credentials.user_id,
            credentials.session_id,
            credentials.token,
            max_dave_protocol_version,
            channel_id=credentials.channel_id if self.client.names_channel else None,
        )
        if self._alive:
            self._outbox.identify(frames.encode_secret_text(Opcode.IDENTIFY, data))

    def _resume(self, seq_ack: int | None = None) -> None:
        """Op 7; without `seq_ack` the last number seen."""
        credentials = self.client.credentials
        last = self.client.session.shared.sequence.last if seq_ack is None else seq_ack
        data = frames.resume(credentials.guild_id, credentials.session_id, credentials.token, last)
        if self._alive:
            self._outbox.resume(frames.encode_secret_text(Opcode.RESUME, data))

    def _select_protocol(self, ip: str, port: int, mode: str | None = None) -> None:
        """Op 1 with our public address; without `mode` the chosen one."""
        chosen = mode if mode is not None else self.client.session.gateway.mode
        self._put(frames.encode_text(Opcode.SELECT_PROTOCOL, frames.select_protocol(ip, port, chosen)))

    def _beat(self, seq_ack: int | None = None) -> None:
        """Op 3; without `seq_ack` the last number seen."""
        if self.kokoro is not None and self._alive:
            last = self.client.session.shared.sequence.last if seq_ack is None else seq_ack
            self._outbox.heartbeat(self.kokoro.beat(last))

    def _initial_connection(self, data: Any) -> None:
        """Take Ready's `d`, a mapping as the server sends it: the path for media is opened from it."""
        message = frames.decode_text(frames.encode_text(Opcode.READY, data))
        self._feed(self._generation, message.payload)

    def _send_silente_packet(self) -> None:
        """One frame of silence, as after speech; nothing where no frame may leave."""
        self.client.sender.send_silence()

    def _set_speaking(self, is_speaking: bool) -> None:
        """Op 5 with the microphone flag or 0."""
        self.send(SendSpeaking(1 if is_speaking else 0, self.client.session.shared.ssrc))

    async def _terminate(self, *args: object, **kwargs: object) -> None:
        """Close the websocket with a close frame (the first argument is its code, 1000 by default)."""
        code = args[0] if args and isinstance(args[0], int) else 1000
        websocket = self.websocket
        if websocket is not None:
            await websocket.close(code)

    async def _poll_event(self) -> bool:
        """Take one frame of the websocket; True when it was the last."""
        websocket = self.websocket
        if websocket is None:
            return True
        generation = self._generation
        try:
            message = await websocket.receive()
        except MalformedFrame:
            self._feed(generation, FrameRejected(None))
            return False
        except ConnectionClosed as closed:
            self._feed(generation, SocketClosed(closed.code))
            return True
        return self._received_message(message, generation)

    def _received_message(self, message: str | Secret[str] | bytes, generation: int | None = None) -> bool:
        """Decode one frame and feed it to the machines; True when the connection must end, which no frame asks for."""
        stamp = self._generation if generation is None else generation
        try:
            decoded = frames.decode_binary(message) if isinstance(message, bytes) else frames.decode_text(message)
        except MalformedFrame as error:
            self._feed(stamp, FrameRejected(error.op), error.seq)
            return False
        if isinstance(decoded.payload, HeartbeatAcked) and self.kokoro is not None:
            self.kokoro.answered(decoded.payload.nonce)
        self._feed(stamp, decoded.payload, decoded.seq)
        return False

    # -- one websocket's life

    async def _run(self, generation: int) -> None:
        try:
            websocket = await self._dial()
        except ConnectionFailed as error:
            self._feed(generation, _what_failed(error))
            return
        except Exception as error:
            self._failed(generation, error)
            return
        self.websocket = websocket
        writer = self._spawn(self._write(websocket))
        try:
            self._feed(generation, SocketOpened())
            await self._read()
        except Exception as error:
            self._failed(generation, error)
        finally:
            writer.cancel()
            if self.websocket is websocket:
                self.websocket = None
            self._release(websocket)

    def _release(self, websocket: VoiceWebSocket) -> None:
        """Free it in a task of its own, since the present one may be cancelled, and again where that one is."""
        task = self._spawn(websocket.release())
        task.add_done_callback(lambda done: self._release(websocket) if done.cancelled() else None)

    def _failed(self, generation: int, error: Exception) -> None:
        _log.error("reading the voice websocket failed", exc_info=error)
        self._feed(generation, ReaderFailed(type(error).__name__))

    async def _dial(self) -> VoiceWebSocket:
        session = self.client.session
        endpoint = parse_endpoint(session.gateway.endpoint, session.shared.options.allowed_hosts)
        return await VoiceWebSocket.connect(endpoint.url, self.client.tls, self.client.system)

    async def _read(self) -> None:
        """Take frames until the last; many at once are taken in slices, so that the heart beats between them."""
        assert self.loop is not None
        slice_ends = self.loop.time() + SLICE_S
        while not await self._poll_event():
            if self.loop.time() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = self.loop.time() + SLICE_S

    async def _write(self, websocket: VoiceWebSocket) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await websocket.send(await self._outbox.get())

    @property
    def _alive(self) -> bool:
        """Is there a websocket, or will there be one, that what is sent now can leave on?"""
        return self._queued or (self._runner is not None and not self._runner.done())

    def _put(self, frame: str | bytes) -> None:
        if self._alive and not self._outbox.put(frame):
            self._drop()
            self._feed(self._generation, SocketClosed(None))

    def _drop(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None
        self._queued = False
        self.websocket = None

    def _feed(self, generation: int, event: Event, seq: int | None = None) -> None:
        self.client.feed(Stamped("websocket", generation, event, seq))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self.loop is not None
        task: asyncio.Task[None] = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def join_tasks(self) -> None:
        """Wait until every task of the gateway has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _what_failed(error: ConnectionFailed) -> Event:
    """What a dial that failed means."""
    status = error.status if isinstance(error, InvalidHandshake) else None
    if isinstance(error, CertificateRefused):
        return SocketRefused(error)
    if status == TOO_MANY_REQUESTS:
        return SocketRateLimited(error)
    if status is not None and status >= SERVER_TROUBLE:
        return SocketUnavailable(error)
    return SocketFailed(error)
