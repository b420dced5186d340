"""The MLS messages that a voice server and its clients exchange, as far as their outside goes.

Source: RFC 9420; DAVE protocol 1.1.

Ciphersuite 2 (P-256, AES-128-GCM, SHA-256), basic credentials of 8 bytes, Add and Remove proposals from the external
sender. Every parser takes any bytes and raises GroupError only.
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


# -- the presentation language


def vector(data: bytes) -> bytes:
    """`data` with its variable-size length before it (RFC 9420, section 2.1.2)."""
    length = len(data)
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
        return self.take(self.number(width) & ((1 << (8 * width - 2)) - 1))

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
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)
        key.verify(signature, signed_bytes(label, content), ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature) as error:
        raise GroupError(f"an MLS signature that is not valid ({label})") from error


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
    package = _key_package(reader)
    reader.end()
    return package


def _key_package(reader: Reader) -> KeyPackage:
    start = reader.at
    reader.expect(VERSION, "version")
    reader.expect(SUITE, "ciphersuite")
    reader.vector()
    leaf = _leaf_node(reader, source=1, group=b"")
    reader.vector()
    content = reader.since(start)
    _verify(leaf.signature_key, "KeyPackageTBS", content, reader.vector())
    data = reader.since(start)
    return KeyPackage(data, key_package_ref(data), leaf.user_id, leaf.signature_key)


def _leaf_node(reader: Reader, source: int, group: bytes) -> LeafNode:
    start = reader.at
    reader.vector()
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
    _verify(signature_key, "LeafNodeTBS", content + group, reader.vector())
    return LeafNode(int.from_bytes(identity, "big"), signature_key)


# -- proposals


@dataclass(frozen=True, slots=True)
class ProposalMessage:
    """One proposal of the external sender; `data` is the whole MLSMessage, `ref` its reference."""

    data: bytes
    ref: bytes
    is_add: bool


def proposal_ref(message: bytes) -> bytes:
    """ProposalRef (RFC 9420, section 5.2) of an MLSMessage without tags, as an external sender's is."""
    return _ref(b"MLS 1.0 Proposal Reference", message[2:])


def parse_proposal_messages(data: bytes) -> list[ProposalMessage]:
    """The vector of MLSMessages of op 27, operation 0.

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
        _content_head(reader, EXTERNAL, PROPOSAL)
        kind = reader.number(2)
        if kind == ADD:
            _key_package(reader)
        elif kind == REMOVE:
            reader.number(4)
        else:
            raise GroupError("an MLS proposal that is neither Add nor Remove")
        reader.vector()
        message = reader.since(start)
        messages.append(ProposalMessage(message, proposal_ref(message), kind == ADD))
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


def _content_head(reader: Reader, sender: int, content_type: int) -> tuple[bytes, int, int]:
    """(group id, epoch, leaf or index of the sender)."""
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


# -- commits and welcomes


@dataclass(frozen=True, slots=True)
class Commit:
    """A member's commit;

    `data` is the MLSMessage, `refs` the proposals in it, `path_key` the leaf's key where it has a path.
    """

    data: bytes
    group_id: bytes
    epoch: int
    sender_leaf: int
    refs: tuple[bytes, ...]
    path_leaf: LeafNode | None


@dataclass(frozen=True, slots=True)
class Welcome:
    """A bare Welcome; `secrets` maps each newcomer's KeyPackageRef to its encrypted part."""

    data: bytes
    secrets: dict[bytes, bytes]
    group_info: bytes


def parse_commit_welcome(data: bytes) -> tuple[Commit, Welcome | None]:
    """The payload of op 28: a commit, and right behind it a Welcome where the commit adds anybody.

    Raises:
        GroupError: not that form.
    """
    reader = Reader(data)
    commit = _commit(reader)
    welcome = None
    if not reader.ended:
        welcome = _welcome(reader)
        reader.end()
    return commit, welcome


def parse_welcome(data: bytes) -> Welcome:
    """A bare Welcome.

    Raises:
        GroupError: not that form.
    """
    reader = Reader(data)
    welcome = _welcome(reader)
    reader.end()
    return welcome


def filter_welcome(welcome: Welcome, ref: bytes) -> bytes:
    """The Welcome for one newcomer: everybody else's secrets are cut out.

    Raises:
        GroupError: it has none for that key package.
    """
    secret = welcome.secrets.get(ref)
    if secret is None:
        raise GroupError("a Welcome without the newcomer's secrets")
    return SUITE + vector(secret) + vector(welcome.group_info)


def _commit(reader: Reader) -> Commit:
    start = reader.at
    reader.expect(PUBLIC_MESSAGE, "wire format")
    group_id, epoch, sender_leaf = _content_head(reader, MEMBER, COMMIT)
    proposals = Reader(reader.vector())
    refs: list[bytes] = []
    while not proposals.ended:
        if proposals.number(1) != 2:
            raise GroupError("a commit with a proposal inside")
        ref = proposals.vector()
        if len(ref) != REF_BYTES or len(refs) >= MAX_ITEMS:
            raise GroupError("a commit with a bad proposal reference")
        refs.append(ref)
    path_leaf = None
    if reader.number(1):
        path_leaf = _leaf_node(reader, source=3, group=vector(group_id) + sender_leaf.to_bytes(4, "big"))
        nodes = Reader(reader.vector())
        while not nodes.ended:
            nodes.vector()
            ciphertexts = Reader(nodes.vector())
            while not ciphertexts.ended:
                ciphertexts.vector()
                ciphertexts.vector()
    for _ in ("signature", "confirmation tag", "membership tag"):
        reader.vector()
    return Commit(reader.since(start), group_id, epoch, sender_leaf, tuple(refs), path_leaf)


def _welcome(reader: Reader) -> Welcome:
    start = reader.at
    reader.expect(SUITE, "ciphersuite")
    inner = Reader(reader.vector())
    secrets: dict[bytes, bytes] = {}
    while not inner.ended:
        begin = inner.at
        ref = inner.vector()
        inner.vector()
        inner.vector()
        if len(secrets) >= MAX_ITEMS:
            raise GroupError("a Welcome for too many")
        secrets[ref] = inner.since(begin)
    group_info = reader.vector()
    return Welcome(reader.since(start), secrets, group_info)
