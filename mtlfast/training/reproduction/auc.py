"""A paired bootstrap of differences of AUC."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlfast._ranking import Ranking

__all__ = ["Ranking", "bootstrap_means"]

Floats = NDArray[np.float64]


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
