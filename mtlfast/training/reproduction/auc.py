"""AUC of scores, and a paired bootstrap of its differences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranking", "bootstrap_means"]

Floats = NDArray[np.float64]


class Ranking:
    """Scores sorted once, so that the AUC of many weightings of the samples is cheap.

    Args:
        scores: ``[N]``; ties count half.
        labels: ``[N]``, true for positive.
    """

    def __init__(self, scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> None:
        if scores.shape != labels.shape or scores.ndim != 1:
            raise ValueError(f"scores: expected shape {labels.shape}, found {scores.shape}")
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._positive = labels[self._order].astype(np.float64)

    def auc(self, weights: NDArray[np.floating] | None = None) -> float:
        """The AUC; with ``weights [N]`` each sample counts so often. NaN with one class only."""
        ordered = np.ones(len(self._order)) if weights is None else weights[self._order]
        positive = np.add.reduceat(ordered * self._positive, self._starts)
        negative = np.add.reduceat(ordered * (1 - self._positive), self._starts)
        pairs = positive.sum() * negative.sum()
        if not pairs:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + 0.5 * negative)).sum() / pairs)


def bootstrap_means(
    first: list[list[Ranking]], second: list[list[Ranking]], sizes: list[int], *, times: int = 500
) -> Floats:
    """Paired bootstrap: the difference of two models' mean AUC in ``times`` resamplings.

    The same samples are drawn for both models and all their seeds, part by part, so that what is
    hard about a sample does not count as a difference.

    Args:
        first, second: per part of the data the rankings of one model, one per seed.
        sizes: samples of each part.

    Returns:
        ``[times]``, mean over parts and seeds of ``first`` minus that of ``second``.
    """
    rng = np.random.default_rng(0)

    def difference(mine: list[Ranking], others: list[Ranking], size: int) -> float:
        while True:
            weights = np.bincount(rng.integers(0, size, size), minlength=size).astype(np.float64)
            means = [np.mean([r.auc(weights) for r in rankings]) for rankings in (mine, others)]
            if not np.isnan(means).any():  # else one class was not drawn at all
                return float(means[0] - means[1])

    parts = list(zip(first, second, sizes, strict=True))
    return np.array([np.mean([difference(*part) for part in parts]) for _ in range(times)])
