"""Permutation importance: against brute force, on known structure, in any number of passes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mtlfast.analysis import Importance, features_of, permutation_importance
from mtlfast.analysis.figures.importance import draw_importance
from mtlfast.analysis.importance import ranks
from mtlfast.data import Batch, TableSource
from mtlfast.jagged import JaggedSequences
from mtlfast.models import build


def lists(source):
    """Everything as plain Python: a row of ids and a list of lists of tokens per sample."""
    rows = source.sparse.tolist()
    histories = [[source.tokens[b][u].tolist() for b in range(2)] for u in source.user_of]
    return rows, histories


def one_batch(rows, histories):
    lengths = torch.tensor([[len(h[b]) for h in histories] for b in range(2)])
    values = [token for b in range(2) for h in histories for token in h[b]]
    sequences = JaggedSequences.from_lengths(torch.tensor(values, dtype=torch.int64), lengths)
    return Batch(torch.tensor(rows), sequences, torch.zeros(len(rows), 2))


def brute_force(model, source, repeats, seed):
    """Eq. 1-2 with nothing but loops over whole data in memory, and scikit-learn's AUC."""

    def aucs(rows, histories):
        batch = one_batch(rows, histories)
        logits = model(batch.sparse, batch.sequences, None).detach().numpy()
        return [roc_auc_score(source.labels[:, t], logits[:, t]) for t in range(2)]

    rows, histories = lists(source)
    base = np.array(aucs(rows, histories))
    drops = np.zeros((6, repeats, 2))
    for f in range(6):
        for r in range(repeats):
            key = [seed, 0, f, r] if f < 4 else [seed, 1, f - 4, r]
            permutation = np.random.default_rng(key).permutation(source.samples)
            if f < 4:
                moved = [list(row) for row in rows]
                for i, j in enumerate(permutation):
                    moved[i][f] = rows[j][f]
                drops[f, r] = base - aucs(moved, histories)
            else:
                swapped = [list(history) for history in histories]
                for i, j in enumerate(permutation):
                    swapped[i][f - 4] = histories[j][f - 4]
                drops[f, r] = base - aucs(rows, swapped)
    return base, drops


@pytest.mark.parametrize("per_user", [1, 3])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_equals_brute_force(make_source, model, per_user, memory):
    source = make_source(210, per_user)
    base, drops = brute_force(model, source, 3, 7)
    found = permutation_importance(
        model, source.test_batches(64), source.spec, repeats=3, seed=7, memory=memory
    )
    np.testing.assert_allclose(found.base, base, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.drops, drops, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.mean, drops.mean(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sd, drops.std(1, ddof=1), rtol=0, atol=1e-12)
    assert [feature.name for feature in found.features] == [
        "user", "item", "hour", "noise", "click_seq", "like_seq",
    ]  # fmt: skip


def test_finds_the_features_that_matter(make_source, model):
    source = make_source(2000)
    found = permutation_importance(model, source.test_batches(512), source.spec, repeats=2)
    matters = {"buy": ["item"], "share": ["hour", "click_seq", "like_seq"]}
    for t, task in enumerate(found.tasks):
        for f, feature in enumerate(found.features):
            if feature.name not in matters[task]:
                assert (found.drops[f, :, t] == 0).all(), (task, feature)
    # Without the only feature that "buy" reads, its scores are a guess.
    guess = found.base[0] - found.drops[1, :, 0]
    # Standard deviation of the AUC of a guess: sqrt((n+1) / (12 p q n^2)), about 0.013 here.
    assert np.abs(guess - 0.5).max() < 0.055
    assert found.ranks[:, 0].tolist() == [2, 1, 2, 2, 2, 2]
    assert found.mean[2, 1] > 0.02
    assert found.mean[4, 1] > 0.05


def test_the_permutation_runs_over_the_whole_set_not_within_batches(model, make_source):
    # Sorted by item: within batches of 50 a permutation would hardly move any score.
    source = make_source(1000)
    order = np.argsort(source.sparse[:, 1], kind="stable")
    for name in ("sparse", "labels"):
        setattr(source, name, getattr(source, name)[order])
    features = features_of(model, source.spec, ["item"])
    batches = source.test_batches(50)
    found = permutation_importance(model, batches, source.spec, features=features, repeats=2)
    assert abs(found.base[0] - found.drops[0, :, 0] - 0.5).max() < 0.08


def test_memory_and_batch_size_change_nothing_but_the_passes(source, model):
    class Counted:
        def __init__(self, batches):
            self.batches, self.passes = batches, 0

        def __iter__(self):
            self.passes += 1
            return iter(self.batches)

    def measure(batch_size, memory):
        batches = Counted(source.test_batches(batch_size))
        done = []
        found = permutation_importance(
            model, batches, source.spec, repeats=2, seed=3, memory=memory, on_samples=done.append
        )
        assert sum(done) == 500 * (1 + 6 * 2)
        return found, batches.passes

    (one, few), (two, many), (three, _) = measure(64, 1 << 30), measure(64, 1), measure(500, 60_000)
    assert (few, many) == (3, 1 + 2 * 12)
    np.testing.assert_array_equal(one.drops, two.drops)
    np.testing.assert_array_equal(one.drops, three.drops)


def test_seeds_and_repeats_differ(source, model):
    def drops(seed, repeats=2):
        batches = source.test_batches(100)
        return permutation_importance(
            model, batches, source.spec, seed=seed, repeats=repeats
        ).drops[1, :, 0]

    alone = features_of(model, source.spec, ["item"])
    found = permutation_importance(
        model, source.test_batches(100), source.spec, features=alone, repeats=2
    )
    np.testing.assert_array_equal(found.drops[0, :, 0], drops(0))
    assert drops(0)[0] != drops(0)[1]
    assert drops(0)[0] != drops(1)[0]
    np.testing.assert_array_equal(drops(0), drops(0))
    np.testing.assert_array_equal(drops(0, 1), drops(0)[:1])


def test_a_real_model_on_fields_alone_equals_brute_force(source):
    """Logits of real models round differently in other batches, and ranks may swap for it."""
    spec = dataclasses.replace(source.spec, behaviors=(), max_lengths=(), item_field=None)
    table = (source.sparse, source.labels)
    data = TableSource(spec, table, table)
    torch.manual_seed(0)
    options = {"embed_dim": 4, "output_dim": 6, "interactions": ["gdcn"], "init_std": 0.5}
    model = build("dtn", spec, options)
    assert model.training
    found = permutation_importance(model, data.test_batches(90), spec, seed=5)
    assert model.training
    assert found.drops.shape == (4, 1, 2)
    assert np.isnan(found.sd).all()
    ids = torch.from_numpy(source.sparse)
    for f in range(4):
        moved = ids.clone()
        moved[:, f] = ids[np.random.default_rng([5, 0, f, 0]).permutation(500), f]
        with torch.no_grad():
            logits = model.eval()(moved).numpy()
        for t in range(2):
            auc = roc_auc_score(source.labels[:, t], logits[:, t])
            assert found.base[t] - found.drops[f, 0, t] == pytest.approx(auc, abs=1e-4)


def test_a_task_with_one_class_has_no_importance(source, model):
    source.labels[:, 1] = 0
    found = permutation_importance(model, source.test_batches(100), source.spec)
    assert np.isnan(found.base[1])
    assert np.isnan(found.mean[:, 1]).all()
    assert not np.isnan(found.mean[:, 0]).any()
    figure = draw_importance(found)
    assert len(figure.axes) == 2


def test_ranks_are_shared_by_equal_importances():
    assert ranks(np.array([0.1, 0.3, 0.1, -0.2, 0.3])).tolist() == [3, 1, 3, 5, 1]


def test_a_record_keeps_everything(source, model):
    source.labels[:, 1] = 0
    found = permutation_importance(model, source.test_batches(100), source.spec, repeats=2, seed=4)
    again = Importance.from_record(json.loads(json.dumps(found.to_record(), allow_nan=False)))
    assert (again.features, again.tasks) == (found.features, found.tasks)
    assert (again.samples, again.seed) == (500, 4)
    np.testing.assert_array_equal(again.drops, found.drops)
    np.testing.assert_array_equal(again.base, found.base)


def test_wrong_input_is_named(source, model):
    batches = source.test_batches(100)
    for options, text in [
        ({"repeats": 0}, "repeats: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"features": []}, "features: expected at least one"),
    ]:
        with pytest.raises(ValueError, match=text):
            permutation_importance(model, batches, source.spec, **options)
    with pytest.raises(ValueError, match="batches: expected at least one sample, found none"):
        permutation_importance(model, [], source.spec)
    with pytest.raises(ValueError, match=r"features: expected some of user, .*like_seq, found age"):
        features_of(model, source.spec, ["item", "age"])
    with pytest.raises(ValueError, match="expected 500 samples as in the first pass, found 0"):
        permutation_importance(model, iter(batches), source.spec)


def test_the_figure_names_tasks_and_the_best_features(source, model):
    found = permutation_importance(model, source.test_batches(100), source.spec, repeats=2)
    figure = draw_importance(found, title="it", top=3)
    left, right = figure.axes
    assert left.get_title().startswith("buy (AUC 0.")
    assert left.get_yticklabels()[0].get_text() == "item"
    assert len(right.patches) == 3
    assert "500 samples" in figure.get_suptitle()
