"""Opcodes and flags of voice gateway version 8.

Source: Discord voice docs, "Voice Opcodes"; DAVE protocol for 21 to 31.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

GATEWAY_VERSION = 8


class Opcode(IntEnum):
    """What a voice websocket message is; C is sent by clients, S by servers."""

    IDENTIFY = 0  # C
    SELECT_PROTOCOL = 1  # C
    READY = 2  # S
    HEARTBEAT = 3  # C, and S to ask for one
    SESSION_DESCRIPTION = 4  # S
    SPEAKING = 5  # C, S
    HEARTBEAT_ACK = 6  # S
    RESUME = 7  # C
    HELLO = 8  # S
    RESUMED = 9  # S
    SIGNAL = 10  # dead
    CLIENTS_CONNECT = 11  # S
    VIDEO = 12  # C, S
    CLIENT_DISCONNECT = 13  # S
    SESSION_UPDATE = 14  # C, S
    MEDIA_SINK_WANTS = 15  # C, S
    VOICE_BACKEND_VERSION = 16  # C, S
    CHANNEL_OPTIONS_UPDATE = 17  # dead
    CLIENT_FLAGS = 18  # S
    SPEED_TEST = 19  # dead
    CLIENT_PLATFORM = 20  # S
    DAVE_PREPARE_TRANSITION = 21  # S
    DAVE_EXECUTE_TRANSITION = 22  # S
    DAVE_TRANSITION_READY = 23  # C
    DAVE_PREPARE_EPOCH = 24  # S
    MLS_EXTERNAL_SENDER = 25  # S, binary
    MLS_KEY_PACKAGE = 26  # C, binary
    MLS_PROPOSALS = 27  # S, binary
    MLS_COMMIT_WELCOME = 28  # C, binary
    MLS_ANNOUNCE_COMMIT_TRANSITION = 29  # S, binary
    MLS_WELCOME = 30  # S, binary
    MLS_INVALID_COMMIT_WELCOME = 31  # C
    NO_ROUTE = 32  # C


BINARY_FROM_SERVER = frozenset(
    {
        Opcode.MLS_EXTERNAL_SENDER,
        Opcode.MLS_PROPOSALS,
        Opcode.MLS_ANNOUNCE_COMMIT_TRANSITION,
        Opcode.MLS_WELCOME,
    }
)
BINARY_FROM_CLIENT = frozenset({Opcode.MLS_KEY_PACKAGE, Opcode.MLS_COMMIT_WELCOME})


# What no audio client lives on: whatever such a message holds, it is no reason to complain.
NOT_NEEDED = frozenset(
    {
        Opcode.VIDEO,
        Opcode.SESSION_UPDATE,
        Opcode.MEDIA_SINK_WANTS,
        Opcode.VOICE_BACKEND_VERSION,
        Opcode.CLIENT_FLAGS,
        Opcode.CLIENT_PLATFORM,
    }
)


class Speaking(IntFlag):
    """Flags of op 5."""

    MICROPHONE = 1
    SOUNDSHARE = 2
    PRIORITY = 4
