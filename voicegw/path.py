"""MediaPath: the hands of the transport machine and what flows through them: a UDP socket, a key, packets both ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from voicegw.adapters.system import System
from voicegw.adapters.udp import VoiceUdp
from voicegw.effects import OpenUdp, UseKey
from voicegw.errors import ConnectionFailed
from voicegw.events import Event, IpDiscovered, PathHeard, PathUnheard, Stamped, UdpFailed
from voicegw.media.receiver import StreamReceiver
from voicegw.media.sender import StreamSender
from voicegw.wire.discovery import discovery_request, keepalive, parse_discovery
from voicegw.wire.encryption import TransportCipher


class MediaPath:
    """What happens on it is told by `feed`, stamped with the socket's generation;

    `heard` is called after each packet.
    """

    def __init__(
        self,
        sender: StreamSender,
        receiver: StreamReceiver,
        feed: Callable[[Event | Stamped], None],
        heard: Callable[[], None],
        system: System,
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._feed = feed
        self._heard = heard
        self._system = system
        self._udp: VoiceUdp | None = None
        self._generation = 0
        self._discovering = 0
        self._received_before = 0
        self._keepalives = 0
        self._key: UseKey | None = None

    def open(self, effect: OpenUdp, loop: asyncio.AbstractEventLoop) -> None:
        """A fresh socket to the media address."""
        self.close()
        self._generation = effect.generation
        self._received_before = 0
        try:
            self._udp = VoiceUdp(loop, (effect.ip, effect.port), self._datagram, self._system)
        except ConnectionFailed as error:
            self._tell(UdpFailed(error))
        else:
            self._sender.connect(self._udp.send)

    def close(self) -> None:
        """Close the socket; harmless when closed."""
        if self._udp is not None:
            self._sender.connect(None)  # the pacer's thread must not write to a descriptor that becomes another's
            self._udp.close()
            self._udp = None

    def discover(self, ssrc: int) -> None:
        """Ask for our public address; `IpDiscovered` follows."""
        self._discovering = ssrc
        self._send_control(discovery_request(ssrc))

    def keep_alive(self) -> None:
        """Keep NAT and server awake; `PathHeard` or `PathUnheard` follows."""
        if self._udp is None:
            return
        self._send_control(keepalive(self._keepalives))
        self._keepalives += 1
        received, before = self._udp.received, self._received_before
        self._received_before = received
        self._tell(PathHeard() if received > before else PathUnheard())

    def use_key(self, effect: UseKey) -> None:
        """Encrypt and decrypt with this key; the same key again changes nothing."""
        if self._key != effect:
            self._wipe()
            self._key = effect
            cipher = TransportCipher(effect.mode, effect.secret_key)
            self._sender.configure(cipher, effect.ssrc, None if self._udp is None else self._udp.send)
            self._receiver.use_key(cipher)

    def drop_key(self) -> None:
        """The session is over."""
        self._wipe()
        self._sender.drop()
        self._receiver.drop_key()

    def _wipe(self) -> None:
        """Our own copy of the key; the ciphers have theirs."""
        key, self._key = self._key, None
        if key is not None:
            key.secret_key.wipe()

    def _tell(self, event: Event) -> None:
        self._feed(Stamped("udp", self._generation, event))

    def _datagram(self, data: bytes) -> None:
        if self._discovering:
            found = parse_discovery(data, self._discovering)
            if found is not None:
                self._discovering = 0
                self._tell(IpDiscovered(found.address, found.port))
                return
        self._receiver.datagram(data)
        self._heard()

    def _send_control(self, data: bytes) -> None:
        if self._udp is not None:
            with contextlib.suppress(OSError):  # it is lost, as any datagram may be
                self._udp.send(data)
