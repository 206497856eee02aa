"""`mtlfast analyze gates`: which interactions and experts each task uses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mtlfast.commands.analyses.trained import (
    add_run_arguments,
    open_run,
    say_written,
    write_figure,
)

if TYPE_CHECKING:
    from mtlfast.analysis import GateReport

NAME = "gates"
USAGE = "RUN [--max-batches N] [settings]"
PASSES_ON = False
HELP = "mean gate weights: which interactions or experts each task uses"
DESCRIPTION = """\
Mean and standard deviation over the test part of every gate weight of every task (DTN,
Figure 4). DTN has two gates per task, over its own modules and over those of the other
groups; TFI one over own and shared modules; MMoE and PLE heads one over experts.

Writes gates.csv and gates.png. What DTN uses least `mtlfast.models.trim` removes.
"""
EXAMPLES = """\
examples:
  the whole test part
    mtlfast analyze gates runs/dtn-census-001

  ten batches
    mtlfast analyze gates runs/dtrn-tenrec-001 --max-batches 10
"""
COLUMNS = ("task", "gate", "group", "method", "number", "mean", "sd", "samples")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print, write."""
    from mtlfast.analysis import gate_report
    from mtlfast.analysis.figures.gates import draw_gates
    from mtlfast.training.files import write_csv

    trained = open_run(options)
    progress = trained.progress(trained.batches.samples, "gates")
    try:
        found = gate_report(
            trained.model,
            trained.batches,
            trained.spec,
            device=trained.device,
            autocast=trained.autocast,
            on_samples=progress.advance,
        )
    finally:
        progress.close()
    paths = [trained.output / "gates.csv", trained.output / "gates.png"]
    rows = [[*w.candidate, w.mean, w.sd, found.samples] for w in found.weights]
    write_csv(paths[0], COLUMNS, rows)
    write_figure(paths[1], draw_gates(found, title=trained.title))
    print(_format(found))
    say_written(paths)
    return 0


def _format(found: GateReport) -> str:
    names = [
        f"{w.candidate.group} {w.candidate.method} {w.candidate.number}" for w in found.weights
    ]
    width = max(6, *map(len, names))
    tasks = max(4, *map(len, found.tasks))
    lines = [f"{'task':<{tasks}}  {'gate':<8} {'module':<{width}}  {'mean':>6}  {'sd':>6}"]
    for weight, name in zip(found.weights, names, strict=True):
        candidate = weight.candidate
        lines.append(
            f"{candidate.task:<{tasks}}  {candidate.gate:<8} {name:<{width}}  "
            f"{weight.mean:6.3f}  {weight.sd:6.3f}"
        )
    return "\n".join(lines)
