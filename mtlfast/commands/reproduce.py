"""`mtlfast reproduce`: train what a paper's table or figure compares, print it beside the paper."""

from __future__ import annotations

import argparse

from mtlfast.commands.reproductions import dtn_logs, dtn_table3, dtrn
from mtlfast.commands.subcommands import add_commands

NAME = "reproduce"
USAGE = "TABLE ..."
PASSES_ON = False
HELP = "train the models of a paper's table or figure and print it beside the paper's numbers"
DESCRIPTION = """\
Train everything that a table or figure compares, several seeds each if asked for, and print
means and standard deviations beside what was published. What the output folder already
holds is not trained again: a command that was stopped goes on where it was.
"""
EXAMPLES = """\
examples:
  the Census-Income columns of DTN's Table 3
    mtlfast reproduce dtn-table3 --data census:path/to/folder

  what each part of DTRN adds, on generated data
    mtlfast reproduce dtrn-table5 --data synthetic:ecommerce --max-steps 500

`mtlfast reproduce TABLE --help` has the details of each.
"""
TABLES = (dtn_table3, *dtn_logs.COMMANDS, *dtrn.COMMANDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tables, each with options of its own."""
    add_commands(parser, TABLES, "tables and figures", "TABLE")


def run(options: argparse.Namespace) -> int:
    """Not reached: every table brings its own."""
    raise RuntimeError("a table is required")
