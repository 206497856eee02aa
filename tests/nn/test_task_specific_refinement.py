"""TRM against the paper's formula, one task at a time."""

from __future__ import annotations

import pytest
import torch

from mtlfast.nn import TaskSpecificRefinement

T, N, D, MD = 3, 4, 5, 10


def make(**options) -> TaskSpecificRefinement:
    torch.manual_seed(0)
    module = TaskSpecificRefinement(T, N * D, MD, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module


def make_inputs(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sparse = torch.randn(batch, N, D, generator=generator, dtype=torch.float64)
    interest = torch.randn(batch, T, MD, generator=generator, dtype=torch.float64)
    return sparse.requires_grad_(), interest.requires_grad_()


def naive(module: TaskSpecificRefinement, sparse: torch.Tensor, interest: torch.Tensor):
    """Eq. 9 for one task after the other."""
    raws, refined = [], []
    for t in range(T):
        raw = torch.cat((sparse.flatten(1), interest[:, t]), dim=-1)
        weight1 = torch.cat((module.sparse_weight[t], module.interest_weight[t]), dim=-1)
        hidden = torch.relu(raw @ weight1.T + module.bias1[t])
        gate = torch.sigmoid(hidden @ module.weight2[t].T + module.bias2[t])
        raws.append(raw)
        refined.append(raw * gate)
    return torch.stack(raws, 1), torch.stack(refined, 1)


@pytest.mark.parametrize("options", [{}, {"hidden_dim": 1}, {"hidden_dim": 40}, {"reduction": 2}])
def test_equals_the_formula_with_gradients(options):
    module = make(**options)
    inputs = make_inputs()
    leaves = [*inputs, *module.parameters()]
    raw, refined = module(*inputs, return_raw=True)
    expected_raw, expected = naive(module, *inputs)
    assert torch.equal(raw, expected_raw)
    torch.testing.assert_close(refined, expected)
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((refined * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_sizes():
    module = TaskSpecificRefinement(T, N * D, MD)
    assert module.output_dim == N * D + MD
    assert module.hidden_dim == (N * D + MD) // 4
    assert TaskSpecificRefinement(1, 1, 1).hidden_dim == 1
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {
        "sparse_weight": (T, 7, 20),
        "interest_weight": (T, 7, 10),
        "bias1": (T, 7),
        "weight2": (T, 30, 7),
        "bias2": (T, 30),
    }


def test_flat_and_unflattened_fields_agree():
    module = make()
    sparse, interest = make_inputs()
    refined = module(sparse, interest)
    assert refined.shape == (6, T, module.output_dim)
    assert torch.equal(module(sparse.flatten(1), interest), refined)


def test_the_result_lies_task_by_task():
    """The heads rely on it to read the result without a copy."""
    assert make()(*make_inputs()).transpose(0, 1).is_contiguous()


def test_gates_start_near_one_half():
    torch.manual_seed(0)
    module = TaskSpecificRefinement(T, N * D, MD).double()
    sparse, interest = make_inputs()
    raw, refined = module(0.01 * sparse, 0.01 * interest, return_raw=True)
    torch.testing.assert_close(refined / raw, torch.full_like(raw, 0.5), rtol=0, atol=0.05)


def test_gradcheck():
    module = make(hidden_dim=3)
    assert torch.autograd.gradcheck(module, make_inputs(2))


def test_bfloat16_autocast():
    module = make().float()
    sparse, interest = (x.detach().float() for x in make_inputs())
    exact = module(sparse, interest)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(sparse, interest)
    torch.testing.assert_close(low.float(), exact, rtol=0.03, atol=0.03)


def test_empty_batch():
    sparse, interest = make_inputs(0)
    assert make()(sparse, interest).shape == (0, T, N * D + MD)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="num_tasks: expected a positive int, found 0"):
        TaskSpecificRefinement(0, 1, 1)
    with pytest.raises(ValueError, match="hidden_dim: expected a positive int, found 0"):
        TaskSpecificRefinement(1, 1, 1, hidden_dim=0)
    module = make()
    sparse, interest = make_inputs()
    with pytest.raises(ValueError, match=r"sparse: expected shape \[B, 20\] once flattened"):
        module(sparse[:, :2], interest)
    with pytest.raises(ValueError, match=r"interest: expected shape \[6, 3, 10\]"):
        module(sparse, interest[:, :2])
