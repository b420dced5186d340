"""A call that is expected from another process: dialled ahead, and what becomes of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import ALICE, BOB, GUILD, MakeClient, encrypted, pair, signalling_of
from tests.sessions import ready
from tests.test_session_closes import CLOSES
from voicegw import FrozenCall, ToneSource, VoiceClient
from voicegw.effects import (
    AbortSocket,
    CreateGroup,
    DropGroup,
    Effect,
    OpenSocket,
    SendInvalidCommit,
    SendKeyPackage,
    SendResume,
    SendVoiceState,
    UseKey,
)
from voicegw.errors import ConnectionFailed, EventNotAllowed
from voicegw.events import (
    CallThawed,
    DeadlinePassed,
    DialPostponed,
    Event,
    FreezeRequested,
    GroupRejected,
    HandOverAnnounced,
    JoinAbandoned,
    JoinRequested,
    KeyPackageMade,
    LeaveRequested,
    ReaderFailed,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
    Stamped,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.server import VoiceServer
from voicegw.session import VoiceSession
from voicegw.snapshot import Announcement
from voicegw.testing.world import CHANNEL, USER
from voicegw.testing.world import GUILD as ITS_GUILD
from voicegw.wire.opcodes import Opcode
from voicegw.wire.payloads import HelloReceived, ResumedReceived

HELLO = HelloReceived(13.75, 8)
OF_A_WEBSOCKET = (
    DialPostponed,
    HelloReceived,
    ReaderFailed,
    ResumedReceived,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRateLimited,
    SocketRefused,
    SocketUnavailable,
)
PACKAGE = KeyPackageMade(b"key package")
SNAPSHOT = ready().session.snapshot()
assert SNAPSHOT.endpoint is not None
ANNOUNCED = HandOverAnnounced(
    Announcement(SNAPSHOT.endpoint, SNAPSHOT.channel_id, SNAPSHOT.dave_protocol_version, SNAPSHOT.external_sender)
)


class Expecting:
    """The core of a process that expects a call."""

    def __init__(self, *events: Event) -> None:
        self.session = VoiceSession(USER, ITS_GUILD)
        self.now = 1.0
        for event in events:
            self.feed(event)

    def feed(self, event: Event) -> list[Effect]:
        generation = self.session.shared.socket_generation
        stamped = Stamped("websocket", generation, event) if isinstance(event, OF_A_WEBSOCKET) else event
        return self.session.receive(stamped, self.now)

    def pass_deadline(self) -> None:
        ((name, at),) = self.session.shared.timers.items()
        self.now = at
        self.feed(DeadlinePassed(name, at))

    @property
    def states(self) -> tuple[str, str, str]:
        return self.session.call.state, self.session.gateway.state, self.session.dave.state


def kinds(effects: list[Effect]) -> list[type[Effect]]:
    return [type(effect) for effect in effects]


def test_a_call_that_was_expected_is_resumed_without_a_dial() -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, SocketOpened(), HELLO)
    assert expecting.states == ("announced", "closed.greeted_ahead", "ahead")
    effects = kinds(expecting.feed(CallThawed(SNAPSHOT)))
    assert OpenSocket not in effects
    assert CreateGroup not in effects
    sent = [kind for kind in effects if kind in (SendResume, SendInvalidCommit, SendKeyPackage)]
    assert sent == [SendResume, SendInvalidCommit, SendKeyPackage]
    assert expecting.states == ("thawing", "resuming.awaiting_resumed", "waiting.thawed")
    assert expecting.session.heartbeat.state != "stopped"


def test_before_the_call_is_ours_nothing_is_said() -> None:
    expecting = Expecting()
    said = [kind for event in (ANNOUNCED, PACKAGE, SocketOpened(), HELLO) for kind in kinds(expecting.feed(event))]
    assert said.count(OpenSocket) == 1
    assert not [kind for kind in said if kind.__name__.startswith("Send")]
    assert expecting.session.heartbeat.state == "stopped"


@pytest.mark.parametrize(
    ("before", "state"),
    [
        ((ANNOUNCED,), "resuming.dialling"),
        ((ANNOUNCED, PACKAGE), "resuming.dialling"),
        ((ANNOUNCED, PACKAGE, SocketOpened()), "resuming.awaiting_resumed"),
    ],
)
def test_a_call_that_comes_earlier_goes_on_with_the_dial(before: tuple[Event, ...], state: str) -> None:
    expecting = Expecting(*before)
    effects = kinds(expecting.feed(CallThawed(SNAPSHOT)))
    assert OpenSocket not in effects
    assert UseKey in effects
    assert (SendResume in effects) is (state == "resuming.awaiting_resumed")
    assert (CreateGroup in effects) is (PACKAGE not in before)
    assert expecting.states[1] == state


ENDS: list[tuple[tuple[Event, ...], Event | None]] = [
    ((), SocketFailed(ConnectionFailed("refused"))),
    ((), None),
    ((SocketOpened(),), SocketClosed(4006)),
    ((SocketOpened(),), None),
    ((SocketOpened(), HELLO), SocketClosed(None)),
    ((SocketOpened(), HELLO), SocketClosed(1000)),
    ((SocketOpened(), HELLO), ReaderFailed("KeyError")),
    ((SocketOpened(), HELLO), None),
    ((), SocketRefused(ConnectionFailed("the certificate is wrong"))),
    ((), SocketUnavailable(ConnectionFailed("HTTP 503"))),
    ((), SocketRateLimited(ConnectionFailed("HTTP 429"))),
    ((), DialPostponed(5.0)),
    *(((SocketOpened(),), SocketClosed(code)) for code, _ in CLOSES),
]


@pytest.mark.parametrize(("way", "end"), ENDS, ids=str)
def test_a_websocket_that_was_not_used_is_gone_and_the_call_comes_as_any_other(
    way: tuple[Event, ...], end: Event | None
) -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, *way)
    if end is None:
        expecting.pass_deadline()
    else:
        expecting.feed(end)
    assert expecting.states == ("idle", "closed.down", "off")
    assert expecting.session.shared.timers == {}
    plain = Expecting()
    assert kinds(expecting.feed(CallThawed(SNAPSHOT))) == kinds(plain.feed(CallThawed(SNAPSHOT)))
    assert expecting.states == plain.states == ("thawing", "resuming.dialling", "waiting.thawed")


def test_a_dial_ahead_that_would_have_to_wait_for_its_turn_is_given_up() -> None:
    assert AbortSocket in kinds(Expecting(ANNOUNCED, PACKAGE).feed(DialPostponed(5.0)))


def test_a_call_that_has_gone_elsewhere_since_is_dialled_there() -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, SocketOpened(), HELLO)
    elsewhere = replace(SNAPSHOT, endpoint="voice.discord.media:2048", channel_id=SNAPSHOT.channel_id + 1)
    effects = kinds(expecting.feed(CallThawed(elsewhere)))
    assert effects.index(AbortSocket) < effects.index(UseKey) < effects.index(OpenSocket)
    assert CreateGroup in effects
    assert SendResume not in effects
    assert expecting.session.gateway.endpoint == "voice.discord.media:2048"
    assert expecting.states[1] == "resuming.dialling"


CLEAR = {"dave": "clear.only", "dave_protocol_version": 0, "epoch": 0}
NONE, ANEW, AS_MADE = [DropGroup], [SendInvalidCommit, CreateGroup], [SendInvalidCommit, SendKeyPackage]


@pytest.mark.parametrize(
    ("since", "group", "state"),
    [
        ({}, AS_MADE, "recovering"),
        (CLEAR, NONE, "clear.only"),
        ({"dave": "refused"}, NONE, "refused"),
        ({"external_sender": b"another"}, ANEW, "recovering"),
        ({"epoch": 0, "dave": "waiting.group", "external_sender": b"another"}, ANEW, "waiting.group"),
    ],
    ids=str,
)
def test_the_group_that_was_made_ahead_is_used_where_it_is_still_the_calls(
    since: dict[str, Any], group: list[type[Effect]], state: str
) -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, SocketOpened(), HELLO)
    effects = expecting.feed(CallThawed(replace(SNAPSHOT, last_transition=7, **since)))
    of_group = (DropGroup, CreateGroup, SendInvalidCommit, SendKeyPackage)
    assert [kind for kind in kinds(effects) if kind in of_group] == group
    assert [effect for effect in effects if isinstance(effect, SendInvalidCommit)] in ([], [SendInvalidCommit(7)])
    assert expecting.states[2] == "waiting.thawed"
    expecting.feed(ResumedReceived())
    assert expecting.states[1:] == ("ready", state)


def test_a_group_that_cannot_be_made_ahead_is_made_when_the_call_comes() -> None:
    expecting = Expecting()
    assert CreateGroup in kinds(expecting.feed(ANNOUNCED))
    assert DropGroup in kinds(expecting.feed(GroupRejected(0, "no key package can be made")))
    assert expecting.states == ("announced", "closed.dialling_ahead", "off")
    effects = kinds(expecting.feed(CallThawed(SNAPSHOT)))
    assert (SendInvalidCommit in effects, CreateGroup in effects) == (True, True)


def test_a_host_that_must_not_be_dialled_is_not_dialled_ahead() -> None:
    expecting = Expecting()
    assert expecting.feed(HandOverAnnounced(Announcement("example.com", CHANNEL, 1))) == []
    assert expecting.states == ("idle", "closed.down", "off")


@pytest.mark.parametrize("event", [LeaveRequested(), FreezeRequested()])
def test_who_expects_a_call_and_does_not_want_it_leaves_nothing_open(event: Event) -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, SocketOpened(), HELLO)
    assert AbortSocket in kinds(expecting.feed(event))
    assert expecting.states == ("closed", "closed.down", "off")
    assert expecting.session.shared.timers == {}


def test_who_expects_a_call_may_join_instead() -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, SocketOpened(), HELLO)
    expecting.now = 5.0
    effects = expecting.feed(JoinRequested(CHANNEL + 1))
    assert expecting.states == ("joining.asking", "closed.down", "off")
    assert [effect for effect in effects if isinstance(effect, SendVoiceState)] == [SendVoiceState(CHANNEL + 1)]
    expecting.feed(VoiceStateUpdated(CHANNEL + 1, Secret("new")))
    assert expecting.session.shared.timers == {"pair_timeout": 15.0}


def test_an_expected_call_that_may_not_be_resumed_is_joined_as_one_that_was_connected() -> None:
    expecting = Expecting(ANNOUNCED, PACKAGE, SocketOpened(), HELLO)
    expecting.now = 5.0
    effects = expecting.feed(CallThawed(replace(SNAPSHOT, secret_key=None, channel_id=CHANNEL + 1)))
    assert expecting.states == ("joining.asking", "closed.down", "off")
    assert [effect for effect in effects if isinstance(effect, SendVoiceState)] == [SendVoiceState(CHANNEL + 1)]
    expecting.feed(VoiceStateUpdated(CHANNEL + 1, Secret("new")))
    assert expecting.session.shared.timers == {"pair_timeout": 15.0}
    expecting.feed(JoinAbandoned(None))
    assert expecting.states[0] == "joining.halved"


def test_a_call_that_is_there_expects_no_other() -> None:
    with pytest.raises(EventNotAllowed):
        ready().feed(ANNOUNCED)


# -- on a real voice server


async def expecting(server: VoiceServer, alice: VoiceClient, **options: object) -> tuple[VoiceClient, bool]:
    """The client of another process, while `alice` has the call, and the bot's updates."""
    announced = alice.announcement()
    assert announced is not None
    given = {**alice.options, "ca_pem": server.ca_pem, **options}
    again = VoiceClient(user_id=ALICE, guild_id=GUILD, signalling=signalling_of(alice), **given)
    signalling_of(alice).attach(alice)
    return again, await again.expect(announced)


async def hand(alice: VoiceClient, again: VoiceClient) -> FrozenCall:
    frozen = await alice.freeze()
    signalling_of(alice).attach(again)
    await again.go_on(frozen)
    return frozen


def hellos(server: VoiceServer) -> int:
    return len(server.records(op=Opcode.HELLO))


@pytest.mark.loopback
async def test_an_expected_call_goes_on_on_the_websocket_that_is_there(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    alice.play(ToneSource(440))
    before = hellos(server)
    again, dialled = await expecting(server, alice)
    assert dialled
    assert hellos(server) == before + 1
    assert server.records(op=Opcode.RESUME) == []
    await hand(alice, again)
    await encrypted(again, bob)
    count = bob.stats.users[ALICE].packets
    await bob.wait_for(lambda: bob.stats.users[ALICE].packets > count + 10)
    assert hellos(server) == before + 1
    assert len(server.records(op=Opcode.RESUME)) == 1
    assert again.way("gateway") == [
        "closed.down",
        "closed.dialling_ahead",
        "closed.opened_ahead",
        "closed.greeted_ahead",
        "resuming.awaiting_resumed",
        "ready",
    ]
    assert server.session(ALICE).counters["media in the clear"] == 0
    await again.close()


@pytest.mark.loopback
@pytest.mark.parametrize("by", ["the server", "time"])
async def test_a_websocket_that_ends_before_the_call_comes_is_dialled_anew(
    server: VoiceServer, make_client: MakeClient, by: str
) -> None:
    alice, bob = await pair(make_client, server)
    alice.play(ToneSource(440))
    usual = server.heartbeat_interval_s
    server.heartbeat_interval_s = 0.05 if by == "the server" else usual  # it closes whom it has not heard three times
    again, dialled = await expecting(server, alice, **({"deadlines": {"call_awaited": 0.05}} if by == "time" else {}))
    server.heartbeat_interval_s = usual
    assert dialled
    await again.wait_for(lambda: again.states["call"] == "idle")
    assert again.states["gateway"] == "closed.down"
    before = hellos(server)
    await hand(alice, again)
    await encrypted(again, bob)
    assert hellos(server) == before + 1
    assert len(server.records(op=Opcode.CLIENT_DISCONNECT)) == 0
    await again.close()


@pytest.mark.loopback
async def test_who_is_not_given_the_call_closes_and_the_call_goes_on(
    server: VoiceServer, make_client: MakeClient
) -> None:
    alice, bob = await pair(make_client, server)
    alice.play(ToneSource(440))
    again, _ = await expecting(server, alice)
    await again.close()
    assert again.error is None
    assert server.members(alice.channel_id or 0) == [ALICE, BOB]
    count = bob.stats.users[ALICE].packets if ALICE in bob.stats.users else 0
    await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].packets > count + 10)


def test_an_announcement_has_no_secret_in_it() -> None:
    secret = [SNAPSHOT.session_id, SNAPSHOT.token, SNAPSHOT.secret_key]
    assert all(each is not None for each in secret)
    fields: Callable[[object], str] = repr
    for each in secret:
        assert each is not None
        assert str(each.reveal()) not in fields(ANNOUNCED)
