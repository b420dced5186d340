"""The way in, second half: credit to a user, decrypt end to end, put in order, play by the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from voicegw.errors import NotAudio, VoiceError
from voicegw.media.heard import SLOT_S, Provenance
from voicegw.media.jitter import JitterBuffer, Turn
from voicegw.media.opener import PacketOpener
from voicegw.media.opus_packets import FRAME_SAMPLES, packet_samples
from voicegw.media.ssrc_map import HeardUser, HeldPacket, SsrcMap
from voicegw.wire.dave_frames import MARKER, is_dave_frame
from voicegw.wire.encryption import TransportCipher
from voicegw.wire.rtp import SILENCE_FRAME

STOPPED_AFTER_SLOTS = 6.0

_RECEIVED: Final = Provenance.RECEIVED  # a member is looked up in a tenth of the time that its class takes


class StreamReceiver:
    """Takes the datagrams of one voice session and says, slot by slot, what its decoders shall do.

    `on_turns` gets the turns of everybody for each slot of 20 ms that has come; `tick` brings them and must be called
    every slot while `busy`, which `on_busy` announces. `on_speaking(user_id, speaking)` tells who begins and ends, by
    their packets. All of it belongs to one thread; decoding may be done in another.
    """

    def __init__(
        self,
        now: Callable[[], float],
        on_turns: Callable[[list[Turn]], None] = lambda turns: None,
        on_speaking: Callable[[int, bool], None] = lambda user_id, speaking: None,
        on_busy: Callable[[], None] = lambda: None,
        on_nonces_meet: Callable[[], None] = lambda: None,
    ) -> None:
        self._now = now
        self.opener = PacketOpener(now, on_nonces_meet)
        self._decrypt: Callable[[int, bytes], bytes] | None = None
        self._on_turns = on_turns
        self._on_speaking = on_speaking
        self._on_busy = on_busy
        self._turns: list[Turn] = []
        self._playing: list[JitterBuffer] = []
        self._talking: list[HeardUser] = []
        self.map = SsrcMap(self._turns.append)
        self.stats = self.map.stats
        self.counters = self.opener.counters
        self.reports = self.opener.reports

    # -- settings

    def use_key(self, cipher: TransportCipher) -> None:
        """Open datagrams with this key; the one before it serves 10 s longer."""
        self.opener.use_key(cipher)

    def drop_key(self) -> None:
        """The session is over: keys and SSRCs are forgotten, what has come is still played."""
        self.opener.drop_key()
        for user in self._talking:
            self._stopped(user)
        self._talking = []
        self.map.clear()

    @property
    def decrypt(self) -> Callable[[int, bytes], bytes] | None:
        """The end-to-end step in use."""
        return self._decrypt

    def use_decrypt(self, decrypt: Callable[[int, bytes], bytes] | None) -> None:
        """Take the end-to-end step `decrypt(user_id, frame)`; None where the call has version 0."""
        self._decrypt = decrypt

    def map_ssrc(self, ssrc: int, user_id: int) -> None:
        """Credit `ssrc` to `user_id` from now on; packets that came up to 0.2 s before are heard as theirs, too."""
        if ssrc in self.map.owners and self.map.owners[ssrc][0].user_id != user_id:
            self.opener.forget_stream(ssrc)
        if not self.map.assign(ssrc, user_id):
            return
        user, stream = self.map.owners[ssrc]
        for at, sequence, payload in self.map.held(ssrc, self._now()):
            user.stats.early += 1
            self._arrive(user, stream, sequence, payload, at / SLOT_S, early=True)

    def forget_user(self, user_id: int) -> None:
        """The user left; what has come is still played, statistics stay."""
        user = self.map.forget(user_id)
        if user is not None and user.speaking:
            self._talking.remove(user)
            self._stopped(user)

    # -- packets

    def datagram(self, data: bytes) -> None:
        """Take one datagram; whatever its bytes are, nothing is raised."""
        opened = self.opener.open(data)
        if opened is not None:
            ssrc, sequence, payload = opened
            self.packet(ssrc, sequence, payload)

    def packet(self, ssrc: int, sequence: int, payload: bytes) -> None:
        """Take one authentic packet."""
        owner = self.map.owners.get(ssrc)
        if owner is None:
            self.counters["before its user was known"] += 1
            self.map.hold(ssrc, HeldPacket(self._now(), sequence, payload))
        else:
            self._arrive(owner[0], owner[1], sequence, payload, self._now() / SLOT_S)

    def _arrive(
        self, user: HeardUser, stream: JitterBuffer, sequence: int, payload: bytes, at: float, early: bool = False
    ) -> None:
        provenance, samples = Provenance.EARLY if early else _RECEIVED, FRAME_SAMPLES
        if not payload:  # padding alone: it has a place in the sequence, but no sound
            stream.insert(sequence, (provenance, b"", 0), at)
            return
        frame = b""
        try:
            frame = payload if self._decrypt is None else self._decrypt(user.user_id, payload)
            if frame.endswith(MARKER) and is_dave_frame(frame):  # still encrypted: noise to a decoder
                frame, provenance = b"", Provenance.UNDECRYPTABLE
            else:
                samples = packet_samples(frame)
        except NotAudio:
            frame, provenance = b"", Provenance.CONCEALED
        except VoiceError:
            frame, provenance = b"", Provenance.UNDECRYPTABLE
        if frame == SILENCE_FRAME:
            provenance = Provenance.SILENCE
        else:
            user.spoke_at = at
            if not user.speaking:
                self._started(user)
        before = stream.active
        stream.insert(sequence, (provenance, frame, samples), at)
        if stream.active and not before:
            self._playing.append(stream)
            self._on_busy()

    # -- the clock

    @property
    def busy(self) -> bool:
        """Is there anything that `tick` would do?"""
        return bool(self._playing or self._talking)

    @property
    def speaking(self) -> frozenset[int]:
        """Who speaks now."""
        return frozenset(user.user_id for user in self._talking)

    def tick(self) -> None:
        """Play all slots whose time has come."""
        now = self._now() / SLOT_S
        rest = False
        for stream in self._playing:
            while stream.active and stream.slot <= now:
                stream.play()
            rest = rest or not stream.active
        if rest:
            self._playing = [stream for stream in self._playing if stream.active]
        if any(user.spoke_at < now - STOPPED_AFTER_SLOTS for user in self._talking):
            stopped = [user for user in self._talking if user.spoke_at < now - STOPPED_AFTER_SLOTS]
            self._talking = [user for user in self._talking if user not in stopped]
            for user in stopped:
                self._stopped(user)
        self._hand_over()

    def flush(self) -> None:
        """Play what waits without the clock."""
        for stream in self._playing:
            stream.play_out()
        self._hand_over()

    def _hand_over(self) -> None:
        if self._turns:
            turns = self._turns.copy()
            self._turns.clear()  # the same list on, for the buffers know no other
            if turns[-1].slot != turns[0].slot:
                turns.sort(key=lambda turn: turn.slot)
            self._on_turns(turns)

    def _started(self, user: HeardUser) -> None:
        user.speaking = True
        self._talking.append(user)
        self._on_speaking(user.user_id, True)
        self._on_busy()

    def _stopped(self, user: HeardUser) -> None:
        user.speaking = False
        self._on_speaking(user.user_id, False)
