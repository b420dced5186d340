"""What must hold in every simulated call, watched from outside: on the wire, at the server, in each client's states.

A `Watch` collects violations instead of raising them, since it is called in the middle of other people's work:

    watch = Watch(sim)
    ...
    watch.check()    # raises Violation with the first
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from voicegw.effects import Effect, ReleaseStream, UseKey
from voicegw.events import CallThawed, Event, Stamped
from voicegw.server import VoiceServer
from voicegw.session import E2EEPolicy
from voicegw.testing.invariants import Violation, forbidden
from voicegw.wire.dave_frames import TAG_BYTES, decode_uleb128, is_dave_frame
from voicegw.wire.rtp import SAMPLE_RATE, kind_of, parse_rtp

if TYPE_CHECKING:
    from voicegw.server.connection import Connection
    from voicegw.server.session import ServerSession
    from voicegw.testing.network import Address, Host
    from voicegw.testing.simulation import SimulatedClient, Simulation

OLD_PAIR = 2
DIAL_BUDGETS = ((10, 1.0), (300, 600.0))
CLOCK_SLACK_S = 0.14
CATCH_UP_FRAMES = 3
ALLOWED_SUFFIX = ".discord.media"


class Watch(logging.Handler):
    """Watches one simulation from its beginning.

    Transport and E2EE nonces are spent once; speech leaves encrypted where the policy says so; numbers are consecutive
    and timestamps follow the clock; armed timers are the deadlines of the states; sockets, dials, identifies and
    resumes are bounded; only allowed hosts are dialled; no secret is logged. `expected_errors` texts may be logged as
    errors.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.DEBUG)
        self.violations: list[str] = []
        self.events = 0
        self.expected_errors = {"Error handling request"}  # the server's upgrade of a connection that is gone
        self.lines: list[str] = []
        self._simulation = simulation
        self._spent: set[tuple[object, int]] = set()
        self._by_host: dict[Host, SimulatedClient] = {}
        self._keys: dict[SimulatedClient, bytes] = {}
        self._streams: dict[SimulatedClient, _Numbers] = {}
        self._groups: list[object] = []
        self._dials: dict[Host, deque[float]] = defaultdict(lambda: deque(maxlen=400))
        self._identified: Counter[tuple[str, str]] = Counter()
        self._resumed: Counter[str] = Counter()
        self._thawed: Counter[str] = Counter()
        self._last: dict[int, tuple[int, int]] = {}
        self._canaries: set[str] = set()
        self._sessions: dict[ServerSession, None] = {}
        self._loggers = [logging.getLogger(name) for name in ("voicegw", "aiohttp", "asyncio")]
        simulation.on_event = self._after_event
        simulation.on_effect = self._before_effect
        simulation.network.on_datagram = self._datagram
        simulation.network.on_dial = self._dial

    def __enter__(self) -> Watch:
        self._levels = [(logger.level, logger.propagate) for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self)
            logger.setLevel(logging.DEBUG)
            logger.propagate = False
        return self

    def __exit__(self, *exception: object) -> None:
        for logger, (level, propagate) in zip(self._loggers, self._levels, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate

    # -- what it is told about

    def client(self, client: SimulatedClient) -> None:
        """A client that it shall watch; to be called before it connects."""
        self._by_host[client.system] = client
        group = client._group
        encrypt = group.encrypt

        def watched(frame: bytes) -> bytes:
            sealed = encrypt(frame)
            if is_dave_frame(sealed):
                self._spend((self._group_number(group._session), group.epoch), _dave_nonce(sealed), "E2EE")
            return sealed

        group.encrypt = watched  # type: ignore[method-assign]

    def server(self, server: VoiceServer) -> None:
        """A server that it shall watch."""
        identify, resume, attached = server.identify, server.resume, server.attached

        def identify_watched(fields: Mapping[str, Any]) -> ServerSession:
            pair = (str(fields.get("session_id")), str(fields.get("token")))
            self._secret(*pair)
            self._identified[pair] += 1
            if self._identified[pair] > 1 + self._thawed[pair[0]]:
                self.violate("V10: a pair of session id and token was used for a second identify")
            session = identify(fields)
            self._resumed[pair[0]] = 0
            return session

        def resume_watched(fields: Mapping[str, Any]) -> ServerSession:
            session_id = str(fields.get("session_id"))
            self._resumed[session_id] += 1
            if self._resumed[session_id] > 1:
                self.violate("V10: a second resume after one loss")
            return resume(fields)

        def attached_watched(session: ServerSession, connection: Connection) -> None:
            self._sessions[session] = None
            self._resumed[session.credentials.session_id.reveal()] = 0
            attached(session, connection)

        server.identify = identify_watched  # type: ignore[method-assign]
        server.resume = resume_watched  # type: ignore[method-assign]
        server.attached = attached_watched  # type: ignore[method-assign]

    def violate(self, what: str) -> None:
        """Something does not hold."""
        self.violations.append(f"at {self._simulation.loop.now:.6f} s: {what}")

    def check(self) -> None:
        """Raise the first violation.

        Raises:
            Violation: there is one.
        """
        if self.violations:
            raise Violation(self.violations[0])

    def finish(self, texts: Iterable[str]) -> None:
        """After the run: no secret in `texts`, in what was logged, or in the trace; nobody was credited falsely."""
        users = {client.user_id for client in self._simulation.clients}
        for client in self._simulation.clients:
            strangers = set(client.stats.users) - users
            if strangers:
                self.violate(f"V13: {client!r} credits packets to {strangers}")
            texts_of_client = (
                repr(client),
                repr(client.gateway),
                repr(client.error),
                str(client.why()),
                repr(client.stats),
            )
            self.lines.extend(texts_of_client)
            if client.flight_recorder is not None:
                self.lines.append(str(list(client.flight_recorder.lines())))
        strict = {client.user_id for client in self._simulation.clients if _requires(client)}
        for session in self._sessions:
            clear = session.counters["media in the clear"]
            if clear and session.user_id in strict:
                self.violate(f"V09: {clear} frames of {session.user_id} came in the clear")
        self.lines.extend(texts)
        written = "\n".join((*self.lines, *self._simulation.trace))
        for canary in self._canaries:
            if canary in written:
                line = next(line for line in (*self.lines, *self._simulation.trace) if canary in line)
                self.violate(f"V18: a secret is in {line[:200]!r}")

    # -- hooks

    def emit(self, record: logging.LogRecord) -> None:
        """A line was logged."""
        line = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            line += f" {record.exc_info[1]!r}"
        self.lines.append(line)
        if record.levelno >= logging.ERROR and not any(text in line for text in self.expected_errors):
            self.violate(f"V01: {record.name} logged an error: {line}")

    def _after_event(self, client: SimulatedClient, event: Event | Stamped) -> None:
        self.events += 1
        if isinstance(event, CallThawed) and event.snapshot.session_id is not None:
            session_id = event.snapshot.session_id.reveal()
            self._thawed[session_id] += 1  # where it cannot be resumed, its pair serves another Identify
            self._resumed[session_id] = 0
        if client._busy:
            return
        for what in forbidden(client.session):
            self.violate(f"V02: after {event}: {what}; {client.states}")
        if client._timers is not None and set(client._timers._handles) != set(client.session.shared.timers):
            armed, wanted = list(client._timers._handles), list(client.session.shared.timers)
            self.violate(f"V02: after {event}: timers {armed} are armed, {wanted} should be")
        if client.states["call"] == "closed" and client.sender.open:
            self.violate("V16: the stream is open after the end")
        sockets = [one for one in self._simulation.network.descriptors.values() if one.host is client.system]
        if len(sockets) > self._most_sockets(client.system):
            self.violate(f"V05: {len(sockets)} UDP sockets are open")

    def _before_effect(self, client: SimulatedClient, effect: Effect) -> None:
        if isinstance(effect, UseKey):
            key = effect.secret_key.reveal()
            self._keys[client] = hashlib.sha256(key).digest()
            self._secret(
                key.hex(),
                base64.b64encode(key).decode(),
                str(list(key)),
                str(list(key))[1:-1],
                repr(key),
                repr(key)[2:-1],
            )
        elif isinstance(effect, ReleaseStream) and not effect.encrypted and _requires(client):
            self.violate(f"V09: speech would leave in the clear; {client.states}")

    def _datagram(self, host: Host, target: Address, data: bytes) -> None:
        if kind_of(data) != "rtp":
            return
        client = self._by_host.get(host)
        if client is None:
            return  # the server's side
        self._spend(self._keys.get(client), int.from_bytes(data[-4:], "little"), "transport")
        view = parse_rtp(data)
        before = self._last.get(view.ssrc)
        if before is not None and not _follows(view.sequence, before[0], 16):
            self.violate(f"V12: number {view.sequence} of {view.ssrc} came after {before[0]}, of whichever process")
        if before is not None and _follows(before[1], view.timestamp_ticks, 32):
            self.violate(f"V11: the timestamp of {view.ssrc} went back from {before[1]} to {view.timestamp_ticks}")
        self._last[view.ssrc] = (view.sequence, view.timestamp_ticks)
        now = host.network.loop.now - host.asleep_s
        numbers = self._streams.get(client)
        following = _Numbers(view.ssrc, view.sequence, view.timestamp_ticks, now, numbers)
        self._streams[client] = following
        if numbers is not None and view.ssrc == numbers.ssrc and (view.sequence - numbers.sequence) & 0xFFFF != 1:
            self.violate(f"V12: {client.user_id} sent number {view.sequence} after {numbers.sequence}")
        if following.drift_s > CLOCK_SLACK_S or following.late > CATCH_UP_FRAMES:
            self.violate(f"V11: the timestamps of {client.user_id} are {following.drift_s:.3f} s away from the clock")

    def _dial(self, host: Host, what: str) -> None:
        if not what.endswith(ALLOWED_SUFFIX) and what not in host.network.names.get(_known_name(host, what), ()):
            self.violate(f"V19: {what!r} was dialled")
        if what.endswith(ALLOWED_SUFFIX):
            return  # a name that is looked up; the address follows
        dials = self._dials[host]
        dials.append(host.network.loop.now)
        for most, window_s in DIAL_BUDGETS:
            if len(dials) > most and dials[-1] - dials[-1 - most] < window_s - 1e-6:
                self.violate(f"V17: more than {most} dials in {window_s:g} s")
        streams = [one for one in host.network.connections if host in one.hosts and not one.ends[0].closed]
        if len(streams) > self._most_sockets(host):
            self.violate(f"V05: {len(streams)} control sockets are open")

    def _most_sockets(self, host: Host) -> int:
        return OLD_PAIR * sum(client.system is host for client in self._simulation.clients)

    def _spend(self, key: object, nonce: int, what: str) -> None:
        if key is None:
            self.violate(f"V07: a {what} packet without a known key")
        elif (key, nonce) in self._spent:
            self.violate(f"V07: {what} nonce {nonce} was used twice under one key")
        self._spent.add((key, nonce))

    def _group_number(self, session: object) -> int:
        for number, known in enumerate(self._groups):
            if known is session:
                return number
        self._groups.append(session)  # kept alive, so that its place in memory is not another's later
        return len(self._groups) - 1

    def _secret(self, *texts: str) -> None:
        for text in texts:
            self._canaries |= {text, text.encode().hex(), base64.b64encode(text.encode()).decode().rstrip("=")[:-1]}


class _Numbers:
    """A packet of a client, how far its timestamp is ahead of the clock, and how many in a row have been late.

    After a stall the first frames that were missed leave late, with the timestamps of their time.
    """

    __slots__ = ("at", "count", "drift_s", "late", "sequence", "ssrc", "timestamp")

    def __init__(self, ssrc: int, sequence: int, timestamp: int, at: float, before: _Numbers | None) -> None:
        self.ssrc = ssrc
        self.sequence = sequence
        self.timestamp = timestamp
        self.at = at
        self.drift_s = 0.0
        self.late = self.count = 0
        if before is not None:
            media_s = ((timestamp - before.timestamp) & 0xFFFFFFFF) / SAMPLE_RATE
            self.drift_s = before.drift_s + media_s - (at - before.at)
            self.count = before.count + 1
            if self.count <= CATCH_UP_FRAMES and self.drift_s > CLOCK_SLACK_S:
                self.drift_s = 0.0  # it was the first ones that were late
            if self.drift_s < -CLOCK_SLACK_S:
                self.late = before.late + 1 if at - before.at < CLOCK_SLACK_S else 1  # each stall has its own


def _follows(number: int, before: int, bits: int) -> bool:
    return 0 < (number - before) % (1 << bits) < 1 << (bits - 1)


def _requires(client: SimulatedClient) -> bool:
    return client.session.shared.options.policy is E2EEPolicy.REQUIRE


def _dave_nonce(frame: bytes) -> int:
    nonce = decode_uleb128(frame[:-3], len(frame) - frame[-3] + TAG_BYTES)
    assert nonce is not None
    return nonce[0]


def _known_name(host: Host, address: str) -> str:
    return next((name for name, addresses in host.network.names.items() if address in addresses), "")
