"""Whole training steps of DTN against a plain loop of torch modules, with pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case
from .suite import cases_of, measure

STEM = "dtn_training"


@pytest.mark.parametrize("case", cases_of(STEM, "training"))
@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_step(benchmark: Any, backend: str, case: Case) -> None:
    measure(benchmark, case, "training", backend)
