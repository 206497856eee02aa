"""What a trained model has learned: importance of features, gates, interactions, comparisons.

Every analysis takes a model and batches and returns plain values; ``mtlfast.analysis.figures``
draws them, ``mtlfast analyze`` writes both. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "PUBLISHED": "published_statistics",
    "DataStatistics": "data_statistics",
    "Difference": "significance",
    "Divergence": "divergence_table",
    "Feature": "importance",
    "GateReport": "gates",
    "GateWeight": "gates",
    "Importance": "importance",
    "Occurrences": "occurrences",
    "PublishedStatistics": "published_statistics",
    "count_occurrences": "occurrences",
    "count_statistics": "data_statistics",
    "divergence": "divergence_table",
    "features_of": "importance",
    "gate_report": "gates",
    "item_attribute": "occurrences",
    "paired_bootstrap": "significance",
    "permutation_importance": "importance",
    "relaimp": "relative_improvement",
    "sample_rows": "sampling",
    "stars": "significance",
    "tsne": "embedding",
    "view_vectors": "views",
    "views_of": "views",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"mtlfast.analysis.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'mtlfast.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
