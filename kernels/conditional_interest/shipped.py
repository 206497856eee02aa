"""The configurations that are compiled ahead of time: those that launches would use.

The launches themselves are asked, on tensors without data, with a recorder in place of the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..aot import AotCase
from .launch_backward import backward
from .launch_forward import forward

_WIDTHS = ((16, 2), (32, 2), (64, 4), (128, 4), (128, 8))  # d, heads; d_f = 4 d
_PRODUCTS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
# Kernels that index by user have two forms: one candidate per user, and any number.
_TASKS, _BEHAVIORS, _USERS, _TOKENS = 4, 5, 64, 1000


def cases(capability: int) -> list[AotCase]:
    found: dict[str, AotCase] = {}
    for d, heads in _WIDTHS:
        for products in _PRODUCTS:
            for shared in (False, True):
                if shared and (d, products) != (32, "bfloat16"):
                    continue
                with _torch_asked_for(products):
                    for case in _cases(d, heads, products, shared, capability):
                        found[case.name] = case
    return list(found.values())


@contextmanager
def _torch_asked_for(products: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if products == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _cases(d: int, heads: int, products: str, shared: bool, capability: int) -> list[AotCase]:
    recorded: list[AotCase] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        suffix = "/shared" if shared and constants.get("SHARED") else ""
        if shared and not suffix:
            return
        if products == "tf32" and constants.get("PRECISION") != "tf32":
            return  # has no products: the form that "float32" has
        of_many = f"/h{heads}" if d > 64 else ""
        name = f"{kernel.fn.__name__}/d{d}{of_many}/{products}{suffix}"
        recorded.append(_case(name, kernel, arguments, constants))

    def empty(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    io, d_f = _PRODUCTS[products], 4 * d
    layer = [empty(d, d)] * 4 + [empty(d_f, d), empty(d_f), empty(d, d_f), empty(d)]
    table = empty(_TASKS, _BEHAVIORS, 4, d)
    inputs = (
        empty(_TOKENS, d, kind=io),
        empty(_BEHAVIORS * _USERS + 1, kind=torch.int64),
        _BEHAVIORS,
        empty(_USERS, d, kind=io),
        empty(_USERS, kind=torch.int64) if shared else None,
        [*layer, *layer, table, table],
        heads,
        1e-5,
    )
    out, *saved = forward(*inputs, run=record, capability=capability)
    backward(out, *inputs, saved, run=record, capability=capability)
    return recorded


def _case(name: str, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> AotCase:
    constants = dict(constants)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    signature: dict[str, str] = {}
    divisible = []
    for parameter, value in zip(kernel.params, arguments, strict=False):
        specialized = not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            divisible.append(parameter.name)
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and specialized:
            constants[parameter.name] = 1
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and specialized:
                divisible.append(parameter.name)
    return AotCase(name, kernel, signature, constants, tuple(divisible), **options)
