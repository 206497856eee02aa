"""`mtlfast demo`: train DTRN, check the fused ops against the reference, time them."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlfast.data import Batch
    from mtlfast.training.config import TrainConfig
    from mtlfast.training.loop import Trainer

NAME = "demo"
USAGE = "[--steps N] [--run-dir DIR] [--no-bench]"
PASSES_ON = False
HELP = "train DTRN for a minute, check it against the reference, time both"
DESCRIPTION = """\
Trains DTRN on ragged multi-behavior data, prints AUC and LogLoss per task, loads the
weights again with the reference and with the fused implementation, compares their
outputs and gradients, and measures speed and memory of both. A few minutes on two cores.

The data are generated in the shape of Tenrec; or, if the environment variable
MTLFAST_DATA names a folder with deskdrop/events.parquet, read from there.
"""
EXAMPLES = """\
examples:
  mtlfast demo
  mtlfast demo --steps 50 --no-bench
  MTLFAST_DATA=path/to/folder mtlfast demo
"""

# Tenrec's items and sequences; fewer users, so that a checkpoint is 200 MB and not 500.
_GENERATED: dict[str, Any] = {
    "data": "synthetic:tenrec",
    "data_options": {"num_users": 100_000, "test_samples": 1 << 15},
    "model_options": {"embed_dim": 16, "num_heads": 2},
    "learning_rate": 2e-3,
}
_DESKDROP: dict[str, Any] = {
    "data": "deskdrop:${MTLFAST_DATA}/deskdrop",
    "model_options": {"embed_dim": 16, "num_heads": 2},
    "batch_size": 512,
    "epochs": 3,
}
_STEPS = 300
_PARITY_SAMPLES, _PARITY_BATCHES = 64, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--steps", type=int, metavar="N", help=f"training steps (default: {_STEPS})"
    )
    parser.add_argument("--run-dir", metavar="DIR", help="new folder for the run")
    parser.add_argument(
        "--no-bench", dest="bench", action="store_false", help="skip the speed and memory table"
    )


def run(options: argparse.Namespace) -> int:
    """Train, check, time; returns 1 if the check fails."""
    from mtlfast.commands.train import fit_and_report
    from mtlfast.training.assemble import start_training
    from mtlfast.training.runs import new_run_folder

    begun = time.perf_counter()
    config = _config(options.steps)
    folder = new_run_folder(options.run_dir, "demo", config.data)
    trainer = start_training(config, folder)

    _title("1. Training")
    print(trainer.describe())
    status = fit_and_report(trainer)
    if status:
        return status

    _title("2. The same weights, reference against fused")
    held = _check_parity(trainer)

    if options.bench:
        _title("3. Speed and memory")
        _bench(folder)
    print(f"\ndone in {time.perf_counter() - begun:.0f} s; everything is in {folder}")
    return 0 if held else 1


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _config(steps: int | None) -> TrainConfig:
    from mtlfast.training.config import TrainConfig

    root = os.environ.get("MTLFAST_DATA")
    found = bool(root) and (Path(str(root)) / "deskdrop" / "events.parquet").is_file()
    if root and not found:
        print(f"MTLFAST_DATA: no deskdrop/events.parquet in {root}; using generated data")
    if found:
        return TrainConfig.from_dict({**_DESKDROP, "max_steps": steps})
    return TrainConfig.from_dict({**_GENERATED, "max_steps": steps or _STEPS})


def _check_parity(trainer: Trainer) -> bool:
    """Print the table; whether everything is within its tolerance."""
    from mtlfast.training.assemble import load_model
    from mtlfast.training.parity import compare

    folder = trainer.run_dir
    fused, _ = load_model(folder, backend="auto")
    reference, _ = load_model(folder, backend="reference")
    batches = [trainer.source.test_batch(_PARITY_SAMPLES, i) for i in range(_PARITY_BATCHES)]
    results = compare(fused, reference, batches)
    print(_which_backend(fused, batches[0]))
    print("largest errors, relative to the largest value:")
    columns = ("", "fused - reference", "fused - float64", "reference - float64")
    print("{:<10} {:>18} {:>18} {:>20}".format(*columns))
    for row in results:
        print("{:<10} {:>18.1e} {:>18.1e} {:>20.1e}".format(row.quantity, *row.worst))
    for row in results:
        print(
            f"{row.quantity}: {row.within} of {len(row.batches)} batches of {_PARITY_SAMPLES} "
            f"within {row.allowed:g} x the reference's own error: {'ok' if row.holds else 'WRONG'}"
        )
    if results[1].within < len(batches) and results[1].holds:
        print("(a ReLU whose input is within rounding of zero may go either way)")
    return all(row.holds for row in results)


def _which_backend(model: Any, batch: Batch) -> str:
    """What runs the model's fused op on ``batch``, and why."""
    import torch

    from mtlfast.ops import conditional_interest, explain

    said = []

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        said.append(explain(conditional_interest, *args, **kwargs))
        return conditional_interest(*args, **kwargs)

    transformer = model.tim.transformer
    transformer.backend, chosen = note, transformer.backend
    try:
        with torch.no_grad():
            model(batch.sparse, batch.sequences, batch.user_index)
    finally:
        transformer.backend = chosen
    return str(said[0])


def _bench(folder: Path) -> None:
    """Print the speed and memory table, and where its files and plots are."""
    from mtlfast.commands.checkout import NoCheckoutError, import_benchmarks

    try:
        benchmarks = import_benchmarks()
    except NoCheckoutError as error:
        print(f"skipped: {error}")
        return
    benchmarks.run(True, out=folder / "bench")
