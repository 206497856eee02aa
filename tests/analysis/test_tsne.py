"""Samples, views of every model, and t-SNE of what is known to be apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlfast.analysis import sample_rows, tsne, view_vectors, views_of
from mtlfast.analysis.figures.embedding import draw_embeddings
from mtlfast.models import build

FIMS = ["masknet", {"name": "memonet", "num_codewords": 40}, "gdcn"]
MODELS = {
    "dtn": {"interactions": FIMS, "output_dim": 5},
    "tfi": {"interaction": "gdcn", "output_dim": 5, "modules_per_group": 2},
    "sfm": {"interactions": ["gdcn", "masknet"], "output_dim": 5},
    "mtl": {"head": {"name": "ple", "expert_units": [[6]]}},
    "dtrn": {"embed_dim": 4},
}
VIEWS = {
    "dtn": ["masknet", "memonet", "gdcn", "group-buy", "group-share", "group-shared"],
    "tfi": ["modules"],
    "sfm": ["methods", "towers"],
    "mtl": ["towers"],
    "dtrn": ["interests-click", "interests-like", "bottom", "towers"],
}
PUBLISHED = {
    "dtn": ["masknet", "group-buy"],
    "tfi": ["modules"],
    "sfm": ["methods"],
    "mtl": ["towers"],
    "dtrn": ["interests-click", "bottom"],
}


def make(name, spec):
    torch.manual_seed(0)
    return build(name, spec, {"embed_dim": 4, "init_std": 0.7, **MODELS[name]})


def rows_of(batch):
    return [tuple(row) for row in batch.sparse.tolist()]


def test_a_sample_is_the_same_for_any_batch_size_and_drawn_once(source):
    samples = [sample_rows(source.test_batches(n), 100, seed=3) for n in (500, 64, 7)]
    every = [tuple(row) for row in source.sparse.tolist()]
    for sample in samples:
        assert rows_of(sample) == rows_of(samples[0])
        assert sample.user_index is None
    places = [every.index(row) for row in rows_of(samples[0])]
    assert len(set(places)) == 100
    assert places == sorted(places)
    assert rows_of(sample_rows(source.test_batches(64), 100, seed=4)) != rows_of(samples[0])
    # Its histories are those of the data.
    lengths = samples[0].sequences.lengths()
    np.testing.assert_array_equal(lengths.numpy(), source.lengths[:, places])
    tokens = samples[0].sequences.behavior(0).values
    assert torch.equal(tokens, torch.cat([source.tokens[0][i] for i in places]))


def test_every_row_is_equally_likely(make_source):
    source = make_source(20)
    every = [tuple(row) for row in source.sparse.tolist()]
    counts = np.zeros(20)
    for seed in range(100):
        for row in rows_of(sample_rows(source.test_batches(6), 5, seed=seed)):
            counts[every.index(row)] += 1
    # Binomial(100, 1/4): mean 25, standard deviation 4.3.
    assert counts.sum() == 500
    assert np.abs(counts - 25).max() < 20


@pytest.mark.parametrize("per_user", [1, 3])
def test_a_sample_of_long_histories(make_source, per_user):
    source = make_source(300, per_user)
    sample = sample_rows(source.test_batches(64), 40, behavior=0, min_length=5)
    assert len(sample) == 40
    assert (sample.sequences.lengths()[0] >= 5).all()
    available = int((source.lengths[0, source.user_of] >= 5).sum())
    assert len(sample_rows(source.test_batches(64), 1000, behavior=0, min_length=5)) == available
    assert len(sample_rows(source.test_batches(64), 1000)) == 300
    with pytest.raises(ValueError, match="at least one sample with a sequence of at least 9"):
        sample_rows(source.test_batches(64), 10, behavior=0, min_length=9)


@pytest.mark.parametrize("name", MODELS)
def test_views_of_every_model(source, name):
    model = make(name, source.spec)
    views = views_of(model, source.spec)
    assert [view.name for view in views] == VIEWS[name]
    assert [view.name for view in views if view.published] == PUBLISHED[name]
    samples = sample_rows(source.test_batches(100), 30)
    for view in views:
        series = view_vectors(model, view, samples, batch_size=16)
        whole = view_vectors(model, view, samples)
        assert len({vectors.shape for _, vectors in series}) == 1
        for (label, vectors), (_, at_once) in zip(series, whole, strict=True):
            assert len(vectors) == 30, label
            torch.testing.assert_close(vectors, at_once)
    assert model.training


def test_views_of_dtn_are_its_modules(source):
    model = make("dtn", source.spec).eval()
    samples = sample_rows(source.test_batches(100), 30)
    with torch.no_grad():
        modules = torch.cat(model(samples.sparse, return_modules=True).modules)
    groups, methods = ["buy", "share", "shared"], ["masknet", "memonet", "gdcn"]
    by_name = {view.name: dict(view_vectors(model, view, samples)) for view in
               views_of(model, source.spec)}  # fmt: skip
    for i, key in enumerate(model.module_keys):
        method, group = methods[key.method], groups[key.group]
        torch.testing.assert_close(by_name[method][group], modules[i])
        torch.testing.assert_close(by_name[f"group-{group}"][method], modules[i])


def test_views_of_dtrn_are_its_hooks(source):
    model = make("dtrn", source.spec).eval()
    samples = sample_rows(source.test_batches(100), 30)
    with torch.no_grad():
        out = model(
            samples.sparse, samples.sequences,
            return_interests=True, return_bottom=True, return_task_repr=True,
        )  # fmt: skip
    expected = {
        "interests-click": out.interests[:, :, 0],
        "interests-like": out.interests[:, :, 1],
        "bottom": out.refined,
        "towers": out.task_repr,
    }
    for view in views_of(model, source.spec):
        for t, (task, vectors) in enumerate(view_vectors(model, view, samples)):
            assert task == source.spec.tasks[t]
            torch.testing.assert_close(vectors, expected[view.name][:, t])


def test_tsne_keeps_apart_what_is_apart_and_repeats():
    rng = np.random.default_rng(0)
    centers = 20 * rng.standard_normal((3, 8))
    series = [
        (str(i), torch.from_numpy(center + rng.standard_normal((30, 8))).float())
        for i, center in enumerate(centers)
    ]
    points = tsne(series, seed=1, perplexity=10)
    assert [len(p) for p in points] == [30, 30, 30]
    every, label = np.concatenate(points), np.repeat([0, 1, 2], 30)
    distances = np.linalg.norm(every[:, None] - every[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (label[distances.argmin(axis=1)] == label).all()
    for one, other in zip(points, tsne(series, seed=1, perplexity=10), strict=True):
        np.testing.assert_array_equal(one, other)
    figure = draw_embeddings({"clusters": {name: p for (name, _), p in zip(series, points)}})  # noqa: B905
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        (torch.zeros(4, 3), "expected at least 5 vectors, found 4"),
        (torch.ones(9, 3), "vectors that differ, found all equal"),
        (torch.full((9, 3), float("nan")), "finite vectors, found NaN"),
    ],
)
def test_tsne_of_nothing(vectors, text):
    with pytest.raises(ValueError, match=text):
        tsne([("a", vectors)])


def test_a_model_without_views_says_so(source):
    with pytest.raises(ValueError, match=r"model: expected a model with interactions, .* Linear"):
        views_of(torch.nn.Linear(1, 1), source.spec)
