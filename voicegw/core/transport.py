"""The UDP path's session: `states/transport.toml`."""

from __future__ import annotations

from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.effects import CloseUdp, OpenUdp, SendDiscovery, SendKeepalive, Warned
from voicegw.events import DiscoveryFailed, MediaOffered

UNHEARD_LIMIT = 3


class TransportSession(MachineSession):
    """IP discovery, keepalives, and whether anything comes back."""

    __slots__ = ("unheard",)
    machine: ClassVar[str] = "transport"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.unheard = 0

    # guards

    def unheard_too_often(self, event: Any) -> bool:
        """Is this the third keepalive in a row with nothing heard since?"""
        return self.unheard + 1 >= UNHEARD_LIMIT

    # effects

    def open_udp(self, event: MediaOffered) -> None:
        """A socket of a new generation, to the address of Ready."""
        self.shared.udp_generation += 1
        self.unheard = 0
        self.shared.effects.append(OpenUdp(self.shared.udp_generation, event.ip, event.port))

    def send_discovery(self, event: Any) -> None:
        """One IP discovery request."""
        self.shared.effects.append(SendDiscovery(self.shared.ssrc))

    def send_keepalive(self, event: Any) -> None:
        """Eight bytes that keep NAT and server awake."""
        self.shared.effects.append(SendKeepalive())

    def note_heard(self, event: Any) -> None:
        """The path works."""
        self.unheard = 0

    def note_unheard(self, event: Any) -> None:
        """One more interval of silence."""
        self.unheard += 1

    def report_path_unconfirmed(self, event: Any) -> None:
        """Information only; the session goes on."""
        self.shared.report(Warned("nothing has come over UDP for 15 s; sending goes on"))

    def report_path_confirmed(self, event: Any) -> None:
        """The silence is over."""
        self.shared.report(Warned("datagrams arrive again"))

    def close_udp(self, event: Any) -> None:
        """Nothing of this generation is listened to any more."""
        self.shared.udp_generation += 1
        self.shared.effects.append(CloseUdp())

    def announce_discovery_failed(self, event: Any) -> None:
        """Tell the gateway."""
        self.shared.signals.append(DiscoveryFailed())
