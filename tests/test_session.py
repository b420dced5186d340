"""The core in virtual time: the handshake, the heart, and resumes."""

from __future__ import annotations

import pytest

from tests.sessions import last_error, noticed, ready
from voicegw.effects import (
    AbortSocket,
    CloseSocket,
    Connected,
    HoldStream,
    OpenSocket,
    OpenUdp,
    Reconnecting,
    Resumed,
    SendDiscovery,
    SendHeartbeat,
    SendIdentify,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendVoiceState,
    UseKey,
    Warned,
)
from voicegw.errors import (
    CertificateRefused,
    ConnectionFailed,
    E2EEError,
    E2EERequired,
    NoCommonMode,
    SignallingError,
    UdpBlocked,
    WebSocketProtocolError,
)
from voicegw.events import (
    DeadlinePassed,
    Event,
    FrameRejected,
    HostWoke,
    JoinRequested,
    KeyExhausted,
    NoncesMet,
    SignallingFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRefused,
    SpeechStarted,
    Stamped,
    UdpFailed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.testing.world import CHANNEL, ENDPOINT, MEDIA, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    ClientsConnected,
    HeartbeatRequested,
    HelloReceived,
    ReadyReceived,
    ResumedReceived,
    Unlisted,
)

# -- the way to ready


def test_a_join_goes_through_the_handshake_in_order() -> None:
    world = World()
    world.join()
    assert world.way("gateway") == [
        "connecting.dialling",
        "connecting.awaiting_hello",
        "identifying.awaiting_ready",
        "identifying.discovering",
        "identifying.awaiting_session_description",
        "ready",
    ]
    assert world.way("call") == ["joining.asking", "joining.halved", "connecting", "connected"]
    assert [type(notice) for notice in world.notices][:1] == [Connected]
    speaking = world.sent(SendSpeaking)[0]
    assert isinstance(speaking, SendSpeaking)
    assert speaking.flags == 0
    assert world.sent(SendIdentify) == [SendIdentify(1)]
    assert [effect.mode for effect in world.sent(UseKey) if isinstance(effect, UseKey)] == [PREFERRED_MODES[0]]


def test_server_and_state_come_in_either_order() -> None:
    for state_first in (True, False):
        world = World()
        world.unanswered.add("SendVoiceState")
        world.feed(JoinRequested(CHANNEL))
        events: list[Event] = [VoiceStateUpdated(CHANNEL, Secret("s")), VoiceServerUpdated(Secret("t"), ENDPOINT)]
        for event in events if state_first else reversed(events):
            assert world.sent(OpenSocket) == []
            world.feed(event)
        assert len(world.sent(OpenSocket)) == 1


HANDSHAKE = [
    ("OpenSocket", 10.0, "dial_timeout"),
    ("SendIdentify", 5.0, "ready_timeout"),
    ("SendSelectProtocol", 5.0, "session_description_timeout"),
]


@pytest.mark.parametrize(("silent", "bound_s", "deadline"), HANDSHAKE, ids=[silent for silent, _, _ in HANDSHAKE])
def test_a_silent_server_is_left_at_the_deadline_and_tried_again(
    silent: str, bound_s: float, deadline: str | None
) -> None:
    world = World()
    world.unanswered.add(silent)
    world.join()
    waited = world.until(lambda: world.states["call"] == "waiting.backoff", 30)
    assert waited == pytest.approx(bound_s, abs=0.01)
    if deadline is not None:
        assert any(step.event == deadline for step in world.trace)
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 60)
    assert len(world.sent(SendIdentify)) == (1 if silent == "OpenSocket" else 2)


def test_a_server_that_does_not_say_hello_is_left() -> None:
    world = World()
    world.unanswered.add("OpenSocket")
    world.join()
    world.server(SocketOpened(), numbered=False)
    assert world.states["gateway"] == "connecting.awaiting_hello"
    assert world.until(lambda: world.states["gateway"] == "closed.down", 30) == pytest.approx(5.0)


def test_no_answer_to_discovery_ends_the_first_join_at_once() -> None:
    world = World()
    world.unanswered.add("SendDiscovery")
    world.join()
    assert world.until(lambda: world.states["call"] == "closed", 30) == pytest.approx(4.95)
    asked = [0, 0.2, 0.4, 0.8, 1.6, 2.1, 2.6, 3.1, 3.6, 4.1, 4.6]
    assert world.times(SendDiscovery) == pytest.approx(asked)
    error = last_error(world)
    assert isinstance(error, UdpBlocked)
    assert (error.stage, "UDP is blocked" in str(error)) == ("discovery", True)


def test_no_answer_to_discovery_on_the_way_back_is_tried_again() -> None:
    world = ready()
    world.unanswered.add("SendDiscovery")
    world.server(SocketClosed(4006), numbered=False)
    world.until(lambda: world.states["call"] == "waiting.backoff", 30)
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 60)


def test_no_udp_socket_is_the_same() -> None:
    world = World(Options(max_attempts=1))
    world.unanswered |= {"SendDiscovery", "OpenUdp"}
    world.join()
    world.udp(UdpFailed(ConnectionFailed("no UDP socket can be had")))
    assert world.states["transport"] == "closed"
    assert world.states["gateway"].startswith("closed")
    world.until(lambda: world.states["call"] == "closed", 60)


def test_failed_dials_back_off_and_end_at_the_cap() -> None:
    world = World()
    world.unanswered.add("OpenSocket")

    def refuse() -> None:
        if world.states["gateway"] == "connecting.dialling":
            world.server(SocketFailed(ConnectionFailed("refused")), numbered=False)

    world.join()
    for _ in range(2000):
        refuse()
        if world.states["call"] == "closed":
            break
        world.advance(0.5)
    assert len(world.sent(OpenSocket)) == 12
    error = last_error(world)
    assert isinstance(error, ConnectionFailed)
    assert str(error) == "refused"
    gaps = [effect.after_s for _, effect in world.effects if getattr(effect, "name", "") == "backoff_over"]  # type: ignore[union-attr]
    assert gaps == sorted(gaps)
    assert gaps[0] <= 1.0
    assert gaps[-1] == 30.0


def test_a_refused_certificate_is_not_tried_again() -> None:
    world = World()
    world.unanswered.add("OpenSocket")
    world.join()
    error = CertificateRefused("expired")
    world.server(SocketRefused(error), numbered=False)
    world.until(lambda: world.states["call"] == "closed", 5)
    assert last_error(world) is error
    assert len(world.sent(OpenSocket)) == 1


def test_an_unanswered_join_is_followed_by_a_leave_and_one_more_join() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.until(lambda: world.states["call"] == "closed", 60)
    asked = [effect.channel_id for effect in world.sent(SendVoiceState) if isinstance(effect, SendVoiceState)]
    assert asked == [CHANNEL, None, CHANNEL, None]
    assert world.times(SendVoiceState)[:3] == pytest.approx([0, 3, 4])
    assert isinstance(last_error(world), SignallingError)


def test_signalling_that_fails_is_said() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    for _ in range(100):
        world.feed(SignallingFailed("RuntimeError"))
        world.advance(30)
        if world.states["call"] == "closed":
            break
    assert isinstance(last_error(world), SignallingError)


# -- bad handshakes


def test_a_server_without_a_known_mode_is_left_for_good() -> None:
    world = World()
    world.unanswered.add("SendIdentify")
    world.join()
    world.server(ReadyReceived(1, MEDIA, 1, ("xsalsa20_poly1305",)))
    assert world.sent(CloseSocket) == [CloseSocket(1000)]
    world.until(lambda: world.states["call"] == "closed", 10)
    assert isinstance(last_error(world), NoCommonMode)
    assert world.sent(OpenUdp) == []


def test_an_inner_media_address_is_left_for_good() -> None:
    world = World()
    world.unanswered.add("SendIdentify")
    world.join()
    world.server(ReadyReceived(1, "10.0.0.1", 1, PREFERRED_MODES))
    assert world.sent(CloseSocket) == [CloseSocket(1000)]
    world.until(lambda: world.states["call"] == "closed", 10)
    assert world.sent(OpenUdp) == []


@pytest.mark.parametrize(
    ("mode", "version", "error"),
    [(PREFERRED_MODES[1], 1, WebSocketProtocolError), (None, 2, E2EEError), (None, 0, E2EERequired)],
)
def test_a_session_description_that_does_not_fit(mode: str | None, version: int, error: type[Exception]) -> None:
    world = World(Options(max_attempts=1))
    world.unanswered.add("SendSelectProtocol")
    world.dave_protocol_version = version
    world.join()
    world.server(world.description(mode))
    assert world.sent(UseKey) == []
    assert world.sent(CloseSocket) == [CloseSocket(1000)]
    world.until(lambda: world.states["call"] == "closed", 10)
    assert isinstance(last_error(world), error)


def test_a_spoiled_handshake_message_ends_the_attempt() -> None:
    world = World()
    world.unanswered.add("SendIdentify")
    world.join()
    world.server(FrameRejected(Opcode.READY), numbered=False)
    assert world.states["gateway"] == "closed.closing"
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 60)


def test_one_bad_frame_is_survived_and_ten_in_a_row_are_not() -> None:
    world = ready()
    for _ in range(9):
        world.server(FrameRejected(None), numbered=False)
    world.server(ClientsConnected((7,)))
    for _ in range(9):
        world.server(FrameRejected(None), numbered=False)
    assert world.states["gateway"] == "ready"
    world.server(FrameRejected(None), numbered=False)
    assert world.states["gateway"] != "ready"


# -- the heart


def test_it_beats_at_once_and_then_every_interval() -> None:
    for interval, expected in ((13.75, 5.0), (2.0, 2.0)):
        world = World()
        world.heartbeat_interval_s = interval
        world.join()
        world.advance(10.5)
        assert world.times(SendHeartbeat) == pytest.approx([n * expected for n in range(int(10.5 / expected) + 1)])


def test_beats_carry_the_last_number_seen() -> None:
    world = ready()
    world.server(ClientsConnected((7,)))
    world.advance(5)
    beat = world.sent(SendHeartbeat)[-1]
    assert isinstance(beat, SendHeartbeat)
    assert beat.seq_ack == world.session.shared.sequence.last == world._seq


def test_the_server_can_ask_for_a_beat() -> None:
    world = ready()
    world.advance(2)
    world.server(HeartbeatRequested())
    world.settle()
    world.advance(4)
    assert world.times(SendHeartbeat) == pytest.approx([0, 2, 5])


def test_two_unanswered_beats_drop_the_socket_and_resume() -> None:
    world = ready()
    world.advance(1)
    world.unanswered.add("SendHeartbeat")
    world.until(lambda: world.states["gateway"].startswith("resuming"), 30)
    assert world.now - 1000 == pytest.approx(15.5)
    assert len(world.sent(AbortSocket)) == 1
    world.unanswered.clear()
    world.settle()
    assert world.states["gateway"] == "ready"
    assert len(world.sent(SendResume)) == 1


def test_a_host_that_slept_asks_at_once_whether_its_websocket_lives() -> None:
    world = ready()
    world.unanswered.add("SendHeartbeat")
    beats = len(world.sent(SendHeartbeat))
    world.feed(HostWoke(60.0))
    assert (world.states["heartbeat"], len(world.sent(SendHeartbeat))) == ("beating.probing", beats + 1)
    assert world.until(lambda: world.states["gateway"].startswith("resuming"), 10) == pytest.approx(3.0)
    assert world.states["heartbeat"] == "stopped"


@pytest.mark.parametrize("hello", [True, False])
def test_the_heart_beats_at_once_after_a_resume_with_and_without_hello(hello: bool) -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendHeartbeat"}
    world.server(SocketClosed(1006), numbered=False)
    beats = len(world.sent(SendHeartbeat))
    world.server(SocketOpened(), numbered=False)
    if hello:
        world.server(HelloReceived(13.75, 8), numbered=False)
    world.server(ResumedReceived(), numbered=False)
    assert (world.states["heartbeat"], len(world.sent(SendHeartbeat))) == ("beating.awaiting_ack", beats + 1)


def test_a_second_hello_arms_no_second_heart() -> None:
    world = ready()
    world.server(HelloReceived(13.75, 8), numbered=False)
    world.settle()
    before = len(world.sent(SendHeartbeat))
    world.advance(20)
    assert len(world.sent(SendHeartbeat)) - before <= 5


# -- resume


def test_a_resume_keeps_path_key_and_numbers() -> None:
    world = ready()
    world.feed(SpeechStarted())
    seq = world.session.shared.sequence.last
    opened, keys, held = (len(world.sent(effect)) for effect in (OpenUdp, UseKey, HoldStream))
    world.server(SocketClosed(None), numbered=False)
    assert world.states["speech"] == "speaking"
    world.settle()
    assert world.sent(SendResume) == [SendResume(seq)]
    assert world.states["gateway"] == "ready"
    assert (len(world.sent(OpenUdp)), len(world.sent(UseKey))) == (opened, keys)
    assert len(world.sent(HoldStream)) == held
    speaking = world.sent(SendSpeaking)[-1]
    assert isinstance(speaking, SendSpeaking)
    assert speaking.flags == 1
    assert [type(notice) for notice in world.notices][-2:] == [Reconnecting, Resumed]


def test_an_unanswered_resume_becomes_a_fresh_session() -> None:
    world = ready()
    world.unanswered.add("SendResume")
    world.server(SocketClosed(1001), numbered=False)
    waited = world.until(lambda: world.states["call"] == "connected" and world.states["gateway"] == "ready", 60)
    assert waited == pytest.approx(5.0, abs=0.1)
    assert len(world.sent(SendResume)) == 1
    assert len(world.sent(SendIdentify)) == 2


def test_a_resume_is_tried_once() -> None:
    world = ready()
    world.unanswered.add("OpenSocket")
    world.server(SocketClosed(1006), numbered=False)
    world.server(SocketFailed(ConnectionFailed("refused")), numbered=False)
    assert world.states["gateway"] == "closed.down"
    assert world.sent(SendResume) == []


# -- generations and repetitions


def test_events_of_an_older_socket_have_no_effect() -> None:
    world = ready()
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    before = (world.states, world.timers, len(world.effects))
    for event in (SocketClosed(4006), HelloReceived(1.0, 8), ClientsConnected((5,))):
        world.feed(Stamped("websocket", 1, event, 77))
    world.feed(Stamped("udp", 0, UdpFailed(ConnectionFailed("old"))))
    assert (world.states, world.timers, len(world.effects)) == before
    assert world.session.shared.counters["events of an older generation"] == 4
    assert world.session.shared.sequence.last != 77


def test_a_stale_timer_has_no_effect() -> None:
    world = ready()
    before = (world.states, world.timers, len(world.effects))
    world.feed(DeadlinePassed("hello_timeout", world.now))
    world.feed(DeadlinePassed("beat_due", world.now))
    assert (world.states, world.timers, len(world.effects)) == before
    assert world.session.shared.counters["stale timers"] == 2


def test_what_no_machine_knows_is_counted_and_ignored() -> None:
    world = ready()
    before = (world.states, world.timers, len(world.effects))
    world.server(Unlisted(14))
    assert (world.states, world.timers, len(world.effects)) == before
    assert world.session.shared.counters["ignored: unlisted_received"] == 1


def test_a_second_ready_opens_no_second_path() -> None:
    world = ready()
    world.server(ReadyReceived(77, MEDIA, 1, PREFERRED_MODES))
    world.settle()
    assert len(world.sent(OpenUdp)) == 1
    assert world.session.shared.ssrc != 77


def test_a_repeated_session_description_is_a_new_key() -> None:
    world = ready()
    world.server(world.description(key=500))
    world.server(world.description(key=500))
    keys = [effect.secret_key for effect in world.sent(UseKey) if isinstance(effect, UseKey)]
    assert len(keys) == 3
    assert keys[1] == keys[2] != keys[0]
    assert world.states["dave"] == "active"
    assert world.states["gateway"] == "ready"


def test_a_worn_key_is_renewed_and_where_that_fails_the_session_is() -> None:
    world = ready()
    for _ in range(2):
        world.feed(KeyExhausted())
        world.settle()
        assert world.states["gateway"] == "ready"
    first, second, third = world.sent(UseKey)
    assert len({first, second, third}) == 3
    assert len(world.sent(SendSelectProtocol)) == 3
    world.unanswered.add("SendSelectProtocol")
    world.feed(KeyExhausted())
    assert world.states["gateway"] == "ready"
    world.unanswered.clear()
    world.feed(KeyExhausted())
    world.until(lambda: len(world.sent(SendIdentify)) == 2 and world.states["gateway"] == "ready", 30)


def test_nonces_that_meet_bring_another_key_once() -> None:
    world = ready()
    world.feed(NoncesMet())
    world.settle()
    assert len(world.sent(UseKey)) == len(world.sent(SendSelectProtocol)) == 2
    assert noticed(world, Warned) == []
    world.feed(NoncesMet())
    world.settle()
    assert len(world.sent(SendSelectProtocol)) == 2
    assert len(noticed(world, Warned)) == 1
    assert world.states["gateway"] == "ready"
