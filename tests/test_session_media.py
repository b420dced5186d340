"""The core in virtual time: the UDP path, and what our stream may say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sessions import noticed, ready
from voicegw.core.signals import SpeechAllowed, SpeechForbidden
from voicegw.effects import (
    CloseUdp,
    EncryptionChanged,
    HoldReason,
    MediaLost,
    MediaRestored,
    OpenUdp,
    ReleaseStream,
    SendDiscovery,
    SendKeepalive,
    SendSelectProtocol,
    SendSpeaking,
    Warned,
)
from voicegw.events import (
    HostWoke,
    IpDiscovered,
    PathHeard,
    PathLost,
    PathMoved,
    PathUnheard,
    SocketClosed,
    SocketOpened,
    SpeechEnded,
    SpeechStarted,
)
from voicegw.session import E2EEPolicy, Options, VoiceSession
from voicegw.testing.world import GUILD, USER, World
from voicegw.wire.encryption import PREFERRED_MODES
from voicegw.wire.payloads import (
    EpochPrepared,
    HelloReceived,
    WelcomeReceived,
)

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


def test_anything_that_is_heard_ends_the_doubt_about_the_path() -> None:
    world = ready()
    world.unanswered |= {"SendKeepalive", "SendDiscovery"}
    world.until(lambda: world.states["transport"] == "checking", 30)
    asked = len(world.sent(SendDiscovery))
    world.udp(PathHeard())
    assert world.states["transport"] == "open"
    world.advance(4)
    assert len(world.sent(SendDiscovery)) == asked
    world.until(lambda: world.states["transport"] == "silent", 60)
    known = len(noticed(world, Warned))
    world.udp(PathHeard())
    assert world.states["transport"] == "open"
    assert len(noticed(world, Warned)) == known + 1


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


def send_nothing(world: World) -> None:
    world.udp(PathLost("ENETUNREACH"))


def move(world: World) -> None:
    world.udp(PathMoved())


def resume_unanswered(world: World) -> None:
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    world.until(lambda: world.states["transport"] != "confirming", 10)


def go_on_elsewhere(world: World) -> None:
    world.hand_over()


@pytest.mark.parametrize("replace", [send_nothing, move, resume_unanswered, go_on_elsewhere])
def test_a_new_socket_asks_for_its_address_at_once_and_again_soon(replace: Callable[[World], None]) -> None:
    world = ready()
    world.unanswered |= {"OpenSocket", "SendDiscovery"} - ({"OpenSocket"} if replace is resume_unanswered else set())
    world.advance(1.0)
    replace(world)
    assert world.states["transport"] == "discovering.first"
    said = [type(effect) for _, effect in world.effects if isinstance(effect, CloseUdp | OpenUdp | SendDiscovery)]
    assert said[-2:] == [OpenUdp, SendDiscovery]
    assert said.count(CloseUdp) == 1
    begun = world.now
    asked = len(world.sent(SendDiscovery))
    world.advance(1.0)
    assert [at - begun for at, effect in world.effects if isinstance(effect, SendDiscovery)][asked:] == pytest.approx(
        [0.2, 0.4, 0.8]
    )


def test_a_host_that_slept_looks_whether_the_path_is_still_there() -> None:
    world = ready()
    world.unanswered.add("SendDiscovery")
    asked = len(world.sent(SendDiscovery))
    world.feed(HostWoke(60.0))
    assert (world.states["transport"], len(world.sent(SendDiscovery))) == ("confirming", asked + 1)
    world.udp(IpDiscovered("203.0.113.7", 50004))
    assert world.states["transport"] == "open"


def test_what_is_heard_after_a_resume_makes_the_next_silence_a_sudden_one() -> None:
    world = ready()
    world.unanswered |= {"SendDiscovery", "SendKeepalive"}
    world.server(SocketClosed(1006), numbered=False)
    world.settle()
    assert world.states["transport"] == "confirming"
    world.udp(PathHeard())
    assert world.states["transport"] == "open"
    world.udp(PathUnheard())
    assert world.states["transport"] == "checking"


@pytest.mark.parametrize("doubt", ["confirming", "silent"])
def test_an_answer_of_a_server_where_nobody_speaks_makes_no_silence_a_sudden_one(doubt: str) -> None:
    world = ready()
    world.unanswered |= {"SendDiscovery", "SendKeepalive"}
    world.udp(PathHeard())
    if doubt == "confirming":
        world.server(SocketClosed(1006), numbered=False)
        world.settle()
    else:
        world.udp(PathUnheard())
        world.until(lambda: world.states["transport"] == "silent", 10)
    assert world.states["transport"] == doubt
    world.udp(IpDiscovered("203.0.113.7", 50004))
    world.udp(PathUnheard())
    assert world.states["transport"] == "open"


def test_why_one_socket_could_not_send_is_not_said_of_the_next() -> None:
    world = ready()
    world.unanswered.add("SendDiscovery")
    for _ in range(2):
        world.udp(PathLost("ENETUNREACH"))
    world.udp(IpDiscovered("203.0.113.7", 50004))
    assert world.states["transport"] == "open"
    world.udp(PathMoved())
    world.until(lambda: world.states["call"] != "connected", 10)
    assert "IP discovery was not answered" in str(world.session.call.error)


@pytest.mark.parametrize("late_s", [0.0, 7.0])
def test_keepalives_that_a_stall_has_missed_are_left_out(late_s: float) -> None:
    transport = ready().session.transport
    transport.shared.now = transport.keepalive_at + late_s
    assert transport.until_keepalive() == 5.0


# -- speech


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


def test_whoever_begins_to_speak_alone_is_held_for_that() -> None:
    world = World(others=())
    world.join()
    world.until(lambda: world.states["dave"] == "waiting.alone", 30)
    world.feed(SpeechStarted())
    assert world.states["speech"] == "held.alone"


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


def test_what_may_not_leave_may_not_leave_in_the_clear() -> None:
    speech = VoiceSession(USER, GUILD).speech
    assert speech.encrypted
    speech.note_allowed(SpeechAllowed(encrypted=False))
    speech.note_forbidden(SpeechForbidden(HoldReason.NOT_READY))
    assert speech.encrypted
