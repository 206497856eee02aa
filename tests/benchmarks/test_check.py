"""What is wrong is refused."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.cases import serving_case, training_case
from benchmarks.check import judge, reference_result, split_by_user
from benchmarks.inputs import EPS, interest_inputs
from mtlfast import reference

TRUTH = {"out": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)}
PLAIN = {"out": 1e-6}


def _judge(found: torch.Tensor, factor: float = 2.0):
    return judge({"out": found}, TRUTH, PLAIN, factor)


def test_accepts_what_plain_pytorch_could_have_computed() -> None:
    verdict = _judge(TRUTH["out"].float() * (1 + 1.5e-6))
    assert not verdict.failure
    assert verdict.error == pytest.approx(1.5e-6, rel=0.1)


@pytest.mark.parametrize(
    ("found", "failure"),
    [
        (TRUTH["out"].float() * (1 + 4e-6), r"out: error 4\.\de-06 where 2\.0e-06 is allowed"),
        (torch.tensor([1.0, float("nan"), 3.0]), "out: error nan"),
        (torch.zeros(2), r"out: expected shape \[3\], found \[2\]"),
    ],
)
def test_refuses(found: torch.Tensor, failure: str) -> None:
    assert re.match(failure, _judge(found).failure)


def test_refuses_a_missing_gradient() -> None:
    assert "found nothing" in judge({}, TRUTH, PLAIN, 2.0).failure


@pytest.mark.parametrize(
    "case",
    [
        training_case("tenrec", 8, batch=9, users=9),
        training_case("ecommerce", 8, batch=9, users=3),
        serving_case("tenrec", 8, candidates=4),
    ],
    ids=lambda case: case.name,
)
def test_parts_add_up_to_the_whole(case) -> None:
    inputs = interest_inputs(case).to(torch.float64)
    parts = list(split_by_user(inputs, most_tokens=40))
    assert len(parts) == case.users or case.users > 3
    leaves = inputs.requiring_grad()
    out = reference.conditional_interest(
        leaves.sequences,
        leaves.target,
        leaves.weights,
        leaves.scale,
        leaves.shift,
        num_heads=leaves.num_heads,
        eps=EPS,
        user_index=leaves.user_index,
    )
    named = leaves.differentiable()
    expected = torch.autograd.grad(out, list(named.values()), inputs.grad_out)
    found = reference_result(inputs, "training", torch.float64)
    torch.testing.assert_close(found["out"], out.detach())
    for name, grad in zip(named, expected, strict=True):
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-9)
