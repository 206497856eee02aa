"""Exact AUC of scores, for any weighting of the samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
