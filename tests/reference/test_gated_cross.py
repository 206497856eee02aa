"""The definition of ``gated_cross``, network by network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mtlfast.reference import gated_cross


def make(groups: int, rows: int, width: int) -> list[torch.Tensor]:
    shapes = [
        (groups, rows, width),
        (groups, rows, width),
        (groups, 2 * width, width),
        (groups, width),
    ]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def test_is_the_formula_of_every_network() -> None:
    x, x0, weight, bias = make(3, 7, 5)
    out = gated_cross(x, x0, weight, bias)
    for g in range(3):
        value = F.linear(x[g], weight[g, :5], bias[g])
        gate = torch.sigmoid(F.linear(x[g], weight[g, 5:]))
        torch.testing.assert_close(out[g], x0[g] * value * gate + x[g])


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(gated_cross, [t.requires_grad_() for t in make(2, 4, 3)])


@pytest.mark.parametrize(
    ("position", "shape", "argument"),
    [
        (0, (4, 5), "x"),
        (1, (1, 4, 5), "x0"),
        (2, (2, 5, 5), "weight"),
        (3, (2, 10), "bias"),
    ],
)
def test_wrong_shapes_name_the_argument(
    position: int, shape: tuple[int, ...], argument: str
) -> None:
    tensors = make(2, 4, 5)
    tensors[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^{argument}: expected shape"):
        gated_cross(*tensors)
