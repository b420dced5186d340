"""The jitter buffer of one SSRC: packets in as they come, one turn out for each 20 ms slot of the clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from voicegw.media.delay import DelayEstimate
from voicegw.media.heard import SLOT_S, Provenance, UserStats
from voicegw.media.opus_packets import FRAME_SAMPLES, has_copy

if TYPE_CHECKING:
    from voicegw.media.decoding import StreamDecoder

LIMIT: Final = 50  # packets of 20 ms that may wait: 1 s
LEAST_LIMIT: Final = 8
GUESS_SAMPLES: Final = 5 * FRAME_SAMPLES  # then a guess fades
FADE_SAMPLES: Final = 5 * FRAME_SAMPLES  # in that time
RESTART_PACKETS, RESTART_SLOTS = 5, 3.0

# A member is looked up in a tenth of the time that its class takes.
_SILENCE: Final = Provenance.SILENCE
_SETTLE_SLOTS: Final = 25
_HURRY_SLOTS: Final = 5
_STALL_SLOTS: Final = 3


class Action(Enum):
    """What the decoder does for a slot."""

    DECODE = auto()  # `packet`
    RECOVER = auto()  # the packet before `following`, out of the copy in it
    CONCEAL = auto()  # guess, fainter the longer it takes
    MUTE = auto()  # nothing
    MERGE = auto()  # `packet` and `following` in the time of one
    GO_ON = auto()  # what an earlier packet still holds
    END = auto()  # fills no slot: the sender has ended what it said


class Turn(NamedTuple):
    """One step of a decoder; the one that `completes` a slot brings its frame.

    `made_up` is how many samples in a row were guessed before this one. The last two are as in `HeardFrame`.
    """

    decoder: StreamDecoder
    slot: int
    action: Action
    provenance: Provenance = Provenance.RECEIVED
    packet: bytes = b""
    following: bytes = b""
    samples: int = FRAME_SAMPLES
    completes: bool = True
    made_up: int = 0
    awaited: bool = False
    missed: int = 0


_DECODE: Final = Action.DECODE

Arrived: TypeAlias = tuple[Provenance, bytes, int]
"""A packet in the buffer: it plays for so many samples at 48 kHz, 0 where it is padding alone; it is empty where it
cannot be decoded."""


_NOTHING: Final[Arrived] = (Provenance.RECEIVED, b"", 0)


class Stray(NamedTuple):
    """A packet that was put aside: its `place` may be wrong."""

    sequence: int
    place: int
    at: float
    arrived: Arrived


class JitterBuffer:
    """Puts one SSRC's packets in order and plays them by the clock; times are in slots of 20 ms.

    Sequence numbers are extended to whole numbers by nearest distance. A stream that speaks is `active`: `play` fills
    its next `slot`. A late packet is awaited behind a guess, at most 200 ms; one whose turn has passed to a later one
    is dropped. The delay follows the measured jitter and the sender's clock: a slot is put in or left out, in
    silence where there is some. Packets far from where they should be make the stream begin anew there once five of
    them have come in a row.
    """

    __slots__ = (
        "_ahead",
        "_delay",
        "_emit",
        "_ended",
        "_heard_at",
        "_limit",
        "_lost_first",
        "_made_up",
        "_missed",
        "_next",
        "_samples",
        "_settled",
        "_strays",
        "_untouched",
        "_waited",
        "_waiting",
        "active",
        "decoder",
        "slot",
        "stats",
    )

    def __init__(self, decoder: StreamDecoder, stats: UserStats, emit: Callable[[Turn], None]) -> None:
        self.decoder = decoder
        self.stats = stats
        self.active = False
        self.slot = 0
        self._emit = emit
        self._delay = DelayEstimate()
        self._waiting: dict[int, Arrived] = {}
        self._strays: list[Stray] = []
        self._next = -1  # the place that is played next; none before the first packet
        self._heard_at = 0.0
        self._samples = FRAME_SAMPLES  # a packet's
        self._limit = LIMIT  # how many packets may wait
        self._ahead = 0  # samples beyond the slots that are filled
        self._waited = 0  # slots in a row that were filled because nothing was there
        self._made_up = 0  # samples in a row that were guessed
        self._settled = 0  # packets since the delay was corrected
        self._ended = False
        self._untouched = False  # nothing was played since speech began
        self._lost_first = 0  # packets that were counted as lost then
        self._missed = 0  # slots that were filled by waiting, for packets that never came

    def __len__(self) -> int:
        return len(self._waiting)

    # -- in

    def insert(self, sequence: int, arrived: Arrived, now: float) -> None:
        """Take a packet of the network's 16-bit `sequence` that came at `now`."""
        expected = self._next
        place = expected + ((sequence - expected + 0x8000) & 0xFFFF) - 0x8000
        if self.active and 0 <= place - expected < self._limit:
            if place in self._waiting:
                self.stats.late += 1
                return
            if self._strays:
                self._learn_from_late()
            self._keep(place, arrived, now)
        elif not (arrived[2] or self.active):
            if expected >= 0 and sequence == expected & 0xFFFF:
                self._next += 1
        elif expected < 0:
            self._begin(sequence + (1 << 16), arrived, now)
        elif not self.active and not expected - self._limit <= place < expected:
            self._resume(place, arrived, now)
        else:
            self._take_far(sequence, place, arrived, now)

    def _take_far(self, sequence: int, place: int, arrived: Arrived, now: float) -> None:
        """A packet from before or beyond what may wait."""
        while place - self._next >= self._limit and self.active and self.slot <= now:  # the clock stood still
            self.play()
        if self._untouched and 0 < self._next - place <= RESTART_PACKETS:  # the first packets came out of order
            self.stats.lost -= min(self._next - place, self._lost_first)
            self._lost_first = max(0, self._lost_first - self._next + place)
            self._next = place
        if self.active and 0 <= place - self._next < self._limit:
            self.insert(sequence, arrived, now)
        else:
            self._put_aside(sequence, place, arrived, now)

    def _keep(self, place: int, arrived: Arrived, now: float) -> None:
        self._waiting[place] = arrived
        self._heard_at = now
        stats, delay = self.stats, self._delay
        stats.packets += 1
        provenance, packet, samples = arrived
        if provenance is _SILENCE:
            stats.silence += 1
        elif not packet:
            if not samples:
                return
            if provenance is Provenance.UNDECRYPTABLE:
                stats.undecryptable += 1
            else:
                stats.misshapen += 1
            samples = self._samples  # it is as long as its neighbours
            self._waiting[place] = (provenance, packet, samples)
        transit = now - place * samples / FRAME_SAMPLES
        if samples != self._samples:
            self._expect(samples)
            delay.restart(transit)
        elif now - self.slot < _STALL_SLOTS and delay.note(transit):  # else we were away, not the network
            stats.jitter_s = delay.jitter * SLOT_S

    def _begin(self, place: int, arrived: Arrived, now: float) -> None:
        """Speech begins, or begins anew."""
        if self._ahead:  # of a packet that was longer, or of a slot that is not complete
            self._emit(Turn(self.decoder, self.slot, Action.END, completes=False))
        delay = self._delay
        self._expect(arrived[2] or FRAME_SAMPLES)
        delay.restart(now - place * self._samples / FRAME_SAMPLES)
        self._next = place
        self._waiting.clear()
        self._strays.clear()
        self.slot = max(self.slot, math.ceil(now + delay.target))
        self._ahead = self._waited = self._made_up = self._settled = 0
        self._ended = False
        self._untouched = True
        self._lost_first = self._missed = 0
        self.active = True
        self._keep(place, arrived, now)

    def _expect(self, samples: int) -> None:
        """Packets are so long now."""
        self._samples = samples
        self._limit = max(LEAST_LIMIT, LIMIT * FRAME_SAMPLES // samples)

    def _resume(self, place: int, arrived: Arrived, now: float) -> None:
        """The first packet after a pause. What can have been lost meanwhile is no more than the time that went by."""
        missing = place - self._next
        if 0 <= missing * self._samples <= (now - self._heard_at + LIMIT) * FRAME_SAMPLES:
            self.stats.lost += missing
            covered = min(missing, self._waited)
            self.stats.concealed += covered
        else:
            missing = covered = 0
            place = (place & 0xFFFF) + (1 << 16)
            self.stats.restarts += 1
        self._begin(place, arrived, now)
        self._lost_first, self._missed = missing, covered

    def _put_aside(self, sequence: int, place: int, arrived: Arrived, now: float) -> None:
        """A packet that comes after its turn, or from where the sender cannot be yet; unless it has moved there."""
        self.stats.late += 1
        strays = self._strays
        if strays and sequence != (strays[-1].sequence + 1) & 0xFFFF:
            strays.clear()
        strays.append(Stray(sequence, place, now, arrived))
        if len(strays) < RESTART_PACKETS:
            return
        if now - strays[0].at < RESTART_SLOTS:
            del strays[0]
            return
        moved = tuple(strays)
        self.stats.late -= len(moved)
        self.stats.restarts += 1
        first = moved[0].sequence + (1 << 16)
        self._begin(first, moved[0].arrived, now)
        for distance, stray in enumerate(moved[1:], 1):
            self._keep(first + distance, stray.arrived, now)

    def _learn_from_late(self) -> None:
        """The stream goes on, so what was put aside was late: the delay must grow."""
        for stray in self._strays:
            if stray.place < self._next and stray.arrived[2] == self._samples:
                self._delay.note(stray.at - stray.place * self._samples / FRAME_SAMPLES)
        self._strays.clear()

    # -- out

    def play(self) -> None:
        """Fill the next slot; where the sender has nothing more to say the stream becomes inactive instead."""
        slot = self.slot
        self._untouched = False
        if self._ahead >= FRAME_SAMPLES:
            self._ahead -= FRAME_SAMPLES
            self._emit(Turn(self.decoder, slot, Action.GO_ON))
        else:
            while self._ahead < FRAME_SAMPLES:
                if not self._fill(slot):
                    self.active = False
                    return
            self._ahead -= FRAME_SAMPLES
        self.slot = slot + 1
        self.stats.slots += 1

    def play_out(self) -> None:
        """Play all that waits, without the clock."""
        while self._waiting:
            self.play()

    def _fill(self, slot: int) -> bool:
        place = self._next
        arrived = self._waiting.get(place)
        if arrived is None:
            return self._bridge(slot) if self._waiting else self._wait(slot)
        provenance, packet, samples = arrived
        if not samples:
            del self._waiting[place]
            self._next = place + 1
            return True
        self._settled += 1
        if provenance is _SILENCE or self._settled >= _SETTLE_SLOTS:
            correction = self._correction(slot, samples)
            if correction > 0:
                self.stats.stretched += 1
                self._guess(slot, Provenance.CONCEALED, awaited=True)
                return True
            if correction < 0 and self._shorten(slot, arrived):
                return True
        del self._waiting[place]
        self._next = place + 1
        if self._waited:
            self.stats.stretched += self._waited
            self._waited = 0
        if not packet:
            self._guess(slot, provenance, samples)
            return True
        self._made_up = 0
        self._ended = provenance is _SILENCE
        self._put(slot, _DECODE, provenance, samples, packet, b"")
        return True

    def _bridge(self, slot: int) -> bool:
        """The next packet is missing and a later one is there: it is lost."""
        stats = self.stats
        if self._waited:  # it was waited for, so its time is filled already
            missing = min(self._waiting) - self._next
            covered = min(missing, self._waited)
            stats.lost += covered
            stats.concealed += covered
            stats.stretched += self._waited - covered
            self._waited = 0
            self._missed += covered
            self._next += covered
            return True
        stats.lost += 1
        self._next += 1
        following = self._waiting.get(self._next, _NOTHING)[1]
        if not following or not has_copy(following):
            stats.concealed += 1
            self._guess(slot, Provenance.CONCEALED, self._samples)
            return True
        stats.recovered += 1
        self._made_up = 0
        self._ended = False
        self._put(slot, Action.RECOVER, Provenance.RECOVERED, self._samples, b"", following)
        return True

    def _wait(self, slot: int) -> bool:
        """Nothing is there: late, lost, or the end."""
        if self._ended or self._made_up >= GUESS_SAMPLES + FADE_SAMPLES:
            self._emit(Turn(self.decoder, slot, Action.END, completes=False))
            self._ahead = 0
            return False
        self._waited += 1
        self._guess(slot, Provenance.CONCEALED, awaited=True)
        return True

    def _guess(self, slot: int, provenance: Provenance, samples: int = FRAME_SAMPLES, awaited: bool = False) -> None:
        action = Action.CONCEAL if self._made_up < GUESS_SAMPLES + FADE_SAMPLES else Action.MUTE
        self._put(slot, action, provenance, samples, b"", b"", awaited)
        self._made_up += samples

    def _put(
        self,
        slot: int,
        action: Action,
        provenance: Provenance,
        samples: int,
        packet: bytes,
        following: bytes,
        awaited: bool = False,
    ) -> None:
        self._ahead += samples
        completes = self._ahead >= FRAME_SAMPLES
        missed = 0
        if self._missed and not awaited:
            missed, self._missed = self._missed, 0
        made_up = self._made_up
        turn = (self.decoder, slot, action, provenance, packet, following, samples, completes, made_up, awaited, missed)
        self._emit(tuple.__new__(Turn, turn))  # one a packet: three times as fast as Turn's own constructor

    # -- the delay

    def _correction(self, slot: int, samples: int) -> int:
        """1 where a slot must be put in, -1 where one may be left out."""
        delay = self._delay
        if samples != self._samples:
            return 0
        has = slot - self._next * samples / FRAME_SAMPLES - delay.base
        self.stats.delay_s = has * SLOT_S
        excess = has - delay.target
        self._settled = 0 if abs(excess) < _HURRY_SLOTS else _SETTLE_SLOTS - _HURRY_SLOTS
        if excess < -1.0:
            return 1
        return -1 if excess > 1.5 else 0

    def _shorten(self, slot: int, arrived: Arrived) -> bool:
        provenance, packet, samples = arrived
        ends, following, length = self._waiting.get(self._next + 1, _NOTHING)
        if not (following and packet) or length != samples:
            return False
        del self._waiting[self._next], self._waiting[self._next + 1]
        self._next += 2
        self.stats.shortened += 1
        self._made_up = 0
        self._ended = ends is _SILENCE
        self._put(slot, Action.MERGE, provenance, samples, packet, following)
        return True
