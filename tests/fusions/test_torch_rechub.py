"""torch-rechub's MMOE before and after fuse_: the same numbers, state and objects."""

from __future__ import annotations

import copy
import re
import runpy
import sys
from pathlib import Path

import pytest
import tolerance
import torch
from torch import nn

from mtlfast import fuse_, unfuse_
from mtlfast.fusions import stacked_mlps

pytest.importorskip(
    "torch_rechub.models.multi_task",
    reason="torch-rechub is not installed: pip install torch-rechub",
)

from torch_rechub.basic.features import DenseFeature
from torch_rechub.models.multi_task import MMOE

B, D, T = 2048, 12, 2
TASKS = ["classification", "regression"]
TOWERS = [{"dims": [4]}] * T


class Given(nn.Module):
    """In place of their embedding layer, which casts numbers to float32."""

    def forward(self, x, features, squeeze_dim=False):
        return x


def features():
    return [DenseFeature(f"x{i}") for i in range(D)]


def mmoe(towers=TOWERS, num_experts=4, **experts):
    return MMOE(features(), TASKS, num_experts, {"dims": [9, 6], **experts}, towers)


def started(model, seed=0):
    """Random weights and statistics, so that nothing is at its special start."""
    generator = torch.Generator().manual_seed(seed)
    model.embedding = Given()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else 0.5 * noise)
                if name.endswith("weight") and tensor.dim() == 1:
                    tensor.add_(1)
    return model


def batch(rows=B, dtype=torch.float32):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(5)).to(dtype)


def results(model, x):
    """Output, gradients and buffers after one step.

    Gradients of what one product computes are one tensor: those of a layer of all experts.
    """
    generator = torch.Generator().manual_seed(6)
    x = x.clone().requires_grad_()
    out = model(x)
    upstream = torch.randn(out.shape, generator=generator).to(out.dtype)
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad((out * upstream).sum(), (x, *parameters))
    found = {"out": out.detach(), "x": grads[0]}
    layers: dict[str, list[torch.Tensor]] = {}
    for name, grad in zip(names, grads[1:], strict=True):
        layers.setdefault(re.sub(r"\.\d+\.", ".*.", name, count=1), []).append(grad.flatten())
    found |= {name: torch.cat(grads) for name, grads in layers.items()}
    return found, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("widest", [0, 8, 64])  # one by one, some of each, all stacked
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("towers", [TOWERS, [{"dims": [4]}, {"dims": [5, 3]}]], ids=str)
def test_the_same_results(towers, training, widest, monkeypatch):
    monkeypatch.setattr(stacked_mlps, "_WIDEST_IN_TRAINING", widest)
    plain = started(mmoe(towers)).train(training)
    fused, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fuse_(fused, strict=True)
    true, true_buffers = results(truth, batch(dtype=torch.float64))
    expected, buffers = results(plain, batch())
    found, found_buffers = results(fused, batch())
    # A bias before a norm of batch statistics has no gradient: what is there is rounding alone.
    floor = 1e-6 * max(float(tensor.abs().max()) for tensor in true.values())
    checked = 0
    for name, tensor in found.items():
        if training and float(true[name].norm()) < floor:
            assert float(tensor.norm()) < 100 * floor
            continue
        checked += 1
        factor = tolerance.FORWARD if name == "out" else tolerance.BACKWARD
        tolerance.check(name, tensor, expected[name], true[name], factor)
    assert checked >= 16
    for name, buffer in found_buffers.items():
        if buffer.is_floating_point():
            truth_of = true_buffers[name]
            tolerance.check(name, buffer, buffers[name], truth_of, tolerance.FORWARD)
        else:
            assert torch.equal(buffer, buffers[name])  # num_batches_tracked


@torch.no_grad()
@pytest.mark.parametrize("towers", [TOWERS, [{"dims": [4]}, {"dims": [5, 3]}]], ids=str)
def test_the_same_results_with_norms_folded(towers):
    plain = started(mmoe(towers)).eval()
    fused, truth = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fuse_(fused, strict=True)
    true = truth(batch(dtype=torch.float64))
    tolerance.check("out", fused(batch()), plain(batch()), true, tolerance.FORWARD)
    assert not torch.equal(fused(batch()), plain(batch()))  # they are computed differently


def test_everything_comes_back():
    model = started(mmoe())
    state = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in model.modules()]
    fuse_(model)
    assert isinstance(model, MMOE)
    assert model.task_types == TASKS
    fused_state = model.state_dict(keep_vars=True)
    assert {name: id(tensor) for name, tensor in fused_state.items()} == state
    optimizer = torch.optim.Adam(model.parameters())
    model(batch()).sum().backward()
    optimizer.step()
    model.eval()
    expected = model(batch())
    loaded = copy.deepcopy(model)
    for one in (model, loaded):
        unfuse_(one)
        assert [type(module) for module in one.modules()] == classes
        torch.testing.assert_close(one(batch()), expected)


@torch.no_grad()
@pytest.mark.parametrize("case", ["few rows", "float64", "autocast"])
def test_what_gains_nothing_takes_the_originals_steps(case):
    dtype = torch.float64 if case == "float64" else torch.float32
    plain = started(mmoe()).eval()
    fused = copy.deepcopy(plain)
    fuse_(fused, strict=True)
    plain, fused = plain.to(dtype), fused.to(dtype)
    x = batch(8 if case == "few rows" else B, dtype)
    with torch.autocast("cpu", enabled=case == "autocast"):
        assert torch.equal(fused(x), plain(x))


def test_norms_of_different_modes_run_one_by_one():
    plain = started(mmoe())
    plain.experts[1].mlp[1].eval()  # a frozen norm
    fused = copy.deepcopy(plain)
    fuse_(fused)
    torch.testing.assert_close(fused(batch()), plain(batch()))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_dropout():
    plain = started(mmoe(dropout=0.3))
    fused = copy.deepcopy(plain)
    fuse_(fused, strict=True)
    torch.manual_seed(0)
    rows = fused(batch(4096))
    assert not torch.equal(rows, fused(batch(4096)))  # it is random
    mean = torch.stack([plain(batch(4096)).mean(0) for _ in range(3)]).mean(0)
    torch.testing.assert_close(rows.mean(0), mean, rtol=0.05, atol=0.05)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused.eval()(batch()), plain.eval()(batch()))


@pytest.mark.parametrize("training", [True, False])
def test_compiles(training):
    plain = started(mmoe()).train(training)
    fused = copy.deepcopy(plain)
    fuse_(fused)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(compiled(batch()), plain(batch()))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def _other_norm(model):
    model.experts[1].mlp[1].eps = 1e-3


def _no_momentum(model):
    model.experts[0].mlp[1].momentum = None


def _hooked(model):
    model.experts[0].mlp[0].register_forward_hook(print)


def _empty(model):
    model.gates = nn.ModuleList()


@pytest.mark.parametrize(
    ("model", "change", "reason"),
    [
        (lambda: mmoe(activation="sigmoid"), None, "experts: Sigmoid is no part"),
        (lambda: mmoe(activation="prelu"), None, "experts: PReLU"),
        (mmoe, _other_norm, "experts: its perceptrons differ"),
        (mmoe, _no_momentum, "experts: a batch norm without momentum"),
        (mmoe, _hooked, "'experts.0.mlp.0' inside has hooks"),
        (mmoe, _empty, "gates: it has no perceptrons"),
        (lambda: mmoe(num_experts=3), None, "fewer than 4 experts"),
        (lambda: mmoe().double(), None, "float64"),
    ],
)
def test_reasons(model, change, reason):
    model = model()
    if change is not None:
        change(model)
    assert reason in fuse_(model).kept[0].reason
    assert type(model) is MMOE


def test_another_version_is_a_reason(monkeypatch):
    monkeypatch.setattr(MMOE, "forward", lambda self, x: x)
    assert "is not that of torch-rechub" in fuse_(mmoe()).kept[0].reason


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([nn.ReLU()], "starts with ReLU"),
        ([nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2)], "does not follow a linear map"),
        ([nn.Linear(2, 2), nn.Dropout(), nn.ReLU()], "an activation does not follow"),
        ([nn.Linear(2, 2), nn.Dropout(), nn.Dropout()], "two dropouts"),
        ([nn.Linear(2, 2), nn.Softmax(dim=0)], "Softmax is no part"),
        ([nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)], "batch norm without"),
    ],
)
def test_perceptrons_that_it_does_not_know(parts, reason):
    assert reason in stacked_mlps.why_not([nn.Sequential(*parts)])


def test_perceptrons_without_norms_or_biases():
    networks = [
        nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3))
        for _ in range(4)
    ]
    assert stacked_mlps.why_not(networks) == ""
    for network in networks:
        network.eval()
    x = torch.randn(2, 7, 5)
    found = stacked_mlps.run(networks, x, "reference")
    expected = torch.stack([network(x[g // 2]) for g, network in enumerate(networks)])
    torch.testing.assert_close(found, expected)


def test_a_norm_folds_into_a_map_without_bias():
    network = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU()).eval()
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    x = torch.randn(1, 7, 5)
    found = stacked_mlps.run([network], x, "auto")
    torch.testing.assert_close(found[0], network(x[0]))


def test_the_example_runs(monkeypatch, capsys):
    script = Path(__file__).resolve().parents[2] / "examples" / "fuse_torch_rechub.py"
    sizes = ["--batch", "64", "--input-dim", "8", "--units", "6", "4", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), *sizes])
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    assert "FusedMMOE" in out
    assert "inference: " in out
