"""MediaPath: the hands of the transport machine and what flows through them: a UDP socket, a key, packets both ways."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from voicegw.adapters.system import System
from voicegw.adapters.udp import VoiceUdp
from voicegw.effects import OpenUdp, UseKey
from voicegw.errors import ConnectionFailed
from voicegw.events import Event, IpDiscovered, PathHeard, PathLost, PathMoved, PathUnheard, Stamped, UdpFailed
from voicegw.media.opener import OLD_KEY_S
from voicegw.media.receiver import StreamReceiver
from voicegw.media.sender import StreamSender
from voicegw.wire.discovery import DISCOVERY_BYTES, discovery_request, keepalive, parse_discovery
from voicegw.wire.encryption import TransportCipher


class MediaPath:
    """The UDP path of one call: `feed` hears what happens on it, stamped with the socket's generation.

    `heard` is called after each packet. `counters` says what came besides media, and what the host refused to send.
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wiping: asyncio.TimerHandle | None = None
        self._generation = 0
        self._ssrc = 0
        self._asking = False
        self._echoes = 0
        self._looked_at = 0
        self._keepalives = 0
        self._keepalive = b""
        self._key: UseKey | None = None
        self.counters: Counter[str] = Counter()

    def open(self, effect: OpenUdp, loop: asyncio.AbstractEventLoop) -> None:
        """A fresh socket to the media address; a key in use stays in use."""
        self.close()
        self._loop = loop
        self._generation = generation = effect.generation
        self._look()

        def lost(reason: str) -> None:
            self._feed(Stamped("udp", generation, PathLost(reason)))

        try:
            self._udp = VoiceUdp(loop, (effect.ip, effect.port), self._datagram, lost, self._system)
        except ConnectionFailed as error:
            self._tell(UdpFailed(_without_frames(error)))
        else:
            self._sender.connect(self._udp.send)

    def close(self) -> None:
        """Close the socket; harmless when closed."""
        if self._udp is not None:
            self._sender.connect(None)  # the pacer's thread must not write to a descriptor that becomes another's
            self._udp.close()
            self.counters += Counter({f"not sent: {name}": count for name, count in self._udp.refused.items()})
            self.counters["of strangers"] += self._udp.strangers
            self._udp = None

    def discover(self, ssrc: int) -> None:
        """Ask for our public address; `IpDiscovered` follows, and `PathHeard` where something has come meanwhile."""
        self._ssrc = ssrc
        self._asking = True
        self._send(discovery_request(ssrc))
        if self._look():
            self._tell(PathHeard())

    def keep_alive(self) -> None:
        """Keep NAT and server awake; `PathHeard`, `PathUnheard` or `PathMoved` follows."""
        if self._udp is None:
            return
        self._keepalive = keepalive(self._keepalives)
        self._keepalives += 1
        self._send(self._keepalive)
        heard = self._look()
        if self._udp.moved():
            self._tell(PathMoved())
        else:
            self._tell(PathHeard() if heard else PathUnheard())

    def use_key(self, effect: UseKey) -> None:
        """Encrypt and decrypt with this key; the same key again changes nothing. The one before opens for 10 s more."""
        if self._key != effect:
            self._wipe()
            self._key = effect
            cipher = TransportCipher(effect.mode, effect.secret_key, keys=self._system.keys)
            self._sender.configure(cipher, effect.ssrc, None if self._udp is None else self._udp.send)
            self._receiver.use_key(cipher)
            if self._wiping is not None:
                self._wiping.cancel()
            if self._loop is not None:
                self._wiping = self._loop.call_later(OLD_KEY_S, self._receiver.opener.wipe_old_key)

    def drop_key(self) -> None:
        """The session is over."""
        self._wipe()
        self._sender.drop()
        self._receiver.drop_key()
        if self._wiping is not None:
            self._wiping.cancel()
            self._wiping = None

    def _wipe(self) -> None:
        """Our own copy of the key; the ciphers have theirs."""
        key, self._key = self._key, None
        if key is not None:
            key.secret_key.wipe()

    def _tell(self, event: Event) -> None:
        self._feed(Stamped("udp", self._generation, event))

    def _look(self) -> bool:
        """Has anything of the server come since the last look?"""
        total = self._receiver.opener.authentic + self._echoes
        before, self._looked_at = self._looked_at, total
        return total > before

    def _datagram(self, data: bytes) -> None:
        if len(data) == DISCOVERY_BYTES and (found := parse_discovery(data, self._ssrc)) is not None:
            if self._asking:
                self._asking = False
                self._tell(IpDiscovered(found.address, found.port))
            else:
                self.counters["late discovery replies"] += 1
            return
        if data == self._keepalive:
            self._echoes += 1
        self._receiver.datagram(data)
        self._heard()

    def _send(self, data: bytes) -> bool:
        return self._udp is not None and self._udp.send(data)


def _without_frames(error: ConnectionFailed) -> ConnectionFailed:
    """A bot may keep an error for long; the frames that it came through would keep the call's sockets with it."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__
    return error
