"""Where tests of GPU kernels run: on the GPU, or on CPU tensors through Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from mtlfast import _extension

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
BACKENDS = (
    *(("triton",) if importlib.util.find_spec("triton") else ()),
    *(("cuda",) if HAS_GPU and _extension.cuda_ops_available() else ()),
)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
