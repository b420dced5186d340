"""Who owns which SSRC. What arrives is credited to the owner at that moment, or to nobody."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from voicegw.media.decoding import StreamDecoder
from voicegw.media.heard import UserStats
from voicegw.media.jitter import JitterBuffer, Turn

MOST_USERS: Final = 1_000
MOST_SSRCS: Final = 4_000
HELD_PACKETS, HELD_SSRCS, HELD_S = 10, 64, 0.2


class HeardUser:
    """One user with all SSRCs that are theirs now; goes as a whole when the user leaves."""

    __slots__ = ("speaking", "spoke_at", "stats", "streams", "user_id")

    def __init__(self, user_id: int, stats: UserStats) -> None:
        self.user_id = user_id
        self.stats = stats
        self.streams: dict[int, JitterBuffer] = {}
        self.speaking = False
        self.spoke_at = 0.0  # when the last packet that was no silence came, in slots


class HeldPacket(NamedTuple):
    """A packet whose SSRC nobody owns yet."""

    at: float
    sequence: int
    payload: bytes


class SsrcMap:
    """Users, their streams, and the packets that came before their user was known.

    Every mapping begins with an empty stream: a buffer and a decoder of its own, so nothing of a former owner is
    heard as the new one. Beyond 1,000 users or 4,000 SSRCs the one that was mapped first is forgotten. Statistics
    outlive their user, of 1,000 users.
    """

    def __init__(self, emit: Callable[[Turn], None]) -> None:
        self._emit = emit
        self._held: dict[int, deque[HeldPacket]] = {}
        self.owners: dict[int, tuple[HeardUser, JitterBuffer]] = {}
        self.users: dict[int, HeardUser] = {}
        self.stats: dict[int, UserStats] = {}
        self.epoch = 0  # how many mappings were made or taken away

    def assign(self, ssrc: int, user_id: int) -> bool:
        """Give `ssrc` to a user, taking it from anybody else; False where it is theirs already."""
        owner = self.owners.get(ssrc)
        if owner is not None:
            if owner[0].user_id == user_id:
                return False
            self._release(ssrc)
        user = self.users.get(user_id)
        if user is None:
            if len(self.users) >= MOST_USERS:
                self.forget(next(iter(self.users)))
            user = self.users[user_id] = HeardUser(user_id, self._stats_of(user_id))
        if len(self.owners) >= MOST_SSRCS:
            self._release(next(iter(self.owners)))
        stream = JitterBuffer(StreamDecoder(user_id, user.stats), user.stats, self._emit)
        self.owners[ssrc] = (user, stream)
        user.streams[ssrc] = stream
        self.epoch += 1
        return True

    def forget(self, user_id: int) -> HeardUser | None:
        """The user left; the statistics stay."""
        user = self.users.pop(user_id, None)
        if user is not None:
            for ssrc in user.streams:
                del self.owners[ssrc]
            user.streams.clear()
            self.epoch += 1
        return user

    def clear(self) -> None:
        """The voice session is over, and its SSRCs with it."""
        self.owners.clear()
        self.users.clear()
        self._held.clear()
        self.epoch += 1

    def hold(self, ssrc: int, packet: HeldPacket) -> None:
        """Keep a packet of an unknown SSRC for a moment."""
        waiting = self._held.get(ssrc)
        if waiting is None:
            for oldest in tuple(self._held):
                if len(self._held) < HELD_SSRCS and self._held[oldest][-1].at >= packet.at - HELD_S:
                    break
                del self._held[oldest]
            waiting = self._held[ssrc] = deque(maxlen=HELD_PACKETS)
        waiting.append(packet)

    def held(self, ssrc: int, now: float) -> Iterator[HeldPacket]:
        """The packets that waited for this SSRC and are not too old; they wait no longer."""
        return (packet for packet in self._held.pop(ssrc, ()) if packet.at >= now - HELD_S)

    @property
    def held_ssrcs(self) -> int:
        """For how many SSRCs packets wait."""
        return len(self._held)

    def _release(self, ssrc: int) -> None:
        user, _ = self.owners.pop(ssrc)
        del user.streams[ssrc]
        self.epoch += 1

    def _stats_of(self, user_id: int) -> UserStats:
        stats = self.stats.get(user_id)
        if stats is None:
            for oldest in tuple(self.stats):
                if len(self.stats) < MOST_USERS:
                    break
                if oldest not in self.users:
                    del self.stats[oldest]
            stats = self.stats[user_id] = UserStats()
        return stats
