"""Inputs of ``conditional_layer_norm``, and what plain PyTorch makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from leaves import expanded
from torch import Tensor
from torch.nn.functional import layer_norm

NAMES = ("x", "scale", "shift", "residual")
HALF = (torch.bfloat16, torch.float16)
# Widths with and without a kernel of their own, multiples of the vector length and not.
WIDTHS = (1, 2, 3, 8, 16, 17, 24, 32, 40, 48, 64, 72, 100, 128, 200, 256, 513, 1024)


def plain(
    x: Tensor, scale: Tensor, shift: Tensor, *, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """What one writes without this package."""
    u = x if residual is None else x + residual
    return scale * layer_norm(u, (u.shape[-1],), eps=eps) + shift


@dataclass
class Case:
    """Leaves that require gradients; ``residual`` may be missing."""

    tensors: dict[str, Tensor]
    eps: float = 1e-5

    def call(self, function: Callable[..., Tensor], **options: Any) -> Tensor:
        return function(**self.tensors, eps=self.eps, **options)

    def to(self, dtype: torch.dtype) -> Case:
        leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in self.tensors.items()}
        return Case(leaves, self.eps)

    def gradients(self, out: Tensor, upstream: Tensor, **options: Any) -> dict[str, Tensor]:
        found = torch.autograd.grad(out, list(self.tensors.values()), upstream, **options)
        return dict(zip(self.tensors, found, strict=True))


def make(
    x: tuple[int, ...],
    scale: tuple[int, ...],
    shift: tuple[int, ...] | None = None,
    residual: tuple[int, ...] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    offset: float = 0.0,
) -> Case:
    """Normal inputs of the given shapes; ``offset`` is added to ``x``."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(shape: tuple[int, ...], mean: float) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) + mean
        return values.to(dtype).requires_grad_()

    tensors = {"x": leaf(x, offset), "scale": leaf(scale, 1.0), "shift": leaf(shift or scale, 0.0)}
    if residual is not None:
        tensors["residual"] = leaf(residual, 0.0)
    return Case(tensors)


def fuzz(seed: int, dtype: torch.dtype = torch.float32) -> Case:
    """Random leading dimensions, present, broadcast or expanded in each input; sometimes empty."""
    source = random.Random(seed)
    longest = source.choice((3, 8, 70, 300))
    full = [source.randint(1, longest) for _ in range(source.randint(0, 4))]
    while torch.Size(full).numel() > 3000:
        full[source.randrange(len(full))] = source.randint(1, 3)
    if full and source.random() < 0.1:
        full[source.randrange(len(full))] = 0
    d = source.choice([width for width in WIDTHS if width * torch.Size(full).numel() < 300_000])

    def shape() -> tuple[int, ...]:
        present = source.random()
        sizes = [size if source.random() < present + 0.3 else 1 for size in full]
        while sizes and sizes[0] == 1 and source.random() < 0.5:
            del sizes[0]
        return (*sizes, d)

    residual = shape() if source.random() < 0.5 else None
    case = make(shape(), shape(), shape(), residual, dtype=dtype, seed=seed)
    for name, t in case.tensors.items():
        if t.dim() > 1 and source.random() < 0.2:
            case.tensors[name] = expanded(t, source.randrange(t.dim() - 1))
    return case
