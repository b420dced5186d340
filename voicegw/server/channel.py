"""One voice channel: who is in it, and its DAVE group."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from voicegw.errors import GroupError
from voicegw.server.delivery import Delivery, DeliveryService
from voicegw.server.session import ServerSession
from voicegw.wire.opcodes import Opcode

TRANSITION_S = 2.0


class Channel:
    """Members in the order in which they came, and the delivery service of their group where the server has DAVE."""

    def __init__(self, channel_id: int, dave: bool) -> None:
        self.channel_id = channel_id
        self.sessions: dict[int, ServerSession] = {}
        self.delivery = DeliveryService(channel_id) if dave else None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def protocol_version(self) -> int:
        """The DAVE version of the channel now."""
        return self.delivery.protocol_version if self.delivery is not None else 0

    @property
    def listeners(self) -> Iterable[ServerSession]:
        """Members that have their key."""
        return [session for session in self.sessions.values() if session.described]

    def others(self, session: ServerSession) -> list[ServerSession]:
        """Everybody but `session`."""
        return [other for other in self.sessions.values() if other is not session]

    def greet(self, session: ServerSession) -> None:
        """After Ready: tell the newcomer who is there."""
        self.sessions[session.user_id] = session
        present = [str(other.user_id) for other in self.others(session) if other.described]
        if present:
            session.send(Opcode.CLIENTS_CONNECT, {"user_ids": present})

    def admit(self, session: ServerSession) -> None:
        """After Session Description: tell the others, say who speaks, and begin with E2EE."""
        for other in self.others(session):
            other.send(Opcode.CLIENTS_CONNECT, {"user_ids": [str(session.user_id)]})
            if other.speaking is not None and other.described:
                session.send(Opcode.SPEAKING, speaking_of(other))
        if self.delivery is not None:
            self.deliver(self.delivery.join(session.user_id))

    def speak(self, session: ServerSession, flags: int) -> None:
        """Pass a speaking message on."""
        session.speaking = flags
        for other in self.others(session):
            if other.described:
                other.send(Opcode.SPEAKING, speaking_of(session))

    def leave(self, session: ServerSession) -> None:
        """A member is gone for good."""
        if self.sessions.get(session.user_id) is not session:
            return
        del self.sessions[session.user_id]
        for other in self.sessions.values():
            other.send(Opcode.CLIENT_DISCONNECT, {"user_id": str(session.user_id)})
        if self.delivery is not None:
            self.deliver(self.delivery.leave(session.user_id))

    def mls(self, session: ServerSession, op: int, payload: bytes) -> None:
        """Opcodes 26 and 28.

        Raises:
            GroupError: the key package is not well formed.
        """
        if self.delivery is None:
            raise GroupError("this server has no E2EE")
        take = self.delivery.key_package if op == Opcode.MLS_KEY_PACKAGE else self.delivery.commit_welcome
        self.deliver(take(session.user_id, payload))

    def transition(self, session: ServerSession, op: int, transition_id: int) -> None:
        """Opcodes 23 and 31."""
        if self.delivery is not None:
            ready = op == Opcode.DAVE_TRANSITION_READY
            take = self.delivery.transition_ready if ready else self.delivery.invalid_commit
            self.deliver(take(session.user_id, transition_id))

    def downgrade(self) -> None:
        """Give E2EE up, as when a client without it had to be let in."""
        if self.delivery is not None:
            self.deliver(self.delivery.downgrade())

    def upgrade(self) -> None:
        """Begin with E2EE again."""
        if self.delivery is not None:
            self.deliver(self.delivery.upgrade())

    def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Send what the delivery service wants sent, and watch over an awaited transition."""
        for delivery in deliveries:
            session = self.sessions.get(delivery.user_id)
            if session is not None:
                session.send(delivery.op, delivery.payload)
        assert self.delivery is not None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.delivery.transition_id is not None:
            self._deadline = asyncio.get_running_loop().call_later(TRANSITION_S, self._transition_timeout)

    def close(self) -> None:
        """Forget the timer."""
        if self._deadline is not None:
            self._deadline.cancel()

    def _transition_timeout(self) -> None:
        assert self.delivery is not None
        self._deadline = None
        self.deliver(self.delivery.transition_timeout())


def speaking_of(session: ServerSession) -> dict[str, object]:
    """`d` of op 5 about a member."""
    return {"speaking": session.speaking or 0, "ssrc": session.ssrc, "user_id": str(session.user_id)}
