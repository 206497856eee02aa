"""The training loss of multi-task models."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mtlfast.errors import bad


def task_losses(
    logits: Tensor,
    labels: Tensor,
    positive_weights: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of every task ``[T]``, the mean over the batch, in float32.

    DTRN (CIKM 2023) Eq. 11.

    Args:
        logits: ``[B, T]``.
        labels: ``[B, T]``, 0 or 1.
        positive_weights: ``[T]``, of the positive samples' terms; 1 when None.
        counted: bool ``[B, T]``, the samples whose mean is taken; all when None, 0 without any.
    """
    if labels.shape != logits.shape:
        raise bad("labels", f"shape {list(logits.shape)}", f"shape {list(labels.shape)}")
    # Low precision costs nothing here and would cost accuracy in rare tasks.
    logits = logits.float() if logits.element_size() < 4 else logits
    losses = F.binary_cross_entropy_with_logits(
        logits, labels.to(logits), reduction="none", pos_weight=positive_weights
    )
    if counted is None:
        return losses.mean(dim=0)
    return losses.masked_fill(~counted, 0.0).sum(dim=0) / counted.sum(dim=0).clamp(min=1)


def weighted_sum(
    losses: Tensor, weights: Tensor | None, log_variances: Tensor | None = None
) -> Tensor:
    """The tasks' losses ``[T]`` as one: their sum, weighted where there are weights.

    With ``log_variances s [T]``, which are trained with the model, a task's loss becomes
    ``exp(-s) L + s / 2``: the more uncertain a task, the less it counts (Kendall et al., CVPR 2018,
    Eq. 10 for classification).
    """
    if log_variances is not None:
        losses = (-log_variances).exp() * losses + log_variances / 2
    return losses.sum() if weights is None else losses @ weights
