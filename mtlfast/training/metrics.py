"""AUC and LogLoss per task, accumulated batch by batch over a whole test set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC

__all__ = ["LogLoss", "TaskMetrics", "mean_auc"]


class LogLoss(Metric):
    """Mean binary cross-entropy of logits, summed in float64.

    Works on logits rather than probabilities, so that confident mistakes stay finite and exact.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("total", zero, dist_reduce_fx="sum")
        self.add_state("count", zero.clone(), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits ``[B]`` and labels ``[B]`` (0 or 1)."""
        self.total += F.binary_cross_entropy_with_logits(
            logits.double(), labels.double(), reduction="sum"
        )
        self.count += labels.numel()

    def compute(self) -> Tensor:
        """Mean over everything added; NaN if nothing was."""
        return self.total / self.count


class TaskMetrics:
    """Exact AUC and LogLoss of T tasks (DTRN, CIKM 2023, section 4.2).

    The AUC is that of all scores together, not a mean of batches, and not binned. Scores are
    compared as float64 probabilities: float32 would tie large logits that differ.

    Args:
        tasks: names of the T tasks.
        device: where the scores are kept until :meth:`compute`.
        parents: for each task the task it follows, None for a root. Tasks that follow one also get
            the AUC over the samples that are positive for it: of conversion among the clicked.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        device: torch.device | str = "cpu",
        parents: Sequence[int | None] = (),
    ) -> None:
        self.tasks = tuple(tasks)
        if parents and len(parents) != len(self.tasks):
            raise ValueError(f"parents: expected {len(self.tasks)} entries, found {len(parents)}")
        self._followed = {t: parent for t, parent in enumerate(parents) if parent is not None}
        self._auc_after = {
            t: BinaryAUROC(thresholds=None, validate_args=False) for t in self._followed
        }
        self._positives_after = dict.fromkeys(self._followed, 0)
        self._auc = [BinaryAUROC(thresholds=None, validate_args=False) for _ in tasks]
        self._logloss = [LogLoss() for _ in tasks]
        self._positives = torch.zeros(len(self.tasks), dtype=torch.int64, device=device)
        self._count = 0
        for metric in (*self._auc, *self._auc_after.values(), *self._logloss):
            metric.to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits ``[B, T]`` of any float dtype, labels ``[B, T]`` (0 or 1)."""
        expected = (labels.shape[0], len(self.tasks))
        for name, tensor in (("logits", logits), ("labels", labels)):
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name}: expected shape {expected}, found {tuple(tensor.shape)}")
        if labels.shape[0] == 0:
            return
        # Ranks are all that counts, and the logistic keeps them only while it is not saturated:
        # float64 tells logits apart up to about 36.
        scores = torch.sigmoid(logits.double())
        for task in range(len(self.tasks)):
            self._auc[task].update(scores[:, task], labels[:, task].long())
            self._logloss[task].update(logits[:, task], labels[:, task])
        for task, parent in self._followed.items():
            chosen = labels[:, parent] > 0.5
            own = labels[chosen, task].long()
            if len(own):
                self._auc_after[task].update(scores[chosen, task], own)
                self._positives_after[task] += int(own.sum())
        self._positives += (labels > 0.5).sum(0)
        self._count += labels.shape[0]

    def compute(self) -> dict[str, dict[str, float | int | None]]:
        """Task -> auc, logloss, positives, samples, and auc_after_parent of tasks that have one.

        ``auc`` is ``None`` where a task has only one class, or a score is not a number;
        ``logloss`` is ``None`` where nothing was added or it is not finite.
        """
        positives = self._positives.tolist()
        result: dict[str, dict[str, float | int | None]] = {}
        for task, name in enumerate(self.tasks):
            both_classes = 0 < positives[task] < self._count
            logloss = float(self._logloss[task].compute()) if self._count else math.nan
            finite = math.isfinite(logloss)
            result[name] = {
                "auc": float(self._auc[task].compute()) if both_classes and finite else None,
                "logloss": logloss if finite else None,
                "positives": int(positives[task]),
                "samples": self._count,
            }
            if task in self._followed:
                known = finite and self._both_after(task, positives)
                after = float(self._auc_after[task].compute()) if known else None
                result[name]["auc_after_parent"] = after
        return result

    def _both_after(self, task: int, positives: Sequence[int]) -> bool:
        """Whether both classes are among the samples that are positive for the task's parent."""
        return 0 < self._positives_after[task] < positives[self._followed[task]]


def mean_auc(metrics: dict[str, dict[str, float | int | None]]) -> float | None:
    """Mean AUC of the tasks that have one; ``None`` if none has."""
    values = [m["auc"] for m in metrics.values() if m["auc"] is not None]
    return sum(values) / len(values) if values else None
