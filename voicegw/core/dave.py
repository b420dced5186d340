"""The MLS group's session: `states/dave.toml`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import E2EEPolicy, Shared
from voicegw.core.signals import (
    DialAheadRequested,
    E2eeAgreed,
    E2eeLost,
    GroupEstablished,
    SessionThawed,
    SpeechAllowed,
    SpeechForbidden,
)
from voicegw.effects import (
    ApplyCommit,
    ApplyProposals,
    ApplyWelcome,
    CreateGroup,
    DowngradeRefused,
    DropGroup,
    EncryptionChanged,
    HoldReason,
    IdentityChanged,
    SendCommitWelcome,
    SendInvalidCommit,
    SendKeyPackage,
    SendTransitionReady,
    SetExternalSender,
    SetPassthrough,
    Warned,
)
from voicegw.events import CommitMade, GroupJoined, IdentityDiffered, KeyPackageMade, ProposalsRejected, UserVerified
from voicegw.snapshot import Announcement
from voicegw.wire.payloads import (
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    ProposalsReceived,
    TransitionExecuted,
    TransitionPrepared,
    WelcomeReceived,
)

MAX_TRANSITIONS = 16
MAX_PROPOSALS_KEPT = 16
MAX_RECOVERIES = 3
RECOVERY_WINDOW_S = 10.0
PASSTHROUGH_EXPIRY_S = 10


class Verification(StrEnum):
    """Whether people have compared their codes with a user's."""

    UNVERIFIED = "unverified"
    VERIFIED = "verified"  # the bot said so, and the user's identity key is still the same
    CHANGED = "changed"  # the user has shown another identity key since


class DaveSession(MachineSession):
    """Which group, which transitions, and whether speech may leave."""

    __slots__ = (
        "announced",
        "commit",
        "epoch",
        "external_sender",
        "frozen_as",
        "in_recovery",
        "key_package",
        "last_transition",
        "privacy_code",
        "recoveries",
        "rejected",
        "transitions",
        "verification",
        "version",
    )
    machine: ClassVar[str] = "dave"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.version = 0
        self.epoch = 0
        self.privacy_code = ""
        self.external_sender: bytes | None = None
        self.key_package = b""
        self.commit = b""
        self.transitions: dict[int, int] = {}
        self.last_transition = 0
        self.recoveries: list[float] = []
        self.in_recovery = False
        self.rejected: list[ProposalsReceived | ProposalsRejected] = []
        self.verification: dict[int, Verification] = {}
        self.frozen_as = ""
        self.announced: Announcement | None = None

    @property
    def standing(self) -> str:
        """The state that another process shall go on from: ours, or where we wait to be resumed, the one before."""
        resuming = self.table.states[self.state].phase == "U"
        return self.frozen_as if resuming else self.state

    # guards

    def alone(self, event: Any) -> bool:
        """Is nobody else in the call?"""
        return not self.shared.others

    def version_zero(self, event: E2eeAgreed) -> bool:
        """Is it transport encryption only?"""
        return event.protocol_version == 0

    def same_version(self, event: E2eeAgreed) -> bool:
        """Does the group stay as it is?"""
        return event.protocol_version == self.version

    def new_group(self, event: EpochPrepared) -> bool:
        """Does a group begin (epoch 1), or does one go on?"""
        return event.epoch == 1 and event.protocol_version > 0

    def new_group_alone(self, event: EpochPrepared) -> bool:
        """Does a group begin with nobody but us?"""
        return self.new_group(event) and not self.shared.others

    def immediate(self, event: GroupJoined) -> bool:
        """Is the transition executed without op 22? Id 0 says so."""
        return event.transition_id == 0

    def deferred(self, event: TransitionPrepared) -> bool:
        """Does the transition wait for op 22?"""
        return event.transition_id != 0

    def version_unknown(self, event: EpochPrepared | TransitionPrepared) -> bool:
        """Is the DAVE version one that we did not offer?"""
        return event.protocol_version > self.shared.options.max_dave_protocol_version

    def downgrade_refused(self, event: EpochPrepared | TransitionPrepared) -> bool:
        """Would the call go on in the clear against our policy?"""
        return event.protocol_version == 0 and self.shared.options.policy is E2EEPolicy.REQUIRE

    def immediate_downgrade(self, event: TransitionPrepared) -> bool:
        """Does the call go on in the clear at once?"""
        return event.protocol_version == 0 and event.transition_id == 0

    def executes_downgrade(self, event: TransitionExecuted) -> bool:
        """Was version 0 announced under this id?"""
        return self.transitions.get(event.transition_id) == 0

    def executes_group(self, event: TransitionExecuted) -> bool:
        """Was a group announced under this id?"""
        return self.transitions.get(event.transition_id, 0) > 0

    def executes_group_before_another(self, event: TransitionExecuted) -> bool:
        """Was a group announced under this id, and something else after it?"""
        return self.executes_group(event) and next(reversed(self.transitions)) != event.transition_id

    def executes_downgrade_before_group(self, event: TransitionExecuted) -> bool:
        """Was version 0 announced under this id, and a group after it?"""
        if not self.executes_downgrade(event):
            return False
        ids = list(self.transitions)
        return any(self.transitions[later] for later in ids[ids.index(event.transition_id) + 1 :])

    def recovered_in_vain(self, event: Any) -> bool:
        """Has there been a recovery since frames could last leave, or three in 10 s?"""
        return self.in_recovery or self.recoveries_spent(event)

    def recoveries_spent(self, event: Any) -> bool:
        """Have there been three recoveries in the last 10 s?"""
        since = self.shared.now - RECOVERY_WINDOW_S
        return sum(at >= since for at in self.recoveries) >= MAX_RECOVERIES

    def thawed_without_group(self, event: SessionThawed) -> bool:
        """Was there no group, nor one under way?"""
        return event.snapshot.dave in ("clear.only", "refused")

    def announced_with_group(self, event: DialAheadRequested) -> bool:
        """Is a group to be made, of a version that we offer?"""
        return 0 < event.announced.dave_protocol_version <= self.shared.options.max_dave_protocol_version

    def thawed_otherwise(self, event: SessionThawed) -> bool:
        """Is it not the group that was announced?"""
        then, now = self.announced, event.snapshot
        announced = then and (then.channel_id, then.dave_protocol_version, then.external_sender)
        return not self.key_package or announced != (now.channel_id, now.dave_protocol_version, now.external_sender)

    def was_clear(self, event: Any) -> bool:
        """Was the call in the clear, with no group under way, when it was frozen?"""
        return self.frozen_as == "clear.only"

    def was_upgrading(self, event: Any) -> bool:
        """Was it in the clear, with a group under way?"""
        return self.frozen_as.startswith("clear.")

    def was_refused(self, event: Any) -> bool:
        """Was it muted because of what the server announced?"""
        return self.frozen_as == "refused"

    def was_member(self, event: Any) -> bool:
        """Was the other process in a group?"""
        return self.epoch > 0

    # effects: the group

    def create_group(self, event: Any) -> None:
        """A new group of this channel; a key package follows."""
        if isinstance(event, E2eeAgreed | EpochPrepared):
            self.version = event.protocol_version
        self.key_package = self.commit = b""
        self.transitions.clear()
        self._trust_nobody()
        channel_id = event.announced.channel_id if isinstance(event, DialAheadRequested) else self.shared.channel_id
        self.shared.effects.append(CreateGroup(max(self.version, 1), channel_id, self.external_sender))

    def note_announced(self, event: DialAheadRequested) -> None:
        """Of which group the key package is made."""
        self.announced = event.announced
        self.version, self.external_sender = self.announced.dave_protocol_version, self.announced.external_sender

    def note_thawed(self, event: SessionThawed) -> None:
        """What can be told of another process's group."""
        snapshot = event.snapshot
        self.frozen_as = snapshot.dave
        self.version, self.epoch = snapshot.dave_protocol_version, snapshot.epoch
        self.external_sender = snapshot.external_sender
        self.last_transition = snapshot.last_transition

    def drop_group(self, event: Any) -> None:
        """No group, no keys."""
        self.version = 0
        self.epoch = 0
        self.privacy_code = ""
        self.in_recovery = False
        self.key_package = self.commit = b""
        self.transitions.clear()
        self.rejected.clear()
        self._trust_nobody()
        self.shared.effects.append(DropGroup())

    def note_next_version(self, event: EpochPrepared | TransitionPrepared) -> None:
        """The DAVE version of a group's next epoch; version 0 comes with a transition."""
        if self.version > 0 and event.protocol_version > 0:
            self.version = event.protocol_version

    def note_external_sender(self, event: ExternalSenderReceived) -> None:
        """Who may propose; kept for groups to come on this connection."""
        self.external_sender = event.data

    def forget_external_sender(self, event: Any) -> None:
        """Another connection names its own."""
        self.external_sender = None

    def set_external_sender(self, event: ExternalSenderReceived) -> None:
        """Tell the group."""
        self.shared.effects.append(SetExternalSender(event.data))

    def check_external_sender(self, event: ExternalSenderReceived) -> None:
        """The same sender again is harmless, another one is refused."""
        if event.data != self.external_sender:
            self.shared.counters["external senders refused"] += 1
            self.shared.report(Warned("the voice server tried to change the group's external sender; refused"))

    def apply_proposals(self, event: ProposalsReceived) -> None:
        """Judge them by the users that we know to be in the call."""
        self.shared.effects.append(ApplyProposals(event.revoke, event.data, self._known))

    def keep_proposals(self, event: ProposalsReceived) -> None:
        """Keep a few for when there is a group."""
        self.rejected = [*self.rejected[1 - MAX_PROPOSALS_KEPT :], event]

    def forget_proposals(self, event: Any) -> None:
        """They were made for another group."""
        self.rejected.clear()

    def retry_proposals(self, event: Any) -> None:
        """Judge again what was refused while its user, or who signed it, was unknown."""
        waiting, self.rejected = self.rejected, []
        for proposals in waiting:
            self.shared.effects.append(ApplyProposals(proposals.revoke, proposals.data, self._known))

    def count_rejected_proposals(self, event: ProposalsRejected) -> None:
        """Keep a few for when their user is known."""
        self.shared.counters["proposals rejected"] += 1
        self.rejected = [*self.rejected[1 - MAX_PROPOSALS_KEPT :], event]

    def apply_first_commit(self, event: CommitAnnounced) -> None:
        """Ours, or none of our business."""
        self.shared.effects.append(ApplyCommit(event.transition_id, event.commit, self._known, member=False))

    def apply_commit(self, event: CommitAnnounced) -> None:
        """Any member's."""
        self.shared.effects.append(ApplyCommit(event.transition_id, event.commit, self._known, member=True))

    def apply_welcome(self, event: WelcomeReceived) -> None:
        """Into the group."""
        self.shared.effects.append(ApplyWelcome(event.transition_id, event.welcome, self._known))

    def count_ignored_commit(self, event: Any) -> None:
        """Another member's first commit."""
        self.shared.counters["commits ignored"] += 1

    def note_group(self, event: GroupJoined) -> None:
        """Another epoch, another privacy code."""
        self.epoch = event.epoch
        self.privacy_code = event.privacy_code
        self.key_package = self.commit = b""
        self.rejected.clear()
        self.shared.report(EncryptionChanged(event.epoch, event.privacy_code))

    # effects: transitions

    def note_transition(self, event: TransitionPrepared) -> None:
        """Remember the id's target version; the oldest of too many is forgotten."""
        self._remember(event.transition_id, event.protocol_version)

    def note_upgrade(self, event: GroupJoined) -> None:
        """Remember that the id stands for the group."""
        self._remember(event.transition_id, max(self.version, 1))

    def note_executed(self, event: TransitionExecuted) -> None:
        """The id is spent and its version in force; what was announced before it is superseded."""
        for transition_id in tuple(self.transitions):
            self.version = self.transitions.pop(transition_id)
            if transition_id == event.transition_id:
                break

    def forget_transitions(self, event: Any) -> None:
        """What was announced before is superseded."""
        self.transitions.clear()

    def count_unknown_transition(self, event: TransitionExecuted) -> None:
        """Unknown or repeated."""
        self.shared.counters["unknown transitions"] += 1

    def pass_through(self, event: Any) -> None:
        """Frames without E2EE are taken from now on."""
        self.shared.effects.append(SetPassthrough(allowed=True, expiry_s=0))

    def expect_passthrough(self, event: TransitionPrepared) -> None:
        """Before a downgrade others may already send without E2EE."""
        if event.protocol_version == 0:
            self.shared.effects.append(SetPassthrough(allowed=True, expiry_s=0))

    def close_passthrough(self, event: Any) -> None:
        """Frames that were under way are taken for 10 s more."""
        self.shared.effects.append(SetPassthrough(allowed=False, expiry_s=PASSTHROUGH_EXPIRY_S))

    # effects: speech

    def allow_clear(self, event: Any) -> None:
        """Frames may leave without E2EE: announced by the server, permitted by policy."""
        self.shared.signals.append(SpeechAllowed(encrypted=False))

    def allow_encrypted(self, event: Any) -> None:
        """Frames may leave, encrypted."""
        self.in_recovery = False
        self.shared.signals.append(SpeechAllowed(encrypted=True))
        self.shared.signals.append(GroupEstablished())

    def forbid_speech(self, event: Any) -> None:
        """No frame may leave."""
        self.shared.signals.append(SpeechForbidden(HoldReason.NOT_READY))

    def forbid_speech_alone(self, event: Any) -> None:
        """No frame may leave, and nobody is there to hear it."""
        self.shared.signals.append(SpeechForbidden(HoldReason.ALONE))

    # effects: who is who

    def note_identity_changed(self, event: IdentityDiffered) -> None:
        """Whatever the bot compared is worth nothing now."""
        self.verification[event.user_id] = Verification.CHANGED

    def note_verified(self, event: UserVerified) -> None:
        """The bot vouches for the identity that is in the group now."""
        self.verification[event.user_id] = Verification.VERIFIED

    # effects: what is sent and said

    def note_key_package(self, event: KeyPackageMade) -> None:
        """Keep it: a websocket that breaks may lose it."""
        self.key_package = event.data

    def send_key_package(self, event: Any) -> None:
        """Op 26."""
        if self.key_package:
            self.shared.effects.append(SendKeyPackage(self.key_package))

    def note_commit(self, event: CommitMade) -> None:
        """Keep it until its epoch is over."""
        self.commit = event.data

    def send_commit_welcome(self, event: Any) -> None:
        """Op 28."""
        if self.commit:
            self.shared.effects.append(SendCommitWelcome(self.commit))

    def send_transition_ready(self, event: GroupJoined | TransitionPrepared) -> None:
        """Op 23."""
        self.shared.effects.append(SendTransitionReady(event.transition_id))

    def send_invalid_commit(self, event: Any) -> None:
        """Op 31; where no id is at fault, the last one announced."""
        self.shared.effects.append(SendInvalidCommit(getattr(event, "transition_id", self.last_transition)))

    def spend_recovery(self, event: Any) -> None:
        """Three in 10 s are enough; the bot hears of each."""
        self.recoveries = [*self.recoveries[1 - MAX_RECOVERIES :], self.shared.now]
        self.in_recovery = True
        reason = getattr(event, "reason", event.name.replace("_", " "))
        self.shared.report(Warned(f"E2EE has to be recovered: {reason}"))

    def announce_e2ee_lost(self, event: Any) -> None:
        """A fresh voice session is needed."""
        self.shared.signals.append(E2eeLost())

    def report_downgrade_refused(self, event: EpochPrepared | TransitionPrepared) -> None:
        """Muted until a group is offered again."""
        self.shared.report(DowngradeRefused(event.protocol_version))

    def report_version_refused(self, event: EpochPrepared | TransitionPrepared) -> None:
        """Muted until a group is offered again."""
        self.shared.report(Warned(f"DAVE version {event.protocol_version} refused: it was not offered; muted"))

    def report_identity_changed(self, event: IdentityDiffered) -> None:
        """The bot may mute, or ask its people to compare codes again."""
        self.shared.report(IdentityChanged(event.user_id))

    def report_group_delayed(self, event: Any) -> None:
        """Held for long; the bot should know."""
        self.shared.report(Warned("E2EE is not ready yet: others are in the call, but no group has formed"))

    @property
    def _known(self) -> frozenset[int]:
        """Who may be in the group: users that the voice server has named, and we."""
        return frozenset(self.shared.users | {self.shared.user_id})

    def _trust_nobody(self) -> None:
        """A welcome does not show the keys of those in the group: nobody is verified until compared again."""
        for user_id in [user for user, state in self.verification.items() if state is Verification.VERIFIED]:
            del self.verification[user_id]

    def _remember(self, transition_id: int, version: int) -> None:
        self.last_transition = transition_id
        self.transitions.pop(transition_id, None)
        while len(self.transitions) >= MAX_TRANSITIONS:
            del self.transitions[next(iter(self.transitions))]
        self.transitions[transition_id] = version
