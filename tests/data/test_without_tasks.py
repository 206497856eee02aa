"""Leaving tasks out: labels, the tree, and everything else unchanged."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mtlfast.data import DatasetSpec, WithoutTasks, open_source
from mtlfast.data.without_tasks import remove_tasks
from mtlfast.models import build

SMALL = {"num_users": 50, "num_items": 100, "train_samples": 64, "test_samples": 32}
SPEC = DatasetSpec(
    name="funnel",
    fields=("item",),
    vocab_sizes=(9,),
    item_field=0,
    behaviors=("click",),
    max_lengths=(3,),
    tasks=("watch", "click", "enter", "buy"),
    task_parents=(None, 0, 0, 2),
    positive_rates=(0.5, 0.3, 0.2, 0.1),
)


@pytest.mark.parametrize(
    ("tasks", "left", "parents"),
    [
        (["watch"], ("click", "enter", "buy"), (None, None, 1)),
        (["click"], ("watch", "enter", "buy"), (None, 0, 1)),
        (["enter"], ("watch", "click", "buy"), (None, 0, 0)),
        (["buy"], ("watch", "click", "enter"), (None, 0, 0)),
        (["watch", "enter"], ("click", "buy"), (None, None)),
        ([], SPEC.tasks, SPEC.task_parents),
    ],
)
def test_children_follow_what_their_parent_followed(tasks, left, parents):
    spec = remove_tasks(SPEC, tasks)
    assert (spec.tasks, spec.task_parents) == (left, parents)
    rates = dict(zip(SPEC.tasks, SPEC.positive_rates, strict=True))
    assert spec.positive_rates == tuple(rates[task] for task in left)
    same = dataclasses.replace(
        spec, tasks=SPEC.tasks, task_parents=SPEC.task_parents, positive_rates=SPEC.positive_rates
    )
    assert same == SPEC


def test_only_the_labels_change():
    whole = open_source("synthetic:ecommerce", **SMALL)
    source = open_source("synthetic:ecommerce", **SMALL, without_tasks="entering")
    assert isinstance(source, WithoutTasks)
    kept = [t for t, name in enumerate(whole.spec.tasks) if name != "entering"]
    assert len(kept) == 3
    assert source.num_train_samples == 64
    assert source.num_test_samples == 32
    pairs = [(source.train_batch(20, 1, 2), whole.train_batch(20, 1, 2))]
    pairs += zip(source.test_batches(20), whole.test_batches(20), strict=True)
    for batch, expected in pairs:
        assert torch.equal(batch.labels, expected.labels[:, kept])
        assert torch.equal(batch.sparse, expected.sparse)
        assert torch.equal(batch.sequences.values, expected.sequences.values)
    model = build("dtrn", source.spec, {"embed_dim": 4, "head": "aitm"})
    batch = source.test_batch(8, 0)
    assert model(batch.sparse, batch.sequences).shape == (8, 3)


@pytest.mark.parametrize("tasks", [["bye"], list(SPEC.tasks)])
def test_wrong_names_are_refused(tasks):
    with pytest.raises(ValueError, match=r"without_tasks: expected some of watch, .*not all"):
        remove_tasks(SPEC, tasks)


def test_what_was_left_out_while_reading_is_still_told():
    whole = open_source("synthetic:ecommerce", **SMALL)
    whole.skipped, whole.left_out = 3, {"rows of a kind": 2}
    source = WithoutTasks(whole, ["entering"])
    assert (source.skipped, source.left_out) == (3, {"rows of a kind": 2})
