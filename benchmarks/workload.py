"""What a worker needs to know of a stem to measure it."""

from __future__ import annotations

import shutil
from typing import Any, Protocol

from torch import Tensor

from mtlfast import ops

from .cases import Case, Mode
from .check import Verdict
from .flops import Work
from .timing import Variant

FUSED = "fused"
"""The backend that all others are baselines of."""


class Workload(Protocol):
    """A case with its inputs made, ready to run on any backend."""

    case: Case
    sets: int

    def backends(self, mode: Mode) -> tuple[str, ...]:
        """Names of all backends that make sense in this mode, FUSED first."""

    def unavailable(self, backend: str, mode: Mode) -> str:
        """Why a backend cannot run here; empty where it can."""

    def variant(self, backend: str, mode: Mode) -> Variant:
        """One call on the input set of a given number; returns what the call produced."""

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        """Judges what ``variant(backend, mode)(0)`` returned."""

    def work(self, mode: Mode) -> Work:
        """Operations and bytes of one call."""


def why_not_compiled(backend: str) -> str:
    """Why torch.compile cannot run here; empty where it can, and for backends without it."""
    if not backend.startswith("compiled") or shutil.which("g++") or shutil.which("clang++"):
        return ""
    return "torch.compile needs a C++ compiler"


def why_not_fused(chosen: ops.Explanation) -> str:
    """Why an op would run on the reference; empty where it runs fused."""
    return chosen.reason if chosen.backend == "reference" else ""


def held_bytes(result: Any) -> int:
    """Bytes of the tensors in ``result``: the outputs and gradients of a call."""
    if isinstance(result, Tensor):
        if result.is_sparse:
            return result._indices().nbytes + result._values().nbytes
        return result.nbytes
    if isinstance(result, dict):
        return sum(map(held_bytes, result.values()))
    if isinstance(result, (list, tuple)):
        return sum(map(held_bytes, result))
    return 0
