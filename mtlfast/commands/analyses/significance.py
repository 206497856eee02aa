"""`mtlfast analyze significance`: is one run better than another, or is it noise?"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlfast.commands.analyses.trained import (
    Trained,
    add_run_arguments,
    open_run,
    say_written,
    write_figure,
)

if TYPE_CHECKING:
    from mtlfast.analysis import Difference

NAME = "significance"
USAGE = "RUN --base RUN [--times N] [--seed N] [--max-batches N] [settings]"
PASSES_ON = False
HELP = "whether a run's AUC and LogLoss differ from another's by more than chance"
DESCRIPTION = """\
Score two trained runs on the same test samples and resample these together (paired
bootstrap): difference of AUC and LogLoss per task, the interval that holds 95 % of the
resampled differences, and a two-sided p-value with the stars of DTRN's Table 4 (* below
0.05, ** below 0.01). It tells the noise of the test part, not that of training with another
seed.

Writes significance.csv and significance.png. Settings such as --data hold for both runs.
"""
EXAMPLES = """\
examples:
  two runs on the same data
    mtlfast analyze significance runs/dtrn-tenrec-001 --base runs/sequence-tenrec-001
"""
COLUMNS = (
    "model",
    "base",
    "task",
    "metric",
    "value",
    "base_value",
    "difference",
    "low",
    "high",
    "p",
    "samples",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run_arguments(parser)
    parser.add_argument(
        "--base", required=True, metavar="RUN", help="the run (or checkpoint) compared with"
    )
    parser.add_argument(
        "--times", type=int, default=1000, metavar="N", help="resamplings (default: 1000)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the resamplings (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Score, resample, print, write."""
    import numpy as np

    from mtlfast.analysis import paired_bootstrap
    from mtlfast.analysis.figures.significance import draw_significance
    from mtlfast.training.files import write_csv
    from mtlfast.training.progress import Progress

    for name, least in (("times", 1), ("seed", 0)):
        if getattr(options, name) < least:
            found = getattr(options, name)
            raise ValueError(f"--{name}: expected at least {least}, found {found}")
    trained = open_run(options)
    other = copy.copy(options)
    other.run_dir = options.base
    base = open_run(other)
    if base.spec.tasks != trained.spec.tasks:
        raise ValueError(
            f"--base: expected the tasks {', '.join(trained.spec.tasks)}, found "
            f"{', '.join(base.spec.tasks)} in {options.base}"
        )
    names = _names(options.run_dir, options.base)
    logits, labels = _score(trained, names[0])
    base_logits, base_labels = _score(base, names[1])
    if not np.array_equal(labels, base_labels):
        raise ValueError(
            f"--base: expected a run on the same test samples, found {options.base} on others; "
            "give both the same data with --data and --data-options"
        )
    progress = Progress(options.times, label="resampling", unit=" times", quiet=options.quiet)
    try:
        found = paired_bootstrap(
            logits,
            base_logits,
            labels,
            trained.spec.tasks,
            times=options.times,
            seed=options.seed,
            on_resample=progress.advance,
        )
    finally:
        progress.close()
    paths = [trained.output / "significance.csv", trained.output / "significance.png"]
    write_csv(paths[0], COLUMNS, [_row(d, names, len(labels)) for d in found])
    write_figure(paths[1], draw_significance({names[0]: found}, names[1]))
    print(_format(found, names))
    say_written(paths)
    return 0


def _score(trained: Trained, name: str) -> tuple[Any, Any]:
    """Logits float64 ``[N, T]`` and labels bool ``[N, T]`` of the test part."""
    import numpy as np
    import torch

    progress = trained.progress(trained.batches.samples, f"scoring {name}")
    logits, labels = [], []
    try:
        with torch.no_grad():
            for batch in trained.batches:
                with trained.autocast():
                    found = trained.model(*batch.to(trained.device).inputs())
                logits.append(found.double().cpu().numpy())
                labels.append(batch.labels.numpy() > 0.5)
                progress.advance(len(batch))
    finally:
        progress.close()
    return np.concatenate(logits), np.concatenate(labels)


def _names(model: str, base: str) -> tuple[str, str]:
    """Short names of two runs, whole paths where the short ones are the same."""
    short = Path(model).name, Path(base).name
    return short if short[0] != short[1] else (model, base)


def _row(d: Difference, names: tuple[str, str], samples: int) -> list[Any]:
    values: list[float | None] = [d.value, d.base, d.difference, d.low, d.high, d.p]
    values = [None if value != value else value for value in values]  # NaN: an empty cell
    return [*names, d.task, d.metric, *values, samples]


def _format(found: list[Difference], names: tuple[str, str]) -> str:
    from mtlfast.analysis import stars

    width = max(4, *(len(d.task) for d in found))
    lines = [
        f"{names[0]} against {names[1]}",
        f"{'task':<{width}}  {'metric':<7}  {'value':>9}  {'base':>9}  {'difference':>10}  "
        f"{'95 % of resamplings':>22}  {'p':>7}",
    ]
    for d in found:
        interval = f"{d.low:+.6f} to {d.high:+.6f}"
        lines.append(
            f"{d.task:<{width}}  {d.metric:<7}  {d.value:>9.6f}  {d.base:>9.6f}  "
            f"{d.difference:>+10.6f}  {interval:>22}  {d.p:>7.4f} {stars(d.p)}".rstrip()
        )
    return "\n".join(lines)
