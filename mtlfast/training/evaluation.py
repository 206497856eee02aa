"""Scores a model on the test part of a data source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast.data import Batch
from mtlfast.training.metrics import TaskMetrics

__all__ = ["evaluate", "format_metrics", "metrics_rows"]

Metrics = dict[str, dict[str, "float | int | None"]]
METRIC_COLUMNS = ("task", "auc", "logloss", "positives", "samples")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    tasks: tuple[str, ...],
    *,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_batch: Callable[[int], None] | None = None,
) -> Metrics:
    """AUC and LogLoss per task over all of ``batches`` (DTRN, CIKM 2023, section 4.2).

    Leaves the model in the mode it came in, and draws no random numbers.

    Args:
        tasks: names of the T tasks.
        on_batch: called with the number of samples after each batch, for progress bars.
    """
    metrics = TaskMetrics(tasks, device)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            batch = batch.to(device)
            with autocast():
                logits: Tensor = model(*batch.inputs())
            metrics.update(logits, batch.labels)
            if on_batch is not None:
                on_batch(len(batch))
    finally:
        model.train(was_training)
    return metrics.compute()


def metrics_rows(metrics: Metrics) -> list[list[Any]]:
    """One row per task, in the order of :data:`METRIC_COLUMNS`."""
    return [[task, *(values[c] for c in METRIC_COLUMNS[1:])] for task, values in metrics.items()]


def format_metrics(metrics: Metrics) -> str:
    """A table for people; "n/a" marks an AUC that is not defined (only one class)."""
    width = max(map(len, [*metrics, "task"]))
    lines = [f"{'task':<{width}}  {'AUC':>8}  {'LogLoss':>9}  {'positives':>10}  {'samples':>10}"]
    for task, values in metrics.items():
        auc = "n/a" if values["auc"] is None else f"{values['auc']:.4f}"
        logloss = "n/a" if values["logloss"] is None else f"{values['logloss']:.6f}"
        lines.append(
            f"{task:<{width}}  {auc:>8}  {logloss:>9}  "
            f"{values['positives']:>10,}  {values['samples']:>10,}"
        )
    return "\n".join(lines)
