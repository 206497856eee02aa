"""The CUDA C++ sources, compiled as plain C++ that runs on CPU tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture(scope="session")
def emulated() -> Any:
    """``torch.ops`` of the emulated library."""
    sys.path.insert(0, str(CSRC))
    import native_build

    torch.ops.load_library(str(native_build.emulate()))
    return torch.ops.mtlfast_emulated
