"""Whether one model is better than another on the same samples: a paired bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast._ranking import Ranking
from mtlfast.errors import bad

__all__ = ["Difference", "paired_bootstrap", "stars"]

Floats = NDArray[np.floating[Any]]
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Difference:
    """A metric of two models on one task.

    Attributes:
        task: name of the task.
        metric: "auc" or "logloss".
        value: of the model.
        base: of the model it is compared with.
        low, high: 95 % of the resampled differences ``value - base`` lie between.
        p: two-sided; how often a resampling shows the opposite of the difference, or none, twice.
    """

    task: str
    metric: str
    value: float
    base: float
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """``value - base``."""
        return self.value - self.base


def stars(p: float) -> str:
    """``**`` below 0.01 and ``*`` below 0.05, as DTRN (CIKM 2023) marks its Table 4."""
    return "**" if p < 0.01 else "*" if p < 0.05 else ""


def paired_bootstrap(
    logits: Floats,
    base: Floats,
    labels: NDArray[np.bool_],
    tasks: Sequence[str],
    *,
    times: int = 1000,
    seed: int = 0,
    on_resample: Callable[[int], None] | None = None,
) -> list[Difference]:
    """AUC and LogLoss of two models per task, with intervals and p-values of their differences.

    The samples are drawn anew ``times`` times, the same for both models and all tasks, so that what
    is hard about a sample does not count as a difference (Efron and Tibshirani, 1993, chapter 16).
    The p-value of ``k`` contrary resamplings is ``2 (k + 1) / (times + 1)``, at most 1. It says
    nothing of what another seed of training would change.

    Args:
        logits: ``[N, T]`` of the model.
        base: ``[N, T]`` of the one it is compared with.
        labels: ``[N, T]``.
        tasks: names of the T tasks.
        times: resamplings.
        seed: of the resamplings.
        on_resample: called with 1 after each, for progress bars.

    Returns:
        Per task its AUC, where both classes occur, and its LogLoss.
    """
    if not logits.shape == base.shape == labels.shape or labels.ndim != 2:
        shapes = f"{logits.shape}, {base.shape} and {labels.shape}"
        raise bad("logits", "shape [N, T], like base and labels", shapes)
    if not len(labels):
        raise bad("labels", "at least one sample", "none")
    if times < 1:
        raise bad("times", "at least 1", times)
    count, num_tasks = labels.shape
    ranked = [t for t in range(num_tasks) if 0 < labels[:, t].sum() < count]
    pairs = {
        t: (Ranking(logits[:, t], labels[:, t]), Ranking(base[:, t], labels[:, t])) for t in ranked
    }
    losses = [_losses(values, labels) for values in (logits, base)]
    loss_differences = losses[0] - losses[1]
    found: dict[tuple[int, str], list[float]] = {(t, "auc"): [] for t in ranked}
    found.update({(t, "logloss"): [] for t in range(num_tasks)})
    rng = np.random.default_rng(seed)
    for _ in range(times):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        for t, (mine, other) in pairs.items():
            found[t, "auc"].append(mine.auc(weights) - other.auc(weights))
        for t, mean in enumerate(weights @ loss_differences / count):
            found[t, "logloss"].append(float(mean))
        if on_resample is not None:
            on_resample(1)
    results = []
    for t, task in enumerate(tasks):
        if t in pairs:
            mine, other = pairs[t]
            results.append(_difference(task, "auc", mine.auc(), other.auc(), found[t, "auc"]))
        loss, base_loss = (float(values[:, t].mean()) for values in losses)
        results.append(_difference(task, "logloss", loss, base_loss, found[t, "logloss"]))
    return results


def _difference(
    task: str, metric: str, value: float, base: float, resampled: list[float]
) -> Difference:
    differences = np.array(resampled)
    differences = differences[~np.isnan(differences)]  # of one class only
    if not len(differences):
        return Difference(task, metric, value, base, float("nan"), float("nan"), 1.0)
    low, high = np.quantile(differences, _INTERVAL)
    contrary = differences <= 0 if value > base else differences >= 0
    p = min(1.0, 2 * (int(contrary.sum()) + 1) / (len(differences) + 1))
    return Difference(task, metric, value, base, float(low), float(high), p)


def _losses(logits: Floats, labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Binary cross-entropy of each logit, in float64."""
    x = logits.astype(np.float64)
    return np.logaddexp(0, np.where(labels, -x, x))
