"""Labels from low-rank scores, with the published positive rates and funnel.

The score of task t for candidate i of user u is the sum of a part shared by all tasks and a part
of its own. Each part has four terms of fixed weight:

* match: ``sum_b <H_b a_b, q_i>``, where ``H_b`` is the mean latent factor of the items in history b
  and ``a_b`` a diagonal that is positive for behaviors of taste, negative for those of distaste,
  and differs from task to task;
* item: ``<q_i, v>``, some items please everybody;
* history: ``sum_b <H_b, w_b>``, some users do more of everything;
* fields: one effect per value of the sparse fields with few values.

The label is Bernoulli with ``logit = scale * score + bias``, and can be positive only where the
label of the task's parent is. Biases are set by bisection such that the expected rates are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.synthetic.random_bits import RandomBits, hash_bits, uniform
from mtlfast.data.synthetic.shapes import Shape

__all__ = ["LabelModel"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_RANK = 8
_LOGIT_SCALE = 2.0
_SHARED_VARIANCE = 0.5
_TERM_WEIGHTS = np.sqrt(
    np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32)
)  # match, item, history, fields
_ITEM_NOISE = 0.5
_PRIOR_TOKENS = 2.0  # a history of n items counts n / (n + 2)
_ITEM_SALT = 1000


class LabelModel:
    """Random but fixed scores; calibrate before drawing labels.

    Args:
        shape: behaviors, tasks, funnel, rates.
        num_categories: C, latent categories of items.
        effect_sizes: number of values of each sparse field that has an effect.
        rng: source of the factors.
    """

    def __init__(
        self,
        shape: Shape,
        num_categories: int,
        effect_sizes: dict[int, int],
        rng: np.random.Generator,
    ) -> None:
        self.shape = shape
        rows = 1 + len(shape.tasks)  # row 0 is the shared part
        num_behaviors = len(shape.behaviors)
        sign = np.where(shape.likes, 1, -1).astype(np.float32)[:, None]
        self.category_factor = _normal(rng, num_categories, _RANK) / np.float32(np.sqrt(_RANK))
        gain = np.abs(_normal(rng, rows, num_behaviors, 1)) + 0.25
        self.match = gain * sign * (1 + 0.5 * _normal(rng, rows, num_behaviors, _RANK))
        self.item = _normal(rng, rows, _RANK)
        self.history = _normal(rng, rows, num_behaviors, _RANK)
        self.effects = {f: _normal(rng, n, rows) for f, n in effect_sizes.items()}
        self.bias = np.zeros(len(shape.tasks), dtype=np.float32)
        self._scale = np.ones((4, rows), dtype=np.float32)
        self._center = np.zeros((4, rows), dtype=np.float32)

    def terms(
        self,
        category_counts: Floats,
        target: Ints,
        target_category: Ints,
        sparse: Ints,
        user_index: Ints | slice,
    ) -> Floats:
        """The four raw terms of every part.

        Args:
            category_counts: ``[M, U, C]``, items of each category in each history.
            target: item ids ``[B]``.
            target_category: ``[B]``.
            sparse: all fields ``[B, F]``.
            user_index: ``[B]``, or ``slice(None)`` for the identity.

        Returns:
            ``[4, B, 1 + T]``.
        """
        tokens = category_counts.sum(-1, keepdims=True)
        interests = (category_counts @ self.category_factor) / (tokens + _PRIOR_TOKENS)
        bits = hash_bits(target[:, None], _ITEM_SALT + np.arange(_RANK))
        noise = (uniform(bits) - 0.5).astype(np.float32) * np.float32(np.sqrt(12 / _RANK))
        item = self.category_factor[target_category] + _ITEM_NOISE * noise

        by_rank = interests.transpose(2, 1, 0) @ self.match.transpose(2, 1, 0)  # [r, U, 1+T]
        match = np.einsum("rbt,br->bt", by_rank[:, user_index], item)
        rows = len(self.item)
        history = np.moveaxis(interests, 0, 1).reshape(interests.shape[1], -1)
        history = history @ self.history.reshape(rows, -1).T
        fields = np.zeros_like(match)
        for field, effect in self.effects.items():
            fields += effect[sparse[:, field]]
        return np.stack([match, item @ self.item.T, history[user_index], fields])

    def scores(self, terms: Floats) -> Floats:
        """Scores ``[B, T]`` of unit variance, before scale and bias."""
        weights = _TERM_WEIGHTS[:, None] * self._scale
        parts = np.einsum("kbt,kt->bt", terms, weights) - (weights * self._center).sum(0)
        own = np.float32(np.sqrt(1 - _SHARED_VARIANCE)) * parts[:, 1:]
        return np.float32(np.sqrt(_SHARED_VARIANCE)) * parts[:, :1] + own

    def calibrate(self, terms: Floats) -> None:
        """Fix scales and biases from the terms of a large random sample."""
        spread = terms.std(axis=1, dtype=np.float64)
        self._center = terms.mean(axis=1, dtype=np.float64).astype(np.float32)
        # A term without any spread (no histories at all) says nothing.
        self._scale = np.where(spread > 0, 1 / np.maximum(spread, 1e-30), 0).astype(np.float32)
        logits = _LOGIT_SCALE * self.scores(terms)
        reach = np.ones_like(logits)  # probability that all ancestors of a task are positive
        for task in self._parents_first():
            parent = self.shape.task_parents[task]
            if parent is not None:
                reach[:, task] = reach[:, parent] * _sigmoid(logits[:, parent] + self.bias[parent])
            self.bias[task] = _bias_for_rate(
                logits[:, task], reach[:, task], self.shape.positive_rates[task]
            )

    def draw(self, terms: Floats, bits: RandomBits) -> NDArray[np.float32]:
        """Labels ``[B, T]``."""
        probability = _sigmoid(_LOGIT_SCALE * self.scores(terms) + self.bias)
        labels = uniform(bits(*probability.shape)) < probability
        for task in self._parents_first():
            parent = self.shape.task_parents[task]
            if parent is not None:
                labels[:, task] &= labels[:, parent]
        return labels.astype(np.float32)

    def _parents_first(self) -> list[int]:
        parents = self.shape.task_parents

        def depth(task: int) -> int:
            parent = parents[task]
            return 0 if parent is None else 1 + depth(parent)

        return sorted(range(len(parents)), key=depth)


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _bias_for_rate(logits: Floats, reach: Floats, rate: float) -> float:
    low, high = -60.0, 60.0
    for _ in range(50):
        middle = (low + high) / 2
        if float((reach * _sigmoid(logits + middle)).mean(dtype=np.float64)) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
