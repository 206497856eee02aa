"""Models built on the meta device, as sharded training does, then filled from a state_dict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlfast.models import Sizes, available, build

SPEC = Sizes(
    vocab_sizes=(50, 100, 7),
    item_field=1,
    max_lengths=(9, 4),
    task_parents=(None, 0, 0),
    positive_rates=(0.3, 0.1, 0.05),
)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    name: [{"task_weights": [1.0, 2.0, 3.0]}] for name in available()
}
for name in ("dtrn", "mtl"):
    OPTIONS[name].append({"head": {"name": "m2m", "columns": [0, 3]}})
OPTIONS["sequence"].append({"bias_fields": [2]})


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize(
    ("name", "options"), [(name, one) for name, several in OPTIONS.items() for one in several]
)
def test_from_the_meta_device(name: str, options: dict[str, Any]) -> None:
    real = build(name, SPEC, options)
    with torch.device("meta"):
        model = build(name, SPEC, options)
    assert {tensor.device.type for tensor in tensors(model).values()} == {"meta"}
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    for key, tensor in tensors(real).items():
        assert torch.equal(tensors(model)[key], tensor), key


def test_trimmed_gates_keep_their_constants() -> None:
    model: Any = build("dtn", SPEC, {"embed_dim": 4, "output_dim": 8, "interactions": ["gdcn"]})
    gates = model.gates
    gates.keep([0, 2])
    assert gates.group_of.tolist() == [gates.groups[0], gates.groups[1]]
    assert gates.candidates.shape == gates.blocked.shape == (3, 2, 2)
    before = gates.candidates.clone()
    assert torch.equal(gates.double().candidates, before)
