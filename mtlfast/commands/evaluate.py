"""`mtlfast evaluate`: AUC and LogLoss of a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mtlfast.commands.settings import add_settings, given_settings
from mtlfast.training.config import TrainConfig

NAME = "evaluate"
USAGE = "--checkpoint RUN [--output FILE] [settings]"
PASSES_ON = False
HELP = "AUC and LogLoss per task of a checkpoint"
DESCRIPTION = """\
Score a checkpoint on the test part of a data source and write the table as JSON and
CSV. Settings that are not given are those the model was trained with.
"""
EXAMPLES = """\
examples:
  the latest checkpoint of a run, on the data it was trained with
    mtlfast evaluate --checkpoint runs/dtrn-tenrec-001

  one checkpoint with the reference implementation, to compare with the fused one
    mtlfast evaluate --checkpoint runs/dtrn-tenrec-001/checkpoints/step-000000500.pt \\
        --backend reference --output reference.json
"""
_SETTINGS = (
    "data",
    "data_options",
    "on_error",
    "backend",
    "batch_size",
    "precision",
    "accelerator",
    "threads",
    "prefetch",
    "test_batches",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--checkpoint", metavar="RUN", required=True, help="run folder or checkpoint file"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="JSON file to write, its table beside it as .csv "
        "(default: evaluation-<data>-<step> in the run folder)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings(parser, TrainConfig, _SETTINGS)


def run(options: argparse.Namespace) -> int:
    """Score, print, write."""
    from mtlfast.training.assemble import evaluate_checkpoint
    from mtlfast.training.evaluation import METRIC_COLUMNS, format_metrics, metrics_rows
    from mtlfast.training.files import write_csv, write_json

    given = given_settings(options, TrainConfig)
    if options.output is not None:
        # Before minutes of scoring.
        try:
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--output: expected a file in a folder that can be made, found "
                f"{options.output}: {error.strerror}"
            ) from None
    report = evaluate_checkpoint(options.checkpoint, given, quiet=options.quiet)
    output = Path(options.output) if options.output else _default_output(report)
    write_json(output, report)
    write_csv(output.with_suffix(".csv"), METRIC_COLUMNS, metrics_rows(report["metrics"]))
    print(format_metrics(report["metrics"]))
    auc = report["mean_auc"]
    print(f"mean AUC {'n/a' if auc is None else format(auc, '.4f')}")
    print(f"written to {output} and {output.with_suffix('.csv')}")
    return 0


def _default_output(report: dict[str, Any]) -> Path:
    from mtlfast.training.runs import checkpoint_home, data_label

    checkpoint = Path(report["checkpoint"])
    name = f"evaluation-{data_label(report['data'])}-{checkpoint.stem}.json"
    return checkpoint_home(checkpoint) / name
