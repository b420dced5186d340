"""The way in, first half: is a datagram authentic, and what is its payload without padding and extension?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from voicegw.errors import PacketRejected
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.rtp import (
    OPUS_PAYLOAD_TYPE,
    RTCP_AAD_BYTES,
    ReportBlock,
    RtpView,
    kind_of,
    parse_rtcp,
    parse_rtp,
    strip,
)

OLD_KEY_S: Final = 10.0


class PacketOpener:
    """Opens the datagrams of one voice session. Nothing changes before a datagram has proved authentic.

    `counters` says what was put aside and why; `reports` is what the other end says of our own streams, by SSRC.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._cipher: TransportCipher | None = None
        self._old: tuple[TransportCipher, float] | None = None
        self.counters: Counter[str] = Counter()
        self.reports: dict[int, ReportBlock] = {}

    def use_key(self, cipher: TransportCipher) -> None:
        """Open datagrams with this key; the one before it serves 10 s longer."""
        if self._cipher is not None:
            self._old = (self._cipher, self._now() + OLD_KEY_S)
        self._cipher = cipher

    def drop_key(self) -> None:
        """The session is over."""
        self._cipher = None
        self._old = None

    def open(self, data: bytes) -> tuple[RtpView, bytes] | None:
        """The header and the payload of an Opus packet; None for everything else, which is counted."""
        kind = kind_of(data)
        if kind == "control" or self._cipher is None:
            self.counters["control"] += 1
            return None
        try:
            if kind == "rtcp":
                plain = data[:RTCP_AAD_BYTES] + self._decrypt(data, RTCP_AAD_BYTES)
                for block in parse_rtcp(plain):
                    self.reports[block.ssrc] = block
                self.counters["rtcp"] += 1
                return None
            view = parse_rtp(data)
            if view.payload_type != OPUS_PAYLOAD_TYPE:
                self.counters["other payload types"] += 1
                return None
            return view, strip(self._decrypt(data, view.aad_length), view)
        except PacketRejected:
            self.counters["rejected"] += 1
            return None

    def _decrypt(self, data: bytes, aad_length: int) -> bytes:
        assert self._cipher is not None
        try:
            return self._cipher.open(data, aad_length)
        except PacketRejected:
            if self._old is None:
                raise
            old, until = self._old
            if self._now() >= until:
                self._old = None
                raise
            return old.open(data, aad_length)
