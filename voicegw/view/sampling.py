"""What is shown of a call: a line of the list, and the whole of one. Ids are text, too long for a browser's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from voicegw.client import VoiceClient
from voicegw.kokoro import Kokoro
from voicegw.view.machines import close_meaning
from voicegw.why import PULSE

WAY_SHOWN: Final = 200
PULSE_SHOWN: Final = 40
CLOCK_JUMP_MS: Final = 1000


@dataclass(slots=True)
class Clock:
    """Turns a call's monotonic seconds into Unix milliseconds; steps keep their time unless the clock is set."""

    offset_ms: float = 0.0

    def look(self, client: VoiceClient) -> float:
        """The call's present monotonic second."""
        loop = client.gateway.loop
        now = loop.time() if loop is not None else client.session.shared.now
        offset_ms = client.system.wall_ms() - now * 1000
        if abs(offset_ms - self.offset_ms) > CLOCK_JUMP_MS:
            self.offset_ms = offset_ms
        return now

    def unix_ms(self, at: float) -> int:
        """When it was."""
        return round(at * 1000 + self.offset_ms)


def summary(number: int, client: VoiceClient, clock: Clock) -> dict[str, Any]:
    """One line of the list. Times in Unix ms, durations in ms, losses from 0 to 1; None where nothing is known."""
    clock.look(client)
    shared, stats = client.session.shared, client.stats
    totals, users = stats.totals, tuple(stats.users.values())
    report = client.receiver.reports.get(shared.ssrc)
    expected = totals["received"] + totals["lost"]
    latency_s = client.latency
    return {
        "id": number,
        "guild": str(shared.guild_id),
        "channel": str(client.channel_id or ""),
        "user": str(shared.user_id),
        "states": client.states,
        "latency": None if latency_s == Kokoro.DEFAULT_LATENCY else round(latency_s * 1000, 1),
        "lost_in": round(totals["lost"] / expected, 4) if expected else None,
        "lost_out": None if report is None else round(report.fraction_lost, 4),
        "jitter": round(max(user.jitter_s for user in users) * 1000, 1) if users else None,
        "sent": totals["sent"],
        "received": totals["received"],
        "epoch": client.epoch,
        "others": len(client.users),
        "talking": len(client.speaking),
        "reconnects": client.tally.reconnects,
        "closed": _code(client.session.gateway.last_close_code) if client.tally.closes else None,
        "error": None if client.error is None else str(client.error),
    }


def detail(client: VoiceClient, clock: Clock) -> dict[str, Any]:
    """What the page shows of the one call that is looked at, besides its line."""
    now = clock.look(client)
    session, shared = client.session, client.session.shared
    return {
        "why": str(client.why()),
        "policy": str(shared.options.policy),
        "mode": session.gateway.mode,
        "endpoint": shared.credentials.endpoint if shared.credentials is not None else "",
        "dave": session.dave.version,
        "code": client.privacy_code,
        "deadlines": {
            machine.machine: {"name": name, "at": clock.unix_ms(shared.timers[name])}
            for machine in session.machines
            if (name := machine.table.states[machine.state].deadline) is not None and name in shared.timers
        },
        "since": _since(client, clock),
        "now": clock.unix_ms(now),
        "totals": client.stats.totals,
        "closes": [
            {"code": _code(code), "count": count, "meaning": close_meaning(code)}
            for code, count in client.tally.closes.items()
        ],
        "transitions": sum(client.tally.transitions.values()),
        "way": _way(client, clock),
        "users": [_user(client, user_id) for user_id in sorted(client.users | client.stats.users.keys())],
        "recorded": client.flight_recorder is not None,
    }


def _way(client: VoiceClient, clock: Clock) -> list[dict[str, Any]]:
    """The last steps, the newest first; of heartbeats and keepalives, which are many, fewer."""
    left = {True: PULSE_SHOWN, False: WAY_SHOWN}
    way = []
    for step in reversed(client.history):
        pulse = step.event in PULSE
        if left[pulse]:
            left[pulse] -= 1
            way.append(
                {
                    "at": clock.unix_ms(step.at),
                    "machine": step.machine,
                    "before": step.before,
                    "event": step.event,
                    "after": step.after,
                    "rows": (step.row,),
                }
            )
    return way


def _since(client: VoiceClient, clock: Clock) -> dict[str, int]:
    """Since when each machine has been in its state; a machine that never moved is left out."""
    since: dict[str, int] = {}
    for step in reversed(client.history):
        if step.before != step.after and step.machine not in since:
            since[step.machine] = clock.unix_ms(step.at)
            if len(since) == len(client.states):
                break
    return since


def _user(client: VoiceClient, user_id: int) -> dict[str, Any]:
    stats = client.stats.users.get(user_id)
    heard = {} if stats is None else {name: getattr(stats, name) for name in ("packets", "lost", "recovered", "late")}
    delays = (stats.jitter_s, stats.delay_s) if stats is not None else (None, None)
    return {
        "id": str(user_id),
        "here": user_id in client.users,
        "speaking": user_id in client.speaking,
        "verified": str(client.verification(user_id)),
        "broken": 0 if stats is None else stats.errors,
        "jitter": None if delays[0] is None else round(delays[0] * 1000, 1),
        "delay": None if delays[1] is None else round(delays[1] * 1000, 1),
        **heard,
    }


def _code(code: int | None) -> str:
    return "none" if code is None else str(code)
