"""Multi-valued fields in the analyses: batches of some rows, importance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mtlfast._ranking import Ranking
from mtlfast.analysis import permutation_importance, sample_rows
from mtlfast.analysis.rows import concat_batches, select_rows
from mtlfast.bags import FieldBags
from mtlfast.data import Batch, DatasetSpec
from mtlfast.jagged import JaggedSequences

SPEC = DatasetSpec(
    "bags", ("a", "b", "c"), (5, 50, 50), None, (), (), ("buy",), (None,), (0.5,), (1, 2)
)
ROWS = 90


def rows(seed: int = 0) -> list[tuple[list[int], list[list[tuple[int, float]]], float]]:
    """(ids, lists of the two fields, label) of each row."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(ROWS):
        lists = [
            [(int(rng.integers(1, 50)), float(np.float32(rng.random()))) for _ in range(n)]
            for n in rng.integers(0, 4, 2)
        ]
        ids = [int(rng.integers(1, 5)), *(x[-1][0] if x else 0 for x in lists)]
        score = sum(k * w for k, w in lists[0]) / 50 - sum(k * w for k, w in lists[1]) / 200
        made.append((ids, lists, float(score + rng.normal() / 4 > 0.3)))
    return made


def make_batch(some, weighted: bool = True) -> Batch:
    entries = [x for g in range(2) for _, lists, _ in some for x in lists[g]]
    lengths = torch.tensor([[len(lists[g]) for _, lists, _ in some] for g in range(2)])
    bags = FieldBags(
        JaggedSequences.from_lengths(torch.tensor([k for k, _ in entries]).long(), lengths),
        torch.tensor([w for _, w in entries]) if weighted else None,
    )
    ids = torch.tensor([ids for ids, _, _ in some])
    return Batch(ids, None, torch.tensor([[y] for *_, y in some]), bags=bags)


def lists_of(batch: Batch) -> list[list[list[tuple[int, float]]]]:
    assert batch.bags is not None
    ids, weights = batch.bags
    values = torch.ones(len(ids.values)) if weights is None else weights
    pairs = list(zip(ids.values.tolist(), values.tolist(), strict=True))
    ends = ids.offsets.tolist()
    n = len(batch)
    return [[pairs[ends[g * n + i] : ends[g * n + i + 1]] for g in range(2)] for i in range(n)]


class Model(nn.Module):
    def forward(self, sparse, sequences, user_index, bags):
        sums = torch.zeros(2 * len(sparse), dtype=torch.float64)
        weights = 1.0 if bags.weights is None else bags.weights
        sums.index_add_(0, bags.ids.segment_ids(), bags.ids.values.double() * weights)
        first, second = sums.view(2, -1)
        return (first - 0.25 * second + 0.01 * sparse[:, 2]).unsqueeze(1)


@pytest.mark.parametrize("weighted", [True, False])
def test_some_rows_and_all_of_several_batches(weighted):
    every = rows()
    whole = make_batch(every, weighted)
    chosen = [5, 80, 5, 0, 31]
    picked, wanted = (
        select_rows(whole, torch.tensor(chosen)),
        make_batch([every[i] for i in chosen], weighted),
    )
    assert lists_of(picked) == lists_of(wanted)
    joined = concat_batches([make_batch(every[:40], weighted), make_batch(every[40:], weighted)])
    assert lists_of(joined) == lists_of(whole)
    sample = sample_rows([make_batch(every[:40], weighted), make_batch(every[40:], weighted)], 200)
    assert lists_of(sample) == lists_of(whole)


def test_lists_are_permuted_as_a_whole():
    every = rows()
    batches = [make_batch(every[:37]), make_batch(every[37:])]
    found = permutation_importance(Model(), batches, SPEC, repeats=2, seed=4, memory=1)
    labels = np.array([y for *_, y in every]) > 0.5

    def auc(some):
        batch = make_batch(some)
        return Ranking(Model()(*batch.inputs())[:, 0].numpy(), labels).auc()

    assert found.base[0] == pytest.approx(auc(every), abs=1e-12)
    for g, f in enumerate(SPEC.multi_valued):
        for r in range(2):
            order = np.random.default_rng([4, 0, f, r]).permutation(ROWS)
            some = []
            for i, (ids, lists, label) in enumerate(every):
                ids, lists = list(ids), list(lists)
                ids[f], lists[g] = every[order[i]][0][f], every[order[i]][1][g]
                some.append((ids, lists, label))
            expected = auc(every) - auc(some)
            assert found.drops[f, r, 0] == pytest.approx(expected, abs=1e-12)
            assert abs(expected) > 1e-3
    assert (found.drops[0] == 0).all()
