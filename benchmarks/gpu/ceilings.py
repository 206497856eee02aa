"""Two limits of this device, measured beside the cases: matrix products and memory."""

from __future__ import annotations

from typing import Any

import torch

from .graphs import synchronize
from .timing import seconds_per_call


def measure(device: str) -> dict[str, Any]:
    """TFLOP/s of large square matrix products by dtype, and GB/s of a copy (read plus written)."""
    size = 8192 if device == "cuda" else 256
    found: dict[str, Any] = {"matmul_size": size, "tflops": {}}
    for dtype in ("float32", "bfloat16"):
        a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        b = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        out = torch.empty_like(a)
        spent = seconds_per_call(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)
        found["tflops"][dtype] = 2.0 * size**3 / spent / 1e12
    numbers = (1 << 30) if device == "cuda" else (1 << 20)
    source = torch.randn(numbers // 4, device=device)
    target = torch.empty_like(source)
    spent = seconds_per_call(lambda: target.copy_(source), device)
    found["gbs"] = 2.0 * source.nbytes / spent / 1e9
    synchronize(device)
    return found
