"""`mtlfast analyze`: what a trained model has learned, as tables and plots."""

from __future__ import annotations

import argparse

from mtlfast.commands.analyses import (
    divergence,
    gates,
    importance,
    occurrences,
    relaimp,
    significance,
    statistics,
    tsne,
)
from mtlfast.commands.subcommands import add_commands

NAME = "analyze"
USAGE = "ANALYSIS ..."
PASSES_ON = False
HELP = "feature importance, gates, t-SNE and comparisons of models; statistics of data"
DESCRIPTION = """\
Look into trained models. Every analysis prints a table and writes it as CSV beside a plot
(PNG), by default into the folder `analysis` of the run. A run is what `mtlfast train`
writes; its latest checkpoint and its test data are loaded as `mtlfast evaluate` does.
"""
EXAMPLES = """\
examples:
  train something first
    mtlfast train --model dtn --data census:path/to/folder --run-dir runs/dtn

  which features each task needs
    mtlfast analyze importance runs/dtn --repeats 5

  which interactions each task uses
    mtlfast analyze gates runs/dtn

  how much better it is than another model
    mtlfast analyze relaimp --base runs/shared --model runs/dtn

  whether that is more than chance
    mtlfast analyze significance runs/dtn --base runs/shared

  how much of what users want they have met before (no model needed)
    mtlfast analyze occurrences --data synthetic:tenrec --max-batches 50

  users, items, positives and lengths of a data set, beside the papers' numbers
    mtlfast analyze statistics --data tenrec:path/to/folder

`mtlfast analyze ANALYSIS --help` has the details of each.
"""
ANALYSES = (importance, divergence, gates, tsne, relaimp, significance, occurrences, statistics)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the analyses, each with options of its own."""
    add_commands(parser, ANALYSES, "analyses", "ANALYSIS")


def run(options: argparse.Namespace) -> int:
    """Not reached: every analysis brings its own."""
    raise RuntimeError("an analysis is required")
