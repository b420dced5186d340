"""A group of two, made in memory: one davey session that can encrypt."""

from __future__ import annotations

import davey

from voicegw.server.external_sender import ExternalSender
from voicegw.wire.mls import join_messages

CHANNEL = 927310423890473011


def ready_session() -> davey.DaveSession:
    """Ours, with a sender key."""
    ours, other = davey.DaveSession(1, 1, CHANNEL), davey.DaveSession(1, 2, CHANNEL)
    server = ExternalSender()
    ours.set_external_sender(server.data)
    add = server.add(CHANNEL.to_bytes(8, "big"), 0, other.get_serialized_key_package())
    result = ours.process_proposals(davey.ProposalsOperationType.append, join_messages([add]), [1, 2])
    assert result is not None
    ours.process_commit(result.commit)
    assert ours.ready
    return ours
