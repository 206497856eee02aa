"""`mtlfast train`: train a model, or go on with a run."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlfast.commands.settings import add_settings, given_settings, merge
from mtlfast.training.config import TrainConfig

if TYPE_CHECKING:
    from mtlfast.training.loop import Trainer

NAME = "train"
USAGE = "[--config FILE] [--resume RUN] [--run-dir DIR] [settings]"
PASSES_ON = False
HELP = "train a model, or resume a run"
DESCRIPTION = """\
Train a model and write a run folder: checkpoints, the loss curve (train.csv,
TensorBoard), and at the end AUC and LogLoss per task (results.json, metrics.csv).

Settings come from --config (YAML) and from the options below; options win.
A folder that holds a run is never written over.
"""
EXAMPLES = """\
examples:
  a short run on generated data of Tenrec's shape
    mtlfast train --model dtrn --data synthetic:tenrec --max-steps 100

  the settings of a file, one of them changed
    mtlfast train --config examples/deskdrop.yaml --seed 1

  another head, a wider model
    mtlfast train --data synthetic:ecommerce --model-options head.name=aitm embed_dim=32

  published tables of tens of millions of rows; the first run reads them into a cache
    mtlfast train --config examples/aliccp.yaml --data aliccp:path/to/folder --on-error skip

  stop with Ctrl-C; go on later, bit for bit as if it had never stopped
    mtlfast train --resume runs/dtrn-tenrec-001

  DTN-trim: without the least used module of a trained DTN, then a little further
    mtlfast train --start-from runs/dtn-census-001 --trim 1 --learning-rate 1e-4

  train further than first planned
    mtlfast train --resume runs/dtrn-tenrec-001 --max-steps 500

`mtlfast models` lists the models and their options. A settings file has the same names with
underscores:
    data: synthetic:tenrec
    learning_rate: 1e-3
    model_options: {embed_dim: 16, num_heads: 2}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", metavar="FILE", help="settings in YAML")
    parser.add_argument("--resume", metavar="RUN", help="run folder or checkpoint to go on with")
    parser.add_argument(
        "--run-dir", metavar="DIR", help="new folder for the run (default: the next free in runs/)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings(parser, TrainConfig)


def run(options: argparse.Namespace) -> int:
    """Train; returns 0, or 130 after Ctrl-C."""
    from mtlfast.training.config import load_yaml

    given = given_settings(options, TrainConfig)
    if options.config is not None:
        given = merge(load_yaml(options.config), given)
    if options.resume is None:
        where = options.config or "settings"
        if isinstance(given.get("start_from"), str):
            given = _like(given["start_from"], given)
        config = TrainConfig.from_dict(given, where)
        return _train_new(config, options)
    if options.run_dir is not None:
        raise ValueError("--run-dir: a resumed run stays in its folder; leave --run-dir out")

    from mtlfast.training.assemble import resume_training

    trainer = resume_training(options.resume, given, quiet=options.quiet)
    print(f"resuming {trainer.run_dir} at step {trainer.step} of {trainer.total_steps}")
    return fit_and_report(trainer)


def _like(run: str, given: dict[str, Any]) -> dict[str, Any]:
    """``given``, and the model and data of ``run`` where they are not."""
    from mtlfast.training.assemble import stored_settings

    stored = stored_settings(run)
    if given.get("model", stored["model"]) != stored["model"]:
        raise ValueError(f"--model: expected {stored['model']} as in {run}, found {given['model']}")
    names = ["model", "model_options", "on_error"]
    # Options of one data source mean nothing to another.
    if given.get("data", stored["data"]) == stored["data"]:
        names += ["data", "data_options"]
    return merge({name: stored[name] for name in names}, given)


def _train_new(config: TrainConfig, options: argparse.Namespace) -> int:
    from mtlfast.training.assemble import start_training
    from mtlfast.training.runs import new_run_folder

    folder = new_run_folder(options.run_dir, config.model, config.data)
    try:
        trainer = start_training(config, folder, quiet=options.quiet)
    except BaseException:
        folder.rmdir()  # nothing was written yet; the name stays free
        raise
    print(trainer.describe())
    try:
        return fit_and_report(trainer)
    except Exception:
        if trainer.step == 0:  # such as a backend that cannot run: nothing of a run is there
            shutil.rmtree(folder, ignore_errors=True)
        raise


def fit_and_report(trainer: Trainer) -> int:
    """Train to the end and print the metrics; after Ctrl-C say how to go on."""
    from mtlfast.training.allocator import keep_freed_memory
    from mtlfast.training.evaluation import format_metrics
    from mtlfast.training.loop import Interrupted

    keep_freed_memory()
    try:
        results = trainer.fit()
    except (Interrupted, KeyboardInterrupt):
        return _say_how_to_go_on(trainer.run_dir)
    print(f"\n{format_metrics(results['metrics'])}")
    auc = results["mean_auc"]
    print(f"mean AUC {'n/a' if auc is None else format(auc, '.4f')}")
    print(
        f"{results['samples']:,} samples in {results['train_seconds']:.1f} s "
        f"({results['samples_per_s']:,.0f}/s); results in {Path(trainer.run_dir) / 'results.json'}"
    )
    return 0


def _say_how_to_go_on(folder: Path) -> int:
    from mtlfast.training.checkpoint import CheckpointError, find_checkpoint

    try:
        saved = find_checkpoint(folder)
    except CheckpointError:
        print("\nstopped before the first checkpoint", file=sys.stderr)
    else:
        print(
            f"\nstopped; everything up to here is in {saved}\n"
            f"go on with: mtlfast train --resume {folder}",
            file=sys.stderr,
        )
    return 130
