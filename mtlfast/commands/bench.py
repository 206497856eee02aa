"""`mtlfast bench`: hands over to the benchmarks of the source checkout."""

from __future__ import annotations

import argparse

NAME = "bench"
USAGE = "[options of the benchmarks]"
PASSES_ON = True
HELP = "time the ops and the training steps of DTRN and DTN: table, JSON, CSV and plots"
DESCRIPTION = """\
Time the fused ops and the training steps of DTRN and DTN against every baseline,
interleaved, each checked against float64 first. The code lies in benchmarks/ of a source
checkout and has options of its own.
"""
EXAMPLES = """\
examples:
  mtlfast bench
  mtlfast bench --quick
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the benchmarks have options of their own, `--help` among them."""


def run(options: argparse.Namespace) -> int:
    """Run the benchmarks with all arguments of the command."""
    from mtlfast.commands.checkout import import_benchmarks

    return int(import_benchmarks("__main__").main(options.rest) or 0)
