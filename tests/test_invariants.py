"""Each invariant that simulated calls hold can fail: a core that is broken in just that way breaks it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from voicegw.core import call, gateway
from voicegw.core.call import CallSession
from voicegw.core.dave import DaveSession
from voicegw.core.gateway import GatewaySession
from voicegw.core.machine_session import MachineSession
from voicegw.core.shared import Shared
from voicegw.core.speech import SpeechSession
from voicegw.core.transport import TransportSession
from voicegw.effects import ArmTimer, Closed, Connected, Effect, Report, SendResume
from voicegw.errors import EventNotAllowed, VoiceError
from voicegw.events import Event, JoinRequested, SocketClosed, Stamped, VoiceServerUpdated, VoiceStateUpdated
from voicegw.session import VoiceSession
from voicegw.testing import invariants
from voicegw.testing.chaos import Chaos
from voicegw.testing.invariants import Violation
from voicegw.testing.world import CANARY, World
from voicegw.wire.endpoint import parse_endpoint

Patch = pytest.MonkeyPatch


def raises_in_the_core(patch: Patch) -> None:
    def broken(session: CallSession, event: object) -> None:
        raise KeyError("bug")

    patch.setattr(CallSession, "note_lost", broken)


def refusal_that_changes(patch: Patch) -> None:
    fire = MachineSession.fire

    def changing(session: MachineSession, event: Event) -> object:
        try:
            return fire(session, event)
        except EventNotAllowed:
            session.shared.timers["leave_timeout"] = 0.0
            raise

    patch.setattr(MachineSession, "fire", changing)


def timer_not_cancelled(patch: Patch) -> None:
    patch.setattr(MachineSession, "cancel", lambda session, deadline: None)


def no_heart(patch: Patch) -> None:
    patch.setattr(GatewaySession, "start_heart", lambda session, event: None)


def ignored_arms(patch: Patch) -> None:
    def ignored(session: MachineSession, event: Event) -> None:
        session.shared.effects.append(SendResume(0))

    patch.setattr(MachineSession, "ignored", ignored)


def stays_and_arms(patch: Patch) -> None:
    def note_voice_state(session: CallSession, event: VoiceStateUpdated) -> None:
        noted(session, event)
        for name in list(session.shared.timers):
            if name == "beat_due":
                at = session.shared.timers[name] = session.shared.now + 77.0
                session.shared.effects.append(ArmTimer(name, at, 77.0, jitter=False))

    noted = CallSession.note_voice_state
    patch.setattr(CallSession, "note_voice_state", note_voice_state)


def hears_ghosts(patch: Patch) -> None:
    def unstamp(session: VoiceSession, stamped: Stamped) -> Event:
        return stamped.event

    patch.setattr(VoiceSession, "_unstamp", unstamp)


def socket_not_dropped(patch: Patch) -> None:
    patch.setattr(GatewaySession, "abort_socket", lambda session, event: None)


def path_not_closed(patch: Patch) -> None:
    patch.setattr(TransportSession, "close_udp", lambda session, event: None)


def never_there(patch: Patch) -> None:
    patch.setattr(GatewaySession, "announce_ready", lambda session, event: None)
    patch.setattr(CallSession, "attempts_spent", lambda session, event: False)
    patch.setattr(invariants.Invariants, "_note_socket", lambda *arguments: None)


def leaks_speech(patch: Patch) -> None:
    patch.setattr(SpeechSession, "may_speak", lambda session, event: True)


def speaks_unannounced(patch: Patch) -> None:
    patch.setattr(SpeechSession, "announce_speaking", lambda session, event: None)


def dials_a_pair_again(patch: Patch) -> None:
    begin = CallSession.__init__

    def forgetful(session: CallSession, shared: Shared) -> None:
        begin(session, shared)
        session.dialled = deque(maxlen=0)

    patch.setattr(CallSession, "__init__", forgetful)


def resumes_twice(patch: Patch) -> None:
    def send_resume(session: GatewaySession, event: object) -> None:
        session.shared.effects += [SendResume(session.shared.sequence.last)] * 2

    patch.setattr(GatewaySession, "send_resume", send_resume)


def counts_no_users(patch: Patch) -> None:
    patch.setattr(gateway, "MAX_USERS", 1 << 30)


def keeps_all_transitions(patch: Patch) -> None:
    def remember(session: DaveSession, transition_id: int, version: int) -> None:
        session.transitions.update(dict.fromkeys(range(40), version))

    patch.setattr(DaveSession, "_remember", remember)


def ends_twice(patch: Patch) -> None:
    def report_closed(session: CallSession, event: object) -> None:
        session.shared.effects += [Report(Closed(session.error))] * 2

    patch.setattr(CallSession, "report_closed", report_closed)


def keeps_the_group(patch: Patch) -> None:
    def drop_group(session: DaveSession, event: object) -> None:
        session.version = 0

    patch.setattr(DaveSession, "drop_group", drop_group)


def speaks_after_the_end(patch: Patch) -> None:
    receive = VoiceSession.receive

    def haunted(session: VoiceSession, event: Event | Stamped, now: float) -> list[Effect]:
        effects = receive(session, event, now)
        return [*effects, Report(Connected(1))] if session.call.state == "closed" else effects

    patch.setattr(VoiceSession, "receive", haunted)


def counts_no_attempts(patch: Patch) -> None:
    patch.setattr(CallSession, "attempts_spent", lambda session, event: False)


def tells_a_secret(patch: Patch) -> None:
    def report_connected(session: CallSession, event: object) -> None:
        assert session.token is not None
        session.shared.report(Closed(VoiceError(f"connected with {session.token.reveal()}")))

    patch.setattr(CallSession, "report_closed", report_connected)
    patch.setattr(CallSession, "forget_pair", lambda session, event: None)


def dials_anybody(patch: Patch) -> None:
    patch.setattr(CallSession, "endpoint_refused", lambda session, event: False)


def sends_media_anywhere(patch: Patch) -> None:
    patch.setattr(GatewaySession, "media_address_refused", lambda session, event: False)


BROKEN: tuple[tuple[str, Callable[[Patch], None]], ...] = (
    ("V01", raises_in_the_core),
    ("V01", refusal_that_changes),
    ("V02", timer_not_cancelled),
    ("V02", no_heart),
    ("V03", ignored_arms),
    ("V03", stays_and_arms),
    ("V04", hears_ghosts),
    ("V05", socket_not_dropped),
    ("V05", path_not_closed),
    ("V06", never_there),
    ("V09", leaks_speech),
    ("V09", speaks_unannounced),
    ("V10", dials_a_pair_again),
    ("V10", resumes_twice),
    ("V14", counts_no_users),
    ("V14", keeps_all_transitions),
    ("V15", ends_twice),
    ("V16", keeps_the_group),
    ("V16", speaks_after_the_end),
    ("V17", counts_no_attempts),
    ("V18", tells_a_secret),
    ("V19", dials_anybody),
    ("V19", sends_media_anywhere),
)


@pytest.mark.parametrize(("number", "broken"), BROKEN, ids=[f"{number} {broken.__name__}" for number, broken in BROKEN])
def test_a_core_that_breaks_it_is_found(number: str, broken: Callable[[Patch], None], monkeypatch: Patch) -> None:
    broken(monkeypatch)
    kinds = []
    for seed in range(700):
        kinds.append(Chaos(seed).go().kind)
        if kinds[-1] == number:
            break
    assert number in kinds, sorted({kind for kind in kinds if kind})


def test_a_message_says_what_after_which_event_and_where() -> None:
    world = World()
    world.join()
    event = world._stamped(SocketClosed(4000))
    violation = invariants.broken("V16", event, world.session, "something is left")
    assert isinstance(violation, Violation)
    assert str(violation).startswith("V16: something is left; after Stamped(source='websocket', generation=1, ")
    assert "'call': 'connected'" in str(violation)
    assert CANARY not in str(violation)


def test_a_world_that_is_left_alone_breaks_nothing() -> None:
    for seed in range(40):
        assert Chaos(seed).go().kind is None
    world = World()
    world.feed(JoinRequested(1))
    world.advance(3600)
    assert world.states["call"] == "connected"
    assert parse_endpoint(next(e.endpoint for _, e in world.heard if isinstance(e, VoiceServerUpdated)) or "")
    assert call.MAX_PAIRS_KEPT > 12
