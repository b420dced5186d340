"""MLS layouts against recorded calls of real libraries and real servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import davey
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import VECTORS
from voicegw.errors import GroupError
from voicegw.server.external_sender import ExternalSender
from voicegw.wire import mls
from voicegw.wire.mls import (
    join_messages,
    join_refs,
    parse_key_package,
    parse_proposal_messages,
    parse_proposal_refs,
    proposal_ref,
)
from voicegw.wire.mls_messages import filter_welcome, parse_commit_welcome, parse_welcome

TRANSCRIPT = VECTORS["mls_transcript"]
PROPOSALS = VECTORS["mls_external_proposals"]
CAPTURE = VECTORS["mls_production_capture"]
CHANNEL = int(TRANSCRIPT["channel_id"])
GROUP = CHANNEL.to_bytes(8, "big")


def data(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize("user", "ABM")
def test_key_packages_of_three_libraries(user: str) -> None:
    package = parse_key_package(data(TRANSCRIPT["key_packages"][user]))
    assert package.user_id == int(TRANSCRIPT["users"][user])
    assert package.ref.hex() == TRANSCRIPT["welcome"]["key_package_refs"][user]
    assert len(package.signature_key) == 65


def test_a_key_package_with_any_bit_turned_is_refused() -> None:
    good = data(VECTORS["mls_key_package"]["key_package"])
    for at in range(len(good)):
        with pytest.raises(GroupError):
            parse_key_package(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :])


def test_proposals_have_the_known_references() -> None:
    one = parse_proposal_messages(data(PROPOSALS["op27_append_one"])[1:])
    assert [(message.ref.hex(), message.is_add) for message in one] == [(PROPOSALS["add"]["ref"], True)]
    two = parse_proposal_messages(data(PROPOSALS["op27_append_two"])[1:])
    assert [message.is_add for message in two] == [False, True]
    assert two[0].ref.hex() == PROPOSALS["remove"]["ref"]
    assert join_messages(message.data for message in two) == data(PROPOSALS["op27_append_two"])[1:]
    refs = parse_proposal_refs(data(PROPOSALS["op27_revoke_two"])[1:])
    assert [ref.hex() for ref in refs] == [PROPOSALS["add"]["ref"], PROPOSALS["remove"]["ref"]]
    assert join_refs(refs) == data(PROPOSALS["op27_revoke_two"])[1:]


def test_what_a_real_server_sent() -> None:
    (message,) = parse_proposal_messages(data(CAPTURE["append_vector"]))
    assert message.ref.hex() == CAPTURE["proposal_ref"]
    assert parse_proposal_refs(data(CAPTURE["revoke_vector"])) == [message.ref]


def test_the_commit_ends_where_the_welcome_begins() -> None:
    recorded = TRANSCRIPT["op28_from_A"]
    commit, welcome = parse_commit_welcome(data(recorded["payload"]))
    candidate = TRANSCRIPT["commit_candidates"]["A"]
    assert len(commit.data) == recorded["commit_length"]
    assert welcome is not None
    assert len(welcome.data) == recorded["welcome_length"]
    assert (commit.group_id.hex(), commit.epoch, commit.sender_leaf) == (
        candidate["group_id"],
        candidate["epoch"],
        candidate["sender_leaf"],
    )
    assert [ref.hex() for ref in commit.refs] == candidate["proposal_refs"]
    assert [ref.hex() for ref in welcome.secrets] == TRANSCRIPT["welcome"]["secret_refs_in_full"]


@pytest.mark.parametrize("later", TRANSCRIPT["later_commits"], ids=lambda later: later["name"])
def test_later_commits(later: dict[str, Any]) -> None:
    recorded = later["commit"]
    commit, welcome = parse_commit_welcome(data(recorded["bytes"]) + data(later["welcome"] or ""))
    assert commit.data == data(recorded["bytes"])
    assert (commit.epoch, commit.sender_leaf) == (recorded["epoch"], recorded["sender_leaf"])
    assert commit.has_path == recorded["has_update_path"]
    assert (welcome is not None) == (later["welcome"] is not None)


@pytest.mark.parametrize("user", "BM")
def test_a_welcome_is_filtered_for_each_newcomer(user: str) -> None:
    welcome = parse_welcome(data(TRANSCRIPT["welcome"]["full"]))
    ref = data(TRANSCRIPT["welcome"]["key_package_refs"][user])
    assert filter_welcome(welcome, ref).hex() == TRANSCRIPT["welcome"][f"for_{user}"]
    with pytest.raises(GroupError):
        filter_welcome(welcome, bytes(32))


PARSERS: list[tuple[str, Callable[[bytes], object], bytes]] = [
    ("key package", parse_key_package, data(VECTORS["mls_key_package"]["key_package"])),
    ("proposals", parse_proposal_messages, data(PROPOSALS["op27_append_two"])[1:]),
    ("refs", parse_proposal_refs, data(PROPOSALS["op27_revoke_two"])[1:]),
    ("commit", parse_commit_welcome, data(TRANSCRIPT["op28_from_A"]["payload"])),
    ("commit with a path", parse_commit_welcome, data(TRANSCRIPT["later_commits"][1]["commit"]["bytes"])),
    ("welcome", parse_welcome, data(TRANSCRIPT["welcome"]["full"])),
]


@pytest.mark.parametrize(("name", "parse", "good"), PARSERS, ids=[name for name, _, _ in PARSERS])
def test_a_message_cut_or_longer_is_refused(name: str, parse: Callable[[bytes], object], good: bytes) -> None:
    parse(good)
    commit_alone = {len(parse_commit_welcome(good)[0].data)} if name == "commit" else set()
    for end in set(range(len(good))) - commit_alone:
        with pytest.raises(GroupError):
            parse(good[:end])
    with pytest.raises(GroupError):
        parse(good + b"\0")


@pytest.mark.parametrize("parse", [parse for _, parse, _ in PARSERS])
@given(noise=st.binary(max_size=300), start=st.sampled_from([good for _, _, good in PARSERS]), at=st.integers(0, 400))
def test_any_bytes_raise_our_error_only(parse: Callable[[bytes], object], noise: bytes, start: bytes, at: int) -> None:
    with contextlib.suppress(GroupError):
        parse(noise)
    with contextlib.suppress(GroupError):
        parse(start[:at] + noise)


def test_huge_messages_are_refused() -> None:
    for parse in (parse for _, parse, _ in PARSERS):
        with pytest.raises(GroupError):
            parse(bytes((1 << 20) + 1))
    with pytest.raises(GroupError):
        parse_proposal_refs(join_refs([bytes(32)] * 1001))
    assert len(parse_proposal_refs(join_refs([bytes(32)] * 1000))) == 1000


@given(st.binary(max_size=20_000))
def test_vectors_there_and_back(content: bytes) -> None:
    reader = mls.Reader(mls.vector(content))
    assert reader.vector() == content
    assert reader.ended


@pytest.mark.parametrize("content", [b"", b"a", bytes(63), bytes(64), bytes(0x3FFF), bytes(0x4000)], ids=len)
def test_a_length_has_one_form_only(content: bytes) -> None:
    """RFC 9420, section 2.1.2: a longer form than needed is malformed."""
    forms = [
        (mark << (8 * width - 2) | len(content)).to_bytes(width, "big") + content
        for mark, width in enumerate((1, 2, 4))
        if len(content) < 1 << (8 * width - 2)
    ]
    assert forms[0] == mls.vector(content)
    assert mls.Reader(forms[0]).vector() == content
    for longer in forms[1:]:
        with pytest.raises(GroupError, match="shortest"):
            mls.Reader(longer).vector()
    with pytest.raises(GroupError, match="invalid length"):
        mls.Reader(b"\xc0" + bytes(16)).vector()


def test_an_optional_is_there_or_not() -> None:
    assert [mls.Reader(bytes((value,))).flag() for value in (0, 1)] == [False, True]
    with pytest.raises(GroupError):
        mls.Reader(b"\2").flag()


def test_a_key_that_nobody_could_encrypt_to_is_refused() -> None:
    """The points themselves: a signature over a bad one would be the owner's own."""
    good = data(VECTORS["mls_key_package"]["key_package"])
    for name in ("init_public", "encryption_public", "signature_public"):
        point = data(VECTORS["mls_key_package"][name])
        compressed = bytes((2 + point[-1] % 2,)) + point[1:33]
        for bad in (compressed, bytes(65), b"", point[:64] + bytes((point[64] ^ 1,))):
            with pytest.raises(GroupError, match="no point"):
                parse_key_package(good.replace(mls.vector(point), mls.vector(bad)))


def test_a_welcome_has_one_secret_for_each() -> None:
    welcome = parse_welcome(data(TRANSCRIPT["welcome"]["full"]))
    secret = next(iter(welcome.secrets.values()))
    with pytest.raises(GroupError, match="two secrets"):
        parse_welcome(mls.SUITE + mls.vector(secret * 2) + mls.vector(welcome.group_info))


def test_a_real_library_takes_our_proposals() -> None:
    sender = ExternalSender()
    alice, bob = davey.DaveSession(1, 1, CHANNEL), davey.DaveSession(1, 2, CHANNEL)
    for session in (alice, bob):
        session.set_external_sender(sender.data)
    package = bob.get_serialized_key_package()
    alice.get_serialized_key_package()
    message = sender.add(GROUP, 0, package)
    assert proposal_ref(message) == parse_proposal_messages(join_messages([message]))[0].ref
    result = alice.process_proposals(davey.ProposalsOperationType.append, join_messages([message]), [1, 2])
    assert result is not None
    assert result.welcome is not None
    commit, welcome = parse_commit_welcome(result.commit + result.welcome)
    assert commit.refs == (proposal_ref(message),)
    alice.process_commit(commit.data)
    assert welcome is not None
    bob.process_welcome(filter_welcome(welcome, parse_key_package(package).ref))
    assert alice.voice_privacy_code == bob.voice_privacy_code is not None
