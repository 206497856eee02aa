"""Every baseline computes what the reference computes, in float64 to the last digits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks.baselines import conditional_interest as baselines
from benchmarks.baselines import conditional_layer_norm, gated_cross, multi_hash_lookup
from benchmarks.cases import Case, serving_case, training_case
from benchmarks.inputs import EPS, InterestInputs, interest_inputs
from mtlfast import reference
from mtlfast.jagged import JaggedSequences

TINY = training_case("tenrec", 8, batch=12, users=12)
CASES = {
    "own histories": TINY,
    "long": training_case("ecommerce", 8, batch=5, users=5, lengths="max"),
    "wide": training_case("ecommerce", 32, batch=6, users=6, num_heads=4),
    "heavy tailed": replace(TINY, lengths="heavy_tailed"),
    "serving": serving_case("ecommerce", 8, candidates=9),
    "several candidates": training_case("tenrec", 8, batch=12, users=4),
}


def _results(function, inputs: InterestInputs) -> list[torch.Tensor]:
    inputs = inputs.requiring_grad()
    out = function(
        inputs.sequences,
        inputs.target,
        inputs.weights,
        inputs.scale,
        inputs.shift,
        num_heads=inputs.num_heads,
        eps=EPS,
        user_index=inputs.user_index,
    )
    leaves = list(inputs.differentiable().values())
    return [out, *torch.autograd.grad(out, leaves, inputs.grad_out, materialize_grads=True)]


def _assert_same(name: str, inputs: InterestInputs) -> None:
    expected = _results(reference.conditional_interest, inputs)
    for found, wanted in zip(_results(getattr(baselines, name), inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


NAMES = ("naive", "batched", "repeated", "ragged", "ragged_flat")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients(name: str, case: Case) -> None:
    _assert_same(name, interest_inputs(case).to(torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_uneven_candidates_and_users_without_any(name: str) -> None:
    inputs = interest_inputs(training_case("tenrec", 8, batch=10, users=5)).to(torch.float64)
    index = torch.tensor([4, 0, 4, 4, 1, 0, 4, 1, 4, 4])
    _assert_same(name, replace(inputs, user_index=index))


@pytest.mark.parametrize("name", NAMES)
def test_all_sequences_empty(name: str) -> None:
    inputs = interest_inputs(TINY).to(torch.float64)
    empty = JaggedSequences.from_lengths(
        inputs.sequences.values[:0], torch.zeros(5, TINY.users, dtype=torch.long)
    )
    _assert_same(name, replace(inputs, sequences=empty))


@pytest.mark.parametrize("hidden_floats", [1, 200, 1 << 30])
def test_ragged_in_blocks_of_any_size(hidden_floats: int) -> None:
    inputs = interest_inputs(TINY).to(torch.float64)

    def ragged(*args, **kwargs):
        return baselines.ragged(*args, **kwargs, hidden_floats=hidden_floats)

    for found, wanted in zip(
        _results(ragged, inputs), _results(reference.conditional_interest, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_gated_cross() -> None:
    torch.manual_seed(0)
    shapes = ((2, 7, 6), (2, 7, 6), (2, 12, 6), (2, 6))
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = reference.gated_cross(*inputs)
    for baseline in (gated_cross.eager, gated_cross.modules):
        torch.testing.assert_close(baseline(*inputs), expected)


def test_layer_norm() -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(3, 7, 8, dtype=torch.float64) for _ in range(2))
    scale, shift = (torch.randn(3, 1, 8, dtype=torch.float64) for _ in range(2))
    found = conditional_layer_norm.eager(x, scale, shift, residual=residual)
    u = x + residual
    centered = u - u.mean(-1, keepdim=True)
    expected = scale * centered / (u.var(-1, unbiased=False, keepdim=True) + EPS).sqrt() + shift
    torch.testing.assert_close(found, expected)


FACTORIES = (torch.arange, torch.empty, torch.full, torch.ones, torch.tensor, torch.zeros)


class _NamingTheDevice(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in FACTORIES or "device" in (kwargs or {}), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["own histories", "several candidates"])
def test_what_a_gpu_times_names_the_device_of_its_tensors(name: str) -> None:
    """It runs outside torch.device(), which makes every call of torch slower."""
    inputs, ids = interest_inputs(CASES[name]), torch.zeros(3, 4, dtype=torch.int64)
    codebook, weights = torch.randn(9, 5), torch.randn(3, 6)
    with _NamingTheDevice():
        for function in (baselines.batched, baselines.ragged):
            _results(function, inputs)
        layout = multi_hash_lookup.layout(4)
        for function in (multi_hash_lookup.eager, multi_hash_lookup.bag):
            function(ids, codebook, weights, layout=layout, num_hashes=2)
        conditional_layer_norm.eager(codebook, codebook[0], codebook[1])
