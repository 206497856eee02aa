"""What a run writes while it trains: a CSV of losses, and curves for TensorBoard."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlfast.training.files import write_csv

__all__ = ["Records"]


class Records:
    """Appends rows to ``train.csv`` and points to TensorBoard event files of a run folder.

    Losses are written with all their digits, so that two curves can be compared bit for bit.

    Args:
        folder: the run folder.
        tasks: names of the T tasks.
        start_step: rows after this step are dropped, so that a resumed run does not repeat
            what it had logged between its last checkpoint and its end.
        every: steps per row; a last row of fewer steps is dropped too, as the resumed run
            writes the whole one.
        tensorboard: also write TensorBoard curves; a warning says so where it is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        tasks: Sequence[str],
        *,
        start_step: int,
        every: int = 1,
        tensorboard: bool,
    ) -> None:
        self._tasks = tuple(tasks)
        self._path = Path(folder) / "train.csv"
        self._header = ["step", "epoch", "loss", *(f"loss/{t}" for t in tasks), "samples_per_s"]
        self._keep_until(start_step, every)
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._curves = _curves(Path(folder) / "tensorboard", start_step) if tensorboard else None

    def _keep_until(self, step: int, every: int) -> None:
        rows: list[list[str]] = []
        if step > 0 and self._path.is_file():
            with open(self._path, newline="", encoding="utf-8") as file:
                lines = [row for row in csv.reader(file) if len(row) == len(self._header)]
            rows = [row for row in lines[1:] if int(row[0]) <= step and int(row[0]) % every == 0]
        write_csv(self._path, self._header, rows)

    def train(
        self, step: int, epoch: int, loss: float, losses: Sequence[float], rate: float
    ) -> None:
        """One row: mean loss since the last row, per task too, and samples per second."""
        self._rows.writerow([step, epoch, repr(loss), *map(repr, losses), f"{rate:.1f}"])
        self._file.flush()
        if self._curves is not None:
            self._curves.add_scalar("train/loss", loss, step)
            self._curves.add_scalar("train/samples_per_s", rate, step)
            for task, value in zip(self._tasks, losses, strict=True):
                self._curves.add_scalar(f"train/loss/{task}", value, step)

    def test(self, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """AUC and LogLoss of an evaluation, as TensorBoard curves."""
        if self._curves is None:
            return
        for task, values in metrics.items():
            for name in ("auc", "logloss"):
                if values[name] is not None:
                    self._curves.add_scalar(f"test/{name}/{task}", values[name], step)
        self._curves.flush()

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        if self._curves is not None:
            self._curves.close()


def _curves(folder: Path, start_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn(
            "no TensorBoard curves: tensorboard is not installed (pip install tensorboard)",
            stacklevel=3,
        )
        return None
    # purge_step hides what an interrupted run had logged beyond its last checkpoint.
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
