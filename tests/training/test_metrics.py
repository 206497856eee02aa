from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtlfast.training.evaluation import format_metrics, metrics_rows
from mtlfast.training.metrics import TaskMetrics, mean_auc


def auc_by_ranks(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mann-Whitney: the share of (positive, negative) pairs in the right order, ties half."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    above = (positive[:, None] > negative[None]).mean()
    return float(above + 0.5 * (positive[:, None] == negative[None]).mean())


def logloss(logits: np.ndarray, labels: np.ndarray) -> float:
    chance = 1 / (1 + np.exp(-logits))
    return float(-(labels * np.log(chance) + (1 - labels) * np.log1p(-chance)).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_metrics_equal_their_definitions_for_any_batching(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(700, 3, generator=generator).to(dtype)  # bfloat16 has many ties
    chance = torch.rand(700, 3, generator=generator)
    labels = (chance < torch.sigmoid(logits.float()) * torch.tensor([1.0, 0.3, 0.02])).float()
    results = []
    for sizes in ([700], [1, 299, 0, 400]):
        metrics = TaskMetrics(("a", "b", "c"))
        for part, target in zip(logits.split(sizes), labels.split(sizes), strict=True):
            metrics.update(part, target)
        results.append(metrics.compute())
    assert results[0]["a"]["auc"] == results[1]["a"]["auc"]
    for task, name in enumerate("abc"):
        x, y = logits[:, task].double().numpy(), labels[:, task].numpy()
        for result in results:
            assert result[name]["auc"] == pytest.approx(auc_by_ranks(x, y), abs=1e-6)
            assert result[name]["logloss"] == pytest.approx(logloss(x, y), rel=1e-9)
            assert result[name]["positives"] == int(y.sum())
            assert result[name]["samples"] == 700


def test_auc_among_the_positives_of_the_task_before():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(500, 4, generator=generator)
    click = torch.rand(500, generator=generator) < torch.sigmoid(logits[:, 1])
    cart = click & (torch.rand(500, generator=generator) < torch.sigmoid(logits[:, 2]))
    labels = torch.stack([torch.ones(500), click, cart, torch.zeros(500)], dim=1).float()
    metrics = TaskMetrics(("all", "click", "cart", "none"), parents=(None, 0, 1, 2))
    for part, target in zip(logits.split(130), labels.split(130), strict=True):
        metrics.update(part, target)
    result = metrics.compute()
    assert "auc_after_parent" not in result["all"]
    assert result["click"]["auc_after_parent"] == result["click"]["auc"]  # all are positive before
    expected = auc_by_ranks(logits[click, 2].numpy(), labels[click, 2].numpy())
    assert result["cart"]["auc_after_parent"] == pytest.approx(expected, abs=1e-6)
    assert result["none"]["auc_after_parent"] is None
    text = format_metrics(result).splitlines()
    assert text[0].endswith("AUC after parent")
    assert text[3].endswith(f"{expected:.4f}")
    assert metrics_rows(result)[0][-1] is None
    with pytest.raises(ValueError, match="parents: expected 2 entries, found 1"):
        TaskMetrics(("a", "b"), parents=(None,))


def test_large_logits_do_not_tie():
    logits = torch.tensor([[20.0], [21.0], [22.0], [23.0]])  # float32 probabilities are all 1
    metrics = TaskMetrics(("a",))
    metrics.update(logits, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert metrics.compute()["a"]["auc"] == 1.0


def test_confident_mistakes_have_a_finite_loss():
    metrics = TaskMetrics(("a",))
    metrics.update(torch.tensor([[200.0], [-200.0]]), torch.tensor([[0.0], [1.0]]))
    assert metrics.compute()["a"] == {"auc": 0.0, "logloss": 200.0, "positives": 1, "samples": 2}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_single_class_has_no_auc(value, recwarn):
    metrics = TaskMetrics(("one", "two"))
    labels = torch.tensor([[value, 0.0], [value, 1.0]])
    metrics.update(torch.tensor([[0.3, -1.0], [0.1, 1.0]]), labels)
    result = metrics.compute()
    assert result["one"]["auc"] is None
    assert result["two"]["auc"] == 1.0
    assert mean_auc(result) == 1.0
    assert "n/a" in format_metrics(result)
    assert not recwarn.list


def test_nan_scores_are_not_hidden():
    metrics = TaskMetrics(("a", "b"))
    metrics.update(torch.tensor([[math.nan, 0.1], [1.0, 0.2]]), torch.tensor([[0.0, 0], [1, 1]]))
    result = metrics.compute()
    assert result["a"]["auc"] is None
    assert result["a"]["logloss"] is None
    assert result["b"]["auc"] == 1.0


def test_nothing_added():
    result = TaskMetrics(("a",)).compute()
    assert result["a"] == {"auc": None, "logloss": None, "positives": 0, "samples": 0}
    assert mean_auc(result) is None


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"logits: expected shape \(2, 2\), found \(2, 1\)"):
        TaskMetrics(("a", "b")).update(torch.zeros(2, 1), torch.zeros(2, 2))
