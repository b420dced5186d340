"""The command line. Each command is a function for its arguments and one that runs it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from voicegw.cli import bench, bot, check, demo, diagram, doctor, fleet, join, record, serve, simulate, watch
from voicegw.cli.console import Console
from voicegw.errors import VoiceError

FAILED, BAD_ARGUMENTS, INTERRUPTED = 1, 2, 130


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(BAD_ARGUMENTS, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = OneLineParser(prog="voicegw", description="The voice layer of Discord: call, record, draw and check.")
    parser.add_argument("--version", action="store_true", help="say which version this is")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=OneLineParser)
    for add, run in (
        (demo.add, demo.run),
        (join.add, join.run),
        (bot.add_play, bot.run_play),
        (bot.add_record, bot.run_record),
        (serve.add, serve.run),
        (watch.add, watch.run),
        (diagram.add, diagram.run),
        (check.add, check.run),
        (simulate.add, simulate.run),
        (record.add_replay, record.run_replay),
        (record.add_explain, record.run_explain),
        (fleet.add, fleet.run),
        (doctor.add, doctor.run),
        (bench.add, bench.run),
    ):
        command = add(commands)
        command.add_argument("--json", action="store_true", help="end with one line of JSON; text goes to stderr")
        command.set_defaults(run=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 only where what was asked has happened."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        print(f"voicegw {importlib.metadata.version('voicegw')}")
        return 0
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    console = Console(arguments.json)
    try:
        code: int = arguments.run(arguments, console)
    except VoiceError as error:
        return _failed(str(error), console)
    except BrokenPipeError:  # whoever reads us, like `head`, has read enough
        _speak_to_nobody()
        return FAILED
    except OSError as error:
        return _failed(f"{error.filename or 'the system'}: {error.strerror or error}", console)
    except KeyboardInterrupt:
        console.result({"ok": False, "error": "interrupted"})
        return INTERRUPTED
    return code


def _failed(what: str, console: Console) -> int:
    print(f"voicegw: {what}", file=sys.stderr)
    try:
        console.result({"ok": False, "error": what})
    except OSError:  # it is stdout itself that failed
        _speak_to_nobody()
    return FAILED


def _speak_to_nobody() -> None:
    """What is left for stdout is dropped, so that the interpreter does not fail at its end to write it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
