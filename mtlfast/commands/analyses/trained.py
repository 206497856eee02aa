"""What the analyses of a trained model have in common: options, loading, writing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlfast.commands.settings import add_settings, given_settings
from mtlfast.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from mtlfast.data import Batch, DatasetSpec
    from mtlfast.training.assemble import Restored
    from mtlfast.training.progress import Progress

__all__ = [
    "TestPart",
    "Trained",
    "add_run_arguments",
    "open_run",
    "say_written",
    "write_figure",
]

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
)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run, where the results go, and the settings that may differ from the run's."""
    parser.add_argument(
        "run_dir", metavar="RUN", help="run folder of `mtlfast train`, or a checkpoint file"
    )
    parser.add_argument(
        "--max-batches",
        type=int,
        metavar="N",
        help="look at so many batches of the test part (default: as many as the run tested on)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: `analysis` in the run folder)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings(parser, TrainConfig, _SETTINGS)


class TestPart:
    """The test batches of a run, in the same order at each iteration; made ahead by a thread."""

    __test__ = False  # no class of tests, whatever its name

    def __init__(self, run: Restored, max_batches: int | None) -> None:
        self._source, self._config = run.source, run.config
        available = len(run.source.test_batches(run.config.batch_size))
        self._count = available if max_batches is None else min(max_batches, available)
        self.samples = min(run.source.num_test_samples, self._count * run.config.batch_size)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        from itertools import islice

        from mtlfast.training.prefetch import prefetch

        batches = self._source.test_batches(self._config.batch_size)
        return prefetch(islice(batches, self._count), self._config.prefetch)


@dataclass(frozen=True)
class Trained:
    """A trained model on its device, its test data, and where results go.

    Attributes:
        restored: checkpoint, settings and source.
        model: in eval mode.
        batches: of the test part.
        device: of the model.
        autocast: the run's precision.
        output: folder for results.
        quiet: no progress bars.
    """

    restored: Restored
    model: nn.Module
    batches: TestPart
    device: str
    autocast: Callable[[], AbstractContextManager[Any]]
    output: Path
    quiet: bool

    @property
    def spec(self) -> DatasetSpec:
        """Names and sizes of the data."""
        return self.restored.source.spec

    @property
    def title(self) -> str:
        """Model and data, for plots."""
        return f"{self.restored.config.model} on {self.spec.name}"

    def origin(self) -> dict[str, Any]:
        """What a report says of where its numbers come from."""
        config = self.restored.config
        return {
            "checkpoint": str(self.restored.file),
            "step": self.restored.step,
            "model": config.model,
            "data": config.data,
            "data_options": config.data_options,
            "backend": config.backend,
            "precision": config.precision,
            "samples": self.batches.samples,
        }

    def progress(self, total: int, label: str) -> Progress:
        """A progress bar over samples."""
        from mtlfast.training.progress import Progress

        return Progress(total, label=label, quiet=self.quiet)


def open_run(options: argparse.Namespace) -> Trained:
    """The run that the command line names."""
    import torch

    from mtlfast.training.assemble import open_checkpoint
    from mtlfast.training.runs import checkpoint_home

    if options.max_batches is not None and options.max_batches < 1:
        raise ValueError(f"--max-batches: expected at least 1, found {options.max_batches}")
    restored = open_checkpoint(
        options.run_dir, given_settings(options, TrainConfig), quiet=options.quiet
    )
    config = restored.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    limit = config.test_batches if options.max_batches is None else options.max_batches
    device = _device(config.accelerator)
    home = checkpoint_home(restored.file)
    return Trained(
        restored=restored,
        model=restored.model.to(device).eval(),
        batches=TestPart(restored, limit),
        device=device,
        autocast=_autocast(config.precision, device),
        output=home / "analysis" if options.output is None else Path(options.output),
        quiet=options.quiet,
    )


def _device(accelerator: str) -> str:
    import torch

    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("--accelerator: expected cpu or auto on a machine without CUDA")
    return accelerator


def _autocast(precision: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    import torch

    if precision == "bf16-mixed":
        return lambda: torch.autocast(device, torch.bfloat16)
    return nullcontext


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG, atomically."""
    from mtlfast.training.files import write_atomically

    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def say_written(paths: Sequence[Path]) -> None:
    """Print where results are."""
    print(f"written to {', '.join(map(str, paths))}")
