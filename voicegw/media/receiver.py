"""The way in, second half: credit to a user, decrypt end to end, put in order, conceal what is lost, decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from voicegw.errors import NotAudio, VoiceError
from voicegw.media.opener import PacketOpener
from voicegw.media.opus import OpusDecoder, packet_samples
from voicegw.media.sinks import Sink
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.rtp import SAMPLE_RATE, SILENCE_FRAME

REORDER_LIMIT = 3
CONCEAL_LIMIT = 5
RESTART_GAP = 3000
HELD_PACKETS, HELD_SSRCS, HELD_S = 10, 64, 0.2


@dataclass(slots=True)
class UserStats:
    """What was heard of one user; `seconds` is the audio that left for the sink.

    `lost` packets never came, `concealed` of them were covered, `silence` are frames of silence, `errors` frames that
    could not be decrypted or decoded, `late` packets that came after their turn.
    """

    packets: int = 0
    lost: int = 0
    concealed: int = 0
    silence: int = 0
    errors: int = 0
    late: int = 0
    seconds: float = 0.0


class StreamReceiver:
    """Takes the datagrams of one voice session; decoded audio goes to `sink` in order, 20 ms and more at a time.

    `decrypt(user_id, frame)` is the end-to-end step, None where the call has version 0. No state changes before a
    datagram has proved authentic. A gap is awaited for three packets, then covered.
    """

    def __init__(self, now: Callable[[], float], on_nonces_meet: Callable[[], None] = lambda: None) -> None:
        self._now = now
        self.opener = PacketOpener(now, on_nonces_meet)
        self._decrypt: Callable[[int, bytes], bytes] | None = None
        self._users: dict[int, int] = {}
        self._streams: dict[int, _Stream] = {}
        self._held: dict[int, deque[tuple[float, int, bytes]]] = {}
        self.sink: Sink | None = None
        self.stats: dict[int, UserStats] = {}
        self.counters = self.opener.counters
        self.reports = self.opener.reports

    # -- settings

    def use_key(self, cipher: TransportCipher) -> None:
        """Open datagrams with this key; the one before it serves 10 s longer."""
        self.opener.use_key(cipher)

    def drop_key(self) -> None:
        """The session is over: what has come is delivered, then keys and SSRCs are forgotten."""
        self.flush()
        self.opener.drop_key()
        self._users.clear()
        self._streams.clear()
        self._held.clear()

    def use_decrypt(self, decrypt: Callable[[int, bytes], bytes] | None) -> None:
        """Take the end-to-end step."""
        self._decrypt = decrypt

    def map_ssrc(self, ssrc: int, user_id: int) -> None:
        """Credit `ssrc` to `user_id`; packets that came before are heard if they are not older than 0.2 s."""
        if self._users.get(ssrc) == user_id:
            return
        if ssrc in self._users:
            self.opener.forget_stream(ssrc)
        self._streams.pop(ssrc, None)
        self._users[ssrc] = user_id
        oldest = self._now() - HELD_S
        for at, sequence, payload in self._held.pop(ssrc, ()):
            if at >= oldest:
                self._take(user_id, ssrc, sequence, payload)

    def forget_user(self, user_id: int) -> None:
        """The user left; statistics stay."""
        for ssrc in [ssrc for ssrc, user in self._users.items() if user == user_id]:
            del self._users[ssrc]
            stream = self._streams.pop(ssrc, None)
            if stream is not None:
                stream.flush(self.sink)

    def flush(self) -> None:
        """Deliver what waits for packets that will not come any more."""
        for stream in self._streams.values():
            stream.flush(self.sink)

    # -- packets

    def datagram(self, data: bytes) -> None:
        """Take one datagram; whatever its bytes are, nothing is raised."""
        opened = self.opener.open(data)
        if opened is None:
            return
        view, payload = opened
        user_id = self._users.get(view.ssrc)
        if user_id is None:
            self._hold(view.ssrc, view.sequence, payload)
        else:
            self._take(user_id, view.ssrc, view.sequence, payload)

    def _hold(self, ssrc: int, sequence: int, payload: bytes) -> None:
        self.counters["before its user was known"] += 1
        if ssrc not in self._held and len(self._held) >= HELD_SSRCS:
            del self._held[next(iter(self._held))]
        waiting = self._held.setdefault(ssrc, deque(maxlen=HELD_PACKETS))
        waiting.append((self._now(), sequence, payload))

    def _take(self, user_id: int, ssrc: int, sequence: int, payload: bytes) -> None:
        stream = self._streams.get(ssrc)
        if stream is None:
            stats = self.stats.setdefault(user_id, UserStats())
            stream = self._streams[ssrc] = _Stream(user_id, stats)
        stream.take(sequence, payload, self._decrypt, self.sink)


class _Stream:
    """One SSRC: order by extended sequence number, then decode."""

    __slots__ = ("_decoder", "_next", "_waiting", "stats", "user_id")

    def __init__(self, user_id: int, stats: UserStats) -> None:
        self.user_id = user_id
        self.stats = stats
        self._decoder: OpusDecoder | None = None
        self._next: int | None = None
        self._waiting: dict[int, bytes | None] = {}

    def take(
        self, sequence: int, payload: bytes, decrypt: Callable[[int, bytes], bytes] | None, sink: Sink | None
    ) -> None:
        """One packet; None waits in the place of a frame that cannot be heard."""
        expected = self._next
        if expected is None:
            expected = self._next = sequence + (1 << 16)
        extended = expected + ((sequence - expected + 0x8000) & 0xFFFF) - 0x8000
        if abs(extended - expected) > RESTART_GAP:  # the sender began anew
            self.flush(sink)
            self._next = expected = extended = sequence + (1 << 16)
        if extended < expected or extended in self._waiting:
            self.stats.late += 1
            return
        self.stats.packets += 1
        self._waiting[extended] = self._decrypted(payload, decrypt)
        while self._next in self._waiting:
            self._play(self._waiting.pop(self._next), sink)
            self._next += 1
        while len(self._waiting) > REORDER_LIMIT:
            self._bridge(sink)

    def flush(self, sink: Sink | None) -> None:
        """Deliver all that waits."""
        while self._waiting:
            self._bridge(sink)

    def _decrypted(self, payload: bytes, decrypt: Callable[[int, bytes], bytes] | None) -> bytes | None:
        if not payload:
            return None
        try:
            frame = payload if decrypt is None else decrypt(self.user_id, payload)
        except VoiceError:
            self.stats.errors += 1
            return None
        if is_dave_frame(frame):  # still encrypted: noise to a decoder
            self.stats.errors += 1
            return None
        return frame

    def _bridge(self, sink: Sink | None) -> None:
        """Cover the gap before the first packet that waits, then play on."""
        assert self._next is not None
        first = min(self._waiting)
        missing = first - self._next
        self.stats.lost += missing
        following = self._waiting[first]
        for index in range(missing):
            if index < CONCEAL_LIMIT:
                self._conceal(following if index == missing - 1 else None, sink)
        self._next = first
        while self._next in self._waiting:
            self._play(self._waiting.pop(self._next), sink)
            self._next += 1

    def _play(self, frame: bytes | None, sink: Sink | None) -> None:
        if frame is None:
            return
        if frame == SILENCE_FRAME:
            self.stats.silence += 1
        try:
            self.stats.seconds += packet_samples(frame) / SAMPLE_RATE
            if sink is not None:
                sink.write(self.user_id, self._decoding().decode(frame), False)
        except NotAudio:
            self.stats.errors += 1

    def _conceal(self, following: bytes | None, sink: Sink | None) -> None:
        self.stats.concealed += 1
        self.stats.seconds += 0.02
        if sink is None:
            return
        try:
            decoder = self._decoding()
            sink.write(self.user_id, decoder.decode_fec(following) if following else decoder.conceal(), True)
        except NotAudio:
            self.stats.errors += 1

    def _decoding(self) -> OpusDecoder:
        if self._decoder is None:
            self._decoder = OpusDecoder()
        return self._decoder
