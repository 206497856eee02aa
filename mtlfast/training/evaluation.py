"""Scores a model on the test part of a data source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast.data import Batch
from mtlfast.training.metrics import TaskMetrics

__all__ = ["METRIC_COLUMNS", "evaluate", "format_metrics", "metrics_rows"]

Metrics = dict[str, dict[str, "float | int | None"]]
METRIC_COLUMNS = ("task", "auc", "logloss", "positives", "samples", "auc_after_parent")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    tasks: tuple[str, ...],
    *,
    parents: Sequence[int | None] = (),
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_batch: Callable[[int], None] | None = None,
) -> Metrics:
    """AUC and LogLoss per task over all of ``batches`` (DTRN, CIKM 2023, section 4.2).

    Leaves the model in the mode it came in, and draws no random numbers.

    Args:
        tasks: names of the T tasks.
        parents: for each task the task it follows, None for a root; those that follow one also get
            ``auc_after_parent``, see :class:`TaskMetrics`.
        on_batch: called with the number of samples after each batch, for progress bars.
    """
    metrics = TaskMetrics(tasks, device, parents)
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
    return [
        [task, *(values.get(c) for c in METRIC_COLUMNS[1:])] for task, values in metrics.items()
    ]


def format_metrics(metrics: Metrics) -> str:
    """A table for people; "n/a" marks an AUC that is not defined (only one class).

    The last column, where there is one, is the AUC among the positives of the task before.
    """
    width = max(map(len, [*metrics, "task"]))
    funnel = any("auc_after_parent" in values for values in metrics.values())
    lines = [
        f"{'task':<{width}}  {'AUC':>8}  {'LogLoss':>9}  {'positives':>10}  {'samples':>10}"
        + ("  AUC after parent" if funnel else "")
    ]
    for task, values in metrics.items():
        logloss = "n/a" if values["logloss"] is None else f"{values['logloss']:.6f}"
        line = (
            f"{task:<{width}}  {_auc(values['auc']):>8}  {logloss:>9}  "
            f"{values['positives']:>10,}  {values['samples']:>10,}"
        )
        if "auc_after_parent" in values:
            line += f"  {_auc(values['auc_after_parent']):>16}"
        lines.append(line)
    return "\n".join(lines)


def _auc(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
