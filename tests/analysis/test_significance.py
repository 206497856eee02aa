"""The paired bootstrap: metrics, intervals and p-values against plain resampling."""

from __future__ import annotations

import numpy as np
import pytest

from mtlfast.analysis import paired_bootstrap, stars

N, T = 150, 2


def make(seed=0, gain=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.random((N, T)) < 0.3
    base = labels + rng.normal(size=(N, T)) * 2
    return base + gain * labels, base, labels


def auc(scores, labels):
    difference = scores[labels][:, None] - scores[~labels][None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


def logloss(scores, labels):
    p = 1 / (1 + np.exp(-scores))
    return -np.where(labels, np.log(p), np.log(1 - p)).mean()


def test_metrics_and_resamplings_are_what_plain_ones_are():
    logits, base, labels = make(gain=0.5)
    found = paired_bootstrap(logits, base, labels, ("a", "b"), times=40, seed=3)
    assert [(d.task, d.metric) for d in found] == [
        ("a", "auc"), ("a", "logloss"), ("b", "auc"), ("b", "logloss"),
    ]  # fmt: skip
    rng = np.random.default_rng(3)
    draws = [rng.integers(0, N, N) for _ in range(40)]
    for d in found:
        t, metric = "ab".index(d.task), auc if d.metric == "auc" else logloss
        assert d.value == pytest.approx(metric(logits[:, t], labels[:, t]))
        assert d.base == pytest.approx(metric(base[:, t], labels[:, t]))
        differences = [
            metric(logits[r, t], labels[r, t]) - metric(base[r, t], labels[r, t]) for r in draws
        ]
        assert (d.low, d.high) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))
        wrong = sum(x <= 0 if d.difference > 0 else x >= 0 for x in differences)
        assert d.p == pytest.approx(min(1.0, 2 * (wrong + 1) / 41))


def test_better_worse_and_equal_models():
    logits, base, labels = make(gain=3.0)
    better = paired_bootstrap(logits, base, labels, ("a", "b"), times=300)
    worse = paired_bootstrap(base, logits, labels, ("a", "b"), times=300)
    for mine, other in zip(better, worse, strict=True):
        assert mine.difference == pytest.approx(-other.difference)
        assert mine.p < 0.01
        assert other.p < 0.01
    assert all(d.difference > 0 for d in better if d.metric == "auc")
    equal = paired_bootstrap(base, base, labels, ("a", "b"), times=20)
    assert all((d.difference, d.low, d.high, d.p) == (0, 0, 0, 1) for d in equal)
    assert [stars(p) for p in (0.005, 0.01, 0.049, 0.05)] == ["**", "*", "*", ""]


def test_p_values_of_equally_good_models_are_spread():
    rng = np.random.default_rng(5)
    labels = rng.random((400, 30)) < 0.4
    one, two = (labels + rng.normal(size=labels.shape) for _ in range(2))
    found = paired_bootstrap(one, two, labels, [str(t) for t in range(30)], times=100)
    small = np.mean([d.p < 0.05 for d in found if d.metric == "auc"])
    assert small < 0.25  # a twentieth is expected


def test_a_task_of_one_class_has_no_auc():
    logits, base, labels = make()
    labels = labels & np.array([True, False])
    found = paired_bootstrap(logits, base, labels, ("a", "b"), times=5)
    assert [(d.task, d.metric) for d in found][1:] == [("a", "logloss"), ("b", "logloss")]
    with pytest.raises(ValueError, match="times: expected at least 1, found 0"):
        paired_bootstrap(logits, base, labels, ("a", "b"), times=0)
    with pytest.raises(ValueError, match="logits: expected shape"):
        paired_bootstrap(logits[:-1], base, labels, ("a", "b"))
