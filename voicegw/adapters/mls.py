"""The MLS group of one call, through davey; what the library says comes back as events.

davey holds group, sender key and everybody's receiver keys in one object. A new group is a new object, and the one
before it is kept for 10 s, so that frames that were under way can still be heard.

Three of its ways are dealt with here. It forgets the Welcome unless the last message it was fed has every Add of the
epoch. It keeps one copy of an Add for each time it was fed, and a revocation takes only one away. And when a commit of
its own is announced it applies the last one that it made, whichever was announced.
"""

from __future__ import annotations

from collections.abc import Callable

import davey

from voicegw.effects import ApplyCommit, ApplyProposals, ApplyWelcome, CreateGroup, SetPassthrough
from voicegw.errors import GroupError
from voicegw.events import (
    CommitIgnored,
    CommitMade,
    Event,
    GroupJoined,
    GroupRejected,
    KeyPackageMade,
    ProposalsRejected,
)
from voicegw.wire.dave_frames import is_dave_frame
from voicegw.wire.mls import ProposalMessage, join_messages, join_refs, parse_proposal_messages, parse_proposal_refs
from voicegw.wire.rtp import SILENCE_FRAME

OLD_GROUP_S = 10.0


class MlsGroup:
    """One call's group; `now` is the loop's clock."""

    def __init__(self, user_id: int, now: Callable[[], float]) -> None:
        self._user_id = user_id
        self._now = now
        self._session: davey.DaveSession | None = None
        self._previous: davey.DaveSession | None = None
        self._previous_until = 0.0
        self._adds: dict[bytes, ProposalMessage] = {}
        self._commit = b""
        self._older_commits: set[bytes] = set()
        self._passthrough = SetPassthrough(allowed=False, expiry_s=0)

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
        return (
            frozenset(int(user) for user in self._session.get_user_ids()) if self._session is not None else frozenset()
        )

    # effects

    def create(self, effect: CreateGroup) -> list[Event]:
        """Begin a new group."""
        self._retire()
        self._session = davey.DaveSession(effect.protocol_version, self._user_id, effect.channel_id)
        self._forget_epoch()
        if effect.external_sender is not None:
            self.set_external_sender(effect.external_sender)
        return [KeyPackageMade(self._session.get_serialized_key_package())]

    def set_external_sender(self, data: bytes) -> None:
        """Give the group its external sender; one that cannot be read leaves the group without."""
        if self._session is not None:
            try:
                self._session.set_external_sender(data)
            except ValueError:
                return
            self.set_passthrough(self._passthrough)

    def apply_proposals(self, effect: ApplyProposals) -> list[Event]:
        """Apply them and commit."""
        if self._session is None:
            return [ProposalsRejected(effect.revoke, effect.data, "no group")]
        kinds, known = davey.ProposalsOperationType, sorted(effect.known_users)
        try:
            result = self._session.process_proposals(
                kinds.revoke if effect.revoke else kinds.append, effect.data, known
            )
            self._note_adds(effect)
            if result is not None and result.welcome is None and self._adds:
                adds = join_messages(message.data for message in self._adds.values())
                self._session.process_proposals(kinds.revoke, join_refs(self._adds))
                result = self._session.process_proposals(kinds.append, adds, known)
        except (ValueError, GroupError) as error:
            return [ProposalsRejected(effect.revoke, effect.data, str(error))]
        if result is None:
            return []
        if self._commit:
            self._older_commits.add(self._commit)
        self._commit = result.commit
        return [CommitMade(result.commit + (result.welcome or b""))]

    def apply_commit(self, effect: ApplyCommit) -> list[Event]:
        """Apply a commit, ours or another's."""
        if self._session is None:
            return [CommitIgnored(effect.transition_id)]
        if effect.commit in self._older_commits:
            return [GroupRejected(effect.transition_id, "our own commit, but not the last one that was made")]
        try:
            self._session.process_commit(effect.commit)
        except ValueError as error:
            if effect.member:
                return [GroupRejected(effect.transition_id, str(error))]
            return [CommitIgnored(effect.transition_id)]
        return self._joined(effect.transition_id)

    def apply_welcome(self, effect: ApplyWelcome) -> list[Event]:
        """Join by a welcome."""
        if self._session is None:
            return [GroupRejected(effect.transition_id, "no group")]
        try:
            self._session.process_welcome(effect.welcome)
        except ValueError as error:
            return [GroupRejected(effect.transition_id, str(error))]
        return self._joined(effect.transition_id)

    def set_passthrough(self, effect: SetPassthrough) -> None:
        """Accept frames without E2EE, or no longer."""
        self._passthrough = effect
        if self._session is not None:
            self._session.set_passthrough_mode(effect.allowed, effect.expiry_s)

    def drop(self) -> None:
        """Forget the group and its keys."""
        self._session = None
        self._previous = None
        self._forget_epoch()
        self._passthrough = SetPassthrough(allowed=False, expiry_s=0)

    # frames

    def encrypt(self, frame: bytes) -> bytes:
        """One Opus frame, encrypted for everybody in the group.

        Raises:
            GroupError: there is no sender key.
        """
        session = self._session
        if session is None or not session.ready:
            raise GroupError("no group, so no frame may leave")
        try:
            return session.encrypt_opus(frame)
        except ValueError as error:
            raise GroupError(str(error)) from error

    def decrypt(self, user_id: int, frame: bytes) -> bytes:
        """One frame of `user_id`; exactly the bytes of a silence frame pass as they are.

        Raises:
            GroupError: not decryptable with any key that we have, or clear where that is not accepted.
        """
        try:
            if self._session is not None and self._session.ready:
                return self._session.decrypt(user_id, davey.MediaType.audio, frame)
        except ValueError as error:
            if self._previous is None:
                raise GroupError(str(error)) from error
        if self._previous is not None:
            if self._now() < self._previous_until:
                try:
                    return self._previous.decrypt(user_id, davey.MediaType.audio, frame)
                except ValueError as error:
                    raise GroupError(str(error)) from error
            self._previous = None
        if frame == SILENCE_FRAME or (self._passthrough.allowed and not is_dave_frame(frame)):
            return frame
        raise GroupError("no group that could decrypt this frame")

    def _joined(self, transition_id: int) -> list[Event]:
        assert self._session is not None
        self._forget_epoch()
        self.set_passthrough(self._passthrough)
        return [GroupJoined(transition_id, self.epoch, self._session.voice_privacy_code or "")]

    def _retire(self) -> None:
        if self._session is not None and self._session.ready:
            self._previous = self._session
            self._previous_until = self._now() + OLD_GROUP_S
        self._session = None

    def _forget_epoch(self) -> None:
        self._adds.clear()
        self._commit = b""
        self._older_commits.clear()

    def _note_adds(self, effect: ApplyProposals) -> None:
        if effect.revoke:
            for ref in parse_proposal_refs(effect.data):
                self._adds.pop(ref, None)
            return
        for message in parse_proposal_messages(effect.data):
            if message.is_add:
                self._adds[message.ref] = message
