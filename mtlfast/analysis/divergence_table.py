"""Features that matter to one task and not to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlfast.analysis.importance import Importance, ranks
from mtlfast.errors import bad

__all__ = ["Divergence", "DivergentFeature", "divergence"]


@dataclass(frozen=True)
class DivergentFeature:
    """A row of the divergence table (DTN, arXiv 2408.11611, Table 1).

    Attributes:
        name: of the feature.
        importance: for the first and for the second task.
        rank: of these among all features, 1 for the most important.
    """

    name: str
    importance: tuple[float, float]
    rank: tuple[int, int]

    @property
    def rank_difference(self) -> int:
        """How far apart the ranks are."""
        return abs(self.rank[0] - self.rank[1])


@dataclass(frozen=True)
class Divergence:
    """The importances of two tasks, side by side.

    Attributes:
        tasks: the two.
        features: most divergent first.
        rank_correlation: Spearman's, of the importances of the two tasks; NaN where one task's are
            all equal.
    """

    tasks: tuple[str, str]
    features: tuple[DivergentFeature, ...]
    rank_correlation: float


def divergence(found: Importance, tasks: tuple[str, str] | None = None) -> Divergence:
    """The divergence table of two tasks: importance and rank of every feature for both.

    Sorted by the difference of the ranks, largest first; then by the larger importance.

    Args:
        found: of the features to compare; ranks are among these.
        tasks: two different tasks; the first and the last when None.

    Raises:
        ValueError: for a task that does not exist or has no AUC, or with a single task.
    """
    if tasks is None:
        tasks = (found.tasks[0], found.tasks[-1])
    if len(tasks) != 2 or tasks[0] == tasks[1]:
        raise bad("tasks", "two different tasks", " and ".join(tasks))
    for task in tasks:
        if task not in found.tasks:
            raise bad("tasks", f"two of {', '.join(found.tasks)}", task)
        if np.isnan(found.base[found.tasks.index(task)]):
            raise bad("tasks", "tasks with an AUC (both classes in the test part)", task)
    columns = [found.tasks.index(task) for task in tasks]
    mean = found.mean[:, columns]
    return divergence_of([feature.name for feature in found.features], mean, tasks)


def divergence_of(
    names: Sequence[str], importance: NDArray[np.float64], tasks: tuple[str, str]
) -> Divergence:
    """The same from importances ``[F, 2]`` of features with these ``names``."""
    if importance.shape != (len(names), 2):
        raise bad("importance", f"shape {(len(names), 2)}", importance.shape)
    places = np.stack([ranks(importance[:, t]) for t in range(2)], axis=1)
    features = [
        DivergentFeature(name, (float(a), float(b)), (int(i), int(j)))
        for name, (a, b), (i, j) in zip(names, importance, places, strict=True)
    ]
    features.sort(key=lambda f: (-f.rank_difference, -max(f.importance), f.name))
    return Divergence(tasks, tuple(features), _spearman(importance))


def _spearman(importance: NDArray[np.float64]) -> float:
    """Correlation of the ranks, equal importances sharing their mean rank."""
    mean_ranks = []
    for column in importance.T:
        ordered = np.sort(column)
        first = np.searchsorted(ordered, column, side="left")
        last = np.searchsorted(ordered, column, side="right")
        mean_ranks.append((first + last) / 2)
    if any(np.ptp(values) == 0 for values in mean_ranks):
        return float("nan")
    return float(np.corrcoef(mean_ranks)[0, 1])
