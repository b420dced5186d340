"""The core in virtual time: every deadline, every close code, and the stories between them."""

from __future__ import annotations

import pytest

from voicegw.effects import (
    AbortSocket,
    ApplyProposals,
    Closed,
    CloseSocket,
    Connected,
    CreateGroup,
    DropGroup,
    DropKey,
    EncryptionChanged,
    HoldStream,
    MapSsrc,
    MediaLost,
    MediaRestored,
    Moved,
    Notice,
    OpenSocket,
    OpenUdp,
    Reconnecting,
    ReleaseStream,
    Resumed,
    SendCommitWelcome,
    SendDiscovery,
    SendHeartbeat,
    SendIdentify,
    SendInvalidCommit,
    SendKeepalive,
    SendKeyPackage,
    SendResume,
    SendSelectProtocol,
    SendSpeaking,
    SendTransitionReady,
    SendVoiceState,
    SetPassthrough,
    UseKey,
    Warned,
)
from voicegw.errors import (
    CertificateRefused,
    ConnectionClosed,
    ConnectionFailed,
    E2EEError,
    E2EERequired,
    EventNotAllowed,
    InvalidEndpoint,
    Kicked,
    NoCommonMode,
    SignallingError,
    UdpBlocked,
    VoiceTimeout,
    WebSocketProtocolError,
)
from voicegw.events import (
    CommitIgnored,
    CommitMade,
    DeadlinePassed,
    Event,
    FrameRejected,
    GroupRejected,
    IpDiscovered,
    JoinAbandoned,
    JoinRequested,
    KeyExhausted,
    LeaveRequested,
    MainSessionLost,
    MainSessionStarted,
    NoncesMet,
    PathLost,
    PathMoved,
    SignallingFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRefused,
    SpeechEnded,
    SpeechStarted,
    Stamped,
    UdpFailed,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import E2EEPolicy, Options
from voicegw.testing.world import CHANNEL, ENDPOINT, MEDIA, OTHER, USER, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import (
    ClientDisconnected,
    ClientsConnected,
    CommitAnnounced,
    EpochPrepared,
    ExternalSenderReceived,
    HeartbeatRequested,
    HelloReceived,
    ProposalsReceived,
    ReadyReceived,
    SpeakingReceived,
    TransitionExecuted,
    TransitionPrepared,
    VideoReceived,
    WelcomeReceived,
)


def ready(**options: object) -> World:
    world = World(Options(**options))  # type: ignore[arg-type]
    world.join()
    assert world.states["gateway"] == "ready"
    assert world.states["dave"] == "active"
    return world


def last_error(world: World) -> object:
    closed = [notice for notice in world.notices if isinstance(notice, Closed)]
    assert len(closed) == 1
    return closed[0].error


def noticed(world: World, kind: type[Notice]) -> list[Notice]:
    return [notice for notice in world.notices if isinstance(notice, kind)]


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


# -- close codes

RESUME, RESUME_LATER, NEW_PAIR, PAIR_LATER, WAIT, WAIT_SERVER, END = range(7)
CLOSES: list[tuple[int | None, int]] = [
    (None, RESUME),
    (1000, RESUME),
    (1001, RESUME),
    (1002, PAIR_LATER),
    (1003, PAIR_LATER),
    (1005, RESUME),
    (1006, RESUME),
    (1007, PAIR_LATER),
    (1008, END),
    (1009, PAIR_LATER),
    (1010, PAIR_LATER),
    (1011, RESUME_LATER),
    (1012, RESUME_LATER),
    (1013, RESUME_LATER),
    (1014, RESUME_LATER),
    (4000, PAIR_LATER),
    (4001, PAIR_LATER),
    (4002, PAIR_LATER),
    (4003, NEW_PAIR),
    (4004, PAIR_LATER),
    (4005, PAIR_LATER),
    (4006, NEW_PAIR),
    (4008, END),
    (4009, NEW_PAIR),
    (4011, WAIT_SERVER),
    (4012, END),
    (4013, RESUME),
    (4014, WAIT),
    (4015, RESUME),
    (4016, PAIR_LATER),
    (4017, END),
    (4020, PAIR_LATER),
    (4021, END),
    (4022, WAIT),
    (4099, PAIR_LATER),
    (4999, PAIR_LATER),
]


@pytest.mark.parametrize(("code", "decision"), CLOSES, ids=lambda value: str(value))
def test_a_close_in_ready_is_decided_by_its_code(code: int | None, decision: int) -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendVoiceState"}
    world.server(SocketClosed(code), numbered=False)
    expected = {
        RESUME: ("resuming.dialling", "connected"),
        RESUME_LATER: ("resuming.backing_off", "connected"),
        NEW_PAIR: ("closed.down", "joining.asking"),
        PAIR_LATER: ("closed.down", "waiting.backoff"),
        WAIT: ("closed.down", "waiting.verdict"),
        WAIT_SERVER: ("closed.down", "waiting.server"),
        END: ("closed.down", "closed"),
    }[decision]
    assert (world.states["gateway"], world.states["call"]) == expected
    assert world.session.gateway.last_close_code == code


@pytest.mark.parametrize(("code", "decision"), CLOSES, ids=lambda value: str(value))
def test_a_close_before_ready_never_resumes(code: int | None, decision: int) -> None:
    world = World()
    world.unanswered |= {"SendIdentify"}
    world.join()
    world.unanswered |= {"SendVoiceState", "OpenSocket"}
    world.server(SocketClosed(code), numbered=False)
    assert world.states["gateway"] == "closed.down"
    expected = {WAIT: "waiting.verdict", WAIT_SERVER: "waiting.server", END: "closed"}.get(decision, "waiting.backoff")
    assert world.states["call"] == expected
    world.advance(120)
    assert world.sent(SendResume) == []


@pytest.mark.parametrize(("code", "decision"), CLOSES, ids=lambda value: str(value))
def test_a_close_that_answers_a_resume_never_resumes_again(code: int | None, decision: int) -> None:
    world = ready()
    world.unanswered.add("SendResume")
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    assert world.states["gateway"] == "resuming.awaiting_resumed"
    world.unanswered |= {"SendVoiceState", "OpenSocket"}
    world.server(SocketClosed(code), numbered=False)
    assert world.states["gateway"] == "closed.down"
    expected = {WAIT: "waiting.verdict", WAIT_SERVER: "waiting.server", END: "closed", PAIR_LATER: "waiting.backoff"}
    assert world.states["call"] == expected.get(decision, "joining.asking")
    world.advance(60)
    assert len(world.sent(SendResume)) == 1


@pytest.mark.parametrize("code", [4001, 4002, 4004, 4005, 4020, 4016, 1002])
def test_what_is_forgiven_once_ends_the_second_time(code: int) -> None:
    world = ready()
    world.server(SocketClosed(code), numbered=False)
    world.until(lambda: world.states["gateway"] == "ready", 60)
    if code == 1002:  # complaints count in a row, and ready ends the row
        return
    world.server(SocketClosed(code), numbered=False)
    world.until(lambda: world.states["call"] in ("closed", "connected"), 60)
    assert world.states["call"] == "closed"
    error = last_error(world)
    assert isinstance(error, ConnectionClosed)
    assert error.code == code


def test_protocol_complaints_end_after_two_in_a_row() -> None:
    world = World()
    world.unanswered.add("SendIdentify")
    world.join()
    world.server(SocketClosed(1002), numbered=False)
    world.until(lambda: world.states["gateway"] == "identifying.awaiting_ready", 60)
    world.server(SocketClosed(1002), numbered=False)
    world.until(lambda: world.states["call"] == "closed", 10)


def test_another_mode_is_used_after_4016() -> None:
    world = ready()
    world.server(SocketClosed(4016), numbered=False)
    world.until(lambda: world.states["gateway"] == "ready", 60)
    modes = [effect.mode for effect in world.sent(SendSelectProtocol) if isinstance(effect, SendSelectProtocol)]
    assert modes == list(PREFERRED_MODES)


def test_4017_names_what_is_missing() -> None:
    for policy, word in (("off", "'off'"), ("require", "davey")):
        world = World(Options(policy=E2EEPolicy(policy)))
        world.unanswered.add("SendIdentify")
        world.join()
        world.server(SocketClosed(4017), numbered=False)
        world.until(lambda world=world: world.states["call"] == "closed", 5)  # type: ignore[misc]
        error = last_error(world)
        assert isinstance(error, E2EERequired)
        assert word in str(error)


# -- the main gateway


def test_a_kick_is_final_in_either_order() -> None:
    for close_first in (True, False):
        world = ready()
        events = [
            lambda world=world: world.server(SocketClosed(4014), numbered=False),
            lambda world=world: world.feed(VoiceStateUpdated(None, Secret("s"))),
        ]
        for happen in events if close_first else reversed(events):
            happen()
        world.until(lambda world=world: world.states["call"] == "closed", 5)  # type: ignore[misc]
        assert isinstance(last_error(world), Kicked)
        assert len(world.sent(SendIdentify)) == 1


def test_4014_without_a_word_ends_after_five_seconds() -> None:
    world = ready()
    world.server(SocketClosed(4014), numbered=False)
    assert world.until(lambda: world.states["call"] == "closed", 30) == pytest.approx(5.0)


def test_a_move_brings_a_fresh_session_in_either_order() -> None:
    for state_first in (True, False):
        world = ready()
        events: list[Event] = [
            VoiceStateUpdated(99, Secret("moved")),
            VoiceServerUpdated(Secret("moved"), ENDPOINT),
        ]
        for event in events if state_first else reversed(events):
            world.feed(event)
        world.until(lambda world=world: world.states["call"] == "connected", 10)  # type: ignore[misc]
        assert noticed(world, Moved) == [Moved(99)]
        assert len(world.sent(SendIdentify)) == 2
        assert world.sent(SendResume) == []
        groups = [effect.channel_id for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
        assert groups == [CHANNEL, 99]


def test_a_region_change_keeps_the_voice_state() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("another"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    assert len(world.sent(SendIdentify)) == 2
    assert noticed(world, Connected) == [Connected(CHANNEL)] * 2
    assert noticed(world, Moved) == []


def test_the_same_server_again_is_ignored() -> None:
    world = ready()
    call = world.session.call
    assert call.token is not None
    world.feed(VoiceServerUpdated(call.token, call.endpoint))
    world.settle()
    assert world.states["gateway"] == "ready"
    assert len(world.sent(OpenSocket)) == 1


def test_a_null_endpoint_is_waited_for_and_given_up() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("t"), None))
    assert (world.states["call"], world.states["speech"]) == ("waiting.endpoint", "silent")
    world.feed(VoiceServerUpdated(Secret("new"), ENDPOINT))
    world.until(lambda: world.states["call"] == "connected", 10)
    world.feed(VoiceServerUpdated(Secret("t"), None))
    world.unanswered.add("SendVoiceState")
    assert world.until(lambda: world.states["call"] != "waiting.endpoint", 60) == pytest.approx(30.0)


def test_null_endpoints_count_as_attempts() -> None:
    world = ready()
    for number in range(12):
        if world.states["call"] in ("leaving", "closed"):
            break
        world.feed(VoiceServerUpdated(Secret(f"t{number}"), None))
        world.unanswered.add("SendIdentify")
        world.feed(VoiceServerUpdated(Secret(f"u{number}"), ENDPOINT))
        world.settle()
    assert world.states["call"] in ("leaving", "closed")


def test_the_bots_session_lost_and_started_again() -> None:
    world = ready()
    world.feed(MainSessionLost())
    assert world.states["call"] == "waiting.main_session"
    assert world.states["gateway"] in ("closed.closing", "closed.down")
    world.settle()
    world.feed(MainSessionStarted())
    world.until(lambda: world.states["call"] == "connected", 10)


def test_a_second_wish_joins_the_first_or_changes_where_it_goes() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    assert world.feed(JoinRequested(CHANNEL)) == []
    assert world.feed(JoinRequested(CHANNEL + 1)) == [SendVoiceState(CHANNEL + 1)]
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 10)
    assert world.session.shared.channel_id == CHANNEL + 1


def test_wishes_that_a_state_forbids_are_refused() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    before = world.states
    world.feed(LeaveRequested())
    with pytest.raises(EventNotAllowed):
        world.feed(JoinRequested(CHANNEL))
    assert world.states != before
    world.until(lambda: world.states["call"] == "closed", 5)
    with pytest.raises(EventNotAllowed):
        world.feed(JoinRequested(CHANNEL))


def test_an_abandoned_join_leaves_and_an_abandoned_move_does_not() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    late = VoiceTimeout("too late")
    world.feed(JoinAbandoned(late))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert last_error(world) is late
    world = ready()
    world.unanswered.add("SendVoiceState")
    world.feed(JoinRequested(99))
    world.feed(JoinAbandoned(late))
    assert world.states["call"] == "connected"


def test_a_call_that_never_began_can_be_left() -> None:
    world = World()
    world.feed(LeaveRequested())
    assert world.states["call"] == "closed"
    assert last_error(world) is None
    assert world.sent(SendVoiceState) == []


def test_a_sender_that_comes_before_the_session_description_is_used() -> None:
    world = World()
    world.unanswered.add("SendSelectProtocol")
    world.join()
    world.server(ExternalSenderReceived(b"early"))
    world.server(world.description())
    groups = [effect.external_sender for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
    assert groups == [b"early"]


def test_a_session_description_can_change_the_version() -> None:
    world = ready(policy=E2EEPolicy.ALLOW)
    world.feed(SpeechStarted())
    world.dave_protocol_version = 0
    dropped = len(world.sent(DropGroup))
    world.server(world.description())
    assert world.states["dave"] == "clear.only"
    assert len(world.sent(DropGroup)) == dropped + 1
    assert world.sent(SetPassthrough)[-1] == SetPassthrough(allowed=True, expiry_s=0)
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=False)
    groups = len(world.sent(CreateGroup))
    world.server(world.description())
    assert (world.states["dave"], len(world.sent(CreateGroup))) == ("clear.only", groups)
    world.dave_protocol_version = 1
    world.server(world.description())
    assert world.states["speech"] == "held.not_ready"
    assert len(world.sent(CreateGroup)) == groups + 1
    world.settle()
    assert world.states["dave"] == "active"
    world.server(world.description())
    assert len(world.sent(CreateGroup)) == groups + 1


def test_a_foreign_endpoint_is_left_without_a_dial() -> None:
    world = World()
    world.unanswered.add("SendVoiceState")
    world.join()
    world.feed(VoiceStateUpdated(CHANNEL, Secret("s")))
    world.feed(VoiceServerUpdated(Secret("t"), "example.com"))
    world.settle()
    assert world.states["call"] in ("leaving", "closed")
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), InvalidEndpoint)
    asked = [effect.channel_id for effect in world.sent(SendVoiceState) if isinstance(effect, SendVoiceState)]
    assert asked == [CHANNEL, None]
    assert world.sent(OpenSocket) == []
    world = ready()
    world.feed(VoiceServerUpdated(Secret("t"), "example.com"))
    assert world.states["gateway"] == "closed.closing"


def test_null_endpoints_end_with_a_word_and_a_leave() -> None:
    world = ready(max_attempts=2)
    world.feed(VoiceServerUpdated(Secret("null"), None))
    assert world.states["gateway"] in ("closed.closing", "closed.down")
    assert isinstance(noticed(world, Reconnecting)[-1], Reconnecting)
    world.feed(VoiceServerUpdated(Secret("null again"), None))
    world.until(lambda: world.states["call"] == "closed", 5)
    assert isinstance(last_error(world), ConnectionFailed)
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)


def test_a_token_from_before_a_null_endpoint_is_never_used_again() -> None:
    world = ready()
    world.feed(VoiceServerUpdated(Secret("null"), None))
    world.feed(VoiceStateUpdated(CHANNEL, Secret("another session")))
    world.settle()
    assert world.states["call"] == "waiting.endpoint"
    assert len(world.sent(OpenSocket)) == 1


def test_a_heart_that_dies_while_resuming_ends_the_resume() -> None:
    world = World()
    world.heartbeat_interval_s = 1.0
    world.join()
    world.unanswered |= {"SendHeartbeat", "SendResume", "SendVoiceState"}
    world.server(SocketClosed(1006), numbered=False)
    assert world.until(lambda: world.states["call"] == "joining.asking", 10) == pytest.approx(3.0, abs=1.1)
    assert world.states["gateway"] == "closed.down"
    assert world.sent(AbortSocket) != []
    assert world.sent(DropKey) != []


def test_both_opcodes_that_name_an_ssrc_map_it() -> None:
    world = ready()
    world.server(SpeakingReceived(OTHER, 5, 1))
    world.server(VideoReceived(OTHER, 6))
    world.server(VideoReceived(OTHER, 0))
    assert world.sent(MapSsrc) == [MapSsrc(5, OTHER), MapSsrc(6, OTHER)]


def test_our_commit_is_sent() -> None:
    world = ready()
    world.server(ProposalsReceived(revoke=False, data=b"\0"))
    (proposals,) = world.sent(ApplyProposals)
    assert isinstance(proposals, ApplyProposals)
    assert proposals.known_users == {USER, OTHER}
    world.feed(CommitMade(b"commit and welcome"))
    assert world.sent(SendCommitWelcome) == [SendCommitWelcome(b"commit and welcome")]


@pytest.mark.parametrize("machine_state", ["joining.asking", "connecting", "connected"])
def test_leaving_ends_everything_from_anywhere(machine_state: str) -> None:
    world = World()
    silent = {"joining.asking": "SendVoiceState", "connecting": "SendIdentify", "connected": ""}[machine_state]
    world.unanswered.add(silent)
    world.join()
    assert world.states["call"] == machine_state
    world.feed(LeaveRequested())
    world.until(lambda: world.states["call"] == "closed", 5)
    assert last_error(world) is None
    assert (world.timers, world.states["gateway"], world.states["transport"]) == ({}, "closed.down", "closed")


def test_a_peer_that_does_not_close_is_not_waited_for_long() -> None:
    world = ready()
    world.unanswered.add("CloseSocket")
    world.feed(LeaveRequested())
    assert world.until(lambda: world.states["call"] == "closed", 10) == pytest.approx(2.0)
    assert world.sent(CloseSocket) == [CloseSocket(1000)]


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


# -- the path


def test_sudden_silence_is_looked_into_at_once_and_long_silence_every_third_time() -> None:
    world = ready()
    world.advance(6)  # the first keepalive; something was heard
    world.unanswered.add("SendKeepalive")
    world.advance(5)
    assert world.times(SendKeepalive) == pytest.approx([5, 10])
    assert world.times(SendDiscovery) == pytest.approx([0, 10])
    world.advance(30)
    assert world.times(SendDiscovery) == pytest.approx([0, 10, 25, 40])
    assert world.states["transport"] == "open"
    assert len(world.sent(SendSelectProtocol)) == 1


def test_another_address_after_a_silence_is_selected() -> None:
    world = ready()
    world.advance(6)
    world.unanswered |= {"SendKeepalive", "SendDiscovery"}
    world.advance(5)
    assert world.states["transport"] == "checking"
    world.udp(IpDiscovered("203.0.113.7", 50005))
    assert world.states["transport"] == "open"
    assert world.sent(SendSelectProtocol)[1:] == [SendSelectProtocol("203.0.113.7", 50005, PREFERRED_MODES[0])]


def test_a_path_that_does_not_answer_is_unconfirmed_and_used_on() -> None:
    world = ready()
    world.unanswered |= {"SendKeepalive", "SendDiscovery"}
    world.advance(15)
    assert world.times(SendDiscovery) == pytest.approx([0, 15])
    world.advance(1.61)
    assert world.times(SendDiscovery) == pytest.approx([0, 15, 15.2, 15.4, 15.8])
    assert world.states["transport"] == "silent"
    assert world.states["gateway"] == "ready"
    world.advance(3600)
    assert len(noticed(world, Warned)) == 1
    assert world.states["gateway"] == "ready"
    world.unanswered.remove("SendDiscovery")
    world.advance(5)
    assert world.states["transport"] == "open"
    assert len(noticed(world, Warned)) == 2


def test_a_resume_is_followed_by_a_look_at_the_path() -> None:
    world = ready()
    world.server(SocketClosed(4015), numbered=False)
    world.settle()
    assert world.way("transport")[-2:] == ["confirming", "open"]
    world.unanswered.add("SendDiscovery")
    world.server(SocketClosed(4015), numbered=False)
    world.settle()
    assert world.states["transport"] == "confirming"
    world.advance(1.61)
    assert world.states["transport"].startswith("discovering")
    assert noticed(world, MediaLost) != []
    world.unanswered.remove("SendDiscovery")
    world.advance(1)
    assert world.states["transport"] == "open"
    assert noticed(world, MediaRestored) != []
    world.unanswered.add("SendDiscovery")
    world.server(SocketClosed(4015), numbered=False)
    assert world.until(lambda: world.states["call"] != "connected", 10) == pytest.approx(6.55)
    world.unanswered.clear()
    world.until(lambda: world.states["call"] == "connected", 30)


def test_another_network_is_found_while_the_websocket_resumes() -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendDiscovery"}
    world.server(SocketClosed(1006), numbered=False)
    world.udp(PathMoved())
    assert world.states["transport"].startswith("discovering")
    world.udp(IpDiscovered("198.51.100.9", 7))
    assert len(world.sent(SendSelectProtocol)) == 1
    world.server(SocketOpened(), numbered=False)
    world.server(HelloReceived(13.75, 8), numbered=False)
    world.settle()
    assert world.states["gateway"] == "ready"
    assert world.sent(SendSelectProtocol)[1:] == [SendSelectProtocol("198.51.100.9", 7, PREFERRED_MODES[0])]


def test_a_host_that_sends_nothing_brings_a_new_socket() -> None:
    world = ready()
    world.udp(PathLost("ENETUNREACH"))
    assert noticed(world, MediaLost) == [MediaLost("this host sends no datagram (ENETUNREACH)")]
    world.settle()
    assert world.states["transport"] == "open"
    assert noticed(world, MediaRestored) != []
    assert len(world.sent(OpenUdp)) == 2


# -- E2EE and speech


def test_speech_is_held_until_the_group_works() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(SpeechStarted())
    assert (world.states["dave"], world.states["speech"]) == ("waiting.group", "held.not_ready")
    assert world.sent(ReleaseStream) == []
    world.server(WelcomeReceived(0, b"welcome"))
    world.settle()
    assert world.states["speech"] == "speaking"
    assert world.sent(ReleaseStream) == [ReleaseStream(encrypted=True)]
    assert noticed(world, EncryptionChanged) == [EncryptionChanged(1, f"{1:030d}")]


def test_a_group_that_is_long_in_coming_is_said() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.advance(61)
    warnings = [notice for notice in noticed(world, Warned) if "E2EE is not ready" in notice.text]  # type: ignore[union-attr]
    assert len(warnings) == 2


def test_speech_ends_with_silence_and_a_player_that_died_does_not_keep_us_speaking() -> None:
    for answered in (True, False):
        world = ready()
        if not answered:
            world.unanswered.add("DrainStream")
        world.feed(SpeechStarted())
        world.feed(SpeechEnded())
        waited = world.until(lambda world=world: world.states["speech"] == "silent", 5)  # type: ignore[misc]
        assert waited == pytest.approx(0.0 if answered else 1.0)
        flags = [effect.flags for effect in world.sent(SendSpeaking) if isinstance(effect, SendSpeaking)]
        assert flags == [0, 1, 0]


def test_speech_that_begins_again_while_it_drains_goes_on() -> None:
    world = ready()
    world.unanswered.add("DrainStream")
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    world.feed(SpeechStarted())
    assert world.states["speech"] == "speaking"
    world.advance(5)
    flags = [effect.flags for effect in world.sent(SendSpeaking) if isinstance(effect, SendSpeaking)]
    assert flags == [0, 1]


def test_a_group_that_ends_while_speech_drains_holds_the_stream() -> None:
    world = ready()
    world.unanswered |= {"DrainStream", "SendKeyPackage"}
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    world.server(EpochPrepared(1, 1))
    assert world.states["speech"] == "silent"
    world.feed(SpeechStarted())
    assert world.states["speech"] == "held.not_ready"


def test_the_silence_after_a_speech_is_encrypted_when_the_group_comes_meanwhile() -> None:
    world = World(Options(policy=E2EEPolicy.ALLOW))
    world.dave_protocol_version = 0
    world.join()
    world.unanswered.add("DrainStream")
    world.feed(SpeechStarted())
    world.server(EpochPrepared(1, 1))
    world.feed(SpeechEnded())
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("active", "draining")
    assert world.sent(ReleaseStream) == [ReleaseStream(encrypted=False), ReleaseStream(encrypted=True)]


def test_what_was_held_can_end_unsaid() -> None:
    world = World()
    world.unanswered.add("SendKeyPackage")
    world.join()
    world.feed(SpeechStarted())
    world.feed(SpeechEnded())
    assert world.states["speech"] == "silent"
    world.server(WelcomeReceived(0, b"welcome"))
    world.settle()
    assert world.states["speech"] == "silent"
    assert world.sent(ReleaseStream) == []


def test_what_is_allowed_stays_allowed_for_the_next_speech() -> None:
    for policy, version in ((E2EEPolicy.REQUIRE, 1), (E2EEPolicy.ALLOW, 0)):
        world = World(Options(policy=policy))
        world.dave_protocol_version = version
        world.unanswered |= {"SendKeyPackage"} if version else set()
        world.join()
        world.feed(SpeechStarted())
        if version:
            world.server(WelcomeReceived(0, b"welcome"))
            world.settle()
        for _ in range(2):
            world.feed(SpeechEnded())
            world.settle()
            world.feed(SpeechStarted())
            assert world.states["speech"] == "speaking"
            assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=version == 1)


def test_what_is_forbidden_stays_forbidden_for_the_next_speech() -> None:
    world = ready()
    world.unanswered.add("SendKeyPackage")
    world.feed(SpeechStarted())
    world.server(EpochPrepared(1, 1))
    assert world.states["speech"] == "held.not_ready"
    world.feed(SpeechEnded())
    world.feed(SpeechStarted())
    assert world.states["speech"] == "held.not_ready"


def test_a_later_group_waits_for_its_execution() -> None:
    world = ready()
    world.unanswered.add("SendTransitionReady")
    world.feed(SpeechStarted())
    world.server(CommitAnnounced(7, b"commit"))
    world.settle()
    assert world.sent(SendTransitionReady) == [SendTransitionReady(7)]
    assert world.states["speech"] == "speaking"
    world.server(TransitionExecuted(7))
    world.server(TransitionExecuted(8))
    assert world.states["dave"] == "active"
    assert world.session.shared.counters["unknown transitions"] == 1


def test_a_downgrade_is_refused_under_require_and_undone_by_a_new_group() -> None:
    world = ready()
    world.feed(SpeechStarted())
    world.server(TransitionPrepared(0, 9))
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("refused", "held.not_ready")
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert (world.states["dave"], world.states["speech"]) == ("active", "speaking")
    assert all(effect == ReleaseStream(encrypted=True) for effect in world.sent(ReleaseStream))


def test_a_downgrade_is_followed_under_allow() -> None:
    world = ready(policy=E2EEPolicy.ALLOW)
    world.feed(SpeechStarted())
    world.unanswered.add("SendTransitionReady")
    world.server(TransitionPrepared(0, 9))
    assert world.sent(SetPassthrough)[-1] == SetPassthrough(allowed=True, expiry_s=0)
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=True)
    world.server(TransitionExecuted(9))
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=False)
    world.server(EpochPrepared(1, 1))
    world.settle()
    assert world.sent(ReleaseStream)[-1] == ReleaseStream(encrypted=True)
    last = world.sent(SetPassthrough)[-1]
    assert isinstance(last, SetPassthrough)
    assert (last.allowed, last.expiry_s) == (False, 10)


def test_an_invalid_commit_is_reported_with_a_new_key_package() -> None:
    world = ready()
    packages = len(world.sent(SendKeyPackage))
    world.unanswered |= {"ApplyCommit", "SendKeyPackage"}
    world.server(CommitAnnounced(7, b"commit"))
    world.feed(GroupRejected(7, "does not fit"))
    world.settle()
    assert world.sent(SendInvalidCommit) == [SendInvalidCommit(7)]
    assert len(world.sent(SendKeyPackage)) == packages + 1
    assert world.states["dave"] == "recovering"
    world.server(WelcomeReceived(8, b"welcome"))
    world.settle()
    assert world.states["dave"] in ("active", "changing")


def test_recovery_that_fails_too_often_asks_for_a_new_session() -> None:
    world = ready()
    world.unanswered |= {"ApplyCommit", "ApplyWelcome"}
    for number in range(1, 5):
        if len(world.sent(SendIdentify)) > 1 or world.states["gateway"] != "ready":
            break
        world.feed(GroupRejected(number, "does not fit"))
        world.settle()
    assert len(world.sent(SendInvalidCommit)) == 3
    world.unanswered.clear()
    world.until(lambda: world.states["dave"] == "active", 60)
    assert len(world.sent(SendIdentify)) == 2


def test_another_members_first_commit_is_none_of_our_business() -> None:
    world = World()
    world.unanswered |= {"SendKeyPackage", "ApplyCommit"}
    world.join()
    world.server(CommitAnnounced(0, b"commit"))
    world.feed(CommitIgnored(0))
    assert world.states["dave"] == "waiting.group"
    assert world.sent(SendInvalidCommit) == []


def test_another_external_sender_is_refused() -> None:
    world = ready()
    world.server(ExternalSenderReceived(b"external sender"))
    assert noticed(world, Warned) == []
    world.server(ExternalSenderReceived(b"another"))
    assert len(noticed(world, Warned)) == 1


def test_a_sender_that_came_too_late_is_not_the_next_sessions() -> None:
    world = ready()
    world.server(SocketClosed(4006), numbered=False)
    world.feed(Stamped("websocket", 1, ExternalSenderReceived(b"late")))
    world.until(lambda: world.states["dave"] == "active", 60)
    groups = [effect.external_sender for effect in world.sent(CreateGroup) if isinstance(effect, CreateGroup)]
    assert groups == [None, None]
    assert noticed(world, Warned) == []


def test_the_last_one_waits_alone() -> None:
    world = ready()
    world.feed(SpeechStarted())
    world.server(ClientDisconnected(OTHER))
    world.server(EpochPrepared(1, 1))
    assert (world.states["dave"], world.states["speech"]) == ("waiting.alone", "held.alone")
    world.settle()


def test_the_end_of_a_session_forgets_its_secrets() -> None:
    world = ready()
    known = len(world.effects)
    world.server(SocketClosed(4006), numbered=False)
    forgotten = [type(effect) for _, effect in world.effects[known:] if isinstance(effect, DropKey | DropGroup)]
    assert forgotten == [DropKey, DropGroup]
    assert world.session.dave.privacy_code == ""


def test_nobody_is_told_that_we_joined() -> None:
    world = ready()
    assert world.session.shared.others == {OTHER}
    world.server(ClientsConnected((USER,)))
    assert world.session.shared.others == {OTHER}
