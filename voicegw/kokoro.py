"""Kokoro, the heart of a voice gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from voicegw.wire import frames
from voicegw.wire.opcodes import Opcode

if TYPE_CHECKING:
    from voicegw.gateway import DiscordGatewayVoice

MAX_OUTSTANDING = 8


class Kokoro:
    """Beats when the heartbeat machine says so, and measures how long the answer takes.

    `latency` is the last round trip in seconds; `DEFAULT_LATENCY` while none is recorded. The schedule, and what
    happens when no answer comes, are rows of `states/heartbeat.toml`.
    """

    DEFAULT_LATENCY: ClassVar[float] = 9999.0

    def __init__(self, gateway: DiscordGatewayVoice) -> None:
        self.gateway = gateway
        self.latency = self.DEFAULT_LATENCY
        self.beats = 0
        self.answers = 0
        self._outstanding: dict[int, float] = {}

    @property
    def beating(self) -> bool:
        """Is the heart at work?"""
        heartbeat = self.gateway.client.session.heartbeat
        return heartbeat.state != "stopped"

    @property
    def interval(self) -> float:
        """Seconds from beat to beat."""
        return self.gateway.client.session.heartbeat.interval_s

    def beat(self, seq_ack: int) -> str:
        """Make the next heartbeat; its nonce is the time in ms, and one that is not outstanding yet."""
        nonce = self.gateway.client.system.wall_ms()
        while nonce in self._outstanding:
            nonce += 1
        while len(self._outstanding) >= MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
        self._outstanding[nonce] = self._now()
        self.beats += 1
        return frames.encode_text(Opcode.HEARTBEAT, frames.heartbeat(nonce, seq_ack))

    def begin(self) -> None:
        """A new websocket: what was asked on the one before is not answered any more."""
        self._outstanding.clear()

    def answered(self, nonce: int | None) -> None:
        """Take the server's answer; only one that is outstanding tells a latency."""
        self.answers += 1
        sent_at = self._outstanding.pop(nonce, None) if nonce is not None else None
        if sent_at is not None:
            self.latency = self._now() - sent_at

    def _now(self) -> float:
        return self.gateway.loop.time() if self.gateway.loop is not None else 0.0

    def __repr__(self) -> str:
        latency = "unknown" if self.latency == self.DEFAULT_LATENCY else f"{self.latency * 1000:.1f} ms"
        return f"<Kokoro {self.gateway.client.session.heartbeat.state}, latency {latency}>"
