"""Commits and Welcomes, as far as their outside goes: what a delivery service reads of op 28.

Source: RFC 9420, section 12.4; DAVE protocol 1.1. Every parser takes any bytes and raises GroupError only.
"""

from __future__ import annotations

from dataclasses import dataclass

from voicegw.errors import GroupError
from voicegw.wire.mls import (
    COMMIT,
    MAX_ITEMS,
    MEMBER,
    PUBLIC_MESSAGE,
    REF_BYTES,
    SUITE,
    LeafNode,
    Reader,
    read_content_head,
    read_leaf,
    vector,
)


@dataclass(frozen=True, slots=True)
class Commit:
    """A member's commit: `data` is the MLSMessage, `refs` the proposals in it, `path_leaf` its new leaf, if any."""

    data: bytes
    group_id: bytes
    epoch: int
    sender_leaf: int
    refs: tuple[bytes, ...]
    path_leaf: LeafNode | None

    @property
    def has_path(self) -> bool:
        """Does it bring new keys for the way from its leaf to the root?"""
        return self.path_leaf is not None


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


def filter_welcome(welcome: Welcome, key_package_ref: bytes) -> bytes:
    """The Welcome for one newcomer: everybody else's secrets are cut out.

    Raises:
        GroupError: it has none for that key package.
    """
    secret = welcome.secrets.get(key_package_ref)
    if secret is None:
        raise GroupError("a Welcome without the newcomer's secrets")
    return SUITE + vector(secret) + vector(welcome.group_info)


def _commit(reader: Reader) -> Commit:
    start = reader.at
    reader.expect(PUBLIC_MESSAGE, "wire format")
    group_id, epoch, sender_leaf = read_content_head(reader, MEMBER, COMMIT)
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
    if reader.flag():
        path_leaf = read_leaf(reader, source=3, group=vector(group_id) + sender_leaf.to_bytes(4, "big"))
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
        if ref in secrets:
            raise GroupError("a Welcome with two secrets for one newcomer")
        secrets[ref] = inner.since(begin)
    group_info = reader.vector()
    return Welcome(reader.since(start), secrets, group_info)
