"""A bot's own login, as its table decides it: no socket, no clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from voicegw.core.main_gateway import (
    MAX_ATTEMPTS,
    LoginAccepted,
    LoginEvent,
    LoginRequested,
    LoginResumed,
    LoginSession,
    LogoutRequested,
    MainGatewaySession,
    ReconnectRequested,
    SessionInvalidated,
)
from voicegw.effects import (
    AbortSocket,
    ArmTimer,
    CancelTimer,
    CloseSocket,
    Effect,
    OpenSocket,
    SendHeartbeat,
    SendIdentify,
    SendResume,
)
from voicegw.errors import CertificateRefused, ConnectionFailed, EventNotAllowed, LoginRefused
from voicegw.events import (
    DeadlinePassed,
    MainSessionLost,
    MainSessionResumed,
    MainSessionStarted,
    SocketClosed,
    SocketFailed,
    SocketOpened,
    SocketRefused,
)
from voicegw.secret import Secret
from voicegw.tables.load import load_table
from voicegw.tables.model import REFUSE
from voicegw.wire.payloads import HeartbeatAcked, HeartbeatRequested, HelloReceived

ACCEPTED = LoginAccepted(7, Secret("session"), "wss://elsewhere.discord.gg")


class Story:
    """A login, its time, and everything that it wanted."""

    def __init__(self) -> None:
        self.session = LoginSession()
        self.now = 0.0
        self.effects: list[Effect] = []

    @property
    def state(self) -> str:
        return self.session.login.state

    def feed(self, *events: LoginEvent) -> list[Effect]:
        new = [effect for event in events for effect in self.session.receive(event, self.now)]
        self.effects += new
        return new

    def pass_deadline(self) -> None:
        """The next timer fires."""
        name, at = min(self.session.shared.timers.items(), key=lambda timer: timer[1])
        self.now = max(self.now, at)
        self.feed(DeadlinePassed(name, at))

    def pass_until(self, deadline: str) -> None:
        """That timer fires, and before it whatever is due; beats are answered."""
        while deadline in self.session.shared.timers:
            self.feed(HeartbeatAcked(None))
            self.pass_deadline()

    def opened(self) -> None:
        """Dialled, and Hello came."""
        self.feed(SocketOpened(), HelloReceived(41.25, 10))


@pytest.fixture
def story() -> Story:
    made = Story()
    made.feed(LoginRequested())
    made.opened()
    made.feed(ACCEPTED)
    assert made.state == "ready"
    return made


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects if not isinstance(effect, ArmTimer)]


def test_a_login_identifies_and_beats_at_hellos_interval(story: Story) -> None:
    assert kinds(story.effects)[:1] == [OpenSocket]
    assert [effect for effect in story.effects if isinstance(effect, SendIdentify)] == [SendIdentify(0)]
    assert story.session.login.user_id == 7
    for _ in range(3):
        story.feed(HeartbeatAcked(None))
        story.pass_deadline()
    beats = [effect for effect in story.effects if isinstance(effect, SendHeartbeat)]
    assert len(beats) == 4
    assert story.now == pytest.approx(3 * 41.25)
    assert SendHeartbeat(-1) in story.feed(HeartbeatRequested())


def test_a_second_login_is_refused(story: Story) -> None:
    with pytest.raises(EventNotAllowed):
        story.feed(LoginRequested())


@pytest.mark.parametrize("lost", [SocketClosed(None), SocketClosed(4000), SocketClosed(4008)], ids=str)
def test_a_lost_connection_is_resumed(story: Story, lost: SocketClosed) -> None:
    story.session.shared.sequence.last = 12
    story.feed(lost)
    assert story.state == "backing_off"
    assert story.session.heartbeat.state == "stopped"
    story.pass_deadline()
    story.opened()
    assert story.state == "resuming"
    assert story.effects.count(SendResume(12)) == 1
    story.feed(LoginResumed())
    assert (story.state, story.session.login.attempts) == ("ready", 0)
    assert story.session.login.told == [MainSessionStarted(), MainSessionResumed()]


@pytest.mark.parametrize("lost", [SocketClosed(4009), SocketClosed(1000), SessionInvalidated(resumable=False)], ids=str)
def test_a_lost_session_is_a_new_login(story: Story, lost: LoginEvent) -> None:
    story.feed(lost)
    assert story.session.login.session_id is None
    assert story.session.login.told == [MainSessionStarted(), MainSessionLost()]
    story.pass_deadline()
    story.opened()
    assert story.state == "identifying"
    story.feed(ACCEPTED)
    assert story.session.login.told[2:] == [MainSessionStarted()]


def test_a_session_that_is_not_to_be_had_yet_is_resumed_later(story: Story) -> None:
    story.feed(SessionInvalidated(resumable=True))
    assert (story.state, story.session.login.session_id) == ("backing_off", ACCEPTED.session_id)


def test_a_server_that_wants_us_elsewhere_is_left_at_once(story: Story) -> None:
    new = story.feed(ReconnectRequested())
    assert [kind for kind in kinds(new) if kind in (AbortSocket, OpenSocket)] == [AbortSocket, OpenSocket]
    story.opened()
    assert story.state == "resuming"


def test_a_silent_server_is_given_up_and_resumed(story: Story) -> None:
    while story.state == "ready":
        story.pass_deadline()
    assert story.state == "backing_off"
    assert story.now < 4 * 41.25


@pytest.mark.parametrize(("code", "words"), [(4004, "token"), (4014, "intents"), (4011, "sharding")])
def test_what_no_retry_would_help_is_the_end(code: int, words: str) -> None:
    story = Story()
    story.feed(LoginRequested())
    story.opened()
    story.feed(SocketClosed(code))
    assert story.state == "down"
    assert isinstance(story.session.login.error, LoginRefused)
    assert words in str(story.session.login.error)


def test_a_certificate_that_is_not_discords_is_the_end() -> None:
    story = Story()
    story.feed(LoginRequested(), SocketRefused(CertificateRefused("expired")))
    assert (story.state, str(story.session.login.error)) == ("down", "expired")


@pytest.mark.parametrize("answered", ["nothing", "the dial", "Hello"])
def test_an_outage_ends_after_a_bounded_number_of_attempts(answered: str) -> None:
    story = Story()
    story.feed(LoginRequested())
    for attempt in range(1, MAX_ATTEMPTS + 1):
        if answered != "nothing":
            story.feed(SocketOpened())
        if answered == "Hello":
            story.feed(HelloReceived(41.25, 10))
        while story.state not in ("backing_off", "down"):
            story.pass_deadline()
        assert story.state == ("down" if attempt == MAX_ATTEMPTS else "backing_off")
        if story.state == "backing_off":
            story.pass_deadline()
    assert story.session.login.told == [MainSessionLost()]
    assert isinstance(story.session.login.error, ConnectionFailed)
    assert "after 8 attempts: " in str(story.session.login.error)
    assert "timeout" in str(story.session.login.error)
    assert story.now < 600
    assert story.session.shared.timers == {}


def let_it_die(story: Story) -> None:
    """No beat is answered any more."""
    while story.session.heartbeat.state != "stopped":
        story.pass_deadline()


# How a websocket is lost, where, and whether its session is lost with it.
RESUMABLE: dict[str, tuple[str, Callable[[Story], object]]] = {
    "invalidated for now": ("ready", lambda story: story.feed(SessionInvalidated(resumable=True))),
    "asked to reconnect": ("ready", lambda story: story.feed(ReconnectRequested())),
    "failed": ("ready", lambda story: story.feed(SocketFailed(ConnectionFailed("reset")))),
    "dead": ("ready", let_it_die),
    "closed": ("ready", lambda story: story.feed(SocketClosed(4000))),
    "not dialled": ("connecting.dialling", Story.pass_deadline),
    "without Hello": ("connecting.awaiting_hello", Story.pass_deadline),
    "without Ready": ("identifying", lambda story: story.pass_until("login_timeout")),
    "without Resumed": ("resuming", lambda story: story.pass_until("login_resumed_timeout")),
}
LOST = {
    "invalidated": ("ready", lambda story: story.feed(SessionInvalidated(resumable=False))),
    "closed for a new session": ("ready", lambda story: story.feed(SocketClosed(4009))),
}
WAYS: dict[str, tuple[str, Callable[[Story], object]]] = {**RESUMABLE, **LOST}


def came_to(state: str) -> Story:
    """A login in that state; where it resumes, it was ready before."""
    story = Story()
    story.feed(LoginRequested())
    steps: tuple[LoginEvent, ...] = (SocketOpened(), HelloReceived(41.25, 10), ACCEPTED)
    if state == "resuming":
        story.feed(*steps, SocketClosed(4000))
        story.pass_deadline()
    for event in steps:
        if story.state != state:
            story.feed(event)
    assert story.state == state
    story.session.login.told.clear()
    return story


@pytest.mark.parametrize("how", WAYS)
def test_of_a_websocket_that_is_lost_neither_socket_nor_heart_is_left(how: str) -> None:
    state, lose = WAYS[how]
    story = came_to(state)
    known, attempts = len(story.effects), story.session.login.attempts
    lose(story)
    again = "connecting.dialling" if how == "asked to reconnect" else "backing_off"
    assert (story.state, story.session.login.attempts) == (again, attempts + 1)
    assert AbortSocket() in story.effects[known:]
    assert story.session.heartbeat.state == "stopped"
    assert len(story.session.shared.timers) == 1
    assert story.session.login.told == ([MainSessionLost()] if how in LOST else [])
    if again == "backing_off":
        dialled = kinds(story.effects).count(OpenSocket)
        story.pass_deadline()
        assert (story.state, kinds(story.effects).count(OpenSocket)) == ("connecting.dialling", dialled + 1)


@pytest.mark.parametrize("how", WAYS)
def test_the_last_attempt_leaves_nothing_and_says_so(how: str) -> None:
    state, lose = WAYS[how]
    story = came_to(state)
    story.session.login.attempts = MAX_ATTEMPTS - 1
    known = len(story.effects)
    lose(story)
    assert (story.state, story.session.heartbeat.state, story.session.shared.timers) == ("down", "stopped", {})
    assert {AbortSocket, CloseSocket} & set(kinds(story.effects[known:]))
    assert (story.session.login.session_id, story.session.login.told) == (None, [MainSessionLost()])
    assert f"after {MAX_ATTEMPTS} attempts" in str(story.session.login.error)


@pytest.mark.parametrize("answers", [[], [SocketOpened()]], ids=len)
def test_a_session_that_can_no_more_be_resumed_is_forgotten(answers: list[LoginEvent]) -> None:
    story = came_to("ready")
    story.feed(SocketClosed(4000))
    story.pass_deadline()
    story.feed(*answers)
    story.session.login.attempts = MAX_ATTEMPTS - 1
    story.pass_deadline()
    assert (story.state, story.session.login.session_id) == ("down", None)
    assert story.session.login.told == [MainSessionLost()]


@pytest.mark.parametrize("end", [SocketClosed(4004), SocketRefused(CertificateRefused("expired")), LogoutRequested()])
def test_a_login_that_ends_for_good_forgets_its_session_and_stops_its_heart(end: LoginEvent) -> None:
    story = came_to("ready")
    if isinstance(end, SocketRefused):
        story.feed(ReconnectRequested())
    known = len(story.effects)
    story.feed(end)
    assert (story.state, story.session.heartbeat.state, story.session.shared.timers) == ("down", "stopped", {})
    assert story.session.login.session_id is None
    assert story.session.login.told == ([] if isinstance(end, LogoutRequested) else [MainSessionLost()])
    if isinstance(end, SocketClosed):
        assert AbortSocket() in story.effects[known:]


def test_a_resumed_login_beats_from_hello_on() -> None:
    story = came_to("resuming")
    assert story.session.heartbeat.state == "beating.awaiting_ack"


def test_an_outage_is_told_by_its_last_close_code() -> None:
    story = Story()
    story.feed(LoginRequested())
    while story.state != "down":
        story.opened()
        story.feed(SocketClosed(4000))
        if story.state == "backing_off":
            story.pass_deadline()
    assert "4000" in str(story.session.login.error)


def test_a_login_says_where_to_resume_and_makes_all_attempts_good(story: Story) -> None:
    login = story.session.login
    assert login.resume_url == ACCEPTED.resume_url
    story.session.shared.sequence.last = 12
    story.feed(SocketClosed(4009))
    assert (login.resume_url, story.session.shared.sequence.last, login.attempts) == ("", -1, 1)
    story.pass_deadline()
    story.opened()
    story.feed(ACCEPTED)
    assert (story.state, login.attempts) == ("ready", 0)


def test_a_slow_heart_beats_once_a_minute() -> None:
    story = Story()
    story.feed(LoginRequested(), SocketOpened(), HelloReceived(90.0, 10))
    assert story.session.heartbeat.interval_s == 60.0


def test_only_the_present_websocket_is_heard() -> None:
    story = Story()
    shared = story.session.shared
    assert story.feed(LoginRequested())[:1] == [OpenSocket(1)]
    assert story.session.receive(SocketOpened(), story.now, generation=0) == []
    assert shared.timers.keys() == {"login_dial_timeout"}
    assert story.session.receive(SocketOpened(), story.now, generation=1) != []
    story.feed(HelloReceived(41.25, 10), ACCEPTED)
    assert OpenSocket(3) in story.feed(ReconnectRequested())  # the one that is dropped is not heard from then on
    story.feed(LogoutRequested())
    assert shared.socket_generation == 4


def test_a_timer_that_is_over_is_not_cancelled(story: Story) -> None:
    story.feed(SocketClosed(None))
    known = len(story.effects)
    story.pass_deadline()
    assert not any(isinstance(effect, CancelTimer) for effect in story.effects[known:])


def test_a_logout_ends_it_in_every_state() -> None:
    ways: list[tuple[LoginEvent, ...]] = [
        (),
        (SocketOpened(),),
        (SocketOpened(), HelloReceived(41.25, 10)),
        (SocketOpened(), HelloReceived(41.25, 10), ACCEPTED),
        (SocketFailed(ConnectionFailed("refused")),),
    ]
    for way in ways:
        story = Story()
        story.feed(LoginRequested(), *way)
        assert CloseSocket(1000) in story.feed(LogoutRequested())
        assert story.state == "down"
        assert story.session.shared.timers == {}
        assert MainSessionLost() not in story.session.login.told
        story.feed(LogoutRequested())


def test_events_of_an_older_websocket_change_nothing(story: Story) -> None:
    story.feed(SocketClosed(None))
    assert story.session.receive(LoginResumed(), story.now, generation=1) == []
    assert story.session.receive(DeadlinePassed("login_backoff_over", 0.5), story.now) == []
    assert story.state == "backing_off"


def test_the_wait_grows_and_is_bounded() -> None:
    story = Story()
    login = story.session.login
    waits = []
    for login.attempts in range(MAX_ATTEMPTS):
        waits.append(login.backoff())
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_table_and_events_have_the_same_words() -> None:
    table = load_table(MainGatewaySession.machine)
    named = {kind.name for kind in (LoginRequested, LogoutRequested, LoginAccepted, LoginResumed)}
    named |= {SessionInvalidated.name, ReconnectRequested.name, SocketOpened.name, SocketFailed.name}
    named |= {SocketRefused.name, HelloReceived.name, "heart_died", *(entry.event for entry in table.close_codes)}
    assert set(table.events) == named
    assert [name for name, event in table.events.items() if event.otherwise == REFUSE] == ["login_requested"]
