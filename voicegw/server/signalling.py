"""The main gateway's part for one bot user, on top of the local voice server, in process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from voicegw.errors import VoiceError
from voicegw.signalling import Credentials, SignallingReceiver

if TYPE_CHECKING:
    from voicegw.server.server import VoiceServer


class LocalSignalling:
    """Answers op 4 with a voice state and a voice server, as Discord does.

    `server_first` turns the two around; `silent` answers nothing, as a full channel does. A join of the channel one
    is in already is ignored.
    """

    def __init__(self, server: VoiceServer, user_id: int) -> None:
        self._server = server
        self._user_id = user_id
        self._receiver: SignallingReceiver | None = None
        self._guild_id = 0
        self._credentials: Credentials | None = None
        self.server_first = False
        self.silent = False
        self.requests: list[int | None] = []

    @property
    def credentials(self) -> Credentials | None:
        """What was given last; None while the user is in no channel."""
        return self._credentials

    def attach(self, receiver: SignallingReceiver) -> None:
        """Remember who gets the answers."""
        self._receiver = receiver

    async def update_voice_state(
        self, guild_id: int, channel_id: int | None, *, self_mute: bool, self_deaf: bool
    ) -> None:
        """Op 4."""
        self.requests.append(channel_id)
        self._guild_id = guild_id
        if self.silent:
            return
        if channel_id is None:
            if self._credentials is not None:
                await self._leave()
        elif self._credentials is None or self._credentials.channel_id != channel_id:
            self.move(channel_id)

    def move(self, channel_id: int) -> None:
        """Put the user into a channel, asked or not: a new token; the session id stays that of the first join."""
        session_id = self._credentials.session_id if self._credentials is not None else None
        self._credentials = self._server.admit(
            guild_id=self._guild_id, channel_id=channel_id, user_id=self._user_id, session_id=session_id
        )
        steps = [self._tell_state, self._tell_server]
        for step in reversed(steps) if self.server_first else steps:
            asyncio.get_running_loop().call_soon(step, self._credentials)

    def hand_over(self) -> None:
        """Another voice server for the same voice state, as a region change brings it: a new token only."""
        old = self._present()
        self._credentials = self._server.admit(
            guild_id=old.guild_id, channel_id=old.channel_id, user_id=old.user_id, session_id=old.session_id
        )
        self._tell_server(self._credentials)

    def remove_server(self) -> None:
        """The voice server went away: a null endpoint."""
        assert self._receiver is not None
        token = self._present().token.reveal()
        self._receiver.voice_server_update({"guild_id": str(self._guild_id), "token": token, "endpoint": None})

    def forget(self) -> None:
        """The bot's main gateway session is gone, and its voice state with it."""
        self._credentials = None

    async def kick(self) -> None:
        """Take the user out: the voice websocket is closed with 4014."""
        self._present()
        await self._leave()

    def _present(self) -> Credentials:
        if self._credentials is None:
            raise VoiceError(f"user {self._user_id} is in no voice channel")
        return self._credentials

    async def _leave(self) -> None:
        credentials, self._credentials = self._credentials, None
        assert credentials is not None
        assert self._receiver is not None
        self._receiver.voice_state_update(
            {
                "guild_id": str(self._guild_id),
                "channel_id": None,
                "user_id": str(self._user_id),
                "session_id": credentials.session_id.reveal(),
            }
        )
        await self._server.expel(credentials)

    def _tell_state(self, credentials: Credentials) -> None:
        assert self._receiver is not None
        self._receiver.voice_state_update(
            {
                "guild_id": str(credentials.guild_id),
                "channel_id": str(credentials.channel_id),
                "user_id": str(credentials.user_id),
                "session_id": credentials.session_id.reveal(),
            }
        )

    def _tell_server(self, credentials: Credentials) -> None:
        assert self._receiver is not None
        self._receiver.voice_server_update(
            {
                "guild_id": str(credentials.guild_id),
                "token": credentials.token.reveal(),
                "endpoint": credentials.endpoint,
            }
        )
