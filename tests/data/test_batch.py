"""Batch: a pytree of tensors."""

import io

import pytest
import torch
from torch.utils import _pytree as pytree

from mtlfast.data import Batch
from mtlfast.jagged import JaggedSequences


def make(user_index: torch.Tensor | None = None) -> Batch:
    sequences = JaggedSequences(torch.arange(5), torch.tensor([0, 2, 2, 4, 5]), 2, 3)
    labels = torch.zeros(2, 1) if user_index is None else torch.zeros(len(user_index), 1)
    return Batch(torch.ones(len(labels), 3, dtype=torch.int64), sequences, labels, user_index)


@pytest.mark.parametrize("user_index", [None, torch.tensor([0, 1, 1])])
def test_pytree_round_trip(user_index: torch.Tensor | None) -> None:
    batch = make(user_index)
    leaves, tree = pytree.tree_flatten(batch)
    again = pytree.tree_unflatten(leaves, tree)
    assert len(again) == len(batch)
    assert torch.equal(again.sequences.values, batch.sequences.values)
    assert again.sequences.num_behaviors == 2
    assert (again.user_index is None) == (user_index is None)


def test_to_moves_every_tensor() -> None:
    batch = make(torch.tensor([0, 1, 1])).to("meta")
    assert batch.user_index is not None
    tensors = (
        batch.sparse,
        batch.labels,
        batch.user_index,
        batch.sequences.values,
        batch.sequences.offsets,
    )
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.sequences.max_len == 3
    assert make().to("meta").user_index is None


def test_saved_batches_load_without_pickle_tricks() -> None:
    file = io.BytesIO()
    torch.save(make(), file)
    file.seek(0)
    batch = torch.load(file, weights_only=True)
    assert torch.equal(batch.sequences.offsets, make().sequences.offsets)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning memory needs CUDA")
def test_pin_memory() -> None:
    assert make().pin_memory().sequences.values.is_pinned()
