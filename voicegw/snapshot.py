"""What another process must know of a call's core to go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from voicegw.secret import Secret


@dataclass(frozen=True, slots=True)
class Announcement:
    """What another process may know of a session before it is its own: where to dial, and for which group.

    Nothing of it is secret, and with none of it can anything be said in the call. `dave_protocol_version` is 0 where no
    group is to be made; `external_sender` is the voice server's for groups (op 25).
    """

    endpoint: str
    channel_id: int
    dave_protocol_version: int = 0
    external_sender: bytes | None = None


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """One voice session, as `VoiceSession.snapshot` takes it and `CallThawed` brings it back.

    `channel_id` is where the bot wants to be, `home` the last channel in which it was connected. Where there is no
    session that could be resumed, `secret_key` is None and only these two count. `media` is the voice server's address
    of Ready, `selected` our own of Select Protocol. `dave` is the group machine's state, `epoch` is above 0 where we
    are in a group; the group itself cannot be taken along. `ssrcs` are pairs of SSRC and user id.
    """

    channel_id: int
    home: int = 0
    session_id: Secret[str] | None = None
    token: Secret[str] | None = None
    endpoint: str | None = None
    seq_ack: int = -1
    ssrc: int = 0
    media: tuple[str, int] = ("", 0)
    selected: tuple[str, int] = ("", 0)
    mode: str = ""
    secret_key: Secret[bytes] | None = None
    users: tuple[int, ...] = ()
    ssrcs: tuple[tuple[int, int], ...] = ()
    dave: str = "off"
    dave_protocol_version: int = 0
    epoch: int = 0
    external_sender: bytes | None = None
    last_transition: int = 0
