"""The same probabilities as torch-rechub with the same weights.

Deviations that the tests undo: its multi-layer perceptrons always hold batch norms (also in the
gates), which are taken out here; its gates have biases, set to zero here; AITM's attention is
separate for every task there and shared here (so one task pair is compared).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlfast.heads import AITM, ESMM, PLE, MMoE, ShareBottom

B, D, T = 6, 8, 3
UNITS, TOWER = [5, 4], {"dims": [3]}


@pytest.fixture(scope="module")
def rechub():
    return pytest.importorskip(
        "torch_rechub.models.multi_task",
        reason="torch-rechub is not installed: pip install torch-rechub",
    )


def features():
    from torch_rechub.basic.features import DenseFeature

    return [DenseFeature(f"x{i}") for i in range(D)]


class Given(nn.Module):
    """In place of their embedding layer, which casts numbers to float32."""

    def forward(self, x, features, squeeze_dim=False):
        return torch.stack([x[feature.name] for feature in features], dim=1)


def plain(library):
    """Random weights, no batch norms, gates without biases."""
    torch.manual_seed(0)
    library.embedding = Given()
    library = library.double().eval()
    for module in library.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for parameter in library.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        for name, parameter in library.named_parameters():
            if "gate" in name and "info" not in name and name.endswith("bias"):
                parameter.zero_()
    return library


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def copy_stack(stack, networks):
    with torch.no_grad():
        for g, network in enumerate(networks):
            layers = linears(network)[: len(stack.weights)]
            for weight, bias, layer in zip(stack.weights, stack.biases, layers, strict=True):
                weight[g].copy_(layer.weight)
                bias[g].copy_(layer.bias)


def copy_towers(head, towers):
    copy_stack(head.towers.hidden, towers)
    with torch.no_grad():
        for t, tower in enumerate(towers):
            head.towers.weight[t].copy_(linears(tower)[-1].weight)
            head.towers.bias[t].copy_(linears(tower)[-1].bias[0])


def copy_gates(weight, gates):
    with torch.no_grad():
        for t, gate in enumerate(gates):
            weight[t].copy_(linears(gate)[0].weight)


def check(head, library, columns=slice(None)):
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = library({f"x{i}": x[:, i] for i in range(D)})[:, columns]
    torch.testing.assert_close(head(x).sigmoid(), theirs, rtol=1e-10, atol=1e-12)


TASKS = ["classification"] * T


def test_share_bottom(rechub):
    library = plain(rechub.SharedBottom(features(), TASKS, {"dims": UNITS}, [TOWER] * T))
    head = ShareBottom(D, T, bottom_units=UNITS, tower_units=TOWER["dims"]).double()
    copy_stack(head.bottom, [library.bottom_mlp])
    copy_towers(head, library.towers)
    check(head, library)


def test_mmoe(rechub):
    library = plain(rechub.MMOE(features(), TASKS, 4, {"dims": UNITS}, [TOWER] * T))
    head = MMoE(D, T, num_experts=4, expert_units=UNITS, tower_units=TOWER["dims"]).double()
    copy_stack(head.experts, library.experts)
    copy_gates(head.gate_weight, library.gates)
    copy_towers(head, library.towers)
    check(head, library)


@pytest.mark.parametrize("levels", [1, 2])
def test_ple(rechub, levels):
    library = plain(rechub.PLE(features(), TASKS, levels, 2, 3, {"dims": UNITS}, [TOWER] * T))
    head = PLE(
        D,
        T,
        expert_units=[UNITS] * levels,
        num_task_experts=2,
        num_shared_experts=3,
        tower_units=TOWER["dims"],
    ).double()
    for level, cgc in zip(head.levels, library.cgc_layers, strict=True):
        copy_stack(level.task_experts, cgc.experts_specific)
        copy_stack(level.shared_experts, cgc.experts_shared)
        copy_gates(level.task_gate_weight, cgc.gates_specific)
        if level.shared_gate_weight is not None:
            copy_gates(level.shared_gate_weight, [cgc.gate_shared])
    copy_towers(head, library.towers)
    check(head, library)


def test_aitm(rechub):
    library = plain(rechub.AITM(features(), 2, {"dims": UNITS}, [TOWER] * 2))
    head = AITM(D, 2, bottom_units=UNITS, tower_units=TOWER["dims"]).double()
    copy_stack(head.bottoms, library.bottoms)
    with torch.no_grad():
        gate, attention = linears(library.info_gates[0])[0], library.aits[0]
        head.transfer_weight[0].copy_(gate.weight)
        head.transfer_bias[0].copy_(gate.bias)
        layers = (attention.v_layer, attention.q_layer, attention.k_layer)
        head.attention_weight.copy_(torch.stack([layer.weight for layer in layers]))
    copy_towers(head, library.towers)
    check(head, library)


def test_esmm(rechub):
    """Its columns are pCVR, pCTR, pCTCVR; ours pCTR and pCTCVR."""
    every = features()
    library = plain(rechub.ESMM(every[:3], every[3:], TOWER, TOWER))
    head = ESMM(D, 2, tower_units=TOWER["dims"]).double()
    copy_towers(head, [library.tower_ctr, library.tower_cvr])
    check(head, library, slice(1, 3))
