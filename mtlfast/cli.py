"""The command `mtlfast`: parses the command line and hands over to one file per command."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from mtlfast._version import __version__
from mtlfast.commands import (
    analyze,
    bench,
    demo,
    env,
    evaluate,
    models,
    reproduce,
    train,
    tune,
)
from mtlfast.commands.subcommands import add_commands

__all__ = ["main"]

COMMANDS = (train, evaluate, analyze, demo, bench, tune, reproduce, models, env)

_EPILOG = """\
first steps:
  mtlfast demo                                  train, check and time a small model
  mtlfast train --data synthetic:tenrec --max-steps 100
  mtlfast evaluate --checkpoint runs/dtrn-tenrec-001
  mtlfast train --help                          every setting, with examples

MTLFAST_TRACEBACK=1 shows where an error came from.
"""


class _Parser(argparse.ArgumentParser):
    """Unknown options name the nearest one that exists."""

    def parse_all(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        options, rest = self.parse_known_args(arguments)
        if rest and not options.passes_on:
            options.parser.error(_unknown(rest[0], options.parser))
        options.rest = rest
        return options

    def error(self, message: str) -> NoReturn:
        wrong_choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong_choice:
            choices = re.findall(r"[\w-]+", wrong_choice[2])
            message += _nearest(wrong_choice[1], choices)
        self.exit(2, f"{self.prog}: error: {message}\nSee `{self.prog} --help`.\n")


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    name = argument.split("=", 1)[0]
    known = [option for action in parser._actions for option in action.option_strings]
    return f"unknown argument {name}{_nearest(name, known)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {found[0]}?" if found else ""


def build_parser() -> _Parser:
    """The parser of all commands."""
    parser = _Parser(
        prog="mtlfast",
        description="Fused kernels and models for multi-task recommendation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mtlfast {__version__}")
    add_commands(parser, COMMANDS, "commands", "COMMAND")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 well, 2 bad input, 130 stopped by the user)."""
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_all(arguments)
    program = options.parser.prog
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print(f"\n{program}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if os.environ.get("MTLFAST_TRACEBACK") or (error.name or "").startswith("mtlfast"):
            raise
        print(
            f"{program}: error: this command needs the package {error.name!r}; "
            "install what is missing with: pip install 'mtlfast[train,bench,analyze]'",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        if os.environ.get("MTLFAST_TRACEBACK"):
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
