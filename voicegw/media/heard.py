"""What is heard: frames of 20 ms with their origin, and what is counted of each user."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

SLOT_S: Final = 0.02


class Provenance(StrEnum):
    """Where the sound of a 20 ms slot comes from."""

    RECEIVED = "received"
    RECOVERED = "recovered"  # its packet was lost; the next one carried a copy (in-band FEC)
    CONCEALED = "concealed"  # its packet was lost or is late; guessed from what came before
    SILENCE = "silence"  # the sender's own frame of silence
    UNDECRYPTABLE = "undecryptable"  # it came, but its end-to-end encryption could not be opened; guessed
    EARLY = "early"  # it came before its user was known, at most 0.2 s


class HeardFrame(NamedTuple):
    """20 ms of one user.

    `slot` counts 20 ms on one clock for all users of a call, so frames of equal slots were spoken together. `pcm` is
    3840 bytes (48 kHz, stereo, 16 bit little-endian), or empty where no listener needs PCM. `packets` are the Opus
    packets that begin in this slot, as the sender made them: one as a rule, none where nothing came.

    `awaited` sound was made up because the next packet had not come yet, or to let the delay grow. `missed` says how
    many of the awaited slots before this one stand for packets that never came; the others only took time. Where two
    packets were merged into one slot, so that the delay becomes less, `whole` is the sound of both.
    """

    user_id: int
    slot: int
    pcm: bytes
    provenance: Provenance
    packets: tuple[bytes, ...]
    awaited: bool = False
    missed: int = 0
    whole: bytes = b""

    @property
    def lost(self) -> bool:
        """Was the sound made up?"""
        return self.provenance in _MADE_UP

    @property
    def at_s(self) -> float:
        """When the slot began, in seconds of the event loop's clock."""
        return self.slot * SLOT_S


_MADE_UP: Final = frozenset((Provenance.RECOVERED, Provenance.CONCEALED, Provenance.UNDECRYPTABLE))


@dataclass(slots=True)
class UserStats:
    """What was heard of one user.

    `packets` came in time, `lost` did not: of these `recovered` were played from the next packet's copy and
    `concealed` were covered by a guess. `late` came after their turn or twice, `silence` are frames of silence,
    `early` came before their user was known. `errors` is the sum of frames that were `undecryptable`, `misshapen` (no
    Opus packet) and `undecodable`. `slots` of 20 ms left for the listeners; `stretched` ones were put in and
    `shortened` ones left out to follow the network's delay and the sender's clock. `restarts` counts senders that began
    anew with another sequence number, `decoder_resets` decoders that were replaced after errors. `jitter_s` is RFC
    3550's, `delay_s` how long packets wait for their turn now.
    """

    packets: int = 0
    lost: int = 0
    concealed: int = 0
    silence: int = 0
    late: int = 0
    slots: int = 0
    recovered: int = 0
    early: int = 0
    undecryptable: int = 0
    misshapen: int = 0
    undecodable: int = 0
    stretched: int = 0
    shortened: int = 0
    restarts: int = 0
    decoder_resets: int = 0
    jitter_s: float = 0.0
    delay_s: float = 0.0

    @property
    def errors(self) -> int:
        """Frames that could not be decrypted or decoded."""
        return self.undecryptable + self.misshapen + self.undecodable

    @property
    def seconds(self) -> float:
        """How much sound left for the listeners."""
        return self.slots * SLOT_S


@dataclass(frozen=True, slots=True)
class CallStats:
    """Packets and bytes sent, frames held back, packets that could not be sent, and what was heard, by user id."""

    packets: int
    bytes: int
    held: int
    errors: int
    users: dict[int, UserStats]

    @property
    def totals(self) -> Counter[str]:
        """Packets of all users together: sent, held, not sent, received, lost, late, not decrypted or decoded."""
        totals = Counter({"sent": self.packets, "held": self.held, "not_sent": self.errors})
        totals.update({"received": 0, "lost": 0, "late": 0, "broken": 0})
        for user in tuple(self.users.values()):
            totals["received"] += user.packets
            totals["lost"] += user.lost
            totals["late"] += user.late
            totals["broken"] += user.errors
        return totals
