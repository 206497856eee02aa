"""Whole training steps of DTRN with each way to compute its transformer, with pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case
from .suite import cases_of, measure

STEM = "dtrn_training"


@pytest.mark.parametrize("case", cases_of(STEM, "training"))
@pytest.mark.parametrize("backend", ["fused", "batched", "ragged", "ragged_flat", "reference"])
def test_step(benchmark: Any, backend: str, case: Case) -> None:
    measure(benchmark, case, "training", backend)
