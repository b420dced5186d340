"""What MLS messages are made of, key packages and proposals, as far as their outside goes.

Source: RFC 9420; DAVE protocol 1.1.

Ciphersuite 2 (P-256, AES-128-GCM, SHA-256), basic credentials of 8 bytes, Add and Remove proposals from the external
sender. Every parser takes any bytes and raises GroupError only. Commits and Welcomes are in `mls_messages`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from voicegw.errors import GroupError

MAX_MESSAGE_BYTES = 1 << 20
MAX_ITEMS = 1000
VERSION = b"\0\1"
SUITE = b"\0\2"
PUBLIC_MESSAGE = VERSION + b"\0\1"
MEMBER, EXTERNAL = 1, 2
PROPOSAL, COMMIT = 2, 3
ADD, REMOVE = 1, 3
REF_BYTES = 32
POINT_BYTES = 65


# -- the presentation language


def vector(data: bytes) -> bytes:
    """`data` with its variable-size length before it (RFC 9420, section 2.1.2).

    Raises:
        GroupError: 1 GiB or more.
    """
    length = len(data)
    if length >= 1 << 30:
        raise GroupError("too much for one MLS vector")
    if length < 1 << 6:
        return bytes((length,)) + data
    if length < 1 << 14:
        return (length | 1 << 14).to_bytes(2, "big") + data
    return (length | 2 << 30).to_bytes(4, "big") + data


class Reader:
    """Reads one message from the front."""

    __slots__ = ("_data", "at")

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            raise GroupError("an MLS message above 1 MiB")
        self._data = data
        self.at = 0

    @property
    def ended(self) -> bool:
        """Is nothing left?"""
        return self.at == len(self._data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        data = self._data[self.at : self.at + count]
        if len(data) < count:
            raise GroupError("an MLS message that ends too early")
        self.at += count
        return data

    def number(self, width: int) -> int:
        """The next big-endian integer."""
        return int.from_bytes(self.take(width), "big")

    def vector(self) -> bytes:
        """The next vector's content."""
        width = 1 << (self._data[self.at] >> 6) if not self.ended else 1
        if width == 8:
            raise GroupError("an MLS vector with an invalid length")
        length = self.number(width) & ((1 << (8 * width - 2)) - 1)
        if width > 1 and length < 1 << (4 * width - 2):
            raise GroupError("an MLS vector whose length is not in its shortest form")
        return self.take(length)

    def flag(self) -> bool:
        """Is there an optional value?"""
        present = self.number(1)
        if present > 1:
            raise GroupError("an MLS optional that is neither there nor absent")
        return present == 1

    def expect(self, wanted: bytes, what: str) -> None:
        """The next bytes must be `wanted`."""
        if self.take(len(wanted)) != wanted:
            raise GroupError(f"an MLS message with another {what} than DAVE's")

    def since(self, start: int) -> bytes:
        """What was read from `start` on."""
        return self._data[start : self.at]

    def end(self) -> None:
        """Nothing may be left."""
        if not self.ended:
            raise GroupError("an MLS message with more behind it")


def _ref(label: bytes, content: bytes) -> bytes:
    return hashlib.sha256(vector(label) + vector(content)).digest()


def signed_bytes(label: str, content: bytes) -> bytes:
    """What SignWithLabel signs (RFC 9420, section 5.1.2)."""
    return vector(b"MLS 1.0 " + label.encode()) + vector(content)


def _verify(public_key: bytes, label: str, content: bytes, signature: bytes) -> None:
    try:
        _point(public_key).verify(signature, signed_bytes(label, content), ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise GroupError(f"an MLS signature that is not valid ({label})") from error


def _point(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """An uncompressed point of P-256; members could not encrypt to any other."""
    try:
        if len(public_key) != POINT_BYTES:
            raise ValueError("not uncompressed")
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)
    except ValueError as error:
        raise GroupError("an MLS public key that is no point of P-256") from error


# -- key packages


@dataclass(frozen=True, slots=True)
class KeyPackage:
    """One user's offer to be added; `ref` is its hash, `data` the bare bytes."""

    data: bytes
    ref: bytes
    user_id: int
    signature_key: bytes


@dataclass(frozen=True, slots=True)
class LeafNode:
    """The part of a leaf that the outside can check."""

    user_id: int
    signature_key: bytes


def key_package_ref(data: bytes) -> bytes:
    """KeyPackageRef (RFC 9420, section 5.2)."""
    return _ref(b"MLS 1.0 KeyPackage Reference", data)


def parse_key_package(data: bytes) -> KeyPackage:
    """Read and check a bare KeyPackage, its two signatures among them.

    Raises:
        GroupError: not one that DAVE version 1 allows.
    """
    reader = Reader(data)
    package = _key_package(reader, verified=True)
    reader.end()
    return package


def _key_package(reader: Reader, verified: bool) -> KeyPackage:
    start = reader.at
    reader.expect(VERSION, "version")
    reader.expect(SUITE, "ciphersuite")
    init_key = reader.vector()
    leaf = read_leaf(reader, source=1, group=b"", verified=verified)
    reader.vector()
    content = reader.since(start)
    signature = reader.vector()
    if verified:
        _point(init_key)
        _verify(leaf.signature_key, "KeyPackageTBS", content, signature)
    data = reader.since(start)
    return KeyPackage(data, key_package_ref(data), leaf.user_id, leaf.signature_key)


def read_leaf(reader: Reader, source: int, group: bytes, verified: bool = True) -> LeafNode:
    """The next leaf; `group` is what a leaf in a commit (source 3) signs besides itself.

    Key and signature are checked unless somebody else does that (`verified` false).

    Raises:
        GroupError: not one that DAVE version 1 allows. Source: RFC 9420, section 7.2.
    """
    start = reader.at
    encryption_key = reader.vector()
    signature_key = reader.vector()
    reader.expect(b"\0\1", "credential")
    identity = reader.vector()
    if len(identity) != 8:
        raise GroupError("an MLS credential that is no user id")
    for _ in range(5):  # capabilities
        reader.vector()
    if reader.number(1) != source:
        raise GroupError("an MLS leaf from another source than it must have")
    if source == 1:
        if reader.number(8) != 0 or reader.number(8) != (1 << 64) - 1:
            raise GroupError("a key package with another lifetime than DAVE's")
    else:
        reader.vector()
    reader.vector()
    content = reader.since(start)
    signature = reader.vector()
    if verified:
        _point(encryption_key)
        _verify(signature_key, "LeafNodeTBS", content + group, signature)
    return LeafNode(int.from_bytes(identity, "big"), signature_key)


# -- who proposes


def check_external_sender(data: bytes) -> None:
    """Is it an ExternalSender, op 25's payload?

    Raises:
        GroupError: it is not.
    """
    reader = Reader(data)
    _point(reader.vector())
    reader.expect(b"\0\1", "credential")
    reader.vector()
    reader.end()


# -- proposals


@dataclass(frozen=True, slots=True)
class ProposalMessage:
    """One proposal of the external sender; `data` is the whole MLSMessage, `ref` its reference.

    `package` is the key package of an Add, its signatures not checked; None is a Remove.
    """

    data: bytes
    ref: bytes
    package: KeyPackage | None

    @property
    def is_add(self) -> bool:
        """Is it an Add?"""
        return self.package is not None


def proposal_ref(message: bytes) -> bytes:
    """ProposalRef (RFC 9420, section 5.2) of an MLSMessage without tags, as an external sender's is."""
    return _ref(b"MLS 1.0 Proposal Reference", message[2:])


def parse_proposal_messages(data: bytes) -> list[ProposalMessage]:
    """The vector of MLSMessages of op 27, operation 0; the MLS library checks their signatures.

    Raises:
        GroupError: not a vector of external proposals.
    """
    outer = Reader(data)
    reader = Reader(outer.vector())
    outer.end()
    messages: list[ProposalMessage] = []
    while not reader.ended:
        if len(messages) >= MAX_ITEMS:
            raise GroupError("too many MLS proposals at once")
        start = reader.at
        reader.expect(PUBLIC_MESSAGE, "wire format")
        read_content_head(reader, EXTERNAL, PROPOSAL)
        kind, package = reader.number(2), None
        if kind == ADD:
            package = _key_package(reader, verified=False)
        elif kind == REMOVE:
            reader.number(4)
        else:
            raise GroupError("an MLS proposal that is neither Add nor Remove")
        reader.vector()
        message = reader.since(start)
        messages.append(ProposalMessage(message, proposal_ref(message), package))
    return messages


def parse_proposal_refs(data: bytes) -> list[bytes]:
    """The vector of references of op 27, operation 1.

    Raises:
        GroupError: not a vector of references.
    """
    outer = Reader(data)
    reader = Reader(outer.vector())
    outer.end()
    refs: list[bytes] = []
    while not reader.ended:
        ref = reader.vector()
        if len(ref) != REF_BYTES or len(refs) >= MAX_ITEMS:
            raise GroupError("not a list of proposal references")
        refs.append(ref)
    return refs


def join_messages(messages: Iterable[bytes]) -> bytes:
    """The vector that op 27 carries for Adds and Removes."""
    return vector(b"".join(messages))


def join_refs(refs: Iterable[bytes]) -> bytes:
    """The vector that op 27 carries for revocations."""
    return vector(b"".join(vector(ref) for ref in refs))


def read_content_head(reader: Reader, sender: int, content_type: int) -> tuple[bytes, int, int]:
    """The next FramedContent up to its proposal or commit: (group id, epoch, leaf or index of the sender).

    Raises:
        GroupError: another kind of sender or content. Source: RFC 9420, section 6.
    """
    group_id = reader.vector()
    epoch = reader.number(8)
    if reader.number(1) != sender:
        raise GroupError("an MLS message from another kind of sender")
    index = reader.number(4)
    if reader.vector():
        raise GroupError("an MLS message with authenticated data")
    if reader.number(1) != content_type:
        raise GroupError("an MLS message of another kind")
    return group_id, epoch, index
