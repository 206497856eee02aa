"""t-SNE of several sets of vectors in one plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtlfast.errors import bad

__all__ = ["tsne"]


def tsne(
    series: Sequence[tuple[str, Tensor]], *, perplexity: float = 30.0, seed: int = 0
) -> list[NDArray[np.float32]]:
    """Places in the plane for every vector of every series, computed together by scikit-learn.

    Starts from the two principal components; repeats exactly for the same ``seed`` on the same
    machine.

    Args:
        series: names and vectors ``[n, W]``, all of one width.
        perplexity: about how many neighbours count; at most a third of all vectors.
        seed: of scikit-learn's generator.

    Returns:
        ``[n, 2]`` for each series.

    Raises:
        ValueError: for too few vectors, vectors that are not finite or all equal.
    """
    from sklearn.manifold import TSNE

    vectors = np.concatenate([values.numpy() for _, values in series])
    if len(vectors) < 5:
        raise bad("series", "at least 5 vectors", len(vectors))
    if not perplexity > 0:
        raise bad("perplexity", "a positive number", perplexity)
    if not np.isfinite(vectors).all():
        raise bad("series", "finite vectors", "NaN or infinity")
    if (vectors == vectors[0]).all():
        raise bad("series", "vectors that differ", "all equal")
    points = TSNE(
        n_components=2,
        perplexity=min(perplexity, (len(vectors) - 1) / 3),
        init="pca",
        learning_rate="auto",
        random_state=seed,
    ).fit_transform(vectors)
    ends = np.cumsum([len(values) for _, values in series])
    return np.split(points.astype(np.float32), ends[:-1])
