"""The CUDA C++ sources, compiled as plain C++ and run on CPU tensors, against the definition.

Host code and kernels are those of the GPU; only warps, barriers and launches are emulated
(csrc/common/cuda_emulation.h). Races and speed are for a real GPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tolerance
import torch
from gpu import poisoned_memory  # noqa: F401 (a fixture)
from layer_norm_cases import HALF, NAMES, Case, fuzz, make, plain
from torch import Tensor

from mtlfast import _extension, reference
from mtlfast.ops.conditional_layer_norm import DTYPES

pytestmark = [
    pytest.mark.skipif(not _extension.cpu_ops_available(), reason="built without the C++ part"),
    pytest.mark.usefixtures("poisoned_memory"),
]


def inputs_of(case: Case) -> list[Tensor | None]:
    return [None if n not in case.tensors else case.tensors[n].detach() for n in NAMES]


def check_tolerance(emulated: Any, case: Case, needed: tuple[bool, ...] = (True,) * 4) -> None:
    exact_case = case.to(torch.float64)
    exact, in_dtype = exact_case.call(reference.conditional_layer_norm), case.call(plain)
    inputs = inputs_of(case)
    out, mean, rstd = emulated.conditional_layer_norm_forward(
        *inputs, case.eps, DTYPES.index(in_dtype.dtype), True
    )
    tolerance.check("out", out, in_dtype, exact, tolerance.FORWARD)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(exact.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    found = emulated.conditional_layer_norm_backward(upstream, *inputs, mean, rstd, *needed)
    plain_grads = case.gradients(in_dtype, upstream)
    truths = exact_case.gradients(exact, upstream.double())
    for name, gradient, need in zip(NAMES, found, needed, strict=True):
        if name not in case.tensors or not need:
            assert gradient.numel() == 0, name
            continue
        assert gradient.dtype == case.tensors[name].dtype, name
        tolerance.check(name, gradient, plain_grads[name], truths[name], tolerance.BACKWARD)


SMALL = [seed for seed in range(60) if sum(t.numel() for t in fuzz(seed).tensors.values()) < 6_000]


@pytest.mark.parametrize("seed", SMALL)
def test_fuzzed_float32(seed: int, emulated: Any) -> None:
    check_tolerance(emulated, fuzz(seed))


@pytest.mark.parametrize(("dtype", "seed"), [*itertools.product(HALF, SMALL[:6])])
def test_fuzzed_half(dtype: torch.dtype, seed: int, emulated: Any) -> None:
    check_tolerance(emulated, fuzz(seed, dtype))


@pytest.mark.parametrize("d", [1, 4, 16, 17, 32, 64, 100, 128, 256, 513, 1024])
def test_every_width_of_group(d: int, emulated: Any) -> None:
    check_tolerance(emulated, make((21, d), (d,), residual=(21, d)))


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "tokens": {"x": (11, 3, 2, 32), "scale": (3, 2, 32)},
    "shared by the tasks": {"x": (11, 1, 2, 32), "scale": (3, 2, 32), "residual": (11, 1, 2, 32)},
    "item as residual": {"x": (11, 3, 2, 32), "scale": (3, 2, 32), "residual": (11, 1, 1, 32)},
    "one table, several blocks": {"x": (700, 16), "scale": (16,)},
    "a table each": {"x": (50, 32), "scale": (50, 32)},
    "scale and shift differ": {"x": (11, 3, 2, 32), "scale": (2, 32), "shift": (11, 3, 1, 32)},
    "tangled": {
        "x": (2, 1, 3, 1, 2, 5),
        "scale": (2, 2, 1, 3, 1, 5),
        "shift": (1, 2, 3, 1, 2, 5),
        "residual": (2, 1, 1, 1, 2, 5),
    },
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_typical_shapes(name: str, dtype: torch.dtype, emulated: Any) -> None:
    check_tolerance(emulated, make(**SHAPES[name], dtype=dtype))


@pytest.mark.parametrize("needed", [*itertools.product([False, True], repeat=4)])
def test_only_the_gradients_that_are_wanted(needed: tuple[bool, ...], emulated: Any) -> None:
    check_tolerance(emulated, make((9, 3, 24), (3, 24), residual=(9, 3, 24)), needed)
    check_tolerance(emulated, make((9, 1, 24), (3, 24), residual=(9, 1, 24)), needed)


def test_mixed_dtypes(emulated: Any) -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    case = make((9, 3, 24), (3, 24), residual=(9, 1, 24))
    tensors = {
        name: case.tensors[name].detach().to(dtype).requires_grad_()
        for name, dtype in zip(NAMES, dtypes, strict=True)
    }
    check_tolerance(emulated, Case(tensors))


def test_strides_change_nothing(emulated: Any) -> None:
    case = make((20, 3, 2, 24), (3, 2, 24), residual=(20, 1, 1, 24))
    forward, backward = (
        emulated.conditional_layer_norm_forward,
        emulated.conditional_layer_norm_backward,
    )
    inputs = inputs_of(case)
    out, mean, rstd = forward(*inputs, 1e-5, 0, True)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    expected = backward(upstream, *inputs, mean, rstd, True, True, True, True)

    def turned(t: Tensor) -> Tensor:
        return t.movedim(-1, 0).contiguous().movedim(0, -1)

    def apart(t: Tensor) -> Tensor:
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"))
        wide[..., 1:-2] = t
        return wide[..., 1:-2]

    for change in (turned, apart):
        other = [change(t) for t in inputs if t is not None]
        assert torch.equal(forward(*other, 1e-5, 0, True)[0], out)
        found = backward(change(upstream), *other, mean, rstd, True, True, True, True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    spread = torch.ones(()).expand(out.shape)
    one = backward(spread, *inputs, mean, rstd, True, True, True, True)
    other = backward(torch.ones(out.shape), *inputs, mean, rstd, True, True, True, True)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_addresses_have_64_bits(emulated: Any) -> None:
    far = torch.empty((1 << 31) + 64, dtype=torch.bfloat16)
    x = far.as_strided((2, 32), ((1 << 31) + 32, 1))
    x.copy_(torch.randn(2, 32))
    table = torch.ones(32)
    for one, other in zip(
        emulated.conditional_layer_norm_forward(x, table, table, None, 1e-5, 0, True),
        emulated.conditional_layer_norm_forward(x.clone(), table, table, None, 1e-5, 0, True),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_nothing_to_do(emulated: Any) -> None:
    for shapes in ({"x": (0, 24), "scale": (24,)}, {"x": (3, 1, 24), "scale": (0, 24)}):
        case = make(**shapes)
        inputs = inputs_of(case)
        out, mean, rstd = emulated.conditional_layer_norm_forward(*inputs, 1e-5, 0, True)
        assert out.shape == case.call(plain).shape
        found = emulated.conditional_layer_norm_backward(
            torch.ones_like(out), *inputs, mean, rstd, True, True, True, False
        )
        assert all(not gradient.any() for gradient in found[:3])


def test_what_it_refuses(emulated: Any) -> None:
    forward = emulated.conditional_layer_norm_forward
    x, table = torch.randn(6, 24), torch.randn(24)
    with pytest.raises(RuntimeError, match=r"mtlfast: scale: expected last dimension 24"):
        forward(x, table[:3], table, None, 1e-5, 0, True)
    wide = torch.randn(2, 1025)
    with pytest.raises(RuntimeError, match=r"mtlfast: x: expected d <= 1024 on CUDA"):
        forward(wide, wide, wide, None, 1e-5, 0, True)
