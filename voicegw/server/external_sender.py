"""Who proposes changes to an MLS group from outside: the voice server, under a key of its own."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from voicegw.wire.mls import ADD, EXTERNAL, PROPOSAL, PUBLIC_MESSAGE, REMOVE, signed_bytes, vector

IDENTITY = b"\0"


class ExternalSender:
    """A throw-away P-256 key that signs Add and Remove proposals. Source: RFC 9420, sections 6.1 and 12.1.8."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.data = vector(public) + b"\0\1" + vector(IDENTITY)
        """The payload of op 25."""

    def add(self, group_id: bytes, epoch: int, key_package: bytes) -> bytes:
        """An MLSMessage that proposes to add the owner of a bare KeyPackage."""
        return self._propose(group_id, epoch, ADD.to_bytes(2, "big") + key_package)

    def remove(self, group_id: bytes, epoch: int, leaf: int) -> bytes:
        """An MLSMessage that proposes to remove a leaf."""
        return self._propose(group_id, epoch, REMOVE.to_bytes(2, "big") + leaf.to_bytes(4, "big"))

    def _propose(self, group_id: bytes, epoch: int, proposal: bytes) -> bytes:
        content = b"".join(
            (
                vector(group_id),
                epoch.to_bytes(8, "big"),
                bytes((EXTERNAL,)) + bytes(4),  # the first and only external sender
                vector(b""),
                bytes((PROPOSAL,)),
                proposal,
            )
        )
        signature = self._key.sign(signed_bytes("FramedContentTBS", PUBLIC_MESSAGE + content), ec.ECDSA(SHA256()))
        return PUBLIC_MESSAGE + content + vector(signature)
