"""The museum: defects that other voice libraries had, put back one at a time as a changed row. Each must be caught.

A piece names what was wrong and where it was seen. It is caught by the checks of the tables, or by its story: what an
observer must see holds with the tables as they are, and does not with the piece put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from voicegw.effects import OpenSocket, SendDiscovery, SendHeartbeat, SendKeepalive, SendResume, SendVoiceState
from voicegw.errors import E2EERequired, Kicked
from voicegw.events import (
    JoinRequested,
    LeaveRequested,
    SocketClosed,
    SpeechStarted,
    VoiceServerUpdated,
    VoiceStateUpdated,
)
from voicegw.secret import Secret
from voicegw.session import SESSIONS
from voicegw.tables.check import check_table
from voicegw.tables.load import flattened, load_table
from voicegw.tables.machine import Engine
from voicegw.tables.model import CloseCode, Row, Table
from voicegw.testing.invariants import Violation
from voicegw.testing.world import CHANNEL, ENDPOINT, World
from voicegw.wire.payloads import TransitionPrepared

Change = Callable[[Table], Table]


@dataclass(frozen=True)
class Piece:
    """One defect: where it was seen, the table it is put back into, and the story that tells it from the right way."""

    what: str
    machine: str
    change: Change
    story: Callable[[World], None]


# -- changes


def rows(which: Callable[[Row], bool], change: Callable[[Row], Row | None]) -> Change:
    def changed(table: Table) -> Table:
        assert any(which(row) for row in table.rows), "there is no such row any more"
        kept = [change(row) if which(row) else row for row in table.rows]
        return flattened(replace(table, rows=tuple(row for row in kept if row is not None)))

    return changed


def event(*names: str) -> Callable[[Row], bool]:
    return lambda row: row.event in names


def guarded(name: str, guard: str) -> Callable[[Row], bool]:
    return lambda row: row.event == name and row.guard == guard


def dropped(row: Row) -> None:
    return None


def without(*effects: str) -> Callable[[Row], Row]:
    return lambda row: replace(row, effects=tuple(effect for effect in row.effects if effect not in effects))


def close_means(code: int, word: str) -> Change:
    def changed(table: Table) -> Table:
        entry = CloseCode((code,), word, "put back", "put back", "museum")
        others = (replace(one, codes=tuple(item for item in one.codes if item != code)) for one in table.close_codes)
        return replace(table, close_codes=(entry, *(one for one in others if one.codes)))

    return changed


def deadline(name: str, seconds: float) -> Change:
    def changed(table: Table) -> Table:
        return replace(table, deadlines={**table.deadlines, name: replace(table.deadlines[name], seconds=seconds)})

    return changed


# -- stories


def closed_with(world: World, code: int | None) -> None:
    world.join()
    world.feed(world._stamped(SocketClosed(code), numbered=False))


def never_resumes(code: int) -> Callable[[World], None]:
    def story(world: World) -> None:
        closed_with(world, code)
        world.advance(60)
        assert world.sent(SendResume) == []
        assert world.states["call"] == "connected"

    return story


def resumes_once(code: int | None) -> Callable[[World], None]:
    def story(world: World) -> None:
        closed_with(world, code)
        world.advance(5)
        assert len(world.sent(SendResume)) == 1
        assert world.states["gateway"] == "ready"
        assert len(world.sent(SendVoiceState)) == 1

    return story


def stays_away_after_a_kick(code: int) -> Callable[[World], None]:
    def story(world: World) -> None:
        closed_with(world, code)
        world.advance(120)
        assert world.states["call"] == "closed"
        assert len(world.sent(OpenSocket)) == 1
        assert [effect for effect in world.sent(SendVoiceState) if effect != SendVoiceState(None)] == [
            SendVoiceState(CHANNEL)
        ]
        assert isinstance(world.session.call.error, Kicked)

    return story


def follows_a_move(world: World) -> None:
    closed_with(world, 4014)
    world.advance(1)
    world.feed(VoiceStateUpdated(CHANNEL + 1, Secret("moved")))
    world.feed(VoiceServerUpdated(Secret("the new server's"), ENDPOINT))
    world.advance(5)
    assert world.states["call"] == "connected"
    assert world.session.shared.channel_id == CHANNEL + 1


def ends_at_once(world: World) -> None:
    closed_with(world, 4017)
    world.advance(10)
    assert world.states["call"] == "closed"
    assert isinstance(world.session.call.error, E2EERequired)


def does_not_hurry(world: World) -> None:
    closed_with(world, 4021)
    world.advance(30)
    assert len(world.sent(OpenSocket)) == 1


def one_heart(world: World) -> None:
    world.join()
    world.unanswered.add("OpenSocket")
    world.feed(world._stamped(SocketClosed(1001), numbered=False))
    before = len(world.sent(SendHeartbeat))
    world.advance(9)
    assert len(world.sent(SendHeartbeat)) == before


def notices_a_dead_link(world: World) -> None:
    world.join()
    world.unanswered.add("SendHeartbeat")
    world.advance(30)
    assert world.sent(SendResume) != []


def asks_again(world: World) -> None:
    world.unanswered.add("SendDiscovery")
    world.join()
    world.advance(4.9)
    assert len(world.sent(SendDiscovery)) >= 5


def lives_in_silence(world: World) -> None:
    world.join()
    world.unanswered.add("SendKeepalive")
    world.advance(86_400)
    assert len(world.sent(OpenSocket)) == 1
    assert world.states["gateway"] == "ready"


def keeps_the_path_alive(world: World) -> None:
    world.join()
    world.advance(3600)
    assert abs(len(world.sent(SendKeepalive)) - 720) <= 1


def takes_no_notice_of_a_repetition(world: World) -> None:
    world.join()
    (server,) = [event for _, event in world.heard if isinstance(event, VoiceServerUpdated)]
    for _ in range(10):
        world.feed(server)
        world.advance(1)
    assert len(world.sent(OpenSocket)) == 1


def takes_no_notice_of_flags(world: World) -> None:
    world.join()
    (state,) = [event for _, event in world.heard if isinstance(event, VoiceStateUpdated)]
    world.feed(state)
    world.advance(10)
    assert len(world.sent(OpenSocket)) == 1
    assert world.states["call"] == "connected"


def leaves_no_ghost(world: World) -> None:
    world.join()
    world.feed(LeaveRequested())
    world.advance(5)
    assert world.sent(SendVoiceState)[-1] == SendVoiceState(None)


def gets_past_a_ghost(world: World) -> None:
    world.unanswered.add("SendVoiceState")
    world.join()
    world.advance(3.5)
    world.unanswered.clear()
    world.advance(5)
    assert world.states["call"] == "connected"


def is_announced_before_it_speaks(world: World) -> None:
    world.join()
    world.feed(SpeechStarted())
    world.settle()
    assert world.states["speech"] == "speaking"


def is_announced_after_a_resume(world: World) -> None:
    is_announced_before_it_speaks(world)
    world.feed(world._stamped(SocketClosed(None), numbered=False))
    world.advance(5)
    assert world.states["gateway"] == "ready"


def never_speaks_in_the_clear(world: World) -> None:
    is_announced_before_it_speaks(world)
    world.server(TransitionPrepared(0, 0))
    world.advance(5)
    assert world.states["speech"] == "held.not_ready"


def forgets_the_group(world: World) -> None:
    world.join()
    world.feed(VoiceServerUpdated(Secret("null"), None))
    world.settle()
    assert world.states["dave"] == "off"


def ends(world: World) -> None:
    world.unanswered |= {"CloseSocket", "SendVoiceState"}
    world.feed(JoinRequested(CHANNEL))
    world.feed(LeaveRequested())
    world.until(lambda: world.states["call"] == "closed", 10)


def nothing(world: World) -> None:
    """The checks of the tables catch it."""


MUSEUM = (
    Piece(
        "an invalid session is resumed for ever (eris#255, Lavalink#226)",
        "gateway",
        close_means(4006, "closed_resumable"),
        never_resumes(4006),
    ),
    Piece(
        "a timed-out session is resumed (koe@7436cf8)",
        "gateway",
        close_means(4009, "closed_resumable"),
        never_resumes(4009),
    ),
    Piece(
        "a refused login is resumed (koe@7436cf8)",
        "gateway",
        close_means(4003, "closed_resumable"),
        never_resumes(4003),
    ),
    Piece(
        "a kicked bot comes back (disgord#258, JDA#1000)",
        "gateway",
        close_means(4014, "closed_new_pair"),
        stays_away_after_a_kick(4014),
    ),
    Piece(
        "a bot that was kicked while alone comes back (JDA#2853)",
        "gateway",
        close_means(4022, "closed_new_pair"),
        stays_away_after_a_kick(4022),
    ),
    Piece(
        "a moved bot is dead (discord.py#5904, Discord4J#824)",
        "gateway",
        close_means(4014, "closed_defect"),
        follows_a_move,
    ),
    Piece(
        "E2EE is required and the bot tries for ever (kimaki#68)",
        "gateway",
        close_means(4017, "closed_new_pair"),
        ends_at_once,
    ),
    Piece("a rate-limited bot dials on (soundbot#8)", "gateway", close_means(4021, "closed_new_pair"), does_not_hurry),
    Piece(
        "a normal close from the server is the end (discord.py@1add8a0)",
        "gateway",
        close_means(1000, "closed_defect"),
        resumes_once(1000),
    ),
    Piece(
        "a crashed voice server is left at once (Wavelink#60)",
        "gateway",
        close_means(4015, "closed_new_pair"),
        resumes_once(4015),
    ),
    Piece(
        "an abnormal end begins a session anew (eris#1448)",
        "gateway",
        close_means(1006, "closed_new_pair"),
        resumes_once(1006),
    ),
    Piece(
        "two hearts after a server restart (samp-discord-connector#44)",
        "heartbeat",
        rows(event("gateway_interrupted"), dropped),
        one_heart,
    ),
    Piece(
        "unanswered beats are not noticed",
        "heartbeat",
        rows(
            lambda row: "announce_death" in row.effects,
            lambda row: replace(row, to="beating.resting", effects=("send_beat",)),
        ),
        notices_a_dead_link,
    ),
    Piece(
        "the discovery request is sent once (songbird@a5d9b58, Discord4J#752)",
        "transport",
        rows(lambda row: row.event.startswith("resend_after"), without("send_discovery")),
        asks_again,
    ),
    Piece(
        "a server that answers no keepalive is left (discord.js#9185)",
        "transport",
        rows(
            lambda row: row.to == "silent",
            lambda row: replace(row, to="closed", effects=("close_udp", "announce_failed")),
        ),
        lives_in_silence,
    ),
    Piece(
        "milliseconds are taken as seconds (voice-recv@ac04ea7)",
        "transport",
        deadline("keepalive_due", 5000.0),
        keeps_the_path_alive,
    ),
    Piece(
        "a null and a new endpoint alternate for ever",
        "call",
        rows(guarded("voice_server_updated", "null_endpoint"), without("spend_attempt")),
        nothing,
    ),
    Piece(
        "the same server again is dialled again",
        "call",
        rows(guarded("voice_server_updated", "same_server"), dropped),
        takes_no_notice_of_a_repetition,
    ),
    Piece(
        "mute and deafen are a move (discord.py#9364)",
        "call",
        rows(
            lambda row: (
                row.event == "voice_state_updated" and row.guard == "changes_session" and "connected" in row.sources
            ),
            lambda row: replace(row, guard=None),
        ),
        takes_no_notice_of_flags,
    ),
    Piece(
        "a bot that left stays in the channel",
        "call",
        rows(event("leave_requested"), without("send_leave")),
        leaves_no_ghost,
    ),
    Piece(
        "a ghost of an earlier process blocks the join",
        "call",
        rows(event("join_unanswered"), lambda row: replace(row, to="leaving.closing", effects=("close_gateway",))),
        gets_past_a_ghost,
    ),
    Piece("close waits for ever (discord.py#2330, JDA#456)", "gateway", rows(event("closing_timeout"), dropped), ends),
    Piece(
        "a resume is tried again and again (koe@7436cf8)",
        "gateway",
        rows(
            event("resumed_timeout"),
            lambda row: replace(row, to="resuming.dialling", effects=("abort_socket", "open_socket")),
        ),
        nothing,
    ),
    Piece(
        "the first packets come before the announcement",
        "speech",
        rows(lambda row: row.event == "speech_started" and row.guard == "may_speak", without("announce_speaking")),
        is_announced_before_it_speaks,
    ),
    Piece(
        "nobody is told who speaks after a resume",
        "speech",
        rows(event("gateway_resumed"), without("announce_speaking")),
        is_announced_after_a_resume,
    ),
    Piece(
        "a downgrade is followed whatever the policy",
        "dave",
        rows(guarded("transition_prepared", "downgrade_refused"), dropped),
        never_speaks_in_the_clear,
    ),
    Piece(
        "the group outlives its voice session",
        "dave",
        rows(event("gateway_closed"), without("drop_group")),
        forgets_the_group,
    ),
)


@pytest.fixture
def put_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Piece], Table]:
    def change(piece: Piece) -> Table:
        session = SESSIONS[piece.machine]
        broken = piece.change(load_table(piece.machine))
        monkeypatch.setattr(session, "table", broken)
        monkeypatch.setattr(session, "engine", Engine(broken))
        return broken

    return change


@pytest.mark.parametrize("piece", MUSEUM, ids=[piece.what for piece in MUSEUM])
def test_a_defect_that_is_put_back_is_caught(piece: Piece, put_back: Callable[[Piece], Table]) -> None:
    piece.story(World())  # as it is
    broken = put_back(piece)
    if check_table(broken):
        return
    with pytest.raises((AssertionError, Violation)):
        piece.story(World())


def test_the_museum_is_large_enough() -> None:
    assert len(MUSEUM) >= 25
    assert {piece.machine for piece in MUSEUM} == set(SESSIONS)
