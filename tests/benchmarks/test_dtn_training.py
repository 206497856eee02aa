"""The plain DTN is the same model, so that its time can be compared; and an independent check."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines.dtn import PlainDTN
from benchmarks.cases import Case
from benchmarks.dtn_training import DTNTrainingWorkload
from mtlfast.models import DTN, DTNConfig, Sizes

METHODS = [
    {"name": "masknet", "block_units": [7], "agg_dim": 6},
    {"name": "memonet", "num_codewords": 40},
    {"name": "gdcn"},
]


@pytest.mark.parametrize("parents", [(None,), (None, 0), (None, 0, 1)])
def test_the_plain_model_computes_the_same(parents):
    torch.manual_seed(0)
    spec = Sizes((9, 30, 7, 12), None, (), parents)
    config = DTNConfig.from_dict(
        {"embed_dim": 4, "output_dim": 5, "interactions": METHODS, "init_std": 0.5}
    )
    model = DTN(spec, config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "embedding.weight":
                parameter.add_(0.3 * torch.randn_like(parameter))
    plain = PlainDTN(model)
    ids = torch.stack([torch.randint(0, n, (20,)) for n in spec.vocab_sizes], dim=1)
    labels = torch.rand(20, len(parents)).round().double()
    torch.testing.assert_close(plain(ids), model(ids), rtol=1e-9, atol=1e-10)
    losses = [m.loss(m(ids), labels) for m in (model, plain)]
    model.zero_grad()
    for loss in losses:
        loss.backward()
    tables = torch.cat([table.weight.grad for table in plain.tables])
    torch.testing.assert_close(tables, model.embedding.weight.grad, rtol=1e-8, atol=1e-10)
    # The same number of weights, and gradients of the same size.
    totals = [
        torch.stack([p.grad.square().sum() for p in m.parameters()]).sum() for m in (model, plain)
    ]
    torch.testing.assert_close(*totals)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, plain)]
    assert counts[0] == counts[1]


def test_the_workload_checks_what_it_times():
    workload = DTNTrainingWorkload(
        Case("dtn_training", "fields", d=4, batch=8, num_tasks=2), sets=1
    )
    for backend in workload.backends("training"):
        assert workload.variant(backend, "training")(0) > 0
        assert workload.check(backend, "training", None).failure == ""
    with torch.no_grad():
        workload._small.gates.bias[0, 0] += 1.0
    assert "out" in workload.check("fused", "training", None).failure
