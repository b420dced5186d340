"""What the fault tests of the main gateway share: its two events, and what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from voicegw.effects import (
    Closed,
    CloseSocket,
    Effect,
    Notice,
    OpenSocket,
    SendCommitWelcome,
    SendDiscovery,
    SendHeartbeat,
    SendIdentify,
    SendInvalidCommit,
    SendKeepalive,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
    SendVoiceState,
)
from voicegw.errors import VoiceError
from voicegw.events import Event, Stamped, VoiceServerUpdated, VoiceStateUpdated
from voicegw.secret import Secret
from voicegw.signalling import NO_FLAGS, Credentials, VoiceFlags
from voicegw.testing.world import CHANNEL, ENDPOINT, World

ELSEWHERE = CHANNEL + 1
OTHER_ENDPOINT = "c-fra03-5a1f.discord.media:2083"

TO_THE_SERVER = (
    CloseSocket,
    SendIdentify,
    SendResume,
    SendSelectProtocol,
    SendHeartbeat,
    SendSpeaking,
    SendTransitionReady,
    SendInvalidCommit,
    SendKeyPackage,
    SendCommitWelcome,
    SendDiscovery,
    SendKeepalive,
)


def voice_state(
    channel_id: int | None = CHANNEL, session_id: str = "session", flags: VoiceFlags = NO_FLAGS
) -> VoiceStateUpdated:
    """Our own voice state."""
    return VoiceStateUpdated(channel_id, Secret(session_id), flags)


def voice_server(token: str = "token", endpoint: str | None = ENDPOINT) -> VoiceServerUpdated:
    """Our guild's voice server."""
    return VoiceServerUpdated(Secret(token), endpoint)


def present_session(world: World) -> str:
    """The session id that the main gateway gave last, as a move keeps it; another one while it has given none."""
    return world._session_id.reveal() if world._session_id is not None else "session"


def last_server(world: World) -> VoiceServerUpdated | None:
    """The last voice server that was announced."""
    told = [event for _, event in world.heard if isinstance(event, VoiceServerUpdated)]
    return told[-1] if told else None


def asked(world: World) -> list[int | None]:
    """The channels of every op 4."""
    return [effect.channel_id for effect in world.sent(SendVoiceState) if isinstance(effect, SendVoiceState)]


def noticed(world: World, kind: type[Notice]) -> list[Notice]:
    """What the bot was told of one kind."""
    return [notice for notice in world.notices if isinstance(notice, kind)]


def end(world: World) -> VoiceError | None:
    """Why the call is over, as the one `Closed` says."""
    assert world.states["call"] == "closed"
    (closed,) = noticed(world, Closed)
    assert isinstance(closed, Closed)
    return closed.error


def is_ready(world: World) -> bool:
    """Is there a call, and a voice session for it?"""
    return world.states["call"] == "connected" and world.states["gateway"] == "ready"


@dataclass
class Watch:
    """The pairs that were dialled, identified with and resumed with since it was made, and what went out meanwhile."""

    world: World
    dials: list[Credentials] = field(default_factory=list)
    identified: list[Credentials] = field(default_factory=list)
    resumed: list[Credentials] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen = len(self.world.effects)
        self.world.on_event = self._look

    def _look(self, event: Event | Stamped) -> None:
        for effect in self.effects():
            credentials = self.world.session.shared.credentials
            for kind, kept in ((OpenSocket, self.dials), (SendIdentify, self.identified), (SendResume, self.resumed)):
                if isinstance(effect, kind):
                    assert credentials is not None
                    kept.append(credentials)

    def effects(self) -> Iterator[Effect]:
        """What the core has wanted since it was last asked."""
        new = self.world.effects[self._seen :]
        self._seen = len(self.world.effects)
        return (effect for _, effect in new)
