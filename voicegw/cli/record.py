"""`voicegw replay` and `voicegw explain`: what a flight record tells."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from voicegw.cli.console import Commands, Console


def add_replay(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "replay",
        help="run a flight record through today's machines",
        description="Run a flight record through today's machines and show the first difference.",
    )
    command.add_argument("file", type=Path, metavar="FILE")
    return command


def add_explain(commands: Commands) -> argparse.ArgumentParser:
    """Its arguments."""
    command: argparse.ArgumentParser = commands.add_parser(
        "explain", help="tell a flight record in words", description="Tell what happened in a flight record, in words."
    )
    command.add_argument("file", type=Path, metavar="FILE")
    return command


def run_replay(arguments: argparse.Namespace, console: Console) -> int:
    """The first difference, if there is one."""
    from voicegw.flight import read_record, replay

    record = read_record(arguments.file)
    difference = replay(record)
    if difference is None:
        console.say(f"{len(record.entries)} events, no difference")
        console.result({"ok": True, "events": len(record.entries), "difference": None})
        return 0
    inner = getattr(difference.entry.event, "event", difference.entry.event)
    at_s = difference.entry.at - record.entries[0].at
    console.say(f"event {difference.number} of {len(record.entries)}, {at_s:.3f} s after the first, differs: {inner}")
    console.say(f"  recorded: {', '.join(difference.recorded) or 'nothing'}")
    console.say(f"  today:    {', '.join(difference.replayed) or 'nothing'}")
    shown = {
        "number": difference.number,
        "event": type(inner).__name__,
        "at_s": round(at_s, 3),
        "recorded": list(difference.recorded),
        "replayed": list(difference.replayed),
    }
    console.result({"ok": False, "events": len(record.entries), "difference": shown})
    return 1


def run_explain(arguments: argparse.Namespace, console: Console) -> int:
    """A line a step."""
    from voicegw.flight import read_record
    from voicegw.why import explain

    record = read_record(arguments.file)
    lines = list(explain(record))
    console.say(
        f"user {record.user_id} in guild {record.guild_id}, policy '{record.options.policy}': "
        f"{len(record.entries)} events in {record.lasted_s:.1f} s"
    )
    for line in lines:
        console.say(line)
    options = {name: str(value) for name, value in dataclasses.asdict(record.options).items()}
    console.result(
        {
            "ok": True,
            "events": len(record.entries),
            "steps": sum(len(entry.steps) for entry in record.entries),
            "options": options,
        }
    )
    return 0
