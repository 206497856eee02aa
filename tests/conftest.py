"""Makes tests/support importable from every test; without a GPU, Triton kernels are interpreted."""

import importlib.util
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))

# Triton reads this when it is imported, which nothing has done yet.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A checkout that was never installed has its kernels beside the package, not in it.
if importlib.util.find_spec("mtlfast.kernels") is None:
    sys.path.append(str(Path(__file__).parents[1]))
    importlib.import_module("benchmarks.kernel_package").kernels_package()
