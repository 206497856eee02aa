"""Modules built on the meta device: nothing is lost that no ``state_dict`` brings back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtlfast.interactions import FiBiNET, MemoNetInteraction
from mtlfast.nn import ConditionalTransformer, FeatureEmbedding, FieldEmbedding, MultiHashCodebook
from mtlfast.sequence import JaggedPositionEncoding

MODULES: dict[str, Callable[[], nn.Module]] = {
    "codebook": lambda: MultiHashCodebook(
        4, 10, 8, 8, restoring="attentive", shrinking="softmax", orders=(2, 3)
    ),
    "memonet": lambda: MemoNetInteraction(4, 8, selected=[0, 2, 3]),
    "fibinet": lambda: FiBiNET(4, 8),
    "fields": lambda: FieldEmbedding([3, 4, 5], 8, multi_valued=[1]),
    "features": lambda: FeatureEmbedding(
        [3, 4], 8, item_field=0, num_behaviors=2, share_item_table=False
    ),
    "positions": lambda: JaggedPositionEncoding("sinusoidal", 2, 5, 8),
    "transformer": lambda: ConditionalTransformer(8, 2, 16, 2, 2),
}


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("name", MODULES)
def test_from_the_meta_device(name: str) -> None:
    real = MODULES[name]()
    with torch.device("meta"):
        module = MODULES[name]()
    assert {tensor.device.type for tensor in tensors(module).values()} == {"meta"}
    for tensor in tensors(module.to_empty(device="cpu")).values():
        assert tensor.device.type == "cpu"
    module.load_state_dict(real.state_dict())
    for key, tensor in tensors(real).items():
        assert torch.equal(tensors(module)[key], tensor), key


def test_they_move_and_change_their_dtype_as_buffers_do() -> None:
    module = JaggedPositionEncoding("sinusoidal", 2, 5, 8)
    table = module.table
    for moved in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.double()):
        assert torch.equal(moved.table, table.to(moved.table.dtype))
    assert module.table.dtype == torch.float64
    assert module.to("meta").table.is_meta
