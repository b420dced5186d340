"""A running call as a small document, so that another process can go on with it.

    frozen = await client.freeze()                  # nobody sees a leave; this process is done with the call
    data = frozen.to_bytes(key)                     # sealed with the fleet's key

    frozen = FrozenCall.from_bytes(data, [key])     # elsewhere
    client = await VoiceClient.thaw(frozen, signalling=signalling, ca_pem=...)

    client.keep_checkpoints(write)                  # against a crash: `await write(frozen)` makes one durable

The document is one line of JSON in the clear (format, key id, guild, user) and, sealed under it with
XChaCha20-Poly1305, everything else. What a newer version adds is refused by an older one; older documents can be read.

    {"voicegw_frozen": 1, "key": "k1", "guild": "...", "user": "..."}
    24 bytes of nonce, then the sealed body, to whose tag the line above belongs
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from voicegw.errors import FrozenCallError, FrozenCallRefused, FrozenCallTooNew
from voicegw.media.playlist import Playlist, PlaylistItem
from voicegw.media.sender import StreamMark
from voicegw.media.sources import SourceDescription
from voicegw.secret import Secret
from voicegw.snapshot import SessionSnapshot

FORMAT: Final = 1
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
MOST_HEAD_BYTES: Final = 1024

Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class FleetKey:
    """What documents are sealed with; `key_id` stands in them, so that keys can be changed while calls run."""

    key_id: str
    secret: Secret[bytes]

    def __post_init__(self) -> None:
        if len(self.secret.view()) != KEY_BYTES or not 0 < len(self.key_id) <= 64 or ":" in self.key_id:
            raise FrozenCallError(f"a fleet key has an id of 1 to 64 letters without a colon, and {KEY_BYTES} bytes")

    @classmethod
    def generate(cls, key_id: str = "1") -> Self:
        """A fresh one."""
        return cls(key_id, Secret(secrets.token_bytes(KEY_BYTES)))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The other end of `to_text`.

        Raises:
            FrozenCallError: it is none.
        """
        key_id, _, encoded = text.strip().partition(":")
        try:
            return cls(key_id, Secret(base64.urlsafe_b64decode(encoded)))
        except ValueError:
            raise FrozenCallError("a fleet key reads ID:BASE64, as `to_text` writes it") from None

    def to_text(self) -> Secret[str]:
        """Id and key in one line, for a file or a variable that only the fleet can read."""
        return Secret(f"{self.key_id}:{base64.urlsafe_b64encode(self.secret.view()).decode()}")


@dataclass(frozen=True, slots=True)
class FrozenCall:
    """One call of `user_id` in `guild_id`.

    `session` is what a resume needs. `stream` has the first nonce, number and timestamp that nobody has used: exact
    after `freeze`, the end of the lease in a checkpoint. `keys` are all transport keys that the call has had, by
    digest, with the number of nonces of each that are not to be used. `playlist` is what plays; `playlist.lost` says
    what of it nobody else can play. `options` are VoiceClient's, `states` the machines' states then, `frozen_at_ms`
    the wall clock.
    """

    user_id: int
    guild_id: int
    session: SessionSnapshot
    stream: StreamMark
    playlist: Playlist = field(default_factory=Playlist)
    keys: tuple[tuple[bytes, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    frozen_at_ms: int = 0

    @property
    def resumable(self) -> bool:
        """Is there a voice session in it? Otherwise whoever thaws it joins afresh."""
        return self.session.secret_key is not None

    def to_bytes(self, key: FleetKey) -> bytes:
        """Sealed with `key`: nobody without it can read or change it, or make it another user's."""
        head = json.dumps(
            {"voicegw_frozen": FORMAT, "key": key.key_id, "guild": str(self.guild_id), "user": str(self.user_id)}
        ).encode()
        body = {name: _plain(getattr(self, name)) for name in _BODY}  # secrets are still secrets in it
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(
            json.dumps(body, default=_bare, separators=(",", ":")).encode(), head, nonce, key.secret.reveal()
        )
        return b"".join((head, b"\n", nonce, sealed))

    @classmethod
    def from_bytes(cls, data: bytes, keys: FleetKey | Iterable[FleetKey]) -> Self:
        """Read a document; its key is among `keys`.

        Raises:
            FrozenCallTooNew: it was written by a newer version.
            FrozenCallRefused: none of the keys opens it, or its bytes were changed.
            FrozenCallError: it is no such document.
        """
        line, _, sealed = data.partition(b"\n")
        try:
            head = json.loads(line[:MOST_HEAD_BYTES])
            version, key_id = int(head["voicegw_frozen"]), str(head["key"])
            guild_id, user_id = int(head["guild"]), int(head["user"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FrozenCallError("this is no frozen call") from error
        if version > FORMAT:
            raise FrozenCallTooNew(
                f"this call was frozen by a newer version (format {version}, this one reads up to {FORMAT}): update "
                "voicegw here, or let it be thawed where the newer one runs"
            )
        known = [keys] if isinstance(keys, FleetKey) else list(keys)
        key = next((one for one in known if one.key_id == key_id), None)
        if key is None:
            raise FrozenCallRefused(f"this call was sealed with the fleet key {key_id!a}, which is not known here")
        nonce, sealed = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            body = Secret(crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, line, nonce, key.secret.reveal()))
        except (CryptoError, ValueError) as error:
            raise FrozenCallRefused(
                f"this frozen call does not open with the fleet key {key_id!a}: another one, or changed bytes"
            ) from error
        try:
            return cls(user_id=user_id, guild_id=guild_id, **_read(json.loads(body.reveal(), object_hook=_revived)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FrozenCallError(
                "this frozen call is sealed as it should be, but not written as it should be"
            ) from error


_BODY: Final = ("session", "stream", "playlist", "keys", "options", "states", "frozen_at_ms")


def _read(body: dict[str, Any]) -> dict[str, Any]:
    playlist = body["playlist"]
    playing = playlist.get("playing")
    return {
        "session": _made(SessionSnapshot, body["session"]),
        "stream": _made(StreamMark, body["stream"]),
        "playlist": _made(
            Playlist,
            playlist,
            playing=None if playing is None else _item(playing),
            queue=tuple(map(_item, playlist.get("queue", ()))),
            over=tuple(map(_item, playlist.get("over", ()))),
        ),
        "keys": _tuples(body.get("keys", [])),
        "options": dict(body.get("options", {})),
        "states": dict(body.get("states", {})),
        "frozen_at_ms": int(body.get("frozen_at_ms", 0)),
    }


def _item(data: dict[str, Any]) -> PlaylistItem:
    source = data.get("source")
    described = None if source is None else SourceDescription(**source)
    return _made(PlaylistItem, data, source=described)


def _made(kind: type[Data], data: Mapping[str, Any], **done: Any) -> Data:
    """One dataclass; what is missing has its default."""
    names = [each.name for each in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _tuples(data[name]) for name in names if name in data and name not in done}, **done)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Dicts and lists, but for what `_bare` writes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _bare(value: Any) -> dict[str, str]:
    """Bytes and secrets as JSON has them; in no variable."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Secret) and isinstance(value.reveal(), str):
        return {"$secret": value.reveal()}
    return {"$secret_bytes": base64.b64encode(value.view()).decode()}


def _revived(found: dict[str, Any]) -> Any:
    """The other way round."""
    match list(found):
        case ["$secret"]:
            return Secret(str(found["$secret"]))
        case ["$secret_bytes"]:
            return Secret(base64.b64decode(found["$secret_bytes"]))
        case ["$bytes"]:
            return base64.b64decode(found["$bytes"])
    return found
