"""The way in, first half: is a datagram authentic, has it come before, and what is its payload?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from voicegw.errors import PacketRejected
from voicegw.wire.encryption import SUFFIX_BYTES, TransportCipher
from voicegw.wire.replay import NonceWindow, StreamWindows
from voicegw.wire.rtp import (
    HEADER,
    HEADER_BYTES,
    MAX_DATAGRAM,
    MIN_DATAGRAM,
    OPUS_PAYLOAD_TYPE,
    RTCP_AAD_BYTES,
    ReportBlock,
    kind_of,
    parse_rtcp,
    parse_rtp,
    strip,
)

OLD_KEY_S = 10.0
REPORTS_KEPT = 4000
PLAIN_HEADER = 0x80  # version 2 without padding, extension and CSRCs
NEAR_OUR_HALF = 0x7F  # the highest byte of nonces that are ours or near to ours


class PacketOpener:
    """Opens the datagrams of one voice session. Nothing changes before a datagram has proved authentic.

    `authentic` counts those that have; each of them is given out once. `counters` says what was put aside and why;
    `reports` is what the other end says of our own streams, by SSRC. `on_nonces_meet` is called, once a key, where the
    server is about to use nonces that we have used.
    """

    def __init__(self, now: Callable[[], float], on_nonces_meet: Callable[[], None] = lambda: None) -> None:
        self._now = now
        self._on_nonces_meet = on_nonces_meet
        self._key: _Key | None = None
        self._old: _Key | None = None
        self._old_until = 0.0
        self._streams = StreamWindows()
        self.authentic = 0
        self.counters: Counter[str] = Counter()
        self.reports: dict[int, ReportBlock] = {}

    def use_key(self, cipher: TransportCipher) -> None:
        """Open datagrams with this key; the one before it serves 10 s longer."""
        if self._key is not None:
            self._old, self._old_until = self._key, self._now() + OLD_KEY_S
        self._key = _Key(cipher)

    def wipe_old_key(self) -> None:
        """Forget the key before, where its time is over."""
        if self._old is not None and self._now() >= self._old_until:
            self._old = None

    def drop_key(self) -> None:
        """The session is over."""
        self._key = self._old = None
        self._streams.clear()

    def forget_stream(self, ssrc: int) -> None:
        """The SSRC is somebody else's now."""
        self._streams.forget(ssrc)

    def open(self, data: bytes) -> tuple[int, int, bytes] | None:
        """SSRC, sequence number and payload of an Opus packet; None for everything else, which is counted."""
        key = self._key
        if key is None or not MIN_DATAGRAM <= len(data) <= MAX_DATAGRAM or kind_of(data) != "rtp":
            self._no_media(key, data)
            return None
        first, second, sequence, timestamp_ticks, ssrc = HEADER.unpack_from(data)
        if second & 0x7F != OPUS_PAYLOAD_TYPE:
            self.counters["other payload types"] += 1
            return None
        try:
            view = parse_rtp(data) if first != PLAIN_HEADER else None
            key, plain = self._authentic(key, data, HEADER_BYTES if view is None else view.aad_length)
            if not self._streams.take(key.media, data[-SUFFIX_BYTES:], ssrc, sequence, timestamp_ticks):
                self.counters["replayed"] += 1
                return None
            return ssrc, sequence, plain if view is None else strip(plain, view)
        except PacketRejected:
            self.counters["rejected"] += 1
            return None

    def _no_media(self, key: _Key | None, data: bytes) -> None:
        if len(data) > MAX_DATAGRAM:
            self.counters["too long"] += 1
        elif key is None or kind_of(data) == "control":
            self.counters["control"] += 1
        else:
            self._report(key, data)

    def _report(self, key: _Key, data: bytes) -> None:
        try:
            key, plain = self._authentic(key, data, RTCP_AAD_BYTES)
        except PacketRejected:
            self.counters["rejected"] += 1
            return
        if key.control.take(data[-SUFFIX_BYTES:]) in ("seen", "old"):
            self.counters["replayed"] += 1
            return
        self.counters["rtcp"] += 1
        for block in parse_rtcp(data[:RTCP_AAD_BYTES] + plain):
            if block.ssrc in self.reports or len(self.reports) < REPORTS_KEPT:
                self.reports[block.ssrc] = block

    def _authentic(self, key: _Key, data: bytes, aad_length: int) -> tuple[_Key, bytes]:
        try:
            plain = key.cipher.open(data, aad_length)
        except PacketRejected:
            self.wipe_old_key()
            if self._old is None:
                raise
            key = self._old
            plain = key.cipher.open(data, aad_length)
        else:
            if data[-1] >= NEAR_OUR_HALF or key.counter.leaving:
                self._keep_apart(key, data)
        self.authentic += 1
        return key, plain

    def _keep_apart(self, key: _Key, data: bytes) -> None:
        theirs = int.from_bytes(data[-SUFFIX_BYTES:], "little")
        if key.counter.may_meet(theirs) and not key.counter.keep_apart(theirs) and not key.met:
            key.met = True
            self._on_nonces_meet()


class _Key:
    """A key and which of its nonces have come. A server may count its reports apart from media."""

    __slots__ = ("cipher", "control", "counter", "media", "met")

    def __init__(self, cipher: TransportCipher) -> None:
        self.cipher = cipher
        self.counter = cipher.counter
        self.media = NonceWindow()
        self.control = NonceWindow()
        self.met = False
