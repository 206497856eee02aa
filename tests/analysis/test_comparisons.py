"""RelaImp and the divergence table, against published numbers and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtlfast.analysis import Importance, divergence, relaimp
from mtlfast.analysis.divergence_table import divergence_of
from mtlfast.analysis.figures.divergence import draw_divergence
from mtlfast.analysis.figures.relative_improvement import draw_relaimp
from mtlfast.analysis.importance import Feature

# DTN (arXiv 2408.11611), Table 3: AUC of the six tasks of three data sets.
BASE = (0.9361, 0.9915, 0.7173, 0.8111, 0.6061, 0.6121)
PUBLISHED = {
    (0.9410, 0.9926, 0.7216, 0.8126, 0.6094, 0.6162): (1.12, 0.22, 1.98, 0.48, 3.11, 3.66),
    (0.9521, 0.9945, 0.7211, 0.8144, 0.6112, 0.6183): (3.67, 0.61, 1.75, 1.06, 4.81, 5.53),
    (0.9560, 0.9952, 0.7243, 0.8207, 0.6153, 0.6231): (4.56, 0.75, 3.22, 3.09, 8.67, 9.81),
}
# The same, Table 1: importance for CTR and for CVR.
FEATURES = {
    "item_price": (0.0076, 0.0077),
    "image_ebd": (0.0070, 0.0001),
    "item_ctr_48h": (0.0054, 0.0003),
    "realtime_discount": (0.0045, 0.0070),
    "atc_items_50": (0.0001, 0.0046),
    "order_cnt_24h": (0.0001, 0.0058),
    "atc_cnt_12h": (0.0001, 0.0024),
}


def test_relaimp_gives_the_published_numbers():
    for aucs, expected in PUBLISHED.items():
        for auc, base, percent in zip(aucs, BASE, expected, strict=True):
            assert relaimp(auc, base) == pytest.approx(percent, abs=0.006)
    assert relaimp(0.8, 0.8) == 0
    assert relaimp(0.5, 0.8) == -100


def test_relaimp_of_impossible_numbers():
    with pytest.raises(ValueError, match=r"base: expected an AUC above 0.5 .* found 0.5"):
        relaimp(0.7, 0.5)
    with pytest.raises(ValueError, match=r"auc: expected a number from 0 to 1, found 1\.5"):
        relaimp(1.5, 0.7)
    with pytest.raises(ValueError, match="base"):
        relaimp(0.7, math.nan)


def test_divergence_of_the_published_features():
    table = divergence_of(list(FEATURES), np.array(list(FEATURES.values())), ("ctr", "cvr"))
    found = {f.name: (f.rank, f.rank_difference) for f in table.features}
    assert found["item_price"] == ((1, 1), 0)
    assert found["image_ebd"] == ((2, 7), 5)
    assert found["item_ctr_48h"] == ((3, 6), 3)
    assert found["realtime_discount"] == ((4, 2), 2)
    assert found["order_cnt_24h"] == ((5, 3), 2)  # three features share rank 5 for CTR
    assert found["atc_cnt_12h"] == ((5, 5), 0)
    # By rank difference; then by the larger importance.
    assert [f.name for f in table.features] == [
        "image_ebd", "item_ctr_48h", "realtime_discount", "order_cnt_24h", "atc_items_50",
        "item_price", "atc_cnt_12h",
    ]  # fmt: skip


def test_rank_correlation_equals_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    importance = rng.integers(0, 9, (40, 2)) / 100
    names = [f"f{i}" for i in range(40)]
    found = divergence_of(names, importance, ("a", "b")).rank_correlation
    assert found == pytest.approx(spearmanr(importance).statistic, abs=1e-12)
    importance[:, 1] = 0.5
    assert math.isnan(divergence_of(names, importance, ("a", "b")).rank_correlation)


def an_importance(base=(0.8, 0.7, 0.9)):
    features = tuple(Feature(f"f{i}", "field", i) for i in range(3))
    drops = np.array([[0.1, 0.0, 0.3], [0.2, 0.1, 0.2], [0.3, 0.2, -0.1]])[:, None]
    return Importance(features, ("a", "b", "c"), np.array(base), drops, 10, 0)


def test_divergence_takes_the_first_and_last_task_or_those_asked_for():
    table = divergence(an_importance())
    assert table.tasks == ("a", "c")
    first = table.features[0]
    assert (first.name, first.importance, first.rank) == ("f0", (0.1, 0.3), (3, 1))
    assert divergence(an_importance(), ("b", "a")).features[0].rank_difference == 0


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        (("a", "a"), "tasks: expected two different tasks, found a and a"),
        (("a", "d"), "tasks: expected two of a, b, c, found d"),
        (("a", "b"), "tasks: expected tasks with an AUC .* found b"),
    ],
)
def test_divergence_names_a_wrong_task(tasks, text):
    with pytest.raises(ValueError, match=text):
        divergence(an_importance((0.8, math.nan, 0.9)), tasks)


def test_figures():
    table = divergence_of(list(FEATURES), np.array(list(FEATURES.values())), ("ctr", "cvr"))
    figure = draw_divergence(table, top=3)
    (axes,) = figure.axes
    assert "importance for ctr" in axes.get_xlabel()
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(texts) == 4
    assert any("image_ebd" in text and "(2 : 7)" in text for text in texts)
    zeros = divergence_of(["x", "y"], np.zeros((2, 2)), ("a", "b"))
    draw_divergence(zeros).savefig("/dev/null", format="png")

    figure = draw_relaimp(("a", "b"), {"m": [1.0, None], "n": [-2.0, 0.5]}, "base")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    assert {t.get_text() for t in axes.texts} == {"+1.00", "n/a", "-2.00", "+0.50"}
