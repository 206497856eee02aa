"""The reference of ``stacked_linear`` against one ``nn.functional.linear`` per map."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mtlfast.reference import stacked_linear


@pytest.mark.parametrize(("streams", "groups"), [(1, 1), (1, 3), (4, 4), (2, 6)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_each_map_reads_its_own_stream(
    streams: int, groups: int, relu: bool, has_bias: bool
) -> None:
    x = torch.randn(streams, 7, 5, dtype=torch.float64)
    weight = torch.randn(groups, 3, 5, dtype=torch.float64)
    bias = torch.randn(groups, 3, dtype=torch.float64) if has_bias else None
    out = stacked_linear(x, weight, bias, relu=relu)
    for g in range(groups):
        expected = F.linear(
            x[g // (groups // streams)], weight[g], None if bias is None else bias[g]
        )
        torch.testing.assert_close(out[g], expected.relu() if relu else expected)


def test_gradcheck() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stacked_linear, (x, weight, bias))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "argument"),
    [
        ((4, 5), (2, 3, 5), None, "x"),
        ((1, 4, 5), (2, 3, 6), None, "weight"),
        ((1, 4, 5), (3, 5), None, "weight"),
        ((2, 4, 5), (3, 3, 5), None, "weight"),
        ((1, 4, 5), (2, 3, 5), (3, 2), "bias"),
    ],
)
def test_wrong_shapes_name_the_argument(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, argument: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        stacked_linear(
            torch.zeros(x), torch.zeros(weight), None if bias is None else torch.zeros(bias)
        )
