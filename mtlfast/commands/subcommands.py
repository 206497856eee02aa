"""Adds command modules to a parser; see the package's docstring for what a module has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

__all__ = ["add_commands"]


def add_commands(
    parser: argparse.ArgumentParser, modules: Iterable[Any], title: str, metavar: str
) -> None:
    """One subcommand of ``parser`` per module."""
    commands = parser.add_subparsers(title=title, metavar=metavar, required=True)
    for module in modules:
        command = commands.add_parser(
            module.NAME,
            prog=f"{parser.prog} {module.NAME}",
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            usage=f"{parser.prog} {module.NAME} {module.USAGE}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=not module.PASSES_ON,
        )
        command.set_defaults(run=module.run, parser=command, passes_on=module.PASSES_ON)
        module.add_arguments(command)
