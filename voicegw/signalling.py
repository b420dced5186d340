"""How a voice client talks to the main gateway: one wish goes out (op 4), two events come back.

A bot framework owns the main gateway connection; `Signalling` is the little that we ask of it.
Source: Discord voice docs, "Connecting to Voice".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from voicegw.errors import SignallingError
from voicegw.secret import Secret


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one join gave us; session id and token serve for one Identify and its resumes.

    `endpoint` is `host[:port]` as Discord sends it, without a scheme.
    """

    guild_id: int
    channel_id: int
    user_id: int
    session_id: Secret[str]
    token: Secret[str]
    endpoint: str


@dataclass(frozen=True, slots=True)
class VoiceFlags:
    """How the main gateway shows us: muted or deafened by a moderator or by ourselves; suppressed on a stage."""

    mute: bool = False
    deaf: bool = False
    self_mute: bool = False
    self_deaf: bool = False
    suppress: bool = False


NO_FLAGS = VoiceFlags()
SNOWFLAKE_DIGITS = 20  # of 64 bit


def flags_of(data: Mapping[str, Any]) -> VoiceFlags:
    """The flags of a VOICE_STATE_UPDATE; what is missing is not set."""
    return VoiceFlags(
        mute=bool(data.get("mute")),
        deaf=bool(data.get("deaf")),
        self_mute=bool(data.get("self_mute")),
        self_deaf=bool(data.get("self_deaf")),
        suppress=bool(data.get("suppress")),
    )


def snowflake_of(value: object) -> int | None:
    """An id as Discord writes it, a string of digits, or an int; None for everything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= SNOWFLAKE_DIGITS else None


class SignallingReceiver(Protocol):
    """Who wants the main gateway's answers; `VoiceClient` is one."""

    def voice_state_update(self, data: Mapping[str, Any]) -> None:
        """Take the `d` of any VOICE_STATE_UPDATE; others' are ignored."""

    def voice_server_update(self, data: Mapping[str, Any]) -> None:
        """Take the `d` of any VOICE_SERVER_UPDATE; other guilds' are ignored."""


class Signalling(Protocol):
    """The main gateway as a voice client sees it."""

    def attach(self, receiver: SignallingReceiver) -> None:
        """Remember who gets this guild's voice events; called once, by the client."""

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Send op 4; `channel_id` None leaves.

        Raises:
            Exception: anything; the client turns it into `SignallingError`.
        """


class FixedSignalling:
    """Answers the first join with credentials that were obtained elsewhere, and refuses every other.

    For tools that were handed a session id and a token: there is no main gateway to ask for another pair.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials: Credentials | None = credentials
        self._guild_user: dict[str, str] | None = None
        self._receiver: SignallingReceiver | None = None

    def attach(self, receiver: SignallingReceiver) -> None:
        """Remember who gets the pair."""
        self._receiver = receiver

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Hand the pair over once; a leave is answered, too.

        Raises:
            SignallingError: it was handed over already, and serves for one voice session.
        """
        credentials, receiver = self._credentials, self._receiver
        if receiver is None:
            return
        if channel_id is None:
            if self._guild_user is not None:
                receiver.voice_state_update({**self._guild_user, "channel_id": None})
            return
        if credentials is None:
            raise SignallingError("credentials that were given once serve for one voice session")
        self._credentials = None
        self._guild_user = {"guild_id": str(credentials.guild_id), "user_id": str(credentials.user_id)}
        receiver.voice_state_update(
            {
                **self._guild_user,
                "channel_id": str(credentials.channel_id),
                "session_id": credentials.session_id.reveal(),
            }
        )
        receiver.voice_server_update(
            {
                "guild_id": str(credentials.guild_id),
                "token": credentials.token.reveal(),
                "endpoint": credentials.endpoint,
            }
        )
