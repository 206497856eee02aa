"""Where tests of GPU kernels run: on the GPU, or on CPU tensors through Triton's interpreter."""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from interest_cases import Case
from torch import Tensor

from mtlfast import _extension
from mtlfast.ops._backend import interpreting

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
BACKENDS = (
    *(("triton",) if importlib.util.find_spec("triton") else ()),
    *(("cuda",) if HAS_GPU and _extension.cuda_ops_available() else ()),
)


def opcheck(op: Any, arguments: tuple[Any, ...]) -> None:
    """``torch.library.opcheck``; torch's helpers behind it import expecttest without a need."""
    try:
        import expecttest  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stand_in
    torch.library.opcheck(op, arguments)


def assert_same_for_any_strides(found: Tensor, expected: Tensor, backend: str, name: str) -> None:
    """The same bits, where the same machine code has run: Triton compiles kernels anew for rows
    that start at multiples of 16 bytes, and their sums then have another order."""
    if backend == "triton" and not interpreting():
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)
    else:
        assert torch.equal(found, expected), name


def on_device(case: Case) -> Case:
    """A case of ``conditional_interest`` where the kernels run."""
    tensors = {n: t.detach().to(DEVICE).requires_grad_() for n, t in case.tensors.items()}
    users = None if case.user_index is None else case.user_index.to(DEVICE)
    return replace(case, tensors=tensors, offsets=case.offsets.to(DEVICE), user_index=users)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
