"""What is mended in Triton's interpreter: bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from mtlfast.kernels.interpreter import from_bfloat16, to_bfloat16


def test_rounding_is_that_of_torch() -> None:
    x = torch.randn(10_000) * torch.logspace(-38, 38, 10_000)
    edges = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 255.5, 3.4e38, float("inf"), float("-inf")]
    x = torch.cat([x, torch.tensor(edges)])
    expected = x.bfloat16().float().numpy()
    assert np.array_equal(from_bfloat16(to_bfloat16(x.numpy())), expected)


def test_nan_stays_nan() -> None:
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], dtype=np.uint32)
    assert np.isnan(from_bfloat16(to_bfloat16(bits.view(np.float32)))).all()
