"""The reference against the equations, PyTorch's layer norm, and finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from layer_norm_cases import HALF, Case, fuzz, make
from torch import Tensor

from mtlfast.reference import conditional_layer_norm


def equations(case: Case) -> Tensor:
    """DTRN Eq. 6, letter by letter."""
    t = case.tensors
    u = t["x"] + t.get("residual", torch.zeros((), dtype=t["x"].dtype))
    mean = u.sum(-1, keepdim=True) / u.shape[-1]
    variance = ((u - mean) ** 2).sum(-1, keepdim=True) / u.shape[-1]
    return t["scale"] * (u - mean) / torch.sqrt(variance + case.eps) + t["shift"]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_equations(seed: int) -> None:
    case = fuzz(seed, torch.float64)
    out = case.call(conditional_layer_norm)
    torch.testing.assert_close(out, equations(case), rtol=1e-11, atol=1e-11)


def test_with_one_table_it_is_the_layer_norm_of_torch() -> None:
    norm = torch.nn.LayerNorm(24)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(7, 3, 24)
    out = conditional_layer_norm(x, norm.weight, norm.bias)
    torch.testing.assert_close(out, norm(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("residual", [None, (3, 1, 6)])
def test_gradients_of_any_order(residual: tuple[int, ...] | None) -> None:
    case = make((3, 2, 6), (2, 6), (3, 1, 6), residual, dtype=torch.float64)
    names = list(case.tensors)

    def function(*tensors: Tensor) -> Tensor:
        return conditional_layer_norm(**dict(zip(names, tensors, strict=True)))

    inputs = tuple(case.tensors.values())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_contiguous_whatever_the_strides() -> None:
    scale = torch.randn(8, 3, 1).permute(1, 2, 0)
    assert conditional_layer_norm(torch.randn(2, 1, 4, 8), scale, scale).is_contiguous()


def test_under_vmap() -> None:
    x, scale, shift = torch.randn(5, 3, 8), torch.randn(5, 8), torch.randn(8)
    out = torch.vmap(conditional_layer_norm, in_dims=(0, 0, None))(x, scale, shift)
    expected = conditional_layer_norm(x, scale[:, None], shift)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    case = make((9, 4, 16), (4, 16), residual=(9, 1, 16), dtype=dtype)
    exact = case.to(torch.float64).call(conditional_layer_norm)
    torch.testing.assert_close(
        case.call(conditional_layer_norm), exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6
    )


DTYPES = [torch.float32, torch.float64, *HALF]


@pytest.mark.parametrize("dtypes", [*itertools.combinations(DTYPES, 2)], ids=str)
def test_mixed_dtypes_promote_as_torch_does(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    a, b = torch.randn(8, dtype=dtypes[0]), torch.randn(8, dtype=dtypes[1])
    for inputs in ((a, b, b), (b, a, b), (b, b, a)):
        assert conditional_layer_norm(*inputs).dtype == torch.promote_types(*dtypes)
    out = conditional_layer_norm(b, b, b, residual=a)
    assert out.dtype == torch.promote_types(*dtypes)


X = torch.randn(4, 3, 8)
TABLE = torch.randn(3, 8)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "x is no tensor": ({"x": [1.0]}, "x: expected a tensor, found list"),
    "x has no dimension": ({"x": torch.tensor(1.0)}, r"x: expected shape \[..., d\]"),
    "x has no columns": ({"x": torch.randn(3, 0)}, r"x: .* d >= 1, found shape \[3, 0\]"),
    "x of integers": ({"x": X.long()}, "x: expected dtype float32, .* found a int64 tensor"),
    "complex scale": ({"scale": TABLE.to(torch.complex64)}, "scale: expected dtype float32"),
    "scale is None": ({"scale": None}, "scale: expected a tensor, found NoneType"),
    "scale is a number": ({"scale": 1.0}, "scale: expected a tensor, found float"),
    "scale has no dimension": ({"scale": torch.tensor(1.0)}, r"scale: expected shape \[..., d = 8"),
    "width of scale": ({"scale": TABLE[:, :4]}, r"scale: .* d = 8\], found shape \[3, 4\]"),
    "width of shift": ({"shift": TABLE[:, :1]}, r"shift: .* d = 8\], found shape \[3, 1\]"),
    "width of residual": ({"residual": X[..., 1:]}, r"residual: .* found shape \[4, 3, 7\]"),
    "rows of scale": (
        {"scale": torch.randn(2, 8)},
        r"scale: .* broadcasts with \[4, 3, 8\] \(x and residual\), found shape \[2, 8\]",
    ),
    "rows of residual": (
        {"residual": torch.randn(3, 3, 8)},
        r"residual: .* with \[4, 3, 8\] \(x\), found shape \[3, 3, 8\]",
    ),
    "rows of shift": (
        {"scale": torch.randn(5, 4, 3, 8), "shift": torch.randn(2, 1, 1, 8)},
        r"shift: .* with \[5, 4, 3, 8\] .* found shape \[2, 1, 1, 8\]",
    ),
    "device": ({"shift": TABLE.to("meta")}, r"shift: expected device cpu .* on meta"),
    "negative eps": ({"eps": -1e-5}, "eps: expected a finite number of at least 0, found -1e-05"),
    "eps is NaN": ({"eps": float("nan")}, "eps: expected a finite number"),
    "eps is a string": ({"eps": "small"}, "eps: expected a float, found str"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        conditional_layer_norm(**{"x": X, "scale": TABLE, "shift": TABLE, **changes})
