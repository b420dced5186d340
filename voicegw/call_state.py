"""What a bot may ask of its call: the state of each machine, who is there, what is encrypted, and why it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voicegw.core.dave import Verification
from voicegw.errors import EventNotAllowed
from voicegw.media.heard import CallStats
from voicegw.signalling import Credentials, VoiceFlags
from voicegw.why import Why, why

if TYPE_CHECKING:
    from collections import deque

    from voicegw.gateway import DiscordGatewayVoice
    from voicegw.media.receiver import StreamReceiver
    from voicegw.media.sender import StreamSender
    from voicegw.session import Transition, VoiceSession


class CallState:
    """The part of `VoiceClient` that is only looked at."""

    if TYPE_CHECKING:  # what VoiceClient brings
        session: VoiceSession
        gateway: DiscordGatewayVoice
        sender: StreamSender
        receiver: StreamReceiver
        history: deque[Transition]

        def _now(self) -> float: ...

    @property
    def states(self) -> dict[str, str]:
        """The present state of each machine."""
        return self.session.states

    @property
    def latency(self) -> float:
        """The last heartbeat's round trip in seconds."""
        return self.gateway.latency

    @property
    def users(self) -> frozenset[int]:
        """The others in the call."""
        return frozenset(self.session.shared.others)

    @property
    def flags(self) -> VoiceFlags:
        """Whether a moderator, the bot or the stage has muted, deafened or suppressed us."""
        return self.session.call.flags

    @property
    def speaking(self) -> frozenset[int]:
        """Who is being heard, by the packets that come; `SpeakingChanged` tells of changes."""
        return self.receiver.speaking

    @property
    def epoch(self) -> int:
        """The epoch of the E2EE group, 0 while there is none."""
        return self.session.dave.epoch

    @property
    def privacy_code(self) -> str:
        """30 digits that all in the call see alike where nobody listens in; empty while there is no group."""
        return self.session.dave.privacy_code

    def verification(self, user_id: int) -> Verification:
        """Has the user been verified, and is the identity key in the group still the same?"""
        return self.session.dave.verification.get(user_id, Verification.UNVERIFIED)

    @property
    def stats(self) -> CallStats:
        """What was sent and heard."""
        sender = self.sender
        return CallStats(sender.packets, sender.octets, sender.held, sender.errors, self.receiver.stats)

    @property
    def credentials(self) -> Credentials:
        """The pair of the present session."""
        credentials = self.session.shared.credentials
        if credentials is None:
            raise EventNotAllowed("using a voice session", self.session.call.state)
        return credentials

    def why(self) -> Why:
        """What the call waits for, since when, what is missing, and what happens next; print it."""
        return why(self.session, self.history, self._now())

    def way(self, machine: str) -> list[str]:
        """The states that a machine has passed, the oldest first."""
        steps = [step for step in self.history if step.machine == machine and step.before != step.after]
        return [step.before for step in steps[:1]] + [step.after for step in steps]
