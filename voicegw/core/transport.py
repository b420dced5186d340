"""The UDP path's session: `states/transport.toml`."""

from __future__ import annotations

from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.core.signals import DiscoveryFailed, MediaOffered, SessionThawed
from voicegw.effects import CloseUdp, MediaLost, MediaRestored, OpenUdp, SendDiscovery, SendKeepalive, Warned
from voicegw.errors import UdpBlocked
from voicegw.events import PathLost, UdpFailed

PROBE_AFTER_S = (0.2, 0.2, 0.4, 0.8)
UNHEARD_LIMIT = 3


class TransportSession(MachineSession):
    """IP discovery, keepalives, and whether anything comes back."""

    __slots__ = ("hearing", "keepalive_at", "lost", "probes", "refusal", "server", "unheard")
    machine: ClassVar[str] = "transport"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.server = ("", 0)
        self.keepalive_at = 0.0
        self.probes = 0
        self.unheard = 0
        self.hearing = False
        self.lost = False
        self.refusal = ""

    # deadlines

    def probe_after(self) -> float:
        """How long the probe that was sent last may stay unanswered."""
        return PROBE_AFTER_S[self.probes - 1]

    def until_keepalive(self) -> float:
        """Until the next keepalive: every 5 s, whatever else was asked meanwhile; those of a stall are left out."""
        if self.keepalive_at <= self.shared.now:
            self.keepalive_at = self.shared.now + self.bound("keepalive_due")
        return self.keepalive_at - self.shared.now

    # guards

    def probe_goes_on(self, event: Any) -> bool:
        """May the server be asked once more whether it is there?"""
        return self.probes < len(PROBE_AFTER_S)

    def sudden_or_long(self, event: Any) -> bool:
        """Was something heard until now, or is this the third keepalive in a row with nothing heard since?"""
        return self.hearing or self.unheard + 1 >= UNHEARD_LIMIT

    # effects: the socket

    def note_server(self, event: MediaOffered | SessionThawed) -> None:
        """The address of Ready, for this socket and those that replace it."""
        self.server = (event.ip, event.port)
        self.lost = False

    def open_udp(self, event: Any) -> None:
        """A socket of a new generation."""
        self.shared.udp_generation += 1
        self.refusal = ""
        self.keepalive_at = self.shared.now + self.bound("keepalive_due")
        self.shared.effects.append(OpenUdp(self.shared.udp_generation, *self.server))

    def close_udp(self, event: Any) -> None:
        """Nothing of this generation is listened to any more."""
        self.shared.udp_generation += 1
        self.shared.effects.append(CloseUdp())

    # effects: what is sent

    def send_discovery(self, event: Any) -> None:
        """One IP discovery request."""
        self.shared.effects.append(SendDiscovery(self.shared.ssrc))

    def probe_first(self, event: Any) -> None:
        """The first of some requests that only ask whether the server is there, and where it sees us."""
        self.probes = 0
        self.probe_again(event)

    def probe_again(self, event: Any) -> None:
        """One more."""
        self.probes += 1
        self.send_discovery(event)

    def send_keepalive(self, event: Any) -> None:
        """Eight bytes that keep NAT and server awake."""
        self.keepalive_at += self.bound("keepalive_due")
        self.shared.effects.append(SendKeepalive())

    # effects: what is heard

    def note_heard(self, event: Any) -> None:
        """The path works; where it falls silent now, that is sudden."""
        self.hearing = True

    def note_answered(self, event: Any) -> None:
        """The path works, though nobody speaks."""
        self.unheard = 0
        self.hearing = False

    def note_refusal(self, event: PathLost) -> None:
        """Why requests do not even leave."""
        self.refusal = event.reason

    def note_unheard(self, event: Any) -> None:
        """One more interval of silence."""
        self.unheard += 1

    # effects: what the bot hears

    def report_unconfirmed(self, event: Any) -> None:
        """Information only; the session goes on."""
        self.shared.report(Warned("nothing comes over UDP, not even an answer; sending goes on"))

    def report_confirmed(self, event: Any) -> None:
        """The silence is over."""
        self.shared.report(Warned("datagrams arrive again"))

    def report_lost(self, event: PathLost) -> None:
        """Nothing leaves this host."""
        self._lose(f"this host sends no datagram ({event.reason})")

    def report_unanswered(self, event: Any) -> None:
        """The websocket is back, the path is not."""
        self._lose("the voice server does not answer over UDP after the resume")

    def report_restored(self, event: Any) -> None:
        """What was lost is found."""
        if self.lost:
            self.lost = False
            self.shared.report(MediaRestored())

    # effects: what the gateway hears

    def announce_blocked(self, event: Any) -> None:
        """Discovery stayed unanswered."""
        if self.refusal:
            error = UdpBlocked("sending", f"this host does not send to the voice server over UDP ({self.refusal})")
        else:
            error = UdpBlocked(
                "discovery",
                "IP discovery was not answered for 5 s: UDP is blocked between here and the voice server",
            )
        self.shared.signals.append(DiscoveryFailed(error))

    def announce_failed(self, event: UdpFailed) -> None:
        """There was no socket to ask with."""
        self.shared.signals.append(DiscoveryFailed(event.error))

    def _lose(self, reason: str) -> None:
        self.lost = True
        self.shared.report(MediaLost(reason))
