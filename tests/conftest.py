"""Makes tests/support importable from every test; without a GPU, Triton kernels are interpreted."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))

# Triton reads this when it is imported, which nothing has done yet.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
