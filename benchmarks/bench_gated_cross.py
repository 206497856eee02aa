"""``gated_cross`` against its baselines, with pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case
from .suite import cases_of, measure

BACKENDS = ("fused", "eager", "modules", "compiled", "reference")
STEM = "gated_cross"


@pytest.mark.parametrize("case", cases_of(STEM, "forward"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward(benchmark: Any, backend: str, case: Case) -> None:
    measure(benchmark, case, "forward", backend)


@pytest.mark.parametrize("case", cases_of(STEM, "training"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_training(benchmark: Any, backend: str, case: Case) -> None:
    measure(benchmark, case, "training", backend)
