"""A call brought to one phase in virtual time, and kept there: the other side's next answer does not come."""

from __future__ import annotations

from typing import Any

from voicegw.errors import ConnectionFailed
from voicegw.events import LeaveRequested, SocketClosed, SocketFailed, SpeechStarted, VoiceServerUpdated
from voicegw.secret import Secret
from voicegw.session import Options
from voicegw.testing.world import World

PHASES = "IPDHRUEBCX"


def in_phase(phase: str, options: Options | None = None, *, speaking: bool = False, **world: Any) -> World:
    """A world whose call is in `phase`; nothing answers what moves it on, until `world.unanswered` is cleared.

    With `speaking` the bot has begun to speak where the call was ready on its way.
    """
    made = World(options, **world)
    if phase == "I":
        return made
    if phase in "PDHB":
        made.unanswered.add({"P": "SendVoiceState", "D": "OpenSocket", "H": "SendIdentify", "B": "OpenSocket"}[phase])
        made.join()
        if phase == "B":
            made.feed(made._stamped(SocketFailed(ConnectionFailed("refused")), numbered=False))
    else:
        made.join()
        if speaking:
            made.feed(SpeechStarted())
            made.settle()
        if phase == "U":
            made.unanswered.add("OpenSocket")
            made.feed(made._stamped(SocketClosed(1006), numbered=False))
        elif phase == "E":
            made.feed(VoiceServerUpdated(Secret("the token of no endpoint"), None))
            made.settle()
        elif phase in "CX":
            if phase == "C":
                made.unanswered |= {"CloseSocket", "SendVoiceState"}
            made.feed(LeaveRequested())
            made.settle()
    assert phase_of(made) == phase, f"wanted {phase}, the call is in {made.states}"
    return made


def phase_of(world: World) -> str:
    """The phase that a call is in: what call and gateway say together."""
    session = world.session
    call = session.call.table.states[session.call.state].phase
    gateway = session.gateway.table.states[session.gateway.state].phase
    if call == "D" or (call == "R" and gateway != "X"):
        return gateway or call
    return call or ""
