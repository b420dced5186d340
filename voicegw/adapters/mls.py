"""The MLS group of one call, through davey; what the library says comes back as events.

davey holds group, sender key and everybody's receiver keys in one object. A new group is a new object, and the one
before it is kept for 10 s, so that frames that were under way can still be heard.

Some of its ways are dealt with here. It forgets the Welcome unless the last message it was fed has every Add of the
epoch. It keeps one copy of an Add for each time it was fed, and a revocation takes only one away. When a commit of
its own is announced it applies the last one that it made, whichever was announced. It takes two leaves of one user, and
users whom nobody has named. And what it raises may be anything: it is native code.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from voicegw.effects import ApplyCommit, ApplyProposals, ApplyWelcome, CreateGroup, SetPassthrough
from voicegw.errors import GroupError
from voicegw.events import (
    CommitIgnored,
    CommitMade,
    Event,
    GroupJoined,
    GroupRejected,
    IdentityDiffered,
    KeyPackageMade,
    ProposalsRejected,
)
from voicegw.native import load_davey
from voicegw.wire.dave_frames import displayable_code, is_dave_frame, pairwise_fingerprint
from voicegw.wire.mls import (
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    KeyPackage,
    ProposalMessage,
    check_external_sender,
    join_messages,
    join_refs,
    parse_proposal_messages,
    parse_proposal_refs,
)
from voicegw.wire.mls_messages import parse_commit_welcome
from voicegw.wire.rtp import SILENCE_FRAME

if TYPE_CHECKING:
    import davey

OLD_GROUP_S = 10.0
RENEW_AT_FRAMES = 2**24  # 93 hours of speech in one epoch; from here on the key would be another generation's
CODE_DIGITS, CODE_GROUP = 45, 5


class MlsGroup:
    """One call's group; `now` is the loop's clock.

    `on_broken(reason)` is called when our frames cannot be encrypted any more, although there is a group. `encrypt` and
    `decrypt` may be called from other threads: no frame is encrypted for a group that was not looked at.
    """

    def __init__(
        self, user_id: int, now: Callable[[], float], on_broken: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._user_id = user_id
        self._now = now
        self._on_broken = on_broken
        self._turn = threading.Lock()
        self._session: davey.DaveSession | None = None
        self._previous: davey.DaveSession | None = None
        self._previous_until = 0.0
        self._channel_id = 0
        self._external_sender: bytes | None = None
        self._sender_given = False
        self._proposals: dict[bytes, ProposalMessage] = {}
        self._commit = b""
        self._older_commits: set[bytes] = set()
        self._applied: tuple[bytes, bytes] = (b"", b"")
        self._audio: davey.MediaType
        self._our_key = b""
        self._keys: dict[int, bytes] = {}
        self._met: set[int] = set()
        self._clear_until = -math.inf
        self._frames = 0

    @property
    def ready(self) -> bool:
        """Is there a group with a sender key?"""
        return self._session is not None and self._session.ready

    @property
    def epoch(self) -> int:
        """The group's epoch, 0 where there is none."""
        return (self._session.epoch or 0) if self._session is not None else 0

    @property
    def members(self) -> frozenset[int]:
        """User ids in the group, us among them."""
        return frozenset(self._roster())

    # effects

    def create(self, effect: CreateGroup) -> list[Event]:
        """Begin a new group."""
        self._retire()
        self._forget_epoch()
        self._external_sender, self._sender_given = None, False
        self._keys.clear()
        self._channel_id = effect.channel_id
        try:
            davey = load_davey()
            pair = davey.SigningKeyPair(*_key_pair())
            self._our_key, self._audio = pair.public, davey.MediaType.audio
            self._session = davey.DaveSession(effect.protocol_version, self._user_id, effect.channel_id, pair)
            if effect.external_sender is not None:
                self.set_external_sender(effect.external_sender)
            return [KeyPackageMade(self._session.get_serialized_key_package())]
        except BaseException as error:
            return [GroupRejected(0, _said(error))]

    def set_external_sender(self, data: bytes) -> None:
        """Give the group its external sender; one that cannot be read changes nothing, nor does the same again."""
        if self._session is None or data == self._external_sender:
            return
        try:
            check_external_sender(data)
        except BaseException as error:
            _said(error)
            return
        self._external_sender, self._sender_given = data, False

    def _give_external_sender(self) -> None:
        """Hand it on when a message needs it: the library makes a group of us alone of it, a millisecond's work."""
        if self._session is not None and self._external_sender is not None and not self._sender_given:
            self._sender_given = True
            self._session.set_external_sender(self._external_sender)

    def apply_proposals(self, effect: ApplyProposals) -> list[Event]:
        """Apply them and commit."""
        if self._session is None:
            return [ProposalsRejected(effect.revoke, effect.data, "no group")]
        davey, known = load_davey(), sorted(effect.known_users)
        append, revoke = davey.ProposalsOperationType.append, davey.ProposalsOperationType.revoke
        try:
            self._give_external_sender()
            if effect.revoke:
                result = self._session.process_proposals(revoke, effect.data)
                for ref in parse_proposal_refs(effect.data):
                    self._proposals.pop(ref, None)
            else:
                messages = {message.ref: message for message in parse_proposal_messages(effect.data)}
                new = {ref: message for ref, message in messages.items() if ref not in self._proposals}
                if not new:
                    return []
                twice = self._who_twice(new.values())
                if twice is not None:
                    refused = ProposalsRejected(False, effect.data, "somebody would be in the group twice")
                    return [*self._differing(twice), refused]
                result = self._session.process_proposals(append, join_messages(m.data for m in new.values()), known)
                self._proposals.update(new)
            adds = {ref: message.data for ref, message in self._proposals.items() if message.package is not None}
            if result is not None and result.welcome is None and adds:
                self._session.process_proposals(revoke, join_refs(adds))
                result = self._session.process_proposals(append, join_messages(adds.values()), known)
        except BaseException as error:
            return [ProposalsRejected(effect.revoke, effect.data, _said(error))]
        if result is None:
            return []
        if self._commit:
            self._older_commits.add(self._commit)
        self._commit = result.commit
        return [CommitMade(result.commit + (result.welcome or b""))]

    def apply_commit(self, effect: ApplyCommit) -> list[Event]:
        """Apply a commit, ours or another's; one that is in our group already is ignored."""
        if self._session is None or effect.commit == self._applied[0]:
            return [CommitIgnored(effect.transition_id)]
        if effect.commit in self._older_commits:
            return [GroupRejected(effect.transition_id, "our own commit, but not the last one that was made")]
        with self._turn:
            return self._apply_commit(effect)

    def _apply_commit(self, effect: ApplyCommit) -> list[Event]:
        assert self._session is not None
        try:
            self._give_external_sender()
            before = set(self._roster())
            commit = parse_commit_welcome(effect.commit)[0]
            if self.ready and commit.group_id == self._channel_id.to_bytes(8, "big") and commit.epoch < self.epoch:
                return [CommitIgnored(effect.transition_id)]
            self._session.process_commit(effect.commit)
            self._applied = (effect.commit, self._applied[1])
            added = [self._proposals[ref].package for ref in commit.refs if ref in self._proposals]
            strangers = set(self._roster()) - before - effect.known_users
            return self._joined(effect.transition_id, strangers, [package for package in added if package is not None])
        except BaseException as error:
            reason = _said(error)
            if effect.member:
                return [GroupRejected(effect.transition_id, reason)]
            return [CommitIgnored(effect.transition_id)]

    def apply_welcome(self, effect: ApplyWelcome) -> list[Event]:
        """Join by a welcome; the one that we joined by is ignored when it comes again."""
        if self._session is not None and effect.welcome == self._applied[1]:
            return [CommitIgnored(effect.transition_id)]
        with self._turn:
            try:
                if self._session is None:
                    raise GroupError("no group")
                if len(effect.welcome) > MAX_MESSAGE_BYTES:
                    raise GroupError("a welcome above 1 MiB")
                self._give_external_sender()
                self._session.process_welcome(effect.welcome)
                self._applied = (self._applied[0], effect.welcome)
                return self._joined(effect.transition_id, set(self._roster()) - effect.known_users, [])
            except BaseException as error:
                return [GroupRejected(effect.transition_id, _said(error))]

    def set_passthrough(self, effect: SetPassthrough) -> None:
        """Accept frames without E2EE, or no longer: what is open closes by the clock, what is closed stays so."""
        until = self._now() + effect.expiry_s
        self._clear_until = math.inf if effect.allowed else min(self._clear_until, until)

    def drop(self) -> None:
        """Forget the group and its keys."""
        self._session = None
        self._previous = None
        self._external_sender, self._sender_given = None, False
        self._forget_epoch()
        self._applied = (b"", b"")
        self._keys.clear()
        self._met.clear()
        self._clear_until = -math.inf

    # frames

    def encrypt(self, frame: bytes) -> bytes:
        """One Opus frame, encrypted for everybody in the group.

        Raises:
            GroupError: there is no sender key.
        """
        with self._turn:
            session = self._session
            if session is None:
                raise GroupError("no group, so no frame may leave")
            self._frames += 1
            try:
                if self._frames >= RENEW_AT_FRAMES:
                    raise GroupError("our sender key is worn; a new epoch brings another")
                if session.ready:
                    return session.encrypt_opus(frame)
            except BaseException as error:
                reason = _said(error)
                self._session = None
            else:
                raise GroupError("the group is not formed yet, so no frame may leave")
        self._on_broken(reason)
        raise GroupError(reason)

    def decrypt(self, user_id: int, frame: bytes) -> bytes:
        """One frame of `user_id`; exactly the bytes of a silence frame pass as they are.

        Raises:
            GroupError: not decryptable with any key that we have, or clear where that is not accepted.
        """
        session, reason = self._session, "no group that could decrypt this frame"
        if session is not None:
            try:
                if session.ready:
                    return session.decrypt(user_id, self._audio, frame)
            except BaseException as error:
                reason = _said(error)
        older = self._older()
        if older is not None:
            try:
                return older.decrypt(user_id, self._audio, frame)
            except BaseException as error:
                _said(error)
        if frame == SILENCE_FRAME or (self._now() < self._clear_until and not is_dave_frame(frame)):
            return frame
        raise GroupError(reason)

    # who is who

    def verification_code(self, user_id: int) -> str:
        """45 digits that `user_id` sees alike where nobody stands between us; takes tenths of a second.

        Call it in a thread. Where we have seen the user's key package, other threads go on meanwhile; for those who
        were in the group before us the library computes it, and holds Python's lock until it is done.

        Raises:
            GroupError: the user is not in the group.
        """
        session = self._session
        if session is None or not session.ready or user_id not in self.members or user_id == self._user_id:
            raise GroupError("only somebody who is in the group can be verified")
        key = self._keys.get(user_id)
        try:
            if key is not None:
                fingerprint = pairwise_fingerprint(self._our_key, self._user_id, key, user_id)
            else:
                fingerprint = session.get_pairwise_fingerprint(0, user_id)
        except BaseException as error:
            raise GroupError(_said(error)) from error
        return displayable_code(fingerprint, CODE_DIGITS, CODE_GROUP)

    def _who_twice(self, messages: Iterable[ProposalMessage]) -> KeyPackage | None:
        """An Add of somebody who is in the group, or about to be, and is not about to be taken out."""
        packages = [message.package for message in (*self._proposals.values(), *messages)]
        taken = set() if None in packages else set(self._roster()) | {self._user_id}
        for package in packages:
            if package is not None:
                if package.user_id in taken:
                    return package
                taken.add(package.user_id)
        return None

    def _differing(self, package: KeyPackage) -> list[Event]:
        """Does a user that we met show another key than before?"""
        user_id = package.user_id
        same = user_id not in self._met or self._keys.get(user_id) == package.signature_key
        return [] if same or user_id == self._user_id else [IdentityDiffered(user_id)]

    def _joined(self, transition_id: int, strangers: set[int], added: list[KeyPackage]) -> list[Event]:
        assert self._session is not None
        roster = self._roster()
        reason = ""
        if len(roster) > MAX_ITEMS:
            reason = f"a group of more than {MAX_ITEMS}"
        elif len(set(roster)) < len(roster):
            reason = "somebody is in the group twice"
        elif strangers:
            reason = f"users that the voice server has not named are in the group: {sorted(strangers)[:5]}"
        if reason:
            self._session = None  # its sender key has never been used
            return [GroupRejected(transition_id, reason)]
        events: list[Event] = [GroupJoined(transition_id, self.epoch, self._session.voice_privacy_code or "")]
        for package in added:
            events += self._differing(package)
            self._keys[package.user_id] = package.signature_key
        self._met.update(roster)
        self._forget_epoch()
        return events

    def _roster(self) -> list[int]:
        return [int(user) for user in self._session.get_user_ids()] if self._session is not None else []

    def _older(self) -> davey.DaveSession | None:
        if self._previous is not None and self._now() >= self._previous_until:
            self._previous = None
        return self._previous

    def _retire(self) -> None:
        session, self._session = self._session, None
        try:
            if session is not None and session.ready:
                self._previous, self._previous_until = session, self._now() + OLD_GROUP_S
        except BaseException as error:
            _said(error)

    def _forget_epoch(self) -> None:
        self._proposals.clear()
        self._commit = b""
        self._older_commits.clear()
        self._frames = 0


def _key_pair() -> tuple[bytes, bytes]:
    """A fresh signing key on P-256, private and public, by OpenSSL: davey takes forty times as long to make one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_numbers().private_value.to_bytes(32, "big")
    return private, key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _said(error: BaseException) -> str:
    """What the library raised, in words; it may be anything, a panic of Rust among it, which is no Exception."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    return str(error) or type(error).__name__
