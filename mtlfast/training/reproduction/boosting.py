"""Gradient-boosted trees on the same fields: what a table's networks are measured against."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.data import CensusSource
from mtlfast.data.census import NUMERIC

__all__ = ["LIGHTGBM", "NEEDED", "boosted_scores", "lightgbm_available"]

LIGHTGBM = "LightGBM"
NEEDED = "the row LightGBM needs: pip install 'mtlfast[dev]' (or pip install lightgbm)"

# One model per task; tried on held-out training rows.
OPTIONS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0,
    "cat_smooth": 20.0,
    "max_cat_to_onehot": 8,
}
ROUNDS = 250


def lightgbm_available() -> bool:
    """Whether the package is installed."""
    return find_spec("lightgbm") is not None


def boosted_scores(
    source: CensusSource, seed: int = 0, rounds: int = ROUNDS
) -> NDArray[np.float64]:
    """Log-odds ``[N, T]`` on the test part of ``source``, of one LightGBM model per task.

    The trees read the ids that the networks read: of names and codes as categories, of numbers in
    their order. Same versions, threads and seed give the same scores.

    Raises:
        ImportError: if LightGBM is not installed.
    """
    if not lightgbm_available():
        raise ImportError(NEEDED)
    import lightgbm

    fields = source.spec.fields
    names = [f for f, name in enumerate(fields) if name not in NUMERIC]
    ids, labels = _table(source.train_batches(8192))
    test_ids, _ = _table(source.test_batches(8192))
    options = {
        **OPTIONS,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": torch.get_num_threads(),
        "verbose": -1,
    }
    found = []
    for task in range(labels.shape[1]):
        data = lightgbm.Dataset(
            ids,
            np.ascontiguousarray(labels[:, task]),
            categorical_feature=names,
            params={"verbose": -1},
        )
        trees = lightgbm.train(options, data, rounds)
        found.append(np.asarray(trees.predict(test_ids, raw_score=True), dtype=np.float64))
    return np.stack(found, axis=1)


def _table(batches: Any) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    parts = [(batch.sparse.numpy().astype(np.int32), batch.labels.numpy()) for batch in batches]
    ids, labels = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(labels)
